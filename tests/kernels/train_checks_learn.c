/* Drawing, the loss, Adam, sign planes: the operators of sampling and learning. */
#include "kernels/kernels.h"
#include "tests/kernels/train_checks.h"
#include "tests/kernels/train_vectors.h"

void train_check_draw(struct train *t);
void train_check_distil(struct train *t);
void train_check_adam(struct train *t);
void train_check_merge(struct train *t);
void train_check_widen(struct train *t);
void train_check_signs(struct train *t);
void train_check_scales(struct train *t);

static void softened(const float *x, int32_t n, double temperature, double *p) {
    double top = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++)
        top = (double)x[i] > top ? (double)x[i] : top;
    for (int32_t i = 0; i < n; i++)
        sum += p[i] = exp(((double)x[i] - top) / temperature);
    for (int32_t i = 0; i < n; i++)
        p[i] /= sum;
}

void train_check_draw(struct train *t) {
    static const int32_t vocabs[] = {1, 11, 1000, 33003};
    for (int v = 0; v < 4; v++) {
        enum { ROWS = 40 };
        int32_t n = vocabs[v], out[ROWS];
        unsigned seed = (unsigned)n;
        size_t size = ROWS * (size_t)n;
        float *x = made(size, 2, &seed), u[ROWS];
        for (int i = 0; i < ROWS; i++)
            u[i] = (float)i / ROWS;
        x[n - 1] = x[0] = 30; /* the lowest of two largest */
        float *x_dev = up_floats(t, x, size), *u_dev = up_floats(t, u, ROWS);
        int32_t *out_dev = up(t, NULL, sizeof out);
        t->ops->draw(t, ROWS, n, x_dev, 0, u_dev, out_dev);
        t->ops->get(t, out, out_dev, sizeof out);
        CHECK_EQ(out[0], 0);
        for (int r = 0; r < ROWS; r++)
            for (int32_t i = 0; i < n; i++)
                CHECK(x[r * n + i] <= x[r * n + out[r]]);
        t->ops->draw(t, ROWS, n, x_dev, 0.7f, u_dev, out_dev);
        t->ops->get(t, out, out_dev, sizeof out);
        double *p = room((size_t)n * 8);
        for (int r = 0; r < ROWS; r++) {
            softened(x + r * n, n, (double)0.7f, p);
            double below = 0;
            CHECK(out[r] >= 0 && out[r] < n);
            for (int32_t i = 0; i < out[r]; i++)
                below += p[i];
            /* u lies in the drawn id's piece of [0, 1), but for the rounding of long sums */
            CHECK(below <= (double)u[r] + 2e-5 && (double)u[r] <= below + p[out[r]] + 2e-5);
        }
    }
}

static void run_distil(struct train *t, int32_t rows, int32_t n, bool in_place) {
    unsigned seed = (unsigned)(rows + n);
    size_t size = (size_t)(rows * n);
    float *y = made(size, 3, &seed), *s = made(size, 3, &seed);
    memcpy(y, s, (size_t)n * sizeof *y); /* one row alike */
    int32_t *target = room((size_t)rows * sizeof *target);
    struct train_loss want = {0}, got = {.kl = 1, .n_rows = 5}; /* added to */
    double *grad = room(size * 8), *p = room((size_t)n * 8), *q = room((size_t)n * 8);
    for (int32_t r = 0; r < rows; r++) {
        int32_t best_y = 0, best_s = 0;
        target[r] = r % 3 == 2 ? -1 : r % n;
        softened(y + r * n, n, 1, p), softened(s + r * n, n, 1, q);
        for (int32_t i = 0; i < n; i++) {
            double d = (double)y[r * n + i] - (double)s[r * n + i];
            want.kl += q[i] * (log(q[i]) - log(p[i]));
            want.mse += d * d / n;
            grad[r * n + i] = 0.25 * (1.5 * (p[i] - q[i]) + 0.5 * 2 * d / n);
            best_y = y[r * n + i] > y[r * n + best_y] ? i : best_y;
            best_s = s[r * n + i] > s[r * n + best_s] ? i : best_s;
        }
        want.n_agree += best_y == best_s;
        if (target[r] >= 0)
            want.n_targets++, want.nll -= log(p[target[r]]), want.teacher_nll -= log(q[target[r]]);
    }
    float *y_dev = up_floats(t, y, size), *g = in_place ? y_dev : up_floats(t, NULL, size);
    t->ops->distil(t, rows, n, y_dev, up_floats(t, s, size),
                   up(t, target, (size_t)rows * sizeof *target), 1.5f, 0.5f, 0.25f, g, &got);
    CHECK_NEAR(got.kl - 1, want.kl, 1e-4, 1e-5);
    CHECK_NEAR(got.mse, want.mse, 0, 1e-5);
    CHECK_NEAR(got.nll, want.nll, 0, 1e-5);
    CHECK_NEAR(got.teacher_nll, want.teacher_nll, 0, 1e-5);
    CHECK_EQ(got.n_rows, rows + 5);
    CHECK_EQ(got.n_targets, want.n_targets);
    CHECK_EQ(got.n_agree, want.n_agree);
    check_close("distil gradient", down(t, g, size), grad, NULL, size, 2e-5);
    struct train_loss none = {0};
    t->ops->distil(t, rows, n, up_floats(t, y, size), up_floats(t, s, size), NULL, 1, 0, 1, NULL,
                   &none);
    CHECK_EQ(none.n_targets, 0);
    CHECK_NEAR(none.kl, want.kl, 1e-4, 1e-5);
}

