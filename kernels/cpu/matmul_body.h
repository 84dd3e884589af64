/* The base product, included by each isa_*.c.
 *
 *   y[c][r] = sum over k of w[r][k] x[c][k],  w fp16 [R, K], x FP32 [C, K]
 *   bytes 2 R K (w) + 4 C K (x); FLOPs 2 R C K
 *
 * One row of x (decode): bound by reading w. Many (prefill): bound by FMA; w is converted to FP32
 * anew for every MICRO_COLS rows of x, which costs less than keeping a widened copy of it: widened
 * panels of 32 x 1024 were no faster at 256 rows and a third slower at 16. One code for both, so a
 * row's sums do not depend on its neighbours. */
#ifndef KERNELS_CPU_MATMUL_BODY_H
#define KERNELS_CPU_MATMUL_BODY_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"

/* Accumulators are MICRO_ROWS x MICRO_COLS x LANE_VECTORS registers; the rest holds operands. */
#if defined(__AVX512F__)
enum { MICRO_ROWS = 4, MICRO_COLS = 6 };
#elif defined(__AVX2__)
enum { MICRO_ROWS = 2, MICRO_COLS = 3 };
#else
enum { MICRO_ROWS = 1, MICRO_COLS = 3 };
#endif
enum {
    SINGLE_ROWS = MICRO_ROWS * 2, /* one row of x: more rows of w hide the FMA latency */
    BLOCK_HALVES = 1 << 18,       /* of w: 512 KiB */
};

/* R rows of w times C rows of x. */
INLINE void direct(const int R, const int C, const uint16_t *w, size_t ldw, int32_t k,
                   const float *const *x, float *const *y, int32_t r0, bool add) {
    struct lanes acc[SINGLE_ROWS][MICRO_COLS]; /* R x C of it */
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            acc[r][c] = lanes_set(0);
    int32_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        struct lanes wr[SINGLE_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            wr[r] = lanes_half(w + (size_t)r * ldw + i);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            struct lanes xc = lanes_load(x[c] + i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                acc[r][c] = lanes_fma(wr[r], xc, acc[r][c]);
        }
    }
    if (i < k)
        for (int c = 0; c < C; c++) {
            struct lanes xc = lanes_load_n(x[c] + i, k - i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                acc[r][c] = lanes_fma(lanes_half_n(w + (size_t)r * ldw + i, k - i), xc, acc[r][c]);
        }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
        float sum[SINGLE_ROWS];
        int r = 0;
#pragma GCC unroll 2
        for (; r + 4 <= R; r += 4)
            lanes_sum4(acc[r][c], acc[r + 1][c], acc[r + 2][c], acc[r + 3][c], sum + r);
#pragma GCC unroll 4
        for (; r < R; r++)
            sum[r] = lanes_sum(acc[r][c]);
#pragma GCC unroll 8
        for (r = 0; r < R; r++)
            y[c][r0 + r] = add ? y[c][r0 + r] + sum[r] : sum[r];
    }
}

/* Rows [r0, r1) of w times C rows of x. */
INLINE void direct_rows(const int R, const int C, const struct matmul_args *a, int32_t c0,
                        int32_t r0, int32_t r1) {
    size_t ldw = (size_t)a->k;
    int32_t r = r0;
    for (; r + R <= r1; r += R)
        direct(R, C, a->w + (size_t)r * ldw, ldw, a->k, a->x + c0, a->y + c0, r, a->add);
    for (; r < r1; r++)
        direct(1, C, a->w + (size_t)r * ldw, ldw, a->k, a->x + c0, a->y + c0, r, a->add);
}

/* Rows [r0, r1) of w times all rows of x. */
static void matmul_rows(const struct matmul_args *a, int32_t r0, int32_t r1) {
    int32_t c = 0;
    for (; c + MICRO_COLS <= a->n_x; c += MICRO_COLS)
        direct_rows(MICRO_ROWS, MICRO_COLS, a, c, r0, r1);
    switch (a->n_x - c) {
    case 1:
        direct_rows(SINGLE_ROWS, 1, a, c, r0, r1);
        break;
    case 2:
        direct_rows(MICRO_ROWS, 2, a, c, r0, r1);
        break;
#if defined(__AVX512F__)
    case 3:
        direct_rows(MICRO_ROWS, 3, a, c, r0, r1);
        break;
    case 4:
        direct_rows(MICRO_ROWS, 4, a, c, r0, r1);
        break;
    case 5:
        direct_rows(MICRO_ROWS, 5, a, c, r0, r1);
        break;
#endif
    default:
        break;
    }
}

/* Block by block of w, so that the rows of x after the first find it in the second-level cache. */
static void matmul(const struct matmul_args *a) {
    int32_t block = BLOCK_HALVES / a->k / SINGLE_ROWS * SINGLE_ROWS;
    block = block < SINGLE_ROWS ? SINGLE_ROWS : block;
    for (int32_t r = 0; r < a->n_out; r += block)
        matmul_rows(a, r, a->n_out - r < block ? a->n_out : r + block);
}

#endif
