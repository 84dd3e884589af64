/* The base product, included by each isa_*.c.
 *
 *   y[c][r] = sum over k of w[r][k] x[c][k],  w fp16 [R, K], x FP32 [C, K]
 *   bytes 2 R K (w) + 4 C K (x); FLOPs 2 R C K
 *
 * Few rows of x (decode): bound by reading w; w is converted on the fly, MICRO_ROWS rows of it at a
 * time. Many (prefill): bound by FMA; panels of w are widened to FP32 once and stay in L2, and the
 * sixteen lanes of every sum are put aside between column panels, so both ways add in the same
 * order. */
#ifndef KERNELS_CPU_MATMUL_BODY_H
#define KERNELS_CPU_MATMUL_BODY_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"

/* Accumulators are MICRO_ROWS x MICRO_COLS x LANE_VECTORS registers; the rest holds operands. */
#if defined(__AVX512F__)
enum { MICRO_ROWS = 4, MICRO_COLS = 6, DIRECT_COLS = 12 };
#elif defined(__AVX2__)
enum { MICRO_ROWS = 2, MICRO_COLS = 3, DIRECT_COLS = 6 };
#else
enum { MICRO_ROWS = 1, MICRO_COLS = 3, DIRECT_COLS = 3 };
#endif
enum { SINGLE_ROWS = MICRO_ROWS * 2 }; /* one row of x: more rows of w hide the FMA latency */

/* R rows of w (fp16, in place) times C rows of x, complete. */
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

/* All rows of w times C rows of x. */
INLINE void direct_rows(const int R, const int C, const struct matmul_args *a, int32_t c0) {
    size_t ldw = (size_t)a->k;
    int32_t r = 0;
    for (; r + R <= a->n_out; r += R)
        direct(R, C, a->w + (size_t)r * ldw, ldw, a->k, a->x + c0, a->y + c0, r, a->add);
    for (; r < a->n_out; r++)
        direct(1, C, a->w + (size_t)r * ldw, ldw, a->k, a->x + c0, a->y + c0, r, a->add);
}

/* R rows of a widened panel times C rows of x from column k0 on; lanes kept in sums. */
INLINE void panel_micro(const int R, const int C, const float *panel, const float *const *x,
                        int32_t k0, int32_t n_k, float *sums, size_t row_sums, bool first) {
    struct lanes acc[SINGLE_ROWS][MICRO_COLS]; /* R x C of it */
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            acc[r][c] = first ? lanes_set(0) : lanes_load(sums + (size_t)r * row_sums + c * LANES);
    int32_t i = 0;
    for (; i + LANES <= n_k; i += LANES) {
        struct lanes wr[SINGLE_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            wr[r] = lanes_load(panel + r * PANEL_COLS + i);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            struct lanes xc = lanes_load(x[c] + k0 + i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                acc[r][c] = lanes_fma(wr[r], xc, acc[r][c]);
        }
    }
    if (i < n_k)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            struct lanes xc = lanes_load_n(x[c] + k0 + i, n_k - i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                acc[r][c] = lanes_fma(lanes_load(panel + r * PANEL_COLS + i), xc, acc[r][c]);
        }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            lanes_store(sums + (size_t)r * row_sums + c * LANES, acc[r][c]);
}

static void widen_panel(const struct matmul_args *a, int32_t r0, int32_t n_r, int32_t k0,
                        int32_t n_k, float *panel) {
    for (int32_t r = 0; r < n_r; r++) {
        const uint16_t *w = a->w + (size_t)(r0 + r) * (size_t)a->k + k0;
        float *p = panel + (size_t)r * PANEL_COLS;
        int32_t i = 0;
        for (; i + LANES <= n_k; i += LANES)
            lanes_store(p + i, lanes_half(w + i));
        if (i < n_k)
            lanes_store(p + i, lanes_half_n(w + i, n_k - i));
    }
}

INLINE void panel_columns(const int C, const float *panel, int32_t n_r, const float *const *x,
                          int32_t k0, int32_t n_k, float *sums, size_t row_sums) {
    int32_t r = 0;
    for (; r + MICRO_ROWS <= n_r; r += MICRO_ROWS)
        panel_micro(MICRO_ROWS, C, panel + (size_t)r * PANEL_COLS, x, k0, n_k,
                    sums + (size_t)r * row_sums, row_sums, k0 == 0);
    for (; r < n_r; r++)
        panel_micro(1, C, panel + (size_t)r * PANEL_COLS, x, k0, n_k, sums + (size_t)r * row_sums,
                    row_sums, k0 == 0);
}

static void matmul_panels(const struct matmul_args *a, struct scratch *s) {
    const size_t row_sums = (size_t)UNIT_TOKENS * LANES;
    for (int32_t r0 = 0; r0 < a->n_out; r0 += PANEL_ROWS) {
        int32_t n_r = a->n_out - r0 < PANEL_ROWS ? a->n_out - r0 : PANEL_ROWS;
        for (int32_t k0 = 0; k0 < a->k; k0 += PANEL_COLS) {
            int32_t n_k = a->k - k0 < PANEL_COLS ? a->k - k0 : PANEL_COLS, c = 0;
            widen_panel(a, r0, n_r, k0, n_k, s->panel);
            for (; c + MICRO_COLS <= a->n_x; c += MICRO_COLS)
                panel_columns(MICRO_COLS, s->panel, n_r, a->x + c, k0, n_k, s->sums + c * LANES,
                              row_sums);
            for (; c + 2 <= a->n_x; c += 2)
                panel_columns(2, s->panel, n_r, a->x + c, k0, n_k, s->sums + c * LANES, row_sums);
            if (c < a->n_x)
                panel_columns(1, s->panel, n_r, a->x + c, k0, n_k, s->sums + c * LANES, row_sums);
        }
        for (int32_t c = 0; c < a->n_x; c++)
            for (int32_t r = 0; r < n_r; r++) {
                float sum = lanes_sum(lanes_load(s->sums + (size_t)r * row_sums + c * LANES));
                float *y = &a->y[c][r0 + r];
                *y = a->add ? *y + sum : sum;
            }
    }
}

/* n_x <= UNIT_TOKENS. */
static void matmul(const struct matmul_args *a, struct scratch *s) {
    if (a->n_x > DIRECT_COLS) {
        matmul_panels(a, s);
        return;
    }
    int32_t c = 0;
    for (; c + MICRO_COLS <= a->n_x; c += MICRO_COLS)
        direct_rows(MICRO_ROWS, MICRO_COLS, a, c);
    switch (a->n_x - c) {
    case 1:
        direct_rows(SINGLE_ROWS, 1, a, c);
        break;
    case 2:
        direct_rows(MICRO_ROWS, 2, a, c);
        break;
#if defined(__AVX512F__)
    case 3:
        direct_rows(MICRO_ROWS, 3, a, c);
        break;
    case 4:
        direct_rows(MICRO_ROWS, 4, a, c);
        break;
    case 5:
        direct_rows(MICRO_ROWS, 5, a, c);
        break;
#endif
    default:
        break;
    }
}

#endif
