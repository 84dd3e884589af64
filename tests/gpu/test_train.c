/* The CUDA operators of fitting: every check that the CPU's pass, then shapes of real models
 * against the CPU, the same bits from run to run, and what a device refuses. */
#include "compress/device.h"
#include "kernels/kernels.h"
#include "tests/kernels/train_checks.h"
#include "tests/kernels/train_vectors.h"

static struct train *open_or_skip(void) {
    struct train *t = NULL;
    struct why why = {""};
    err_t e = device_open(&t, "cuda", 0, &why);
    if (e == E_UNSUPPORTED)
        test_skip("%s", why.text);
    CHECK_OK(e, why);
    return t;
}

static void settle(struct train *t) {
    struct why why = {""};
    CHECK_OK(t->ops->settle(t, &why), why);
}

TEST_LIMIT(gpu_train_operators_match_double_precision, 300) {
    struct train *t = open_or_skip();
    for (const struct train_check *c = train_checks; c->name; c++) {
        c->run(t);
        settle(t);
    }
    t->ops->close(t);
}

/* ---- shapes of models, on both backends ------------------------------------------------------ */

struct pair {
    struct train *t[2]; /* CPU, CUDA */
};
static struct pair open_both(void) {
    struct pair p = {{NULL, open_or_skip()}};
    struct why why = {""};
    CHECK_OK(train_cpu_open(&p.t[0], 0, &why), why);
    return p;
}

/* |got - want| / |want| as vectors. */
static void check_near(const char *what, struct pair p, float *const device[2], size_t n,
                       double rel) {
    float *want = down(p.t[0], device[0], n), *got = down(p.t[1], device[1], n);
    double off = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        off += d * d, all += (double)want[i] * (double)want[i];
    }
    if (!(sqrt(off) <= rel * sqrt(all)))
        test_fail(__FILE__, __LINE__, "%s is off by %.3g of its size, not %.3g", what,
                  sqrt(off / all), rel);
    free(want), free(got);
}

static void products(int32_t rows, int32_t n, int32_t k, float grad_size) {
    struct pair p = open_both();
    unsigned seed = 5;
    size_t yn = (size_t)rows * (size_t)n, xn = (size_t)rows * (size_t)k, wn = (size_t)n * (size_t)k;
    float *hx = made(xn, 1, &seed), *hw = made(wn, 0.05f, &seed), *hy = made(yn, 1, &seed);
    for (size_t i = 0; i < yn; i++)
        hy[i] *= grad_size;
    float *y[2], *dx[2], *dw[2];
    for (int i = 0; i < 2; i++) {
        struct train *t = p.t[i];
        struct train_weights w = up_weights(t, hw, n, k);
        float *x = up_floats(t, hx, xn), *dy = up_floats(t, hy, yn);
        y[i] = up_floats(t, NULL, yn), dx[i] = up_floats(t, NULL, xn);
        dw[i] = up_floats(t, NULL, wn);
        t->ops->product(t, rows, x, &w, y[i], false);
        t->ops->product_dx(t, rows, dy, &w, dx[i], false);
        t->ops->product_dw(t, rows, dy, n, x, k, dw[i]);
    }
    check_near("y", p, y, yn, 1e-3);
    check_near("dx", p, dx, xn, 1e-3);
    check_near("dw", p, dw, wn, 1e-3);
}
TEST_LIMIT(gpu_train_products_of_a_wide_model_match_the_cpu, 120) {
    products(192, 1024, 4096, 1);
}
TEST_LIMIT(gpu_train_products_keep_gradients_far_below_fp16, 120) {
    products(96, 4096, 256, 1e-12f);
}

