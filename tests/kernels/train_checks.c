/* Products, rows, attention: the operators of the calibration model. */
#include "tests/kernels/train_checks.h"

#include "tests/kernels/train_vectors.h"

/* ---- products -------------------------------------------------------------------------------- */

/* want, size [m, n] = A B and |A| |B|, with what c held before when add. */
static void reference(int32_t m, int32_t n, int32_t k, struct train_mat a, struct train_mat b,
                      double before, double *want, double *size) {
    for (int32_t i = 0; i < m; i++)
        for (int32_t j = 0; j < n; j++) {
            double sum = before, all = fabs(before);
            for (int32_t l = 0; l < k; l++) {
                double x = (double)a.p[(size_t)i * a.row + (size_t)l * a.col] *
                           (double)b.p[(size_t)l * b.row + (size_t)j * b.col];
                sum += x, all += fabs(x);
            }
            want[i * n + j] = sum, size[i * n + j] = all;
        }
}

static const int32_t shapes[][3] = {/* rows, n, k */
                                    {1, 1, 1},     {7, 5, 3},     {13, 33, 257}, {12, 32, 256},
                                    {193, 40, 70}, {96, 513, 64}, {64, 72, 600}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void run_products(struct train *t, int32_t rows, int32_t n, int32_t k, bool add) {
    unsigned seed = (unsigned)(rows + n + k);
    size_t nx = (size_t)(rows * k), ny = (size_t)(rows * n), nw = (size_t)(n * k),
           most = nx > ny ? nx : ny;
    most = nw > most ? nw : most;
    float *x = made(nx, 1, &seed), *w = made(nw, 1, &seed), *dy = made(ny, 1, &seed);
    float *old = room(most * sizeof *old);
    for (size_t i = 0; i < most; i++)
        old[i] = 0.5f;
    double *want = room(most * sizeof *want), *size = room(most * sizeof *size),
           before = add ? 0.5 : 0, rel = product_tolerance(t);
    struct train_weights dw = up_weights(t, w, n, k);
    float *x_dev = up_floats(t, x, nx), *dy_dev = up_floats(t, dy, ny), *out;
    out = up_floats(t, old, ny);
    t->ops->product(t, rows, x_dev, &dw, out, add);
    reference(rows, n, k, train_mat(x, (size_t)k), train_mat_t(w, (size_t)k), before, want, size);
    check_close("product", down(t, out, ny), want, size, ny, rel);
    out = up_floats(t, old, nx);
    t->ops->product_dx(t, rows, dy_dev, &dw, out, add);
    reference(rows, k, n, train_mat(dy, (size_t)n), train_mat(w, (size_t)k), before, want, size);
    check_close("product_dx", down(t, out, nx), want, size, nx, rel);
    out = up_floats(t, old, nw);
    t->ops->product_dw(t, rows, dy_dev, n, x_dev, k, out);
    reference(n, k, rows, train_mat_t(dy, (size_t)n), train_mat(x, (size_t)k), 0, want, size);
    check_close("product_dw", down(t, out, nw), want, size, nw, rel);
}

static void products(struct train *t) {
    for (int s = 0; s < N_SHAPES; s++)
        for (int add = 0; add < 2; add++)
            run_products(t, shapes[s][0], shapes[s][1], shapes[s][2], add);
}

static void gemms(struct train *t) {
    for (int s = 0; s < 8 * N_SHAPES; s++) {
        int32_t m = shapes[s / 8][0], n = shapes[s / 8][1], k = shapes[s / 8][2];
        unsigned seed = (unsigned)s;
        size_t size_c = (size_t)m * (size_t)(n + 3), ldc = (size_t)(n + 3);
        float *a = made((size_t)(m * k), 1, &seed), *b = made((size_t)(k * n), 1, &seed);
        float *c = room(size_c * sizeof *c);
        for (size_t i = 0; i < size_c; i++)
            c[i] = 0.5f;
        float *da = up_floats(t, a, (size_t)(m * k)), *db = up_floats(t, b, (size_t)(k * n)),
              *dc = up_floats(t, c, size_c);
        size_t lda = (size_t)(s & 1 ? m : k), ldb = (size_t)(s & 2 ? k : n);
        t->ops->gemm(t, m, n, k, s & 1 ? train_mat_t(da, lda) : train_mat(da, lda),
                     s & 2 ? train_mat_t(db, ldb) : train_mat(db, ldb), dc, ldc, s & 4);
        double *want = room((size_t)(m * n) * sizeof *want),
               *size = room((size_t)(m * n) * sizeof *size);
        reference(m, n, k, s & 1 ? train_mat_t(a, lda) : train_mat(a, lda),
                  s & 2 ? train_mat_t(b, ldb) : train_mat(b, ldb), s & 4 ? 0.5 : 0, want, size);
        c = down(t, dc, size_c);
        for (int32_t i = 0; i < m; i++) {
            check_close("gemm", c + (size_t)i * ldc, want + i * n, size + i * n, (size_t)n, 2e-6);
            for (size_t j = (size_t)n; j < ldc; j++) /* what lies between rows is not C's */
                CHECK_NEAR((double)c[(size_t)i * ldc + j], 0.5, 0, 0);
        }
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

enum { ROWS = 11, LONGEST = 7 };
static const int32_t ids[ROWS] = {1, 5, 9, 2, 7, 7, 3, 1, 10, 4, 6}, starts[] = {0, 7, ROWS},
                     positions[ROWS] = {0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3};

static struct train_batch batch(struct train *t) {
    return (struct train_batch){ROWS,
                                2,
                                LONGEST,
                                up(t, ids, sizeof ids),
                                up(t, starts, sizeof starts),
                                up(t, positions, sizeof positions)};
}

static void embed(struct train *t) {
    enum { N = 11, K = 37 };
    unsigned seed = 3;
    float *w = made(N * K, 1, &seed), *dh = made(ROWS * K, 1, &seed);
    struct train_batch b = batch(t);
    struct train_weights dw = up_weights(t, w, N, K);
    float *h = up_floats(t, NULL, ROWS * K), *grad = up_floats(t, w, N * K);
    t->ops->embed(t, &b, &dw, h);
    t->ops->embed_back(t, &b, up_floats(t, dh, ROWS * K), N, K, grad);
    double want[N * K];
    for (int i = 0; i < N * K; i++)
        want[i] = (double)w[i];
    h = down(t, h, ROWS * K);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < K; i++) {
            CHECK_NEAR((double)h[r * K + i], (double)w[ids[r] * K + i], 0, 0);
            want[ids[r] * K + i] += (double)dh[r * K + i];
        }
    check_close("embed_back", down(t, grad, N * K), want, NULL, N * K, 1e-6);
    struct train_weights again = dw;
    float *copy = up_floats(t, NULL, N * K);
    t->ops->load(t, &again, copy);
    copy = down(t, copy, N * K);
    for (int i = 0; i < N * K; i++)
        CHECK_NEAR((double)copy[i], (double)w[i], 0, 0);
}

static void run_norm(struct train *t, int32_t rows, int32_t dim) {
    unsigned seed = (unsigned)dim;
    size_t n = (size_t)(rows * dim), d = (size_t)dim;
    float *x = made(n, 2, &seed), *w = made(d, 1, &seed), *dy = made(n, 1, &seed),
          *old = made(n, 1, &seed);
    float *dev_x = up_floats(t, x, n), *dev_w = up_floats(t, w, d), *y = up_floats(t, NULL, n),
          *inv = up_floats(t, NULL, (size_t)rows), *dx = up_floats(t, old, n),
          *dw = up_floats(t, w, d);
    t->ops->norm(t, rows, dim, 1e-5f, dev_x, dev_w, y, inv);
    t->ops->norm_back(t, rows, dim, dev_x, dev_w, inv, up_floats(t, dy, n), dx, dw);
    double *want_y = room(n * 8), *want_dx = room(n * 8), *want_dw = room(d * 8);
    for (int32_t r = 0; r < rows; r++) {
        const float *p = x + r * dim, *g = dy + r * dim;
        double sum = 0, dot = 0;
        for (int32_t i = 0; i < dim; i++)
            sum += (double)p[i] * (double)p[i], dot += (double)g[i] * (double)w[i] * (double)p[i];
        double f = 1 / sqrt(sum / dim + 1e-5);
        for (int32_t i = 0; i < dim; i++) {
            want_y[r * dim + i] = (double)p[i] * f * (double)w[i];
            want_dw[i] += (double)g[i] * (double)p[i] * f;
            want_dx[r * dim + i] = (double)old[r * dim + i] + (double)g[i] * (double)w[i] * f -
                                   (double)p[i] * dot * f * f * f / dim;
        }
    }
    check_close("norm", down(t, y, n), want_y, NULL, n, 2e-6);
    check_close("norm_back dx", down(t, dx, n), want_dx, NULL, n, 5e-6);
    check_close("norm_back dw", down(t, dw, d), want_dw, NULL, d, 5e-6);
}

static void norms(struct train *t) {
    run_norm(t, 1, 8);
    run_norm(t, 33, 40);
    run_norm(t, 65, 1032);
}

static void rope(struct train *t) {
    enum { HEADS = 3, E = 10, N = ROWS * HEADS * E };
    unsigned seed = 8;
    float *x = made(N, 1, &seed), table[LONGEST * E];
    for (int p = 0; p < LONGEST; p++)
        for (int i = 0; i < E / 2; i++) {
            table[p * E + 2 * i] = cosf(0.3f * (float)(p * (i + 1)));
            table[p * E + 2 * i + 1] = sinf(0.3f * (float)(p * (i + 1)));
        }
    struct train_batch b = batch(t);
    float *dev = up_floats(t, x, N), *dev_table = up_floats(t, table, LONGEST * E);
    double want[N];
    t->ops->rope(t, &b, dev_table, HEADS, E, false, dev);
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < E / 2; i++) {
                const float *turn = table + positions[r] * E + 2 * i, *p = x + (r * HEADS + h) * E;
                double c = (double)turn[0], s = (double)turn[1], lo = (double)p[i],
                       hi = (double)p[i + E / 2];
                want[(r * HEADS + h) * E + i] = lo * c - hi * s;
                want[(r * HEADS + h) * E + i + E / 2] = hi * c + lo * s;
            }
    check_close("rope", down(t, dev, N), want, NULL, N, 1e-6);
    t->ops->rope(t, &b, dev_table, HEADS, E, true, dev);
    for (int i = 0; i < N; i++)
        want[i] = (double)x[i];
    check_close("rope back", down(t, dev, N), want, NULL, N, 1e-6);
}

static void run_swiglu(struct train *t, size_t n) {
    unsigned seed = (unsigned)n;
    float *gate = made(n, 3, &seed), *up_ = made(n, 1, &seed), *dact = made(n, 1, &seed);
    gate[0] = -120, gate[n - 1] = 120;
    float *g = up_floats(t, gate, n), *u = up_floats(t, up_, n), *act = up_floats(t, NULL, n),
          *dg = up_floats(t, NULL, n), *du = up_floats(t, NULL, n);
    t->ops->swiglu(t, n, g, u, act);
    t->ops->swiglu_back(t, n, g, u, up_floats(t, dact, n), dg, du);
    double *want = room(n * 8), *want_dg = room(n * 8), *want_du = room(n * 8);
    for (size_t i = 0; i < n; i++) {
        double x = (double)gate[i], s = 1 / (1 + exp(-x));
        want[i] = x * s * (double)up_[i];
        want_du[i] = (double)dact[i] * x * s;
        want_dg[i] = (double)dact[i] * (double)up_[i] * s * (1 + x * (1 - s));
    }
    check_close("swiglu", down(t, act, n), want, NULL, n, 1e-6);
    check_close("swiglu_back gate", down(t, dg, n), want_dg, NULL, n, 2e-6);
    check_close("swiglu_back up", down(t, du, n), want_du, NULL, n, 1e-6);
    float *sum = up_floats(t, gate, n);
    t->ops->axpy(t, n, -0.5f, u, sum);
    for (size_t i = 0; i < n; i++)
        want[i] = (double)gate[i] - 0.5 * (double)up_[i];
    check_close("axpy", down(t, sum, n), want, NULL, n, 1e-6);
}

static void swiglus(struct train *t) {
    run_swiglu(t, 2);
    run_swiglu(t, 77);
    run_swiglu(t, 70001);
}

/* ---- attention ------------------------------------------------------------------------------- */

struct heads {
    int32_t rows, n_seqs, start[4];
    struct train_heads h;
};
static const struct heads attention_shapes[] = {
    {ROWS, 2, {0, 7, ROWS}, {4, 2, 8, 0}},       {ROWS, 2, {0, 7, ROWS}, {4, 2, 8, 3}},
    {5, 3, {0, 1, 2, 5}, {3, 3, 20, 0}},         {131, 2, {0, 2, 131}, {2, 1, 64, 0}},
    {200, 3, {0, 96, 97, 200}, {4, 4, 128, 50}},
};

/* One query head over one sequence, in double. gradients NULL: forwards alone. */
static void reference_head(const struct heads *a, int32_t seq, int32_t head, const float *q,
                           const float *k, const float *v, const float *dctx, double *ctx,
                           double *dq, double *dk, double *dv) {
    int32_t e = a->h.head_dim, kv = head / (a->h.n_heads / a->h.n_kv_heads);
    size_t ldq = (size_t)(a->h.n_heads * e), ldk = (size_t)(a->h.n_kv_heads * e);
    double p[256], dp[256], scale = 1 / sqrt((double)e);
    for (int32_t i = a->start[seq]; i < a->start[seq + 1]; i++) {
        size_t at = (size_t)i * ldq + (size_t)(head * e);
        int32_t from = a->start[seq];
        if (a->h.window > 0 && i - from >= a->h.window)
            from = i - a->h.window + 1;
        double sum = 0, dot_p = 0;
        for (int32_t j = from; j <= i; j++) {
            double dot = 0;
            for (int32_t l = 0; l < e; l++)
                dot +=
                    (double)q[at + (size_t)l] * (double)k[(size_t)j * ldk + (size_t)(kv * e + l)];
            sum += p[j - from] = exp(dot * scale);
        }
        for (int32_t j = from; j <= i; j++) {
            p[j - from] /= sum;
            dp[j - from] = 0;
            for (int32_t l = 0; l < e; l++) {
                size_t kj = (size_t)j * ldk + (size_t)(kv * e + l), qi = at + (size_t)l;
                ctx[qi] += p[j - from] * (double)v[kj];
                dv[kj] += p[j - from] * (double)dctx[qi];
                dp[j - from] += (double)dctx[qi] * (double)v[kj];
            }
            dot_p += dp[j - from] * p[j - from];
        }
        for (int32_t j = from; j <= i; j++) {
            double ds = p[j - from] * (dp[j - from] - dot_p) * scale;
            for (int32_t l = 0; l < e; l++) {
                size_t kj = (size_t)j * ldk + (size_t)(kv * e + l), qi = at + (size_t)l;
                dq[qi] += ds * (double)k[kj];
                dk[kj] += ds * (double)q[qi];
            }
        }
    }
}

/* The same rows one by one with a cache give the same contexts. */
/* A device with weights in FP16 multiplies and keeps keys in as few bits. */
static double attention_error(const struct train *t) {
    return t->ops->weight_bytes == sizeof(float) ? 1e-5 : 1e-3;
}

static void check_decode(struct train *t, const struct heads *a, const float *q, const float *k,
                         const float *v, const double *want) {
    size_t ldq = (size_t)(a->h.n_heads * a->h.head_dim),
           ldk = (size_t)(a->h.n_kv_heads * a->h.head_dim);
    int32_t cap = a->rows;
    float *cache_k = up_floats(t, NULL, (size_t)(a->n_seqs * cap) * ldk),
          *cache_v = up_floats(t, NULL, (size_t)(a->n_seqs * cap) * ldk);
    for (int32_t p = 0; p < cap; p++) {
        int32_t n = 0, slot[4], position[4], row[4];
        float part_q[4 * 512], part_k[4 * 512], part_v[4 * 512];
        for (int32_t s = a->n_seqs - 1; s >= 0; s--) { /* rows need not come in the slots' order */
            if (a->start[s] + p >= a->start[s + 1])
                continue;
            size_t r = (size_t)(a->start[s] + p);
            slot[n] = s, position[n] = p, row[n] = (int32_t)r;
            memcpy(part_q + (size_t)n * ldq, q + r * ldq, ldq * sizeof *q);
            memcpy(part_k + (size_t)n * ldk, k + r * ldk, ldk * sizeof *k);
            memcpy(part_v + (size_t)n++ * ldk, v + r * ldk, ldk * sizeof *v);
        }
        if (!n)
            break;
        float *ctx = up_floats(t, NULL, (size_t)n * ldq);
        t->ops->decode_attention(t, n, up(t, slot, sizeof slot), up(t, position, sizeof position),
                                 cap, a->h, up_floats(t, part_q, (size_t)n * ldq),
                                 up_floats(t, part_k, (size_t)n * ldk),
                                 up_floats(t, part_v, (size_t)n * ldk), cache_k, cache_v, ctx);
        float *got = down(t, ctx, (size_t)n * ldq);
        for (int32_t i = 0; i < n; i++)
            check_close("decode_attention", got + (size_t)i * ldq, want + (size_t)row[i] * ldq,
                        NULL, ldq, attention_error(t));
    }
}

static void run_attention(struct train *t, const struct heads *a, unsigned seed) {
    size_t nq = (size_t)(a->rows * a->h.n_heads * a->h.head_dim),
           nk = (size_t)(a->rows * a->h.n_kv_heads * a->h.head_dim);
    float *q = made(nq, 1, &seed), *k = made(nk, 1, &seed), *v = made(nk, 1, &seed),
          *dctx = made(nq, 1, &seed);
    double *ctx = room(nq * 8), *dq = room(nq * 8), *dk = room(nk * 8), *dv = room(nk * 8);
    int32_t longest = 0, position[256];
    for (int32_t s = 0; s < a->n_seqs; s++) {
        for (int32_t h = 0; h < a->h.n_heads; h++)
            reference_head(a, s, h, q, k, v, dctx, ctx, dq, dk, dv);
        int32_t n = a->start[s + 1] - a->start[s];
        longest = n > longest ? n : longest;
        for (int32_t r = 0; r < n; r++)
            position[a->start[s] + r] = r;
    }
    struct train_batch b = {a->rows,
                            a->n_seqs,
                            longest,
                            NULL,
                            up(t, a->start, sizeof a->start),
                            up(t, position, sizeof position)};
    float *dq_dev = up_floats(t, NULL, nq), *dk_dev = up_floats(t, NULL, nk),
          *dv_dev = up_floats(t, NULL, nk), *ctx_dev = up_floats(t, NULL, nq),
          *q_dev = up_floats(t, q, nq), *k_dev = up_floats(t, k, nk), *v_dev = up_floats(t, v, nk);
    t->ops->attention(t, &b, a->h, q_dev, k_dev, v_dev, ctx_dev);
    check_close("attention", down(t, ctx_dev, nq), ctx, NULL, nq, attention_error(t));
    t->ops->attention_back(t, &b, a->h, q_dev, k_dev, v_dev, ctx_dev, up_floats(t, dctx, nq),
                           dq_dev, dk_dev, dv_dev);
    check_close("attention_back q", down(t, dq_dev, nq), dq, NULL, nq, 2 * attention_error(t));
    check_close("attention_back k", down(t, dk_dev, nk), dk, NULL, nk, 2 * attention_error(t));
    check_close("attention_back v", down(t, dv_dev, nk), dv, NULL, nk, 2 * attention_error(t));
    check_decode(t, a, q, k, v, ctx);
}

static void attention(struct train *t) {
    for (size_t i = 0; i < sizeof attention_shapes / sizeof *attention_shapes; i++)
        run_attention(t, &attention_shapes[i], (unsigned)i + 1);
}

void train_check_draw(struct train *t);
void train_check_distil(struct train *t);
void train_check_adam(struct train *t);
void train_check_merge(struct train *t);
void train_check_widen(struct train *t);
void train_check_signs(struct train *t);
void train_check_scales(struct train *t);

const struct train_check train_checks[] = {
    {"products", products},
    {"gemm", gemms},
    {"embed", embed},
    {"norm", norms},
    {"rope", rope},
    {"swiglu", swiglus},
    {"attention", attention},
    {"draw", train_check_draw},
    {"distil", train_check_distil},
    {"adam", train_check_adam},
    {"merge", train_check_merge},
    {"widen", train_check_widen},
    {"signs", train_check_signs},
    {"scales", train_check_scales},
    {NULL, NULL},
};
