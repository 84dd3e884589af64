#include "compress/delta_come.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "compress/low_rank.h"
#include "compress/parallel.h"

enum { GROUP = 128, SCALE_BITS = 16, FIRST = 2, SECOND = 32, BAND = 32, MOST = 8, RANGES = 24 };
/* Up to here the recipe is used as published. */
static const double recipe_bits = 1.25;

/* Bits of one rank's two vectors, at `bits` a number. */
static double rank_bits(int32_t n, int32_t k, int32_t bits) {
    int32_t groups = (n + GROUP - 1) / GROUP + (k + GROUP - 1) / GROUP;
    return bits ? (double)bits * (n + k) + (double)groups * (SCALE_BITS + bits) : 0;
}

/* The published recipe, made for one bit a weight. */
static double recipe(int32_t n, int32_t k, int32_t ranks, double budget, int32_t *bits) {
    double spent = 0;
    for (int32_t r = 0; r < ranks; r++) {
        int32_t want = r < FIRST ? 8 : r < FIRST + SECOND ? 3 : 2;
        bits[r] = spent + rank_bits(n, k, want) <= budget ? want : 0;
        spent += rank_bits(n, k, bits[r]);
    }
    return spent;
}

/* Its idea for more bits than that: each bit goes to the rank where it is expected to gain most. */
static double by_value(int32_t n, int32_t k, int32_t ranks, const double *held, double budget,
                       int32_t *bits) {
    /* Share of a rank's energy that rounding both its vectors costs. */
    static const double lost[] = {1, 1, 0.24, 0.075, 0.023, 0.007, 0.0021, 0.0006, 0.0002};
    double spent = 0;
    for (;;) {
        int32_t best = -1;
        double best_gain = 0;
        for (int32_t r = 0; r < ranks; r++) {
            int32_t next = bits[r] ? bits[r] + 1 : 2;
            double cost = next <= MOST ? rank_bits(n, k, next) - rank_bits(n, k, bits[r]) : 0,
                   gain = next <= MOST ? held[r] * (lost[bits[r]] - lost[next]) / cost : 0;
            if (gain > best_gain && spent + cost <= budget)
                best = r, best_gain = gain;
        }
        if (best < 0)
            return spent;
        int32_t next = bits[best] ? bits[best] + 1 : 2;
        spent += rank_bits(n, k, next) - rank_bits(n, k, bits[best]);
        bits[best] = next;
    }
}

static double round_range(float *x, int32_t n, double low, double step, int32_t top, bool write) {
    double error = 0;
    for (int32_t i = 0; i < n; i++) {
        double level = step > 0 ? rint(((double)x[i] - low) / step) : 0;
        level = level < 0 ? 0 : level > top ? top : level;
        double y = low + level * step;
        error += (y - (double)x[i]) * (y - (double)x[i]);
        if (write)
            x[i] = (float)y;
    }
    return error;
}

/* x [n] to 2^bits even levels between the ends that leave the least squared error: of the whole
 * range and of shares of it. */
static void round_group(float *x, int32_t n, int32_t bits) {
    double low = (double)x[0], high = low, best = -1, best_low = 0, best_step = 0;
    int32_t top = (1 << bits) - 1;
    for (int32_t i = 1; i < n; i++) {
        low = (double)x[i] < low ? (double)x[i] : low;
        high = (double)x[i] > high ? (double)x[i] : high;
    }
    for (int i = 0; i < RANGES; i++) {
        double keep = 1 - 0.8 * i / RANGES, step = keep * (high - low) / top,
               middle = (low + high) / 2, from = middle - keep * (high - low) / 2,
               error = round_range(x, n, from, step, top, false);
        if (best < 0 || error < best)
            best = error, best_low = from, best_step = step;
    }
    round_range(x, n, best_low, best_step, top, true);
}

/* Vectors one behind the other, each group of each on its own. */
struct vectors {
    float *x; /* [ranks, n] */
    int32_t n;
    const int32_t *bits; /* [ranks] */
};
static void round_vectors(void *arg, int32_t first, int32_t end) {
    const struct vectors *v = arg;
    for (int32_t r = first; r < end; r++)
        for (int32_t i = 0; i < v->n; i += GROUP)
            round_group(v->x + (size_t)r * (size_t)v->n + i, v->n - i < GROUP ? v->n - i : GROUP,
                        v->bits[r]);
}

/* One matrix while it is worked on. */
struct come {
    struct train *t;
    int32_t n, k;
    float *left;               /* device [n, k]: what is not kept yet */
    float *right;              /* device [ranks, k]: right vectors, sized by their values */
    float *dots, *u, *inverse; /* device [BAND, n] twice, [BAND, BAND] */
    float *host;               /* [BAND, max(n, k)] */
};

/* Rounds device x [ranks, n]; host has the result, too. */
static void round_device(const struct come *c, float *x, int32_t n, int32_t ranks,
                         const int32_t *bits) {
    size_t bytes = (size_t)ranks * (size_t)n * sizeof *x;
    struct vectors v = {c->host, n, bits};
    c->t->ops->get(c->t, c->host, x, bytes);
    parallel_rows(ranks, 1, round_vectors, &v);
    c->t->ops->put(c->t, x, c->host, bytes);
}

