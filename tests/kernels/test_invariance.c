/* What a row computes depends on that row alone: never on the batch, the chunks of its prompt, the
 * number of threads, what memory held before, or another tenant's broken weights. Bit for bit. */
#include <math.h>

#include "kernels/f16.h"
#include "tests/kernels/model.h"

static const int32_t shape[7] = {256, 4, 2, 64, 300, 90, 40};
static int32_t text[M_TENANTS][200];
static struct model m;

static void setup(void) {
    unsigned random = 9;
    model_make(&m, shape);
    for (int32_t i = 0; i < M_TENANTS; i++)
        for (int32_t j = 0; j < 200; j++)
            text[i][j] = (int32_t)(test_random(&random) % (unsigned)m.tenant[i].vocab);
}

/* All results of rows first .. of a step, to compare by bits. */
struct result {
    struct sampled sampled[M_MAX_ROWS];
    float h[M_MAX_ROWS][256];
};

static void keep(const struct kernels *k, const struct model_step *s, int32_t from, int32_t n,
                 struct result *r, int32_t at) {
    const struct cpu *c = (const struct cpu *)k;
    for (int32_t i = 0; i < n; i++) {
        r->sampled[at + i] = s->sampled[from + i];
        memcpy(r->h[at + i], c->h + (size_t)(from + i) * c->ld_h, sizeof r->h[0]);
    }
}

static void check_equal(const struct result *a, const struct result *b, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        CHECK_EQ(a->sampled[i].token, b->sampled[i].token);
        CHECK(a->sampled[i].finite && b->sampled[i].finite);
        for (int32_t j = 0; j < 256; j++)
            if (memcmp(&a->h[i][j], &b->h[i][j], 4) != 0)
                test_fail(__FILE__, __LINE__, "row %d: h[%d] is %a in one run, %a in the other", i,
                          j, (double)a->h[i][j], (double)b->h[i][j]);
        CHECK_EQ(memcmp(&a->sampled[i].logprob, &b->sampled[i].logprob, 4), 0);
        CHECK_EQ(memcmp(a->sampled[i].top_logprob, b->sampled[i].top_logprob,
                        sizeof a->sampled[i].top_logprob),
                 0);
    }
}

/* Activations and KV pages full of NaN: whatever is read before it is written shows. */
static void poison(struct kernels *k) {
    struct cpu *c = cpu_of(k);
    size_t rows = (size_t)c->max_rows;
    memset(c->h, 0xff, rows * c->ld_h * 4);
    memset(c->x, 0xff, rows * c->ld_h * 4);
    memset(c->qkv, 0xff, rows * c->ld_qkv * 4);
    memset(c->ctx, 0xff, rows * c->ld_ctx * 4);
    memset(c->gate_up, 0xff, rows * c->ld_gate_up * 4);
    memset(c->act, 0xff, rows * c->ld_act * 4);
    memset(c->logits, 0xff, (size_t)c->logit_rows * c->ld_logits * 4);
    for (int32_t i = 0; i < pool_threads(c->pool); i++)
        memset(c->scratch[i].delta, 0xff, (size_t)DELTA_PLANES * DELTA_ROWS * UNIT_ROWS * 4);
    memset(c->kv, 0xff, c->kv_bytes);
}

/* The whole prompts of all tenants, then one token each: rows in the order of tenants. */
static const int32_t length[M_TENANTS] = {1, 17, 2, 5, 3, 40, 20};

static void run_all(struct kernels *k, struct result *r) {
    static struct model_step s;
    struct model_seq seq[M_TENANTS];
    poison(k);
    for (int32_t i = 0; i < M_TENANTS; i++)
        seq[i] = (struct model_seq){i, i, 0, length[i], text[i]};
    model_step_fill(&s, &m, seq, M_TENANTS, 5);
    model_run(k, &m, &s);
    keep(k, &s, 0, 88, r, 0);
    for (int32_t i = 0; i < M_TENANTS; i++)
        seq[i] = (struct model_seq){i, i, length[i], 1, text[i]};
    model_step_fill(&s, &m, seq, M_TENANTS, 5);
    model_run(k, &m, &s);
    keep(k, &s, 0, M_TENANTS, r, 88);
}

