/* Subspace iteration (Halko, Martinsson, Tropp 2011) with a Chebyshev polynomial of D H D' in place
 * of its powers (Zhou, Saad 2007), because differences of weights have spectra that hardly fall. A
 * band of the largest directions at a time: what is found is taken out of D before the next band is
 * looked for, so a large rank costs many products and no large decomposition. */
#include "compress/low_rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/eigen.h"

enum {
    BAND = 128,  /* directions found at once */
    EXTRA = 6,   /* carried along beside them, that and a quarter as many: they fall behind in
                    place of the wanted */
    ROUNDS = 12, /* at most */
    DEGREE = 10, /* of a polynomial, at most */
    PASSES = 4,  /* of making columns orthonormal, at most */
};
/* A round that adds less than this share to the energy held is the last. */
static const double enough = 2e-5;
/* How much further the largest direction may grow than the least in a round: FP32 sums of products
 * of columns keep the squares of those apart. */
static const double most_growth = 1e3;
/* A column of which less than this share of its square is new holds nothing but rounding. */
static const double noise = 1e-5;

/* One call's memory, on the device: [n, q] tall, [k, q] wide, [q, q] small; on the host [q, q]. */
struct iteration {
    struct train *t;
    int32_t n, k, q;
    const float *h;
    float *d;                 /* [n, k] */
    float *y;                 /* tall: the subspace */
    float *spare[2], *random; /* tall */
    float *z, *hz;            /* wide: D' y, and H of it */
    float *small;
    float *host;
    double *m, *inverse, *vector; /* inverse: also the eigenvectors' room */
    double *value;                /* [q] of D H D' in the subspace, falling */
};

static void swap(float **x, float **y) {
    float *z = *x;
    *x = *y, *y = z;
}

/* Host's [q, q] numbers to the device's small matrix. */
static struct train_mat put_small(struct iteration *w) {
    w->t->ops->put(w->t, w->small, w->host, (size_t)w->q * (size_t)w->q * sizeof *w->host);
    return train_mat(w->small, (size_t)w->q);
}

/* m [q, q] = x' y of matrices [rows, q], symmetric. */
static void gram(struct iteration *w, int32_t rows, const float *x, const float *y, double *m) {
    size_t q = (size_t)w->q;
    w->t->ops->gemm(w->t, w->q, w->q, rows, train_mat_t(x, q), train_mat(y, q), w->small, q, false);
    w->t->ops->get(w->t, w->host, w->small, q * q * sizeof *w->host);
    for (size_t i = 0; i < q; i++)
        for (size_t j = 0; j < q; j++)
            m[i * q + j] = ((double)w->host[i * q + j] + (double)w->host[j * q + i]) / 2;
}

/* z = D' y; returns H z (z itself without H). */
static const float *back(struct iteration *w, const float *y) {
    const struct train_ops *op = w->t->ops;
    size_t q = (size_t)w->q, k = (size_t)w->k;
    op->gemm(w->t, w->k, w->q, w->n, train_mat_t(w->d, k), train_mat(y, q), w->z, q, false);
    if (!w->h)
        return w->z;
    op->gemm(w->t, w->k, w->q, w->k, train_mat(w->h, k), train_mat(w->z, q), w->hz, q, false);
    return w->hz;
}

/* out = D H D' y */
static void times(struct iteration *w, const float *y, float *out) {
    size_t q = (size_t)w->q;
    const float *z = back(w, y);
    w->t->ops->gemm(w->t, w->n, w->q, w->k, train_mat(w->d, (size_t)w->k), train_mat(z, q), out, q,
                    false);
}

/* m = L L' becomes `inverse` = L^-1; a row is 0 where its column of y is nothing new. True: there
 * is such a one. */
static bool cholesky(int32_t n_cols, double *m, double *inverse) {
    size_t q = (size_t)n_cols;
    bool lost = false;
    memset(inverse, 0, q * q * sizeof *inverse);
    for (size_t i = 0; i < q; i++) {
        double *row = m + i * q, *out = inverse + i * q, left = row[i], all = row[i];
        for (size_t j = 0; j < i; j++) {
            const double *other = m + j * q;
            double sum = row[j];
            for (size_t l = 0; l < j; l++)
                sum -= row[l] * other[l];
            row[j] = sum * inverse[j * q + j]; /* 0 for a lost one */
            left -= row[j] * row[j];
        }
        if (!(left > noise * all)) {
            lost = true;
            memset(row, 0, q * sizeof *row);
            continue;
        }
        double pivot = sqrt(left);
        for (size_t j = 0; j < i; j++)
            for (size_t l = 0; l <= j; l++)
                out[l] -= row[j] * inverse[j * q + l] / pivot;
        out[i] = 1 / pivot;
    }
    return lost;
}

