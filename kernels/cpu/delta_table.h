/* The sign product by table look-up (delta_body.h has the formula).
 *
 * For every few consecutive columns a table holds all possible sums of +-q; looking up a group of
 * signs replaces as many additions, without one multiplication, and the sums are the signed ones
 * (no correction by the sum of q). Tables of one column block are 4 KB and are shared by all output
 * rows of the work unit, transposed signs by all rows of x. */
#ifndef KERNELS_CPU_DELTA_TABLE_H
#define KERNELS_CPU_DELTA_TABLE_H

#if defined(__AVX512F__)
#include "kernels/cpu/delta_tile_avx512.h"
#elif defined(__AVX2__)
#include "kernels/cpu/delta_tile_avx2.h"
#else
#include "kernels/cpu/delta_tile_c.h"
#endif

enum { Q_PAD = 16 }; /* q read, never used, past a block's end */

/* All tiles of one plane for one row of x, whose tables stand ready. */
static void delta_plane(const struct delta_args *a, const uint32_t *next, const uint32_t *bits,
                        const int32_t *table, float scale, float *acc) {
    for (int32_t t = 0; t < a->n_tiles; t++) {
        if (next)
            delta_fetch(next + (size_t)t * a->tile_stride);
        delta_tile(bits + t * 128, table, scale, acc + t * TILE_ROWS);
    }
}

static void delta_block_table(const struct delta_args *a, struct scratch *s) {
    for (int32_t p = 0; p < a->n_planes; p++)
        for (int32_t t = 0; t < a->n_tiles; t++)
            delta_words(a->bits[p] + (size_t)t * a->tile_stride,
                        s->bits + (p * a->n_tiles + t) * 128);
    for (int32_t c = 0; c < a->n_x; c++) {
        int16_t q[TILE_COLS + Q_PAD];
        float scale = delta_quantise(a->x[c] + a->k0, a->col ? a->col + a->k0 : NULL, a->n_k, q);
        memset(q + TILE_COLS, 0, Q_PAD * sizeof *q);
        delta_tables(q, s->table);
        for (int32_t p = 0; p < a->n_planes; p++)
            delta_plane(a, c == 0 ? a->next[p] : NULL, s->bits + p * a->n_tiles * 128, s->table,
                        scale, a->acc + (p * a->n_x + c) * a->n_tiles * TILE_ROWS);
    }
}

#endif