/* Numbers as files have them, of all magnitudes that FP16 and BF16 share and of those they do not.
 */
void train_check_widen(struct train *t) {
    enum { N = 5003, K = 61, ROWS = N / K };
    static const enum train_number types[] = {TRAIN_F32, TRAIN_F16, TRAIN_BF16};
    unsigned seed = 5;
    for (int i = 0; i < 6; i++) {
        enum train_number type = types[i % 3];
        bool served = i >= 3;
        float *x = made(N, 1, &seed), want[N];
        uint16_t half[N];
        for (int32_t l = 0; l < N; l++) {
            x[l] = l % 5 ? ldexpf(x[l], l % 24 - 20) : 0;
            uint32_t bits;
            memcpy(&bits, &x[l], sizeof bits);
            half[l] = type == TRAIN_F16 ? half_from_float(x[l]) : (uint16_t)(bits >> 16);
            bits = (uint32_t)half[l] << 16;
            want[l] = x[l];
            if (type == TRAIN_F16)
                want[l] = half_to_float(half[l]);
            else if (type == TRAIN_BF16)
                memcpy(&want[l], &bits, sizeof bits);
            want[l] = served ? half_to_float(half_from_float(want[l])) : want[l];
        }
        const void *from = type == TRAIN_F32 ? (const void *)x : half;
        float *out = up_floats(t, NULL, N), *got;
        t->ops->widen(t, type, served, N, up(t, from, N * train_number_bytes(type)), out);
        got = down(t, out, N);
        CHECK(memcmp(got, want, sizeof want) == 0);
        int32_t none[ROWS] = {0}, *zeros = up(t, none, sizeof none);
        t->ops->row_zeros(t, ROWS, K, out, zeros);
        t->ops->get(t, none, zeros, sizeof none);
        for (int32_t r = 0; r < ROWS; r++) {
            int32_t count = 0;
            for (int32_t k = 0; k < K; k++)
                count += want[r * K + k] == 0;
            CHECK_EQ(none[r], count);
        }
    }
}

void train_check_distil(struct train *t) {
    run_distil(t, 1, 3, true);
    run_distil(t, 7, 11, false);
    run_distil(t, 530, 50, true);
    run_distil(t, 5, 33003, true);
}

static void run_adam(struct train *t, size_t n, struct train_adam a) {
    unsigned seed = (unsigned)n;
    float *x = made(n, 1, &seed);
    struct train_vector p = {up_floats(t, x, n), up_floats(t, NULL, n), up_floats(t, NULL, n), n};
    double *at = room(n * 8), *m = room(n * 8), *v = room(n * 8), beta2 = (double)a.beta2;
    for (size_t i = 0; i < n; i++)
        at[i] = (double)x[i];
    for (a.t = 1; a.t <= 3; a.t++) {
        float *g = made(n, 0.1f, &seed);
        g[n / 2] = n > 1 ? 0 : g[0]; /* decays alone */
        t->ops->adam(t, &p, up_floats(t, g, n), a);
        for (size_t i = 0; i < n; i++) {
            m[i] = 0.9 * m[i] + 0.1 * (double)g[i];
            v[i] = beta2 * v[i] + (1 - beta2) * (double)g[i] * (double)g[i];
            double size = sqrt(v[i] / (1 - pow(beta2, a.t))) + (double)a.least,
                   step = m[i] / (1 - pow(0.9, a.t)) / size;
            at[i] -= (double)a.rate * (step + (double)a.decay * at[i]);
        }
    }
    check_close("adam", down(t, p.x, n), at, NULL, n, 2e-5);
}

void train_check_adam(struct train *t) {
    run_adam(t, 1, train_adam(0.01f, 1));
    run_adam(t, 1003, train_adam(0.01f, 1));
    run_adam(t, 1003, (struct train_adam){0.01f, 1, 0.999f, 1e-8f, 0.5f});
    run_adam(t, 70001, (struct train_adam){0.05f, 1, 0.999f, 0.03f, 2});
}