/* Columns of y to an orthonormal set, twice for the rounding. What was nothing new begins anew at
 * random, or is left 0 when even that does not help. */
static void orthonormal(struct iteration *w) {
    const struct train_ops *op = w->t->ops;
    size_t q = (size_t)w->q;
    bool lost = true;
    for (int pass = 0; pass < PASSES && (lost || pass < 2); pass++) {
        gram(w, w->n, w->y, w->y, w->m);
        lost = cholesky(w->q, w->m, w->inverse);
        for (size_t i = 0; i < q * q; i++)
            w->host[i] = (float)w->inverse[i];
        put_small(w);
        op->gemm(w->t, w->n, w->q, w->q, train_mat(w->y, q), train_mat_t(w->small, q), w->spare[0],
                 q, false);
        swap(&w->y, &w->spare[0]);
        if (!lost || pass + 1 == PASSES)
            continue;
        for (size_t i = 0; i < q * q; i++)
            w->host[i] = i / q == i % q && !(w->inverse[i] > 0);
        op->gemm(w->t, w->n, w->q, w->q, train_mat(w->random, q), put_small(w), w->y, q, true);
    }
}

/* y = a polynomial of D H D' times y: within +-1 on [0, edge], the least value of the subspace, and
 * steep beyond. Where the values are far apart, that is the matrix itself. */
static void filter(struct iteration *w) {
    const struct train_ops *op = w->t->ops;
    size_t tall = (size_t)w->n * (size_t)w->q;
    double top = w->value[0], edge = w->value[w->q - 1],
           degree = edge > 0 ? acosh(most_growth) / acosh(2 * top / edge - 1) : 0;
    float *now = w->spare[0], *out = w->spare[1], *before = w->y;
    if (degree < 2) {
        times(w, w->y, now);
        swap(&w->y, &w->spare[0]);
        return;
    }
    times(w, before, now); /* B y, B = 2 / edge D H D' - 1 */
    op->axpy(w->t, tall, (float)(2 / edge) - 1, now, now);
    op->axpy(w->t, tall, -1, before, now);
    for (int32_t i = 1; i + 1 <= degree && i < DEGREE; i++) {
        /* T_i+1 = 2 B T_i - T_i-1, with the signs of two at a time turned */
        float sign = i % 2 ? -1 : 1;
        times(w, now, out);
        op->axpy(w->t, tall, sign * (float)(4 / edge), out, before);
        op->axpy(w->t, tall, -sign * 2, now, before);
        swap(&before, &now);
    }
    w->y = now, w->spare[0] = before;
}

/* D H D' seen from the subspace: value and vector. Leaves z and, in m, nothing. */
static err_t look(struct iteration *w) {
    const float *z = back(w, w->y);
    gram(w, w->k, w->z, z, w->m);
    return eigen(w->q, w->m, w->value, w->vector);
}

/* y's columns to the directions themselves, the largest first. */
static void turn(struct iteration *w) {
    size_t q = (size_t)w->q;
    for (size_t i = 0; i < q * q; i++)
        w->host[i] = (float)w->vector[i];
    put_small(w);
    w->t->ops->gemm(w->t, w->n, w->q, w->q, train_mat(w->y, q), train_mat_t(w->small, q),
                    w->spare[0], q, false);
    swap(&w->y, &w->spare[0]);
}

/* The `wanted` largest directions of what D holds. */
static err_t find_band(struct iteration *w, int32_t wanted) {
    double before = 0;
    w->value[0] = w->value[w->q - 1] = 0;
    w->t->ops->copy(w->t, w->y, w->random, (size_t)w->n * (size_t)w->q * sizeof *w->y);
    for (int round = 0;; round++) {
        double held = 0;
        filter(w);
        orthonormal(w);
        err_t e = look(w);
        if (e)
            return e;
        for (int32_t i = 0; i < wanted; i++)
            held += w->value[i] > 0 ? w->value[i] : 0;
        if (held <= before * (1 + enough) || round == ROUNDS)
            return 0;
        before = held;
        turn(w);
    }
}

/* Of the subspace, the `wanted` largest directions, balanced, into columns of b [n, rank] from
 * `first` and rows of a; and out of D. */
