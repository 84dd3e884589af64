/* Every operator of a step against double precision, on the operator's own inputs, for every
 * instruction set, over the shapes that break kernels: rows and columns that are no multiple of 16
 * or 256, one row, many rows, several tenants of every kind, grouped heads, odd head sizes,
 * windows. */
#include <math.h>

#include "kernels/f16.h"
#include "tests/kernels/model.h"

/* Relative to the sum of magnitudes of a product: FP32 sums of fp16 x FP32 products. */
#define SUM_TOLERANCE 1e-6
/* What rounding x to 15 bits (kernels/delta.h) may do to a sum of planes: x is off by a uniform
 * error of +-s/2, s <= max|x| 2^-14; six standard deviations of the sum, with scales up to 0.02. */
static double plane_tolerance(int32_t n_planes, int32_t cols, double max_x) {
    return 6 * 0.02 * sqrt((double)n_planes * cols / 12) * max_x * 0x1p-14;
}

/* dim, heads, kv heads, head dim, ffn, vocab, window */
static const int32_t shapes[][7] = {
    {256, 4, 2, 64, 768, 100, 0},
    {40, 4, 1, 40, 300, 77, 0},
    {300, 8, 1, 128, 272, 65, 7},
    {512, 2, 2, 96, 40, 50, 33},
};

static int32_t text[M_TENANTS][200];

static void make_text(const struct model *m) {
    unsigned random = 5;
    for (int32_t i = 0; i < M_TENANTS; i++)
        for (int32_t j = 0; j < 200; j++)
            text[i][j] = (int32_t)(test_random(&random) % (unsigned)m->tenant[i].vocab);
}

static int32_t tenant_of(const struct model *m, const struct model_step *s, int32_t row) {
    int32_t g = 0;
    while (row >= s->group[g].first + s->group[g].n)
        g++;
    return (int32_t)(s->group[g].tenant - m->tenant);
}

static void check_embed(const struct model *m, const struct cpu *c, const struct model_step *s) {
    for (int32_t row = 0; row < s->step.n_rows; row++)
        for (int32_t k = 0; k < m->shape.dim; k++)
            CHECK_NEAR((double)c->h[(size_t)row * c->ld_h + (size_t)k],
                       model_vocab_weight(m, tenant_of(m, s, row), false, s->token[row], k), 1e-7,
                       1e-6);
}

static void check_norm(const struct model *m, const struct cpu *c, const struct model_step *s,
                       int32_t which) {
    for (int32_t row = 0; row < s->step.n_rows; row++) {
        const float *h = c->h + (size_t)row * c->ld_h, *x = c->x + (size_t)row * c->ld_h;
        const struct tenant_weights *t = &m->tenant[tenant_of(m, s, row)];
        const float *w = t->norm + which * m->shape.dim;
        double sum = 0;
        for (int32_t k = 0; k < m->shape.dim; k++)
            sum += (double)h[k] * (double)h[k];
        for (int32_t k = 0; k < m->shape.dim; k++)
            CHECK_NEAR((double)x[k],
                       (double)h[k] * (double)w[k] / sqrt(sum / m->shape.dim + (double)t->norm_eps),
                       1e-9, 1e-6);
    }
}

/* before: what the output held (for O and DOWN), else NULL. */
static void check_linear(const struct model *m, const struct model_step *s, int32_t layer,
                         enum linear which, const float *x, size_t ldx, const float *out,
                         size_t ldo, const float *before) {
    int32_t out0 = 0;
    for (int32_t i = 0; i < linear_n_parts(which); i++) {
        enum part part = linear_first_part(which) + (enum part)i;
        int32_t n_out = part_rows(&m->shape, part), cols = part_cols(&m->shape, part);
        for (int32_t row = 0; row < s->step.n_rows; row += 1 + row % 3) {
            const float *xr = x + (size_t)row * ldx;
            const struct delta *d = m->tenant[tenant_of(m, s, row)].delta;
            int32_t n_planes = d ? d[layer * N_PARTS + (int32_t)part].n_planes : 0;
            double max_x = 0;
            for (int32_t k = 0; k < cols; k++)
                max_x = fmax(max_x, fabs((double)xr[k]));
            for (int32_t n = row % 2; n < n_out; n += 1 + (n + row) % 23) {
                size_t at = (size_t)row * ldo + (size_t)(out0 + n);
                double sum = before ? (double)before[at] : 0, magnitude = fabs(sum);
                for (int32_t k = 0; k < cols; k++) {
                    double p =
                        model_weight(m, tenant_of(m, s, row), layer, part, n, k) * (double)xr[k];
                    sum += p;
                    magnitude += fabs(p);
                }
                CHECK_NEAR((double)out[at], sum,
                           SUM_TOLERANCE * magnitude + plane_tolerance(n_planes, cols, max_x), 0);
            }
        }
        out0 += n_out;
    }
}