/* ---- planes ---------------------------------------------------------------------------------- */

struct made_plane {
    struct train_plane p;
    float *row, *col, *d; /* host: logarithms [n or 1], [k] or zeros, what signs_set got [n, k] */
};

static struct made_plane make_plane(struct train *t, int32_t n, int32_t k, bool single,
                                    unsigned *seed) {
    struct made_plane m = {.row = made((size_t)n, 0.5f, seed), .col = made((size_t)k, 0.5f, seed)};
    size_t rows = single ? 1 : (size_t)n, cols = single ? 0 : (size_t)k;
    if (single)
        memset(m.col, 0, (size_t)k * sizeof *m.col);
    m.d = made((size_t)(n * k), 2, seed);
    m.d[0] = 0; /* counts as +1 */
    m.p.row = (struct train_vector){up_floats(t, m.row, rows), up_floats(t, NULL, rows),
                                    up_floats(t, NULL, rows), rows};
    if (cols)
        m.p.col = (struct train_vector){up_floats(t, m.col, cols), up_floats(t, NULL, cols),
                                        up_floats(t, NULL, cols), cols};
    CHECK_EQ(t->ops->signs_make(t, n, k, &m.p.signs), 0);
    keep(m.p.signs);
    t->ops->signs_set(t, &m.p, n, k, up_floats(t, m.d, (size_t)(n * k)));
    return m;
}
static double row_of(const struct made_plane *m, int32_t i) {
    return exp((double)m->row[m->p.row.n > 1 ? i : 0]);
}
static double weight_of(const struct made_plane *m, int32_t i, int32_t j, int32_t k) {
    return (m->d[i * k + j] >= 0 ? 1 : -1) * row_of(m, i) * exp((double)m->col[j]);
}

static void run_merge(struct train *t, int32_t n, int32_t k, int32_t more, int32_t rank,
                      bool single) {
    unsigned seed = (unsigned)(n + k + rank);
    struct made_plane m[2] = {make_plane(t, n, k, single, &seed),
                              make_plane(t, n, k, single, &seed)};
    struct train_plane plane[2] = {m[0].p, m[1].p};
    float *a = made((size_t)(rank * k), 1, &seed), *b = made((size_t)(n * rank), 1, &seed),
          *base = made((size_t)((n + more) * k), 1, &seed);
    struct train_delta d = {n,
                            k,
                            2,
                            rank,
                            plane,
                            up_floats(t, a, (size_t)(rank * k)),
                            up_floats(t, b, (size_t)(n * rank))};
    struct train_weights w = up_weights(t, base, n + more, k),
                         out = up_weights(t, base, n + more, k);
    size_t size = (size_t)((n + more) * k), common = (size_t)(n * k);
    t->ops->zero(t, out.w, size * t->ops->weight_bytes);
    t->ops->merge(t, &w, &d, &out);
    float *merged = up_floats(t, NULL, size), *left = up_floats(t, base, common);
    t->ops->load(t, &out, merged);
    t->ops->unmerge(t, &d, -1, left);
    t->ops->merge(t, &w, &d, &w); /* in place */
    float *twice = up_floats(t, NULL, size);
    t->ops->load(t, &w, twice);
    double *want = room(size * 8), *minus = room(size * 8);
    for (int32_t i = 0; i < n + more; i++)
        for (int32_t j = 0; j < k; j++) {
            double sum = 0;
            for (int p = 0; i < n && p < 2; p++)
                sum += weight_of(&m[p], i, j, k);
            for (int32_t r = 0; i < n && r < rank; r++)
                sum += (double)b[i * rank + r] * (double)a[r * k + j];
            want[i * k + j] = (double)base[i * k + j] + sum;
            minus[i * k + j] = (double)base[i * k + j] - sum;
        }
    double rel = t->ops->weight_bytes < sizeof(float) ? 1e-3 : 2e-6;
    check_close("merge", down(t, merged, size), want, NULL, size, rel);
    check_close("merge in place", down(t, twice, size), want, NULL, size, rel);
    check_close("unmerge", down(t, left, common), minus, NULL, common, 2e-6);
}

void train_check_merge(struct train *t) {
    run_merge(t, 1, 1, 0, 0, false);
    run_merge(t, 33, 40, 3, 2, false);
    run_merge(t, 64, 257, 0, 5, true);
    run_merge(t, 100, 520, 1, 0, false);
}

