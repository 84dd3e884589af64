/* Whole steps on the device against the CPU backend, over the shapes and kinds of tenants that
 * break kernels; the same rows in any batch, bit for bit; what begin refuses; a device that
 * breaks. */
#include <math.h>

#include "tests/gpu/gpu.h"

/* dim, heads, kv heads, head dim, ffn, vocab, window */
static const int32_t shapes[][7] = {
    {256, 4, 2, 64, 768, 100, 0},
    {40, 4, 1, 40, 300, 77, 0},
    {304, 8, 1, 128, 272, 65, 7},
    {512, 2, 2, 96, 40, 50, 33},
};
enum { N_SHAPES = 4, TEXT = 200, N_TOP = 4 };

static int32_t text[M_TENANTS][TEXT];
static struct model m, gm;
static struct model_step a, b;

static void setup(struct kernels **gpu, int32_t shape) {
    unsigned random = 5;
    model_make(&m, shapes[shape]);
    m.tenant[6].tied = false; /* a delta of a tied embedding, the base's untied: the CPU's alone */
    m.tenant[2].tied = shape % 2; /* the base's embedding, and larger logits */
    gpu_open(gpu, &m, M_MAX_ROWS, &gm);
    for (int32_t i = 0; i < M_TENANTS; i++)
        for (int32_t j = 0; j < TEXT; j++)
            text[i][j] = (int32_t)(test_random(&random) % (unsigned)m.tenant[i].vocab);
}

/* Log-probabilities agree, and the tokens unless their margin is as small. */
static double check_rows(const struct model_step *got, const struct model_step *want,
                         double tolerance, const char *what) {
    double worst = 0;
    for (int32_t i = 0; i < want->step.n_logits; i++) {
        const struct sampled *g = &got->sampled[i], *w = &want->sampled[i];
        CHECK(g->finite && w->finite);
        CHECK_EQ(g->n_top, w->n_top);
        for (int32_t j = 0; j < w->n_top; j++) {
            double off = fabs((double)g->top_logprob[j] - (double)w->top_logprob[j]);
            worst = off > worst ? off : worst;
            if (!(off <= tolerance))
                test_fail(__FILE__, __LINE__, "%s: row %d, alternative %d: %.6f, the CPU has %.6f",
                          what, i, j, (double)g->top_logprob[j], (double)w->top_logprob[j]);
        }
        double margin = (double)w->top_logprob[0] - (double)w->top_logprob[1];
        CHECK(g->token == w->token || margin < 2 * tolerance);
    }
    return worst;
}

static double both(struct kernels *gpu, struct kernels *cpu, const struct model_seq *seq, int32_t n,
                   double tolerance, const char *what) {
    model_step_fill(&a, &gm, seq, n, N_TOP);
    model_run(gpu, &gm, &a);
    model_step_fill(&b, &m, seq, n, N_TOP);
    model_run(cpu, &m, &b);
    return check_rows(&a, &b, tolerance, what);
}

static const int32_t length[M_TENANTS] = {1, 17, 2, 5, 3, 40, 20};

static void check_shape(int32_t shape) {
    struct kernels *gpu, *cpu;
    struct model_seq seq[M_TENANTS];
    setup(&gpu, shape);
    model_open(&cpu, &m, NULL, 2);
    for (int32_t i = 0; i < M_TENANTS; i++)
        seq[i] = (struct model_seq){i, i, 0, length[i], text[i]};
    double first = both(gpu, cpu, seq, M_TENANTS, 4e-3, "prompts");
    for (int32_t at = 0; at < 12; at++) {
        for (int32_t i = 0; i < M_TENANTS; i++)
            seq[i] = (struct model_seq){i, i, length[i] + at, 1, text[i]};
        both(gpu, cpu, seq, M_TENANTS, 4e-3, "decode");
    }
    printf("shape %d: worst log-probability of the prompts off by %.1e\n", shape, first);
    fflush(stdout);
    gpu->ops->close(gpu);
    cpu->ops->close(cpu);
}

TEST(gpu_steps_of_all_kinds_of_tenants_equal_the_cpus) {
    check_shape(0);
}
TEST(gpu_steps_with_odd_sizes_equal_the_cpus) {
    check_shape(1);
}
TEST(gpu_steps_with_a_window_and_shared_heads_equal_the_cpus) {
    check_shape(2);
}
TEST(gpu_steps_with_wide_rows_and_a_narrow_ffn_equal_the_cpus) {
    check_shape(3);
}

/* One prompt of 90 rows at once (wide), beside narrow rows, for each tenant; then decode on it. */
TEST(gpu_wide_prompts_beside_narrow_rows_stay_near_the_cpu) {
    struct kernels *gpu, *cpu;
    double worst = 0;
    setup(&gpu, 0);
    model_open(&cpu, &m, NULL, 2);
    for (int32_t i = 0; i < M_TENANTS; i++) {
        struct model_seq seq[2] = {{i, 0, 0, 90, text[i]}, {i, 1, 0, 3, text[i]}};
        worst = fmax(worst, both(gpu, cpu, seq, 2, 2e-2, "wide"));
        for (int32_t at = 90; at < 94; at++) {
            seq[0] = (struct model_seq){i, 0, at, 1, text[i]};
            worst = fmax(worst, both(gpu, cpu, seq, 1, 2e-2, "decode after wide"));
        }
    }
    printf("worst log-probability of wide rows off by %.1e\n", worst);
    fflush(stdout);
}

/* ---- the same bits in any batch -------------------------------------------------------------- */

