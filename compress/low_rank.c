/* Randomised subspace iteration (Halko, Martinsson, Tropp 2011): a few products with D H D' turn a
 * random subspace into that of its largest eigenvectors U; then b = U, a = U' D. What is small, the
 * [q, q] Gram matrices, is done on the host: a subspace gets an orthonormal basis by Cholesky
 * (twice, Yamamoto et al. 2015), the last one its eigenvectors by Jacobi rotations. */
#include "compress/low_rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EXTRA = 6, ITERATIONS = 4, SWEEPS = 30, MAX_RANK = 256 };
/* Of the largest square in a Gram matrix in FP32: below is rounding noise. */
static const double noise = 1e-6;

/* Eigenvectors of the symmetric m [q, q] into the columns of u; m becomes diagonal. */
static void jacobi(double *m, double *u, int32_t q) {
    for (int32_t i = 0; i < q * q; i++)
        u[i] = i / q == i % q;
    bool turned = true;
    for (int sweep = 0; turned && sweep < SWEEPS; sweep++) {
        turned = false;
        for (int32_t i = 0; i < q; i++)
            for (int32_t j = i + 1; j < q; j++) {
                double off = m[i * q + j];
                if (fabs(off) < 1e-300 ||
                    fabs(off) < 1e-14 * sqrt(fabs(m[i * q + i]) * fabs(m[j * q + j])))
                    continue;
                turned = true;
                double theta = (m[j * q + j] - m[i * q + i]) / (2 * off);
                double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int32_t l = 0; l < q; l++) {
                    double x = m[l * q + i], y = m[l * q + j];
                    m[l * q + i] = c * x - s * y, m[l * q + j] = s * x + c * y;
                    x = u[l * q + i], y = u[l * q + j];
                    u[l * q + i] = c * x - s * y, u[l * q + j] = s * x + c * y;
                }
                for (int32_t l = 0; l < q; l++) {
                    double x = m[i * q + l], y = m[j * q + l];
                    m[i * q + l] = c * x - s * y, m[j * q + l] = s * x + c * y;
                }
            }
    }
}

/* One call's memory: tall pieces and a [q, q] one on the device, small ones on the host. */
struct iteration {
    struct train *t;
    int32_t n, k, q;
    float *y, *z, *hz, *turned, *small; /* device [n, q], [k, q], [k, q], [max(n, k), q], [q, q] */
    float *gram;                        /* host [q, q] */
    double *m, *u, *g;                  /* host [q, q] each */
};

/* m [q, q] = x' y of tall matrices [rows, q]. */
static void gram(struct iteration *w, int32_t rows, const float *x, const float *y, double *m) {
    size_t q = (size_t)w->q;
    w->t->ops->gemm(w->t, w->q, w->q, rows, train_mat_t(x, q), train_mat(y, q), w->small, q, false);
    w->t->ops->get(w->t, w->gram, w->small, q * q * sizeof *w->gram);
    for (int32_t i = 0; i < w->q; i++)
        for (int32_t j = 0; j < w->q; j++)
            m[i * w->q + j] = ((double)w->gram[i * w->q + j] + (double)w->gram[j * w->q + i]) / 2;
}

/* u = R^-1 [q, q], R the upper Cholesky factor of m [q, q], which is destroyed. A direction that
 * holds nothing but noise beside those before it is left 0. */
static void inverse_factor(double *m, double *u, int32_t q) {
    double top = 0;
    for (int32_t j = 0; j < q; j++)
        top = m[j * q + j] > top ? m[j * q + j] : top;
    memset(u, 0, (size_t)q * (size_t)q * sizeof *u);
    for (int32_t j = 0; j < q; j++) {
        double size = m[j * q + j];
        bool noisy = !(size > noise * top);
        double *row = m + j * q, inverse = noisy ? 0 : 1 / sqrt(size);
        for (int32_t i = j; i < q; i++)
            row[i] *= inverse; /* row j of R */
        for (int32_t i = j + 1; i < q; i++)
            for (int32_t l = i; l < q; l++)
                m[i * q + l] -= row[i] * row[l];
        for (int32_t i = 0; i < j; i++) { /* column j of R^-1 */
            double sum = 0;
            for (int32_t l = i; l < j; l++)
                sum += u[i * q + l] * m[l * q + j];
            u[i * q + j] = -sum * inverse;
        }
        u[j * q + j] = inverse;
    }
}

/* Columns of x [rows, q] to an orthonormal set, twice for the rounding. */
static void orthonormal(struct iteration *w, int32_t rows, float *x) {
    size_t q = (size_t)w->q, tall = (size_t)rows * q;
    for (int turn = 0; turn < 2; turn++) {
        gram(w, rows, x, x, w->m);
        inverse_factor(w->m, w->u, w->q);
        for (size_t i = 0; i < q * q; i++)
            w->gram[i] = (float)w->u[i];
        w->t->ops->put(w->t, w->small, w->gram, q * q * sizeof *w->gram);
        w->t->ops->gemm(w->t, rows, w->q, w->q, train_mat(x, q), train_mat(w->small, q), w->turned,
                        q, false);
        w->t->ops->copy(w->t, x, w->turned, tall * sizeof *x);
    }
}