static void check_rope(const struct model *m, const struct cpu *c, const struct model_step *s,
                       int32_t layer, const float *before) {
    int32_t e = m->shape.head_dim, heads = m->shape.n_heads, kvs = m->shape.n_kv_heads;
    for (int32_t q = 0; q < s->step.n_seqs; q++)
        for (int32_t i = 0; i < s->seq[q].n; i++) {
            int32_t row = s->seq[q].first + i, pos = s->seq[q].position + i;
            const float *rope = m->tenant[tenant_of(m, s, row)].rope + pos * e;
            for (int32_t head = 0; head < heads + kvs; head++)
                for (int32_t j = 0; j < e; j++) {
                    size_t at = (size_t)row * c->ld_qkv + (size_t)(head * e);
                    int32_t pair = j < e / 2 ? j + e / 2 : j - e / 2, a = j % (e / 2);
                    double sign = j < e / 2 ? -1 : 1;
                    double want =
                        (double)before[at + (size_t)j] * (double)rope[2 * a] +
                        sign * (double)before[at + (size_t)pair] * (double)rope[2 * a + 1];
                    CHECK_NEAR((double)c->qkv[at + (size_t)j], want, 1e-6, 1e-6);
                    if (head < heads)
                        continue;
                    const float *page = kv_head(c, layer, head - heads) +
                                        (size_t)s->pages[q][pos / 32] * kv_page_stride(c);
                    CHECK(page[j * 32 + pos % 32] == c->qkv[at + (size_t)j]);
                    CHECK(page[32 * e + pos % 32 * kv_lanes(e) + j] ==
                          before[at + (size_t)(kvs * e + j)]);
                }
        }
}

static void check_attention(const struct model *m, const struct cpu *c, const struct model_step *s,
                            int32_t layer) {
    int32_t e = m->shape.head_dim, heads = m->shape.n_heads, group = heads / m->shape.n_kv_heads;
    for (int32_t q = 0; q < s->step.n_seqs; q++)
        for (int32_t i = 0; i < s->seq[q].n; i++)
            for (int32_t head = 0; head < heads; head++) {
                int32_t row = s->seq[q].first + i, pos = s->seq[q].position + i;
                int32_t window = m->tenant[tenant_of(m, s, row)].sliding_window;
                int32_t from = window > 0 && pos >= window ? pos - window + 1 : 0;
                const float *query = c->qkv + (size_t)row * c->ld_qkv + (size_t)(head * e);
                double score[256], max = -1e300, sum = 0;
                for (int32_t t = from; t <= pos; t++) {
                    const float *page = kv_head(c, layer, head / group) +
                                        (size_t)s->pages[q][t / 32] * kv_page_stride(c);
                    score[t] = 0;
                    for (int32_t j = 0; j < e; j++)
                        score[t] += (double)query[j] * (double)page[j * 32 + t % 32];
                    score[t] /= sqrt(e);
                    max = score[t] > max ? score[t] : max;
                }
                for (int32_t t = from; t <= pos; t++)
                    sum += score[t] = exp(score[t] - max);
                for (int32_t j = 0; j < e; j++) {
                    double want = 0;
                    for (int32_t t = from; t <= pos; t++)
                        want += score[t] / sum *
                                (double)(kv_head(c, layer, head / group) +
                                         (size_t)s->pages[q][t / 32] *
                                             kv_page_stride(c))[32 * e + t % 32 * kv_lanes(e) + j];
                    CHECK_NEAR((double)c->ctx[(size_t)row * c->ld_ctx + (size_t)(head * e + j)],
                               want, 3e-6, 3e-6);
                }
            }
}

static void check_swiglu(const struct model *m, const struct cpu *c, const struct model_step *s) {
    for (int32_t row = 0; row < s->step.n_rows; row++)
        for (int32_t i = 0; i < m->shape.ffn_dim; i++) {
            const float *gate = c->gate_up + (size_t)row * c->ld_gate_up + i;
            double g = (double)gate[0], up = (double)gate[m->shape.ffn_dim];
            CHECK_NEAR((double)c->act[(size_t)row * c->ld_act + (size_t)i], g / (1 + exp(-g)) * up,
                       1e-9, 1e-6);
        }
}