static void attends(struct train_heads heads, int32_t n_seqs, const int32_t *start) {
    struct pair p = open_both();
    unsigned seed = 9;
    int32_t rows = start[n_seqs], longest = 0;
    for (int32_t i = 0; i < n_seqs; i++)
        longest = start[i + 1] - start[i] > longest ? start[i + 1] - start[i] : longest;
    size_t qn = (size_t)rows * (size_t)(heads.n_heads * heads.head_dim),
           kn = (size_t)rows * (size_t)(heads.n_kv_heads * heads.head_dim);
    float *hq = made(qn, 1, &seed), *hk = made(kn, 1, &seed), *hv = made(kn, 1, &seed),
          *hd = made(qn, 1e-3f, &seed), *out[4][2];
    for (int i = 0; i < 2; i++) {
        struct train *t = p.t[i];
        struct train_batch b = {rows, n_seqs, longest, NULL, NULL, NULL};
        b.start = up(t, start, (size_t)(n_seqs + 1) * sizeof *start);
        float *q = up_floats(t, hq, qn), *k = up_floats(t, hk, kn), *v = up_floats(t, hv, kn),
              *d = up_floats(t, hd, qn);
        for (int l = 0; l < 4; l++)
            out[l][i] = up_floats(t, NULL, l < 2 ? qn : kn);
        t->ops->attention(t, &b, heads, q, k, v, out[0][i]);
        t->ops->attention_back(t, &b, heads, q, k, v, out[0][i], d, out[1][i], out[2][i],
                               out[3][i]);
    }
    static const char *const name[] = {"ctx", "dq", "dk", "dv"};
    for (int l = 0; l < 4; l++)
        check_near(name[l], p, out[l], l < 2 ? qn : kn, l ? 2e-3 : 1e-3);
}
TEST_LIMIT(gpu_train_attention_over_a_long_sequence_matches_the_cpu, 120) {
    attends((struct train_heads){4, 4, 64, 0}, 1, (int32_t[]){0, 1024});
}
TEST_LIMIT(gpu_train_attention_of_grouped_heads_matches_the_cpu, 120) {
    attends((struct train_heads){8, 2, 128, 0}, 3, (int32_t[]){0, 1, 130, 333});
    attends((struct train_heads){4, 2, 80, 70}, 2, (int32_t[]){0, 200, 263});
}

/* One plane of the given shape set from d, moved `steps` times; what follows from it. */
struct moved {
    float *delta, *row_grad, *col_grad;
    uint32_t *tiles;
};
static struct moved move(struct train *t, int32_t n, int32_t k, bool one_row, int32_t steps) {
    unsigned seed = 11;
    size_t wn = (size_t)n * (size_t)k, rows = one_row ? 1 : (size_t)n,
           cols = one_row ? 0 : (size_t)k;
    float *d = up_floats(t, made(wn, 0.01f, &seed), wn);
    struct train_plane p = {.row.n = rows, .col.n = cols};
    p.row.x = up_floats(t, NULL, rows), p.col.x = up_floats(t, NULL, (size_t)k);
    CHECK_EQ(t->ops->signs_make(t, n, k, &p.signs), 0);
    t->ops->scales_fit(t, n, k, d, NULL, 4, &p);
    t->ops->signs_set(t, &p, n, k, d);
    struct moved m = {.tiles = malloc(plane_bytes(n, k))};
    m.delta = up_floats(t, NULL, wn);
    m.row_grad = up_floats(t, NULL, rows), m.col_grad = up_floats(t, NULL, (size_t)k);
    float *grad = up_floats(t, NULL, wn), *host = made(wn, 1, &seed);
    for (int32_t i = 1; i <= steps; i++) {
        for (size_t l = 0; l < wn; l++)
            host[l] *= i == 1 ? 1e-4f : 1.1f - 0.2f * (float)(l % 3);
        t->ops->put(t, grad, host, wn * sizeof *grad);
        t->ops->plane_back(t, &p, n, k, grad, train_adam(0.02f, i), m.row_grad, m.col_grad);
    }
    struct train_delta all = {.n = n, .k = k, .n_planes = 1, .plane = &p};
    t->ops->unmerge(t, &all, 1, m.delta);
    t->ops->signs_get(t, p.signs, n, k, m.tiles);
    settle(t);
    return m;
}
static void moves(int32_t n, int32_t k, bool one_row) {
    struct pair p = open_both();
    struct moved m[2];
    for (int i = 0; i < 2; i++)
        m[i] = move(p.t[i], n, k, one_row, 5);
    check_near("row_grad", p, (float *[2]){m[0].row_grad, m[1].row_grad}, one_row ? 1 : (size_t)n,
               2e-3);
    if (!one_row)
        check_near("col_grad", p, (float *[2]){m[0].col_grad, m[1].col_grad}, (size_t)k, 2e-3);
    size_t differ = 0, words = plane_bytes(n, k) / sizeof(uint32_t);
    for (size_t i = 0; i < words; i++)
        differ += (size_t)__builtin_popcount(m[0].tiles[i] ^ m[1].tiles[i]);
    CHECK(differ * 10000 <= (size_t)n * (size_t)k); /* the sums' rounding turns a few */
}
TEST_LIMIT(gpu_train_signs_move_as_on_the_cpu, 120) {
    moves(1000, 1024, false);
    moves(333, 77, false);
    moves(256, 520, true);
}

