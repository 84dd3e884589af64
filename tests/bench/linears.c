/* The fused linears at decode and prefill sizes. The operators of all layers run in turn, so each
 * finds its weights where a real step would: in memory for the 7B shapes (405 MB a layer), in the
 * caches for the demo model (12.6 MB in all). */
#include "tests/bench/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/f16.h"

enum { TENANTS = 4, PREFILL = 256, MAX_RUNS = 33 };

struct bench_model {
    const char *name;
    struct model_shape shape;
    uint16_t **base; /* matrices as kernels.h orders them; the backend's */
    struct tenant_weights tenant[1 + TENANTS]; /* 0: the base */
    struct kernels *k;
    uint64_t random;
    int32_t runs;
    double ceiling_gbps;
};

static uint64_t next(struct bench_model *m) {
    m->random ^= m->random << 13;
    m->random ^= m->random >> 7;
    return m->random ^= m->random << 17;
}

static void *memory(size_t bytes) {
    void *p = host_block(bytes);
    if (!p) {
        fprintf(stderr, "not enough memory for the benchmark\n");
        exit(1);
    }
    return p;
}

/* Halves of magnitude 1/64 to 1/32, either sign. */
static uint16_t *halves(struct bench_model *m, size_t n) {
    uint64_t *p = memory(n * 2 + 8);
    for (size_t i = 0; i < (n + 3) / 4; i++)
        p[i] = (next(m) & 0x83ff83ff83ff83ffu) | 0x2400240024002400u;
    return (uint16_t *)p;
}

static void add_delta(struct bench_model *m, struct delta *d, int32_t n, int32_t k) {
    size_t words = plane_bytes(n, k) / 8;
    uint64_t *bits = memory(words * 8);
    float *row = memory((size_t)n * sizeof *row);
    for (size_t i = 0; i < words; i++)
        bits[i] = next(m);
    for (int32_t i = 0; i < n; i++)
        row[i] = 0.001f;
    d->n_planes = 1;
    d->plane[0] = (struct plane){(uint32_t *)bits, row, NULL};
}

static void make(struct bench_model *m) {
    const struct model_shape *s = &m->shape;
    int32_t layers = s->n_layers;
    struct why why;
    m->random = 88172645463325252u;
    m->base = memory(sizeof *m->base * (size_t)base_matrices(s));
    for (int32_t i = 0; i < base_matrices(s); i++)
        m->base[i] = halves(m, base_matrix_bytes(s, i) / 2);
    for (int32_t t = 0; t <= TENANTS; t++) {
        m->tenant[t] = (struct tenant_weights){
            .rope = memory((size_t)s->head_dim * 4096), .context = 512, .vocab = s->vocab};
        if (t == 0)
            continue;
        m->tenant[t].delta = memory(sizeof(struct delta) * (size_t)(layers * N_PARTS));
        for (int32_t i = 0; i < layers * N_PARTS; i++)
            add_delta(m, &m->tenant[t].delta[i], part_rows(s, (enum part)(i % N_PARTS)),
                      part_cols(s, (enum part)(i % N_PARTS)));
    }
    if (kernels_cpu_open(&m->k, s, PREFILL, 0, &why)) {
        fprintf(stderr, "%s\n", why.text);
        exit(1);
    }
    for (int32_t i = 0; i < base_matrices(s); i++)
        m->k->ops->place_base(m->k, i, m->base[i]);
}