enum { SLOTS = 8, LAST = 120 };
static struct sampled alone[SLOTS][LAST];

static bool same(const struct sampled *x, const struct sampled *y) {
    return x->token == y->token && x->finite == y->finite &&
           memcmp(&x->logprob, &y->logprob, sizeof x->logprob) == 0 && x->n_top == y->n_top &&
           memcmp(x->top_id, y->top_id, (size_t)x->n_top * sizeof *x->top_id) == 0 &&
           memcmp(x->top_logprob, y->top_logprob, (size_t)x->n_top * sizeof *x->top_logprob) == 0;
}

/* Slot i is a sequence of tenant i % M_TENANTS, two of tenant 0. First each alone, row by row; then
 * random sets of slots, each with a random number of its next rows. */
TEST_LIMIT(gpu_rows_have_the_same_bits_in_a_thousand_random_batches, 300) {
    struct kernels *gpu;
    int32_t at[SLOTS] = {0}, tenant[SLOTS], n_rows = 0;
    unsigned random = 77;
    setup(&gpu, 0);
    for (int32_t i = 0; i < SLOTS; i++) { /* ascending: rows of a tenant stand together */
        tenant[i] = i < 1 ? 0 : i - 1;
        for (int32_t p = 0; p < LAST; p++) {
            struct model_seq seq = {tenant[i], i, p, 1, text[tenant[i]]};
            model_step_fill(&a, &gm, &seq, 1, N_TOP);
            model_run(gpu, &gm, &a);
            alone[i][p] = a.sampled[0];
        }
    }
    for (int32_t batch = 0; batch < 1000; batch++) {
        struct model_seq seq[SLOTS];
        int32_t n = 0, of[SLOTS];
        for (int32_t i = 0; i < SLOTS; i++) {
            int32_t most = LAST - at[i], rows = 1 + (int32_t)(test_random(&random) % 10);
            if (test_random(&random) % 3 == 0)
                continue;
            rows = test_random(&random) % 4 ? 1 : rows < most ? rows : most;
            of[n] = i;
            seq[n++] = (struct model_seq){tenant[i], i, at[i], rows, text[tenant[i]]};
            at[i] = (at[i] + rows) % LAST;
        }
        if (!n)
            continue;
        model_step_fill(&a, &gm, seq, n, N_TOP);
        model_run(gpu, &gm, &a);
        for (int32_t i = 0, row = 0; i < n; i++)
            for (int32_t r = 0; r < seq[i].n; r++, row++, n_rows++)
                if (!same(&a.sampled[row], &alone[of[i]][seq[i].position + r]))
                    test_fail(__FILE__, __LINE__,
                              "batch %d: slot %d at position %d has other bits: %a, alone %a",
                              batch, of[i], seq[i].position + r, (double)a.sampled[row].logprob,
                              (double)alone[of[i]][seq[i].position + r].logprob);
    }
    printf("1000 batches, %d rows: no bit differs\n", n_rows);
    fflush(stdout);
}

/* ---- refusals and faults --------------------------------------------------------------------- */

TEST(gpu_begin_refuses_what_the_cpu_refuses) {
    struct kernels *k;
    setup(&k, 0);
    struct model_seq seq = {1, 0, 0, 3, text[1]};
    model_step_fill(&a, &gm, &seq, 1, 0);
    a.token[1] = gm.tenant[1].vocab;
    CHECK_EQ(k->ops->begin(k, &a.step), E_TOKEN_RANGE);
    a.token[1] = 0;
    a.seq[0].position = gm.tenant[1].context - 2;
    CHECK_EQ(k->ops->begin(k, &a.step), E_CONTEXT);
    a.seq[0].position = 0;
    a.group[0].n = 2;
    CHECK_EQ(k->ops->begin(k, &a.step), E_INVAL);
    a.group[0].n = 3;
    a.pages[0][0] = M_MAX_PAGES;
    CHECK_EQ(k->ops->begin(k, &a.step), E_INVAL);
    a.pages[0][0] = 3;
    a.step.n_rows = M_MAX_ROWS + 1;
    CHECK_EQ(k->ops->begin(k, &a.step), E_INVAL);
    model_step_fill(&a, &m, &seq, 1, 0); /* tenants that are not bound */
    CHECK_EQ(k->ops->begin(k, &a.step), E_INVAL);
    model_step_fill(&a, &gm, &seq, 1, 0);
    model_run(k, &gm, &a); /* and it still runs */
    CHECK(a.sampled[0].finite);
}

/* A tenant whose signs lie nowhere: the card faults, and stays out of use. */
TEST(gpu_a_fault_of_the_device_is_sticky_and_never_an_answer) {
    struct kernels *k;
    struct why why = {""};
    setup(&k, 0);
    struct tenant_weights broken = gm.tenant[1];
    for (int32_t i = 0; i < m.shape.n_layers * N_PARTS; i++)
        broken.delta[i].plane[0].bits = (const uint32_t *)(uintptr_t)0x100;
    CHECK_OK(k->ops->bind_tenant(k, &broken, &why), why);
    gm.tenant[1] = broken;
    struct model_seq seq = {1, 0, 0, 3, text[1]};
    model_step_fill(&a, &gm, &seq, 1, 0);
    const struct kernels_ops *o = k->ops;
    a.sampled[0].token = -7;
    err_t e = o->begin(k, &a.step);
    if (!e)
        e = o->end(k);
    CHECK_EQ(e, E_DEVICE);
    CHECK_EQ(a.sampled[0].token, -7);
    CHECK_EQ(o->begin(k, &a.step), E_DEVICE);
    o->close(k);
}