/* The same rows, one sequence a step, chunks of at most `chunk` tokens. */
static void run_alone(struct kernels *k, int32_t chunk, struct result *r) {
    static struct model_step s;
    int32_t row = 0;
    for (int32_t i = 0; i < M_TENANTS; i++, row += length[i - 1]) {
        poison(k);
        for (int32_t at = 0; at <= length[i]; at += chunk) {
            int32_t n = length[i] - at < chunk ? length[i] - at : chunk;
            struct model_seq seq = {i, i, at, n, text[i]};
            if (n == 0)
                break;
            model_step_fill(&s, &m, &seq, 1, 5);
            model_run(k, &m, &s);
            keep(k, &s, 0, n, r, row + at);
        }
        struct model_seq seq = {i, i, length[i], 1, text[i]};
        model_step_fill(&s, &m, &seq, 1, 5);
        model_run(k, &m, &s);
        keep(k, &s, 0, 1, r, 88 + i);
    }
}

static struct result first, other;

TEST(kernels_a_batch_equals_its_rows_alone_bit_for_bit) {
    const struct isa *isa[M_ISAS];
    int32_t n = model_isas(isa);
    setup();
    for (int32_t i = 0; i < n; i++) {
        struct kernels *k;
        model_open(&k, &m, isa[i], 2);
        run_all(k, &first);
        run_alone(k, 1000, &other);
        check_equal(&first, &other, 88 + M_TENANTS);
        k->ops->close(k);
    }
}

TEST(kernels_a_prompt_in_chunks_equals_the_whole_prompt_bit_for_bit) {
    const struct isa *isa[M_ISAS];
    int32_t n = model_isas(isa);
    setup();
    for (int32_t i = 0; i < n; i++) {
        struct kernels *k;
        model_open(&k, &m, isa[i], 2);
        run_alone(k, 1000, &first);
        static const int32_t chunk[] = {1, 13, 32};
        for (int32_t j = 0; j < 3; j++) {
            run_alone(k, chunk[j], &other);
            check_equal(&first, &other, 88 + M_TENANTS);
        }
        k->ops->close(k);
    }
}

TEST(kernels_results_do_not_depend_on_the_number_of_threads_or_the_run) {
    setup();
    for (int32_t threads = 1; threads <= 5; threads++) {
        struct kernels *k;
        model_open(&k, &m, NULL, threads);
        run_all(k, threads == 1 ? &first : &other);
        if (threads > 1)
            check_equal(&first, &other, 88 + M_TENANTS);
        run_all(k, &other);
        check_equal(&first, &other, 88 + M_TENANTS);
        k->ops->close(k);
    }
}

/* The sets with fused multiply-add do the same sixteen-lane sums and the same integers. */
TEST(kernels_avx2_avx512_and_amx_agree_bit_for_bit) {
    const struct isa *isa[M_ISAS];
    int32_t n = model_isas(isa);
    if (n < 3)
        test_skip("this machine lacks AVX-512 or AVX2");
    setup();
    for (int32_t i = 1; i < n; i++) { /* 0 is plain C, which rounds twice */
        struct kernels *k;
        model_open(&k, &m, isa[i], 2);
        run_all(k, i > 1 ? &other : &first);
        if (i > 1)
            check_equal(&first, &other, 88 + M_TENANTS);
        k->ops->close(k);
    }
}

/* One row per tenant; `broken` must be the only one that is not finite, the rest keep their bits.
 */
static void check_only_broken(struct kernels *k, int32_t broken) {
    static struct model_step s;
    struct model_seq seq[M_TENANTS];
    for (int32_t i = 0; i < M_TENANTS; i++)
        seq[i] = (struct model_seq){i, i, 0, 1, text[i]};
    model_step_fill(&s, &m, seq, M_TENANTS, 5);
    model_run(k, &m, &s);
    for (int32_t i = 0; i < M_TENANTS; i++)
        CHECK_EQ(s.sampled[i].finite, i != broken);
    if (broken < 0)
        keep(k, &s, 0, M_TENANTS, &first, 0);
    keep(k, &s, 0, M_TENANTS, &other, 0);
    if (broken >= 0) { /* compare the others */
        other.sampled[broken] = first.sampled[broken];
        memcpy(other.h[broken], first.h[broken], sizeof first.h[0]);
    }
    check_equal(&first, &other, M_TENANTS);
}