/* Starts a step of `rows` rows spread over tenants first .. first + n - 1 and fills the inputs. */
static void start(struct bench_model *m, int32_t rows, int32_t first, int32_t n,
                  struct step *step) {
    static struct row_group group[TENANTS];
    static struct row_seq seq;
    static int32_t token[PREFILL], page[64];
    struct cpu *c = cpu_of(m->k);
    for (int32_t i = 0; i < n; i++)
        group[i] = (struct row_group){&m->tenant[first + i], i * (rows / n), rows / n};
    seq = (struct row_seq){0, rows, 0, page};
    *step = (struct step){
        .n_rows = rows, .n_groups = n, .n_seqs = 1, .token = token, .group = group, .seq = &seq};
    if (m->k->ops->begin(m->k, step)) {
        fprintf(stderr, "the step was refused\n");
        exit(1);
    }
    float *in[] = {c->x, c->ctx, c->act};
    size_t ld[] = {c->ld_h, c->ld_ctx, c->ld_act};
    for (int i = 0; i < 3; i++)
        for (size_t j = 0; j < (size_t)rows * ld[i]; j++)
            in[i][j] = (float)(int32_t)(next(m) >> 33) * 0x1p-30f - 1;
}

/* The last row of the step against double precision, some outputs of each linear. */
static void check(struct bench_model *m, const struct step *step, enum linear which) {
    struct cpu *c = cpu_of(m->k);
    const float *x = which == LINEAR_O ? c->ctx : which == LINEAR_DOWN ? c->act : c->x;
    size_t ldx = which == LINEAR_O ? c->ld_ctx : which == LINEAR_DOWN ? c->ld_act : c->ld_h;
    float *out = which == LINEAR_QKV ? c->qkv : which == LINEAR_GATE_UP ? c->gate_up : c->h;
    size_t ldo = which == LINEAR_QKV       ? c->ld_qkv
                 : which == LINEAR_GATE_UP ? c->ld_gate_up
                                           : c->ld_h;
    int32_t row = step->n_rows - 1, k = part_cols(&m->shape, linear_first_part(which));
    const struct tenant_weights *t = step->group[step->n_groups - 1].tenant;
    const struct delta *d = t->delta ? &t->delta[linear_first_part(which)] : NULL;
    int32_t n = part_rows(&m->shape, linear_first_part(which));
    for (size_t i = 0; i < (size_t)step->n_rows * ldo; i++)
        out[i] = 0;
    m->k->ops->linear(m->k, 0, which);
    for (int32_t r = 0; r < n; r += 1 + n / 37) {
        double sum = 0;
        for (int32_t i = 0; i < k; i++) {
            double w = (double)half_to_float(m->base[which][(size_t)r * (size_t)k + (size_t)i]);
            if (d)
                w += d->plane[0].bits[plane_word(r, i, k)] >> (i % 32) & 1 ? 0.001 : -0.001;
            sum += w * (double)x[(size_t)row * ldx + (size_t)i];
        }
        double got = (double)out[(size_t)row * ldo + (size_t)r];
        if (!(fabs(got - sum) < 1e-4 + 1e-4 * fabs(sum))) {
            fprintf(stderr, "wrong: linear %d row %d is %g, not %g\n", which, r, got, sum);
            exit(1);
        }
    }
}

/* Median seconds of each linear (mean over the layers), run in the order of a step. */
static void time_linears(struct bench_model *m, int32_t rows, int32_t first, int32_t n,
                         int32_t runs, double out[N_LINEARS]) {
    struct step step;
    static double t[N_LINEARS][MAX_RUNS];
    start(m, rows, first, n, &step);
    for (int32_t i = 0; i < N_LINEARS; i++)
        check(m, &step, (enum linear)i);
    for (int32_t r = 0; r < runs; r++)
        for (int32_t i = 0; i < N_LINEARS; i++)
            t[i][r] = 0;
    for (int32_t r = -1; r < runs; r++) /* the first round only warms up */
        for (int32_t layer = 0; layer < m->shape.n_layers; layer++)
            for (int32_t i = 0; i < N_LINEARS; i++) {
                double begin = bench_now();
                m->k->ops->linear(m->k, layer, (enum linear)i);
                if (r >= 0)
                    t[i][r] += bench_now() - begin;
            }
    for (int32_t i = 0; i < N_LINEARS; i++)
        out[i] = bench_sort_median(t[i], runs) / m->shape.n_layers;
    m->k->ops->end(m->k);
}

