/* The sign product, included by each isa_*.c: the integers of kernels/delta.h by table look-up.
 *
 * For every 4 consecutive columns a table holds the 16 possible sums of +-q; a 32-bit word of signs
 * is then 8 look-ups and 8 additions for 32 weights, without one multiplication, and the sums are
 * the signed ones (no correction by the sum of q). Tables of one column block are 4 KB and are
 * shared by all output rows of the work unit. */
#ifndef KERNELS_CPU_DELTA_BODY_H
#define KERNELS_CPU_DELTA_BODY_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"
#include "kernels/delta.h"

/* q of a block as delta.h defines it, zeros past n; returns s. */
static float delta_quantise(const float *x, const float *col, int32_t n, int16_t *q) {
    float v[TILE_COLS];
    struct lanes max = lanes_set(0);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        struct lanes a = lanes_load(x + i);
        if (col)
            a = lanes_mul(a, lanes_load(col + i));
        lanes_store(v + i, a);
        max = lanes_magnitude(max, a);
    }
    if (i < n) {
        struct lanes a = lanes_load_n(x + i, n - i);
        if (col)
            a = lanes_mul(a, lanes_load_n(col + i, n - i));
        lanes_store(v + i, a);
        max = lanes_magnitude(max, a);
        i += LANES;
    }
    for (; i < TILE_COLS; i += LANES)
        lanes_store(v + i, lanes_set(0));
    float m = lanes_largest_magnitude(max);
    if (!(m <= 3.402823466e38f)) {
        memset(q, 0, TILE_COLS * sizeof *q);
        return NAN;
    }
    int32_t e = delta_exponent(m);
    float inverse = delta_pow2(-e);
    for (i = 0; i < TILE_COLS; i++) {
        /* Adding 1.5 * 2^23 rounds to nearest even, as rint does, for |v| below 2^22. */
        float r = (v[i] * inverse + 12582912.0f) - 12582912.0f;
        int32_t whole = (int32_t)r;
        whole = whole > DELTA_MAX_Q ? DELTA_MAX_Q : whole;
        q[i] = (int16_t)(whole < -DELTA_MAX_Q ? -DELTA_MAX_Q : whole);
    }
    return delta_pow2(e);
}

/* table[j][i]: the sum of the four q of nibble j, each with + where its bit of i is set. */
static void delta_tables(const int16_t *q, int32_t *table) {
    for (int32_t j = 0; j < TILE_COLS / 4; j++, q += 4, table += 16)
        for (int32_t i = 0; i < 16; i++)
            table[i] = (i & 1 ? q[0] : -q[0]) + (i & 2 ? q[1] : -q[1]) + (i & 4 ? q[2] : -q[2]) +
                       (i & 8 ? q[3] : -q[3]);
}

/* bits[w][r]: word w of row r of the tile. */
static void delta_rows_of_tile(const uint32_t *tile, uint32_t *bits) {
    for (int32_t w = 0; w < 8; w++)
        for (int32_t r = 0; r < TILE_ROWS; r++)
            bits[w * 16 + r] = tile[(r % 8 * 4 + w % 4) * 4 + w / 4 * 2 + r / 8];
}

/* sum[r] over the tile's 256 columns. */
static void delta_tile(const uint32_t *bits, const int32_t *table, int32_t *sum) {
    for (int32_t r = 0; r < TILE_ROWS; r++)
        sum[r] = 0;
    for (int32_t w = 0; w < 8; w++)
        for (int32_t j = 0; j < 8; j++, table += 16)
            for (int32_t r = 0; r < TILE_ROWS; r++)
                sum[r] += table[bits[w * 16 + r] >> 4 * j & 15];
}

static void delta_block(const struct delta_args *a, struct scratch *s) {
    for (int32_t t = 0; t < a->n_tiles; t++)
        delta_rows_of_tile(a->bits + (size_t)t * a->tile_stride, s->bits + t * 128);
    for (int32_t c = 0; c < a->n_x; c++) {
        int16_t q[TILE_COLS];
        float scale = delta_quantise(a->x[c] + a->k0, a->col ? a->col + a->k0 : NULL, a->n_k, q);
        float *acc = a->acc + (size_t)c * (size_t)a->n_tiles * TILE_ROWS;
        delta_tables(q, s->table);
        for (int32_t t = 0; t < a->n_tiles; t++, acc += TILE_ROWS) {
            int32_t sum[TILE_ROWS];
            delta_tile(s->bits + t * 128, s->table, sum);
            for (int32_t r = 0; r < TILE_ROWS; r++)
                acc[r] += scale * (float)sum[r];
        }
    }
}

static void add_scaled(const float *row, const float *acc, int32_t n_x, int32_t ld_acc, int32_t n,
                       float *const *y) {
    for (int32_t c = 0; c < n_x; c++, acc += ld_acc) {
        int32_t i = 0;
        for (; i + LANES <= n; i += LANES)
            lanes_store(y[c] + i,
                        lanes_fma(lanes_load(row + i), lanes_load(acc + i), lanes_load(y[c] + i)));
        if (i < n)
            lanes_store_n(y[c] + i,
                          lanes_fma(lanes_load_n(row + i, n - i), lanes_load(acc + i),
                                    lanes_load_n(y[c] + i, n - i)),
                          n - i);
    }
}

#endif