/* Gradients of the scales, the bits, and that signs turn against their gradient. */
static void run_signs(struct train *t, int32_t n, int32_t k, bool single) {
    unsigned seed = (unsigned)(n * k);
    size_t size = (size_t)(n * k);
    struct made_plane m = make_plane(t, n, k, single, &seed);
    float *grad = made(size, 0.1f, &seed), *g = up_floats(t, grad, size),
          *row_grad = up_floats(t, NULL, (size_t)n), *col_grad = up_floats(t, NULL, (size_t)k);
    double *want_row = room((size_t)n * 8), *want_col = room((size_t)k * 8);
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < k; j++) {
            double x = (double)grad[i * k + j] * weight_of(&m, i, j, k);
            want_row[single ? 0 : i] += x, want_col[j] += x;
        }
    t->ops->plane_back(t, &m.p, n, k, g, train_adam(0, 1), row_grad, col_grad);
    check_close("row gradient", down(t, row_grad, (size_t)n), want_row, NULL, m.p.row.n, 1e-5);
    check_close("column gradient", down(t, col_grad, (size_t)k), want_col, NULL, m.p.col.n, 1e-5);
    size_t words = plane_bytes(n, k) / 4, state = t->ops->signs_bytes(t, n, k);
    CHECK(state <= 4 * size + 4096 + 64 * (size_t)(n + k));
    uint32_t *before = room(words * 4), *after = room(words * 4), *again = room(words * 4);
    t->ops->signs_get(t, m.p.signs, n, k, before);
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < k; j++)
            CHECK_EQ(before[plane_word(i, j, k)] >> j % 32 & 1, m.d[i * k + j] >= 0);
    void *kept = room(state);
    t->ops->signs_save(t, m.p.signs, n, k, kept);
    for (int round = 0; round < 2; round++) { /* the second from what was saved: the same */
        for (int step = 1; step <= 60; step++)
            t->ops->plane_back(t, &m.p, n, k, g, train_adam(0.2f, step), row_grad, col_grad);
        t->ops->signs_get(t, m.p.signs, n, k, round ? again : after);
        t->ops->signs_load(t, m.p.signs, n, k, kept);
    }
    CHECK(memcmp(after, again, words * 4) == 0);
    int64_t turned = 0, wrong = 0;
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < k; j++) {
            bool was = before[plane_word(i, j, k)] >> j % 32 & 1,
                 is = after[plane_word(i, j, k)] >> j % 32 & 1;
            turned += was != is;
            wrong += was != is && is == (grad[i * k + j] > 0);
        }
    CHECK_EQ(wrong, 0);
    if (size > 100)
        CHECK(turned > (int64_t)size / 10);
    t->ops->signs_free(t, m.p.signs);
}

void train_check_signs(struct train *t) {
    run_signs(t, 1, 1, false);
    run_signs(t, 33, 40, false);
    run_signs(t, 65, 257, true);
    run_signs(t, 40, 1000, false);
}

/* Scales that are there are found, weighted or not; one round gives means. */
static void run_scales(struct train *t, int32_t n, int32_t k, bool weighted) {
    unsigned seed = (unsigned)(n + 3 * k);
    struct made_plane m = make_plane(t, n, k, false, &seed);
    float *d = room((size_t)(n * k) * sizeof *d), *weight = made((size_t)k, 1, &seed);
    for (int32_t j = 0; j < k; j++)
        weight[j] = weight[j] * weight[j] + 0.01f;
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < k; j++)
            d[i * k + j] = (float)weight_of(&m, i, j, k);
    const float *w = weighted ? up_floats(t, weight, (size_t)k) : NULL;
    float *d_dev = up_floats(t, d, (size_t)(n * k));
    t->ops->scales_fit(t, n, k, d_dev, w, 8, &m.p);
    float *row = down(t, m.p.row.x, (size_t)n), *col = down(t, m.p.col.x, (size_t)k);
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < k; j++)
            CHECK_NEAR(exp((double)(row[i] + col[j])), fabs((double)d[i * k + j]), 0, 1e-4);
    struct made_plane one = make_plane(t, n, k, true, &seed);
    t->ops->scales_fit(t, n, k, d_dev, NULL, 1, &one.p);
    double mean = 0;
    for (int32_t i = 0; i < n * k; i++)
        mean += fabs((double)d[i]) / n / k;
    CHECK_NEAR(exp((double)*down(t, one.p.row.x, 1)), mean, 0, 1e-5);
    memset(d, 0, (size_t)(n * k) * sizeof *d);
    t->ops->scales_fit(t, n, k, up_floats(t, d, (size_t)(n * k)), NULL, 8, &m.p);
    CHECK_NEAR((double)*down(t, m.p.row.x, 1), -30, 0, 0);
}

void train_check_scales(struct train *t) {
    run_scales(t, 1, 1, false);
    run_scales(t, 35, 70, false);
    run_scales(t, 64, 300, true);
}