/* inverse [ranks, ranks] of v v', v [ranks, k] on the device. */
static void invert_gram(const struct come *c, int32_t ranks, const float *v) {
    double work[BAND][2 * BAND] = {{0}};
    float m[BAND * BAND];
    size_t r = (size_t)ranks, k = (size_t)c->k;
    c->t->ops->gemm(c->t, ranks, ranks, c->k, train_mat(v, k), train_mat_t(v, k), c->inverse, r,
                    false);
    c->t->ops->get(c->t, m, c->inverse, r * r * sizeof *m);
    for (size_t i = 0; i < r; i++) {
        for (size_t j = 0; j < r; j++)
            work[i][j] = (double)m[i * r + j];
        work[i][i] += 1e-9 * work[i][i] + 1e-30; /* a vector may have been rounded to nothing */
        work[i][r + i] = 1;
    }
    for (size_t i = 0; i < r; i++) /* positive definite: no pivots are needed */
        for (size_t j = 0; j < r; j++) {
            double f = j == i ? 0 : work[j][i] / work[i][i];
            for (size_t l = 0; f != 0 && l < 2 * r; l++)
                work[j][l] -= f * work[i][l];
        }
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++)
            m[i * r + j] = (float)(work[i][r + j] / work[i][i]);
    c->t->ops->put(c->t, c->inverse, m, r * r * sizeof *m);
}

/* One band of ranks: rounds right vectors v [ranks, k]; fits the left ones to them by the normal
 * equations, and rounds those; takes their product out of what is left. */
static void take_band(const struct come *c, int32_t ranks, const int32_t *bits, float *v) {
    const struct train_ops *op = c->t->ops;
    size_t n = (size_t)c->n, k = (size_t)c->k, all = (size_t)ranks * n;
    round_device(c, v, c->k, ranks, bits);
    invert_gram(c, ranks, v);
    op->gemm(c->t, ranks, c->n, c->k, train_mat(v, k), train_mat_t(c->left, k), c->dots, n, false);
    op->gemm(c->t, ranks, c->n, ranks, train_mat(c->inverse, (size_t)ranks), train_mat(c->dots, n),
             c->u, n, false);
    round_device(c, c->u, c->n, ranks, bits);
    for (size_t i = 0; i < all; i++)
        c->host[i] = -c->host[i];
    op->put(c->t, c->u, c->host, all * sizeof *c->host);
    op->gemm(c->t, c->n, c->k, ranks, train_mat_t(c->u, n), train_mat(v, k), c->left, k, true);
}

/* The right vectors and what they hold, of all ranks that `budget` bits could pay for. */
static err_t decompose(struct come *c, int32_t ranks, double *held) {
    size_t all = (size_t)c->n * (size_t)c->k;
    float *room = NULL;
    err_t e =
        c->t->ops->take(c->t, (all + (size_t)ranks * (size_t)c->n) * sizeof *room, (void **)&room);
    if (!e) {
        c->t->ops->copy(c->t, room, c->left, all * sizeof *room);
        e = low_rank(c->t, c->n, c->k, ranks, room, NULL, room + all, c->right, held);
    }
    c->t->ops->give(c->t, room);
    return e;
}

err_t delta_come(struct train *t, int32_t n, int32_t k, double bits, float *d, double *spent) {
    double budget = bits * (double)n * (double)k, most = budget / rank_bits(n, k, 2);
    int32_t ranks = n < k ? n : k, used = 0, longer = n > k ? n : k;
    ranks = most < ranks ? (int32_t)most : ranks;
    *spent = 0;
    if (ranks < 1)
        return 0;
    struct come c = {.t = t, .n = n, .k = k, .left = d};
    size_t wide = (size_t)ranks * (size_t)k, tall = BAND * (size_t)n;
    double *held = malloc((size_t)ranks * sizeof *held);
    int32_t *rank = calloc((size_t)ranks, sizeof *rank);
    c.host = malloc(BAND * (size_t)longer * sizeof *c.host);
    err_t e = held && rank && c.host ? 0 : E_NOMEM;
    e = e ? e : t->ops->take(t, (wide + 2 * tall + BAND * BAND) * sizeof(float), (void **)&c.right);
    if (e)
        goto out;
    c.dots = c.right + wide, c.u = c.dots + tall, c.inverse = c.u + tall;
    e = decompose(&c, ranks, held);
    for (int32_t r = 1; r < ranks; r++) /* falling, also where rounding has it otherwise */
        held[r] = held[r] < held[r - 1] ? held[r] : held[r - 1];
    *spent = bits <= recipe_bits ? recipe(n, k, ranks, budget, rank)
                                 : by_value(n, k, ranks, held, budget, rank);
    while (!e && used < ranks && rank[used]) {
        int32_t end = used; /* of one precision, at most BAND at once */
        while (end < ranks && end - used < BAND && rank[end] == rank[used] && held[end] > 0)
            end++;
        if (end == used)
            break;
        take_band(&c, end - used, rank + used, c.right + (size_t)used * (size_t)k);
        used = end;
    }
out:
    t->ops->give(t, c.right);
    free(held), free(rank), free(c.host);
    return e;
}