/* z = D' y, and hz = H z. */
static const float *back(struct iteration *w, const float *d, const float *h) {
    size_t q = (size_t)w->q, k = (size_t)w->k;
    w->t->ops->gemm(w->t, w->k, w->q, w->n, train_mat_t(d, k), train_mat(w->y, q), w->z, q, false);
    if (!h)
        return w->z;
    w->t->ops->gemm(w->t, w->k, w->q, w->k, train_mat(h, k), train_mat(w->z, q), w->hz, q, false);
    return w->hz;
}

static void iterate(struct iteration *w, const float *d, const float *h) {
    size_t q = (size_t)w->q, k = (size_t)w->k, nz = k * q;
    float *start = malloc(nz * sizeof *start);
    uint32_t state = 1;
    for (size_t i = 0; start && i < nz; i++) {
        state = state * 1664525u + 1013904223u;
        start[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
    if (start)
        w->t->ops->put(w->t, w->hz, start, nz * sizeof *start);
    free(start);
    const float *from = w->hz;
    for (int i = 0; i <= ITERATIONS; i++) {
        w->t->ops->gemm(w->t, w->n, w->q, w->k, train_mat(d, k), train_mat(from, q), w->y, q,
                        false);
        orthonormal(w, w->n, w->y);
        from = back(w, d, h);
        if (i < ITERATIONS)
            orthonormal(w, w->k, (float *)from);
    }
    gram(w, w->k, w->z, from, w->m); /* y' D H D' y */
    gram(w, w->k, w->z, w->z, w->g);
    jacobi(w->m, w->u, w->q);
}

/* Of the subspace, the `rank` largest directions, balanced. */
static void largest(struct iteration *w, int32_t rank, float *b, float *a, double *held) {
    size_t q = (size_t)w->q;
    float *to_a = w->gram, *to_b = malloc(q * (size_t)rank * sizeof *to_b); /* [q, rank] */
    for (int32_t r = 0; to_b && r < rank; r++) {
        size_t best = 0; /* the largest eigenvalue that is left */
        for (size_t i = 1; i < q; i++)
            if (w->m[i * q + i] > w->m[best * q + best])
                best = i;
        double value = w->m[best * q + best], length = 0;
        w->m[best * q + best] = -1;
        if (held)
            held[r] = value > 0 ? value : 0;
        for (size_t i = 0; i < q; i++)
            for (size_t j = 0; j < q; j++)
                length += w->u[i * q + best] * w->g[i * q + j] * w->u[j * q + best];
        double root = length > 0 && value > 0 ? sqrt(sqrt(length)) : 0;
        for (size_t i = 0; i < q; i++) {
            to_b[i * (size_t)rank + (size_t)r] = (float)(w->u[i * q + best] * root);
            to_a[i * (size_t)rank + (size_t)r] = root > 0 ? (float)(w->u[i * q + best] / root) : 0;
        }
    }
    size_t r = (size_t)rank, bytes = q * r * sizeof(float);
    const struct train_ops *op = w->t->ops;
    op->put(w->t, w->small, to_a, bytes);
    op->gemm(w->t, rank, w->k, w->q, train_mat_t(w->small, r), train_mat_t(w->z, q), a,
             (size_t)w->k, false);
    if (to_b)
        op->put(w->t, w->small, to_b, bytes);
    op->gemm(w->t, w->n, rank, w->q, train_mat(w->y, q), train_mat(w->small, r), b, r, false);
    free(to_b);
}

err_t low_rank(struct train *t, int32_t n, int32_t k, int32_t rank, const float *d, const float *h,
               float *b, float *a, double *held) {
    int32_t least = n < k ? n : k, longer = n > k ? n : k;
    struct iteration w = {.t = t, .n = n, .k = k, .q = rank + EXTRA < least ? rank + EXTRA : least};
    if (rank < 1 || rank > MAX_RANK || rank > least)
        return E_INVAL;
    size_t q = (size_t)w.q, ny = (size_t)n * q, nz = (size_t)k * q, nt = (size_t)longer * q;
    float *block = NULL;
    w.m = malloc(3 * q * q * sizeof *w.m);
    w.gram = malloc(q * q * sizeof *w.gram);
    err_t e = w.m && w.gram
                  ? t->ops->take(t, (ny + 2 * nz + nt + q * q) * sizeof *block, (void **)&block)
                  : E_NOMEM;
    if (!e) {
        w.u = w.m + q * q, w.g = w.u + q * q;
        w.y = block, w.z = w.y + ny, w.hz = w.z + nz, w.turned = w.hz + nz, w.small = w.turned + nt;
        iterate(&w, d, h);
        largest(&w, rank, b, a, held);
    }
    t->ops->give(t, block);
    free(w.m), free(w.gram);
    return e;
}
