#include "compress/delta_come.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "compress/svd.h"

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
static double by_value(int32_t n, int32_t k, int32_t ranks, const float *value, double budget,
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
                   gain = next <= MOST ? (double)value[r] * (double)value[r] *
                                             (lost[bits[r]] - lost[next]) / cost
                                       : 0;
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

/* A vector of n, each group on its own. */
static void round_vector(float *x, int32_t n, int32_t bits) {
    for (int32_t i = 0; i < n; i += GROUP)
        round_group(x + i, n - i < GROUP ? n - i : GROUP, bits);
}

/* The left vectors nearest to d for the rounded right ones: u [ranks, n] with d ~ sum u_r v_r', by
 * the normal equations. */
static void fit_left(int32_t n, int32_t k, int32_t ranks, const float *d, const float *v,
                     float *u) {
    double inverse[BAND][BAND], work[BAND][2 * BAND] = {{0}};
    for (int32_t i = 0; i < ranks; i++) {
        for (int32_t j = 0; j < ranks; j++)
            for (int32_t l = 0; l < k; l++)
                work[i][j] += (double)v[(size_t)i * (size_t)k + (size_t)l] *
                              (double)v[(size_t)j * (size_t)k + (size_t)l];
        work[i][i] += 1e-9; /* a vector may have been rounded to nothing */
        work[i][ranks + i] = 1;
    }
    for (int32_t i = 0; i < ranks; i++) /* positive definite: no pivots are needed */
        for (int32_t r = 0; r < ranks; r++) {
            double f = r == i ? 0 : work[r][i] / work[i][i];
            for (int32_t l = 0; f != 0 && l < 2 * ranks; l++)
                work[r][l] -= f * work[i][l];
        }
    for (int32_t i = 0; i < ranks; i++)
        for (int32_t j = 0; j < ranks; j++)
            inverse[i][j] = work[i][ranks + j] / work[i][i];
    for (int32_t r = 0; r < n; r++) {
        double dv[BAND];
        const float *row = d + (size_t)r * (size_t)k;
        for (int32_t i = 0; i < ranks; i++) {
            dv[i] = 0;
            for (int32_t l = 0; l < k; l++)
                dv[i] += (double)row[l] * (double)v[(size_t)i * (size_t)k + (size_t)l];
        }
        for (int32_t i = 0; i < ranks; i++) {
            double sum = 0;
            for (int32_t j = 0; j < ranks; j++)
                sum += inverse[i][j] * dv[j];
            u[(size_t)i * (size_t)n + (size_t)r] = (float)sum;
        }
    }
}

/* One band of ranks: rounds v [ranks, k], fits and rounds u, takes their product out of d. */
static void take_band(int32_t n, int32_t k, int32_t ranks, const int32_t *bits, float *d, float *v,
                      float *u) {
    for (int32_t r = 0; r < ranks; r++)
        round_vector(v + (size_t)r * (size_t)k, k, bits[r]);
    fit_left(n, k, ranks, d, v, u);
    for (int32_t r = 0; r < ranks; r++)
        round_vector(u + (size_t)r * (size_t)n, n, bits[r]);
    for (int32_t i = 0; i < n; i++)
        for (int32_t r = 0; r < ranks; r++) {
            float x = u[(size_t)r * (size_t)n + (size_t)i];
            for (int32_t l = 0; l < k; l++)
                d[(size_t)i * (size_t)k + (size_t)l] -= x * v[(size_t)r * (size_t)k + (size_t)l];
        }
}

err_t delta_come(int32_t n, int32_t k, double bits, float *d, double *spent) {
    int32_t ranks = n < k ? n : k, used = 0;
    size_t all = (size_t)n * (size_t)k, side = (size_t)ranks;
    float *left = malloc((all + side * (size_t)(n + k) + side + (size_t)n * BAND) * sizeof *left);
    int32_t *rank = calloc(side, sizeof *rank);
    err_t e = left && rank ? 0 : E_NOMEM;
    float *u = left + all, *v = u + side * (size_t)n, *value = v + side * (size_t)k,
          *fitted = value + side;
    e = e ? e : svd(n, k, d, u, value, v);
    *spent = 0;
    if (e)
        goto out;
    *spent = bits <= recipe_bits ? recipe(n, k, ranks, bits * (double)all, rank)
                                 : by_value(n, k, ranks, value, bits * (double)all, rank);
    memcpy(left, d, all * sizeof *left);
    while (used < ranks && rank[used]) {
        int32_t end = used; /* of one precision, at most BAND at once */
        while (end < ranks && end - used < BAND && rank[end] == rank[used] && value[end] > 0)
            end++;
        if (end == used)
            break;
        take_band(n, k, end - used, rank + used, left, v + (size_t)used * (size_t)k, fitted);
        used = end;
    }
    for (size_t i = 0; i < all; i++)
        d[i] -= left[i];
out:
    free(left), free(rank);
    return e;
}