TEST(kernels_broken_weights_of_a_tenant_end_its_own_rows_only) {
    struct kernels *k;
    setup();
    model_open(&k, &m, NULL, 2);
    check_only_broken(k, -1);
    float *row = (float *)(uintptr_t)m.tenant[1].delta[PART_GATE].plane[0].row;
    float *col = (float *)(uintptr_t)m.tenant[2].delta[PART_V].plane[1].col;
    uint16_t *a = (uint16_t *)(uintptr_t)m.tenant[3].delta[PART_DOWN].a;
    uint16_t *dense = (uint16_t *)(uintptr_t)m.tenant[4].delta[PART_Q].dense;
    float *norm = (float *)(uintptr_t)m.tenant[6].norm;
    float f;
    uint16_t h;
    f = row[17], row[17] = NAN;
    check_only_broken(k, 1);
    row[17] = f;
    f = col[255], col[255] = INFINITY;
    check_only_broken(k, 2);
    col[255] = f;
    h = a[7], a[7] = 0x7c00;
    check_only_broken(k, 3);
    a[7] = h;
    for (int32_t i = 0; i < 256; i++) /* one query row: scores of one head */
        dense[i] = 0x7e00;
    check_only_broken(k, 4);
    for (int32_t i = 0; i < 256; i++)
        dense[i] = 0;
    f = norm[3], norm[3] = -NAN;
    check_only_broken(k, 6);
    norm[3] = f;
    k->ops->close(k);
}

TEST(kernels_a_broken_token_leaves_the_tokens_before_it_alone) {
    static struct model_step s;
    struct kernels *k;
    setup();
    model_open(&k, &m, NULL, 2);
    struct model_seq seq = {5, 0, 0, 40, text[5]};
    for (int32_t broken = 0; broken < 2; broken++) {
        if (broken) /* the last token's embedding, which no earlier token shares */
            for (int32_t j = 0; j < 39; j++)
                if (text[5][j] == text[5][39])
                    text[5][j] = (text[5][39] + 1) % 90;
        model_step_fill(&s, &m, &seq, 1, 5);
        if (broken)
            ((uint16_t *)(uintptr_t)m.tenant[5].embed.dense)[text[5][39] * 256] = 0x7e00;
        poison(k);
        model_run(k, &m, &s);
        for (int32_t i = 0; i < 40; i++)
            CHECK_EQ(s.sampled[i].finite, !broken || i < 39);
    }
    k->ops->close(k);
}

TEST(kernels_refuse_a_step_that_does_not_fit) {
    static struct model_step s;
    struct kernels *k;
    setup();
    model_open(&k, &m, NULL, 1);
    struct model_seq seq = {1, 0, 0, 3, text[1]};
    model_step_fill(&s, &m, &seq, 1, 0);
    s.token[1] = m.tenant[1].vocab;
    CHECK_EQ(k->ops->begin(k, &s.step), E_TOKEN_RANGE);
    s.token[1] = -1;
    CHECK_EQ(k->ops->begin(k, &s.step), E_TOKEN_RANGE);
    s.token[1] = 0;
    s.seq[0].position = m.tenant[1].context - 2;
    CHECK_EQ(k->ops->begin(k, &s.step), E_CONTEXT);
    s.seq[0].position = 0;
    s.group[0].n = 2;
    CHECK_EQ(k->ops->begin(k, &s.step), E_INVAL);
    s.group[0].n = 3;
    s.step.n_rows = M_MAX_ROWS + 1;
    CHECK_EQ(k->ops->begin(k, &s.step), E_INVAL);
    s.step.n_rows = 3;
    m.tenant[1].delta[PART_O].rank = 100000;
    struct why why = {""};
    CHECK_EQ(k->ops->bind_tenant(k, &m.tenant[1], &why), E_UNSUPPORTED);
    CHECK_HAS(why.text, "ranks");
    m.tenant[1].delta[PART_O].rank = 0;
    CHECK_EQ(k->ops->bind_tenant(k, &m.tenant[1], &why), 0);
    CHECK_EQ(k->ops->begin(k, &s.step), 0);
    k->ops->close(k);
}
