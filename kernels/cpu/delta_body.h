/* The sign product, included by each isa_*.c: the integers of kernels/delta.h.
 *
 *   acc[c][r] += s_c * sum over the block's 256 columns of (+-)q_c[k]
 *   bytes per tile of 16 rows x 256 columns: 512, 1/16 of the base's; bound: arithmetic
 *
 * delta_table.h has the way of every set, delta_amx.h that of AMX for several rows of x. */
#ifndef KERNELS_CPU_DELTA_BODY_H
#define KERNELS_CPU_DELTA_BODY_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"
#include "kernels/delta.h"

/* x * col of lanes i .., with zeros past n. */
INLINE struct lanes delta_input(const float *x, const float *col, int32_t i, int32_t n) {
    if (i + LANES <= n)
        return col ? lanes_mul(lanes_load(x + i), lanes_load(col + i)) : lanes_load(x + i);
    if (i >= n)
        return lanes_set(0);
    struct lanes a = lanes_load_n(x + i, n - i);
    return col ? lanes_mul(a, lanes_load_n(col + i, n - i)) : a;
}

/* q of a block as delta.h defines it, zeros past n; returns s. */
static float delta_quantise(const float *x, const float *col, int32_t n, int16_t *q) {
    struct lanes max[2] = {lanes_set(0), lanes_set(0)};
    for (int32_t i = 0; i < n; i += 2 * LANES) {
        max[0] = lanes_magnitude(max[0], delta_input(x, col, i, n));
        max[1] = lanes_magnitude(max[1], delta_input(x, col, i + LANES, n));
    }
    float m = lanes_largest_magnitude(lanes_magnitude(max[0], max[1]));
    if (!(m <= 3.402823466e38f)) {
        memset(q, 0, TILE_COLS * sizeof *q);
        return NAN;
    }
    int32_t e = delta_exponent(m);
    struct lanes inverse = lanes_set(delta_pow2(-e));
    for (int32_t i = 0; i < TILE_COLS; i += LANES)
        lanes_store_q(q + i, lanes_mul(delta_input(x, col, i, n), inverse));
    return delta_pow2(e);
}

/* bits[w][lane]: word w of the tile's rows; lane 2g + h holds row g + 8h. In the tile the two rows
 * of a pair stand together, so this transposes 8 x 8 words of 64 bits. */
static void delta_words(const uint32_t *tile, uint32_t *bits) {
#if defined(__AVX512F__)
    __m512i a[8], b[8];
    for (int32_t g = 0; g < 8; g++)
        a[g] = _mm512_loadu_si512(tile + g * 16);
    for (int32_t i = 0; i < 4; i++) {
        b[i] = _mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]); /* words 0 1 2 3 of rows 2i, 2i+1 */
        b[4 + i] = _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]); /* words 4 5 6 7 */
    }
    for (int32_t h = 0; h < 2; h++) { /* 4 x 4 blocks of 128 bits */
        __m512i p = _mm512_shuffle_i64x2(b[4 * h], b[4 * h + 1], 0x44);
        __m512i q = _mm512_shuffle_i64x2(b[4 * h], b[4 * h + 1], 0xee);
        __m512i r = _mm512_shuffle_i64x2(b[4 * h + 2], b[4 * h + 3], 0x44);
        __m512i s = _mm512_shuffle_i64x2(b[4 * h + 2], b[4 * h + 3], 0xee);
        uint32_t *to = bits + h * 64;
        _mm512_store_si512(to, _mm512_shuffle_i64x2(p, r, 0x88));
        _mm512_store_si512(to + 16, _mm512_shuffle_i64x2(p, r, 0xdd));
        _mm512_store_si512(to + 32, _mm512_shuffle_i64x2(q, s, 0x88));
        _mm512_store_si512(to + 48, _mm512_shuffle_i64x2(q, s, 0xdd));
    }
#else
    for (int32_t g = 0; g < 8; g++)
        for (int32_t t = 0; t < 4; t++)
            for (int32_t h = 0; h < 2; h++)
                memcpy(bits + (t + 4 * h) * 16 + 2 * g, tile + g * 16 + t * 4 + 2 * h, 8);
#endif
}

/* Asks for a tile. Tiles of one column block lie far apart, which hides them from the hardware's
 * prefetcher; asking for one while another is looked up keeps the few line buffers of a core from
 * filling up (all at once, the requests stalled as long as the loads they were to save). */
INLINE void delta_fetch(const uint32_t *tile) {
#pragma GCC unroll 8
    for (int32_t i = 0; i < TILE_BYTES; i += 64)
        __builtin_prefetch((const char *)tile + i, 0, 3);
}

#include "kernels/cpu/delta_table.h"
#if defined(__AMX_INT8__)
#include "kernels/cpu/delta_amx.h"
#else
static void delta_block(const struct delta_args *a, struct scratch *s) {
    delta_block_table(a, s);
}
#endif

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