static void take_band(struct iteration *w, int32_t first, int32_t wanted, int32_t rank, float *b,
                      float *a, double *held) {
    const struct train_ops *op = w->t->ops;
    size_t q = (size_t)w->q, k = (size_t)w->k, r = (size_t)wanted, bytes = q * r * sizeof(float);
    float *to_a = w->host, *to_b = (float *)w->inverse; /* [q, wanted] */
    gram(w, w->k, w->z, w->z, w->m);
    for (size_t j = 0; j < r; j++) {
        const double *x = w->vector + j * q;
        double value = w->value[j] > 0 ? w->value[j] : 0, square = 0; /* of U' D, whatever H is */
        for (size_t i = 0; i < q; i++)
            for (size_t l = 0; l < q; l++)
                square += x[i] * w->m[i * q + l] * x[l];
        double root = square > 0 && value > 0 ? sqrt(sqrt(square)) : 0;
        if (held)
            held[first + (int32_t)j] = value;
        for (size_t i = 0; i < q; i++) {
            to_b[i * r + j] = (float)(x[i] * root);
            to_a[i * r + j] = root > 0 ? (float)(x[i] / root) : 0;
        }
    }
    a += (size_t)first * k;
    op->put(w->t, w->small, to_a, bytes);
    op->gemm(w->t, wanted, w->k, w->q, train_mat_t(w->small, r), train_mat_t(w->z, q), a, k, false);
    op->put(w->t, w->small, to_b, bytes);
    op->gemm(w->t, w->n, wanted, w->q, train_mat(w->y, q), train_mat(w->small, r), b + first,
             (size_t)rank, false);
    for (size_t i = 0; i < q * r; i++)
        to_b[i] = -to_b[i];
    op->put(w->t, w->small, to_b, bytes);
    op->gemm(w->t, w->n, wanted, w->q, train_mat(w->y, q), train_mat(w->small, r), w->spare[0], r,
             false);
    op->gemm(w->t, w->n, w->k, wanted, train_mat(w->spare[0], r), train_mat(a, k), w->d, k, true);
}

/* random [n, q]: always the same. */
static err_t put_random(struct iteration *w) {
    size_t all = (size_t)w->n * (size_t)w->q;
    float *x = malloc(all * sizeof *x);
    uint64_t state = 1;
    for (size_t i = 0; x && i < all; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(state >> 40) / 8388608.0f - 1.0f;
    }
    if (x)
        w->t->ops->put(w->t, w->random, x, all * sizeof *x);
    free(x);
    return x ? 0 : E_NOMEM;
}

static int32_t columns(int32_t wanted, int32_t left) {
    int32_t q = wanted + EXTRA + wanted / 4;
    return q < left ? q : left;
}

err_t low_rank(struct train *t, int32_t n, int32_t k, int32_t rank, float *d, const float *h,
               float *b, float *a, double *held) {
    int32_t least = n < k ? n : k, band = rank < BAND ? rank : BAND, done = 0;
    if (rank < 1 || rank > least)
        return E_INVAL;
    struct iteration w = {.t = t, .n = n, .k = k, .h = h, .d = d, .q = columns(band, least)};
    size_t q = (size_t)w.q, tall = (size_t)n * q, wide = (size_t)k * q;
    float *block = NULL;
    w.m = malloc((3 * q * q + q) * sizeof *w.m);
    w.host = malloc(q * q * sizeof *w.host);
    err_t e = w.m && w.host
                  ? t->ops->take(t, (4 * tall + (h ? 2 : 1) * wide + q * q) * sizeof *block,
                                 (void **)&block)
                  : E_NOMEM;
    if (!e) {
        w.inverse = w.m + q * q, w.vector = w.inverse + q * q, w.value = w.vector + q * q;
        w.y = block, w.spare[0] = w.y + tall, w.spare[1] = w.spare[0] + tall;
        w.random = w.spare[1] + tall, w.small = w.random + tall;
        w.z = w.small + q * q, w.hz = w.z + wide; /* hz: not without h */
        e = put_random(&w);
    }
    for (; !e && done < rank; done += band) {
        band = rank - done < BAND ? rank - done : BAND;
        w.q = columns(band, least - done);
        e = find_band(&w, band);
        if (!e)
            take_band(&w, done, band, rank, b, a, held);
    }
    t->ops->give(t, block);
    free(w.m), free(w.host);
    return e;
}