static void report(struct bench_model *m, const struct ceilings *c) {
    static const char *const names[N_LINEARS] = {"qkv", "o", "gate|up", "down"};
    double one[N_LINEARS + 1], one_t[N_LINEARS + 1], four[N_LINEARS + 1], four_t[N_LINEARS + 1],
        pre[N_LINEARS + 1], pre_t[N_LINEARS + 1], weights = 0, all = 0;
    make(m);
    time_linears(m, 1, 0, 1, m->runs, one);
    time_linears(m, 1, 1, 1, m->runs, one_t);
    time_linears(m, 4, 0, 1, m->runs, four);
    time_linears(m, 4, 1, 4, m->runs, four_t);
    time_linears(m, PREFILL, 0, 1, m->runs / 8 + 4, pre);
    time_linears(m, PREFILL, 1, 1, m->runs / 8 + 4, pre_t);
    printf("%s: linears, %d layer%s; %% of the read ceiling %.1f GB/s, of FMA %.0f GFLOP/s\n",
           m->name, m->shape.n_layers, m->shape.n_layers == 1 ? "" : "s", m->ceiling_gbps,
           c->fma_gflops);
    printf("                          1 row: base            +1 tenant        4 rows: base  "
           "4 tenants          prefill %d: base     1 tenant\n",
           PREFILL);
    printf("  linear   shape             us   GB/s    %%       us    x          us         us    x"
           "       GFLOP/s    %%   GFLOP/s    x\n");
    one[N_LINEARS] = one_t[N_LINEARS] = four[N_LINEARS] = four_t[N_LINEARS] = pre[N_LINEARS] =
        pre_t[N_LINEARS] = 0;
    for (int32_t i = 0; i <= N_LINEARS; i++) {
        char shape[32] = "";
        if (i < N_LINEARS) {
            enum part first = linear_first_part((enum linear)i);
            int32_t n = 0, k = part_cols(&m->shape, first);
            for (int32_t p = 0; p < linear_n_parts((enum linear)i); p++)
                n += part_rows(&m->shape, first + (enum part)p);
            weights = (double)n * k;
            all += weights;
            snprintf(shape, sizeof shape, "%d x %d", n, k);
            one[N_LINEARS] += one[i];
            one_t[N_LINEARS] += one_t[i];
            four[N_LINEARS] += four[i];
            four_t[N_LINEARS] += four_t[i];
            pre[N_LINEARS] += pre[i];
            pre_t[N_LINEARS] += pre_t[i];
        } else {
            weights = all;
        }
        double gbps = 2 * weights / one[i] / 1e9, flops = 2 * weights * PREFILL / 1e9;
        printf("  %-8s %-13s %8.0f %6.1f %4.0f %8.0f %4.2f %11.0f %10.0f %4.2f %13.0f %4.0f %9.0f "
               "%4.2f\n",
               i < N_LINEARS ? names[i] : "all", shape, one[i] * 1e6, gbps,
               100 * gbps / m->ceiling_gbps, one_t[i] * 1e6, one_t[i] / one[i], four[i] * 1e6,
               four_t[i] * 1e6, four_t[i] / four[i], flops / pre[i],
               100 * flops / pre[i] / c->fma_gflops, flops / pre_t[i], pre_t[i] / pre[i]);
    }
    printf("\n");
    m->k->ops->close(m->k);
}

void bench_linears(const struct ceilings *c) {
    static struct bench_model models[] = {
        {.name = "7B", .shape = {1, 4096, 32, 32, 128, 11008, 256, 256, 0, 1e-5f, true}, .runs = 9},
        {.name = "demo", .shape = {8, 256, 4, 2, 64, 768, 256, 256, 0, 1e-5f, true}, .runs = 33},
    };
    models[0].ceiling_gbps = c->dram_gbps;
    models[1].ceiling_gbps = c->cache_gbps;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        report(&models[i], c);
}