/* A block's factor, then its columns' signs with error feedback, on a matrix of the given shape. */
static void least_squares(int32_t n, int32_t k, int32_t width, int32_t planes) {
    struct pair p = open_both();
    unsigned seed = 21;
    size_t wn = (size_t)n * (size_t)k, kk = (size_t)k * (size_t)k, side = (size_t)width;
    float *hx = made(kk, 1, &seed), *hd = made(wn, 0.01f, &seed), *hp = made(wn, 0.003f, &seed);
    float *l[2], *inverse[2], *d[2], *value[2], *dots[2];
    int32_t first = k - width;
    for (int i = 0; i < 2; i++) {
        struct train *t = p.t[i];
        float *x = up_floats(t, hx, kk), *pushed = up_floats(t, hp, wn), *values[2];
        struct train_plane plane[2];
        l[i] = up_floats(t, NULL, kk), inverse[i] = up_floats(t, NULL, side * side);
        d[i] = up_floats(t, hd, wn), dots[i] = up_floats(t, NULL, (size_t)n);
        value[i] = up_floats(t, NULL, 2 * wn);
        for (int l2 = 0; l2 < planes; l2++) {
            values[l2] = value[i] + (size_t)l2 * wn;
            plane[l2] = (struct train_plane){.row.n = (size_t)n, .col.n = l2 ? 0 : (size_t)k};
            plane[l2].row.x = up_floats(t, NULL, (size_t)n);
            plane[l2].col.x = up_floats(t, NULL, (size_t)k);
            t->ops->scales_fit(t, n, k, d[i], NULL, 3, &plane[l2]);
        }
        t->ops->gemm(t, k, k, k, train_mat_t(x, (size_t)k), train_mat(x, (size_t)k), l[i],
                     (size_t)k, false);
        size_t corner = (size_t)first * (size_t)k + (size_t)first;
        t->ops->factor(t, width, l[i] + corner, (size_t)k, 1.0f, inverse[i]);
        struct train_delta delta = {.n = n, .k = k, .n_planes = planes, .plane = plane};
        t->ops->feedback(t, &delta, first, width, l[i], pushed, d[i], values);
        t->ops->times(t, wn, d[i], pushed);
        t->ops->row_dots(t, n, k, pushed, d[i], dots[i]);
    }
    check_near("factor", p, l, kk, 1e-4);
    check_near("inverse", p, inverse, side * side, 1e-3);
    check_near("errors", p, d, wn, 1e-2);
    check_near("values", p, value, (size_t)planes * wn, 1e-2);
    check_near("dots", p, dots, (size_t)n, 1e-2);
}
TEST_LIMIT(gpu_train_closed_form_operators_match_the_cpu, 120) {
    least_squares(300, 256, 64, 1);
    least_squares(77, 75, 11, 2);
}