static void check_head(const struct model *m, const struct cpu *c, const struct model_step *s) {
    int32_t dim = m->shape.dim;
    for (int32_t row = 0; row < s->step.n_rows; row++) {
        int32_t tenant = tenant_of(m, s, row), vocab = m->tenant[tenant].vocab;
        const float *h = c->h + (size_t)row * c->ld_h;
        const float *w = m->tenant[tenant].norm + 2 * m->shape.n_layers * dim;
        double sum = 0, z[256], total = 0;
        for (int32_t k = 0; k < dim; k++)
            sum += (double)h[k] * (double)h[k];
        for (int32_t id = 0; id < vocab; id++) {
            z[id] = 0;
            for (int32_t k = 0; k < dim; k++)
                z[id] += (double)h[k] * (double)w[k] /
                         sqrt(sum / dim + (double)m->tenant[tenant].norm_eps) *
                         model_vocab_weight(m, tenant, true, id, k);
            total += exp(z[id]);
        }
        const struct sampled *r = &s->sampled[row];
        CHECK(r->finite);
        CHECK_EQ(r->n_top, 4);
        CHECK_EQ(r->token, r->top_id[0]);
        for (int32_t i = 0; i < r->n_top; i++) {
            CHECK_NEAR((double)r->top_logprob[i], z[r->top_id[i]] - log(total), 2e-4, 0);
            CHECK(i == 0 || r->top_logprob[i] <= r->top_logprob[i - 1]);
        }
        for (int32_t id = 0; id < vocab; id++)
            CHECK(z[id] - log(total) < (double)r->top_logprob[3] + 2e-4 || id == r->top_id[0] ||
                  id == r->top_id[1] || id == r->top_id[2] || id == r->top_id[3]);
    }
}

static float *copy_of(const float *p, size_t n) {
    float *copy = malloc(n * sizeof *p);
    CHECK(copy != NULL);
    return memcpy(copy, p, n * sizeof *p);
}

static void checked_step(const struct model *m, struct kernels *k, struct model_step *s) {
    const struct cpu *c = cpu_of(k);
    const struct kernels_ops *o = k->ops;
    size_t rows = (size_t)s->step.n_rows;
    CHECK_EQ(o->begin(k, &s->step), 0);
    o->embed(k);
    check_embed(m, c, s);
    for (int32_t layer = 0; layer < m->shape.n_layers; layer++) {
        o->norm(k, layer, NORM_ATTN);
        check_norm(m, c, s, 2 * layer);
        o->linear(k, layer, LINEAR_QKV);
        check_linear(m, s, layer, LINEAR_QKV, c->x, c->ld_h, c->qkv, c->ld_qkv, NULL);
        float *before = copy_of(c->qkv, rows * c->ld_qkv);
        o->rope_append(k, layer);
        check_rope(m, c, s, layer, before);
        free(before);
        o->attention(k, layer);
        check_attention(m, c, s, layer);
        before = copy_of(c->h, rows * c->ld_h);
        o->linear(k, layer, LINEAR_O);
        check_linear(m, s, layer, LINEAR_O, c->ctx, c->ld_ctx, c->h, c->ld_h, before);
        free(before);
        o->norm(k, layer, NORM_FFN);
        check_norm(m, c, s, 2 * layer + 1);
        o->linear(k, layer, LINEAR_GATE_UP);
        check_linear(m, s, layer, LINEAR_GATE_UP, c->x, c->ld_h, c->gate_up, c->ld_gate_up, NULL);
        o->swiglu(k);
        check_swiglu(m, c, s);
        before = copy_of(c->h, rows * c->ld_h);
        o->linear(k, layer, LINEAR_DOWN);
        check_linear(m, s, layer, LINEAR_DOWN, c->act, c->ld_act, c->h, c->ld_h, before);
        free(before);
    }
    o->head(k);
    CHECK_EQ(o->end(k), 0);
    check_head(m, c, s);
}

/* A prompt of 1, 17 or 40 rows per tenant in one step, then one more token for all. */
static void check_model(const struct isa *isa, const int32_t shape[7]) {
    static struct model m;
    static struct model_step s;
    struct kernels *k;
    model_make(&m, shape);
    make_text(&m);
    model_open(&k, &m, isa, 2);
    static const int32_t length[M_TENANTS] = {1, 17, 3, 2, 5, 40, 16};
    struct model_seq seq[M_TENANTS];
    for (int32_t i = 0; i < M_TENANTS; i++)
        seq[i] = (struct model_seq){i, i, 0, length[i], text[i]};
    model_step_fill(&s, &m, seq, M_TENANTS, 4);
    checked_step(&m, k, &s);
    for (int32_t i = 0; i < M_TENANTS; i++)
        seq[i] = (struct model_seq){i, i, length[i], 1, text[i]};
    model_step_fill(&s, &m, seq, M_TENANTS, 4);
    checked_step(&m, k, &s);
    k->ops->close(k);
}

static void check_shape(int32_t i) {
    const struct isa *isa[M_ISAS];
    int32_t n = model_isas(isa);
    for (int32_t j = 0; j < n; j++)
        check_model(isa[j], shapes[i]);
}

TEST(kernels_of_a_step_equal_double_precision_on_the_demo_shape) {
    check_shape(0);
}
TEST(kernels_of_a_step_equal_double_precision_on_a_narrow_model) {
    check_shape(1);
}
TEST(kernels_of_a_step_equal_double_precision_with_eight_heads_per_key) {
    check_shape(2);
}
TEST(kernels_of_a_step_equal_double_precision_with_one_head_per_key) {
    check_shape(3);
}