/* ---- run to run ------------------------------------------------------------------------------ */

static float *twice(struct train *t, unsigned seed, size_t *n) {
    enum { ROWS = 300, N = 512, K = 768, V = 4096 };
    struct train_heads heads = {8, 4, 64, 0};
    const int32_t start[] = {0, 111, 300};
    struct train_batch b = {ROWS, 2, 189, NULL, up(t, start, sizeof start), NULL};
    int32_t id[ROWS];
    for (int32_t i = 0; i < ROWS; i++)
        id[i] = i % 7;
    b.id = up(t, id, sizeof id);
    struct train_weights w = up_weights(t, made(N * K, 0.1f, &seed), N, K);
    float *x = up_floats(t, made(ROWS * K, 1, &seed), ROWS * K);
    float *q = up_floats(t, made(ROWS * N, 1, &seed), ROWS * N);
    float *kv = up_floats(t, made(ROWS * N, 1, &seed), ROWS * N);
    float *logits = up_floats(t, made(ROWS * V, 2, &seed), ROWS * V);
    float *teacher = up_floats(t, made(ROWS * V, 2, &seed), ROWS * V);
    *n = 4 * ROWS * N + N * K + 7 * K + ROWS * V;
    float *out = up_floats(t, NULL, *n), *dw = out + 4 * ROWS * N, *embed = dw + N * K;
    t->ops->product(t, ROWS, x, &w, out, false);
    t->ops->product_dw(t, ROWS, q, N, x, K, dw);
    t->ops->attention(t, &b, heads, q, kv, kv + 64, out + ROWS * N);
    t->ops->attention_back(t, &b, heads, q, kv, kv + 64, out + ROWS * N, q, out + 2 * ROWS * N,
                           out + 3 * ROWS * N, out + 3 * ROWS * N + ROWS * N / 2);
    t->ops->embed_back(t, &b, x, 7, K, embed);
    struct train_loss sum = {0};
    t->ops->distil(t, ROWS, V, logits, teacher, NULL, 1, 0.1f, 1, embed + 7 * K, &sum);
    return down(t, out, *n);
}
TEST_LIMIT(gpu_train_gives_the_same_bits_from_run_to_run, 120) {
    struct train *t = open_or_skip();
    size_t n;
    float *a = twice(t, 3, &n);
    for (int i = 0; i < 4; i++)
        CHECK(memcmp(a, twice(t, 3, &n), n * sizeof *a) == 0);
}

TEST(gpu_train_refuses_with_a_sentence) {
    struct train *t = open_or_skip();
    struct why why = {""};
    void *much;
    CHECK_EQ(t->ops->take(t, (size_t)1 << 44, &much), E_NOMEM);
    CHECK(!much);
    settle(t); /* too little memory is no broken device */
    CHECK(t->ops->memory_free(t) > 1 << 20);
    size_t before = t->ops->memory_most(t);
    for (int i = 0; i < 3; i++) {
        void *some;
        CHECK_EQ(t->ops->take(t, 1 << 20, &some), E_OK);
        t->ops->give(t, some);
    }
    CHECK_EQ(t->ops->memory_most(t), before + (1 << 20));
    struct train_batch b = {1, 1, 1, NULL, up(t, (int32_t[]){0, 1}, 8), NULL};
    float *x = up_floats(t, NULL, 512);
    t->ops->attention(t, &b, (struct train_heads){1, 1, 256, 0}, x, x, x, x);
    CHECK_EQ(t->ops->settle(t, &why), E_UNSUPPORTED);
    CHECK_HAS(why.text, "heads of more than");
    t->ops->zero(t, x, 4); /* does nothing; the error stays */
    CHECK_EQ(t->ops->settle(t, &why), E_UNSUPPORTED);
}
