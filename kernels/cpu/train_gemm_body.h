/* A product's inner loops, included by each train_isa_*.c: packing panels and the register tile
 * (Goto and van de Geijn's scheme). The tile is 12 x 32 with 512-bit registers, else 6 x 16. */
#ifndef KERNELS_CPU_TRAIN_GEMM_BODY_H
#define KERNELS_CPU_TRAIN_GEMM_BODY_H

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/train_isa.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE__)
#include <xmmintrin.h>
#endif

#if defined(__AVX512F__)
enum { TILE_MR = 12, TILE_VECTORS = 2 };
#else
enum { TILE_MR = 6, TILE_VECTORS = 2 * 8 / LANES_EACH };
#endif
enum { TILE_NR = TILE_VECTORS * LANES_EACH };

/* a * b + c, rounded once where the machine can: ISO C lets the compiler not do it unasked. */
INLINE fvec fused(float a, fvec b, fvec c) {
#if defined(__AVX512F__)
    return (fvec)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (fvec)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* What does not fill a tile, by way of memory. */
static void put_edge(const float *tile, const struct tile_out *out) {
    int32_t rows = out->rows < TILE_MR ? out->rows : TILE_MR,
            cols = out->cols < TILE_NR ? out->cols : TILE_NR;
    for (int32_t r = 0; r < rows; r++) {
        float *c = out->c + (size_t)r * out->ldc;
        for (int32_t q = 0; q < cols; q++)
            c[q] = out->add ? c[q] + tile[r * TILE_NR + q] : tile[r * TILE_NR + q];
    }
}

/* The loops over i and j unroll whole: the accumulators stay in registers. */
static void tile(int32_t k, const float *a, const float *b, const struct tile_out *out) {
    fvec acc[TILE_MR][TILE_VECTORS];
    for (int i = 0; i < TILE_MR; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            acc[i][j] = (fvec){0};
    for (int32_t l = 0; l < k; l++, a += TILE_MR, b += TILE_NR) {
        fvec x[TILE_VECTORS];
        for (int j = 0; j < TILE_VECTORS; j++)
            memcpy(&x[j], b + j * LANES_EACH, sizeof x[j]);
        _Pragma("GCC unroll 16") for (int i = 0; i < TILE_MR; i++)
            _Pragma("GCC unroll 4") for (int j = 0; j < TILE_VECTORS; j++) acc[i][j] =
                fused(a[i], x[j], acc[i][j]);
    }
    if (out->rows < TILE_MR || out->cols < TILE_NR) {
        float edge[TILE_MR * TILE_NR];
        memcpy(edge, acc, sizeof edge);
        put_edge(edge, out);
        return;
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < TILE_MR; i++) {
        _Pragma("GCC unroll 4") for (int j = 0; j < TILE_VECTORS; j++) {
            float *c = out->c + (size_t)i * out->ldc + j * LANES_EACH;
            fvec before = {0};
            if (out->add)
                memcpy(&before, c, sizeof before);
            before = out->add ? before + acc[i][j] : acc[i][j];
            memcpy(c, &before, sizeof before);
        }
    }
}

static void pack_some(struct train_mat x, int32_t r0, int32_t rows, int32_t l0, int32_t k,
                      int32_t step, float *panel) {
    for (int32_t r = r0; r < rows; r++)
        for (int32_t l = l0; l < k; l++)
            panel[(size_t)l * (size_t)step + (size_t)r] =
                x.p[(size_t)r * x.row + (size_t)l * x.col];
}

#if defined(__AVX512F__)
static __mmask16 first(int32_t n) {
    return (__mmask16)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1);
}

/* Sixteen rows become sixteen columns. */
INLINE void turn(__m512 r[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int half = 0; half < 2; half++) {
            __m512d lo = _mm512_castps_pd(t[i + half]), hi = _mm512_castps_pd(t[i + 2 + half]);
            r[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
            r[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
        }
    for (int c = 0; c < 4;
         c++) { /* lanes of 4: column 4 q + c of rows 4 j .. in lane q of 4 j + c */
        __m512 even = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88),
               even2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88),
               odd = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd),
               odd2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_f32x4(even, even2, 0x88);
        t[4 + c] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
        t[8 + c] = _mm512_shuffle_f32x4(even, even2, 0xdd);
        t[12 + c] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        r[i] = t[i];
}

/* Rows whose elements lie side by side. */
static void pack_rows(struct train_mat x, int32_t rows, int32_t k, int32_t step, float *panel) {
    for (int32_t r0 = 0; r0 < step; r0 += 16) {
        __mmask16 wide = first(step - r0);
        for (int32_t l = 0; l < k; l += 16) {
            __mmask16 some = first(k - l);
            const float *p = x.p + (size_t)r0 * x.row + (size_t)l;
            float *to = panel + (size_t)l * (size_t)step + (size_t)r0;
            __m512 r[16];
            for (int i = 0; i < 16; i++)
                r[i] = r0 + i < rows ? _mm512_maskz_loadu_ps(some, p + (size_t)i * x.row)
                                     : _mm512_setzero_ps();
            turn(r);
            for (int i = 0; i < 16 && l + i < k; i++)
                _mm512_mask_storeu_ps(to + (size_t)i * (size_t)step, wide, r[i]);
        }
    }
}

/* Rows that lie beside one another element by element. */
static void pack_columns(struct train_mat x, int32_t rows, int32_t k, int32_t step, float *panel) {
    for (int32_t l = 0; l < k; l++, panel += step)
        for (int32_t r = 0; r < step; r += 16)
            _mm512_mask_storeu_ps(
                panel + r, first(step - r),
                _mm512_maskz_loadu_ps(first(rows - r), x.p + (size_t)l * x.col + (size_t)r));
}
#else
/* Rows whose elements lie side by side are turned four by four. */
static void pack_rows(struct train_mat x, int32_t rows, int32_t k, int32_t step, float *panel) {
    int32_t r = 0;
#if defined(__SSE__)
    for (; r + 4 <= rows; r += 4) {
        const float *p = x.p + (size_t)r * x.row;
        int32_t l = 0;
        for (; l + 4 <= k; l += 4, p += 4) {
            __m128 a = _mm_loadu_ps(p), b = _mm_loadu_ps(p + x.row),
                   c = _mm_loadu_ps(p + 2 * x.row), d = _mm_loadu_ps(p + 3 * x.row);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            float *to = panel + (size_t)l * (size_t)step + (size_t)r;
            _mm_storeu_ps(to, a), _mm_storeu_ps(to + step, b);
            _mm_storeu_ps(to + 2 * step, c), _mm_storeu_ps(to + 3 * step, d);
        }
        pack_some(x, r, r + 4, l, k, step, panel);
    }
#endif
    pack_some(x, r, rows, 0, k, step, panel);
}

/* Rows that lie beside one another element by element; a whole panel's width is copied inline. */
static void pack_columns(struct train_mat x, int32_t rows, int32_t k, int32_t step, float *panel) {
    for (int32_t l = 0; l < k; l++, panel += step) {
        const float *from = x.p + (size_t)l * x.col;
        if (rows == TILE_NR)
            memcpy(panel, from, TILE_NR * sizeof *panel);
        else if (rows == TILE_MR)
            memcpy(panel, from, TILE_MR * sizeof *panel);
        else
            memcpy(panel, from, (size_t)rows * sizeof *panel);
    }
}
#endif

/* Sums as in tile, whichever operand is the broadcast one. */
static void tile_turned(int32_t k, const float *a, size_t lda, const float *b,
                        const struct tile_out *out) {
    fvec acc[TILE_MR][TILE_VECTORS];
    for (int i = 0; i < TILE_MR; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            acc[i][j] = (fvec){0};
    for (int32_t l = 0; l < k; l++, a++, b += TILE_NR) {
        fvec x[TILE_VECTORS];
        for (int j = 0; j < TILE_VECTORS; j++)
            memcpy(&x[j], b + j * LANES_EACH, sizeof x[j]);
        _Pragma("GCC unroll 16") for (int i = 0; i < TILE_MR; i++)
            _Pragma("GCC unroll 4") for (int j = 0; j < TILE_VECTORS; j++) acc[i][j] =
                fused(a[(size_t)i * lda], x[j], acc[i][j]);
    }
    int32_t cols = out->cols < TILE_MR ? out->cols : TILE_MR,
            rows = out->rows < TILE_NR ? out->rows : TILE_NR;
#if defined(__AVX512F__)
    __mmask16 some = first(cols);
    for (int j = 0; j < TILE_VECTORS; j++) {
        __m512 r[16];
        for (int i = 0; i < 16; i++)
            r[i] = i < TILE_MR ? (__m512)acc[i < TILE_MR ? i : 0][j] : _mm512_setzero_ps();
        turn(r);
        for (int i = 0; i < 16 && j * 16 + i < rows; i++) {
            float *c = out->c + (size_t)(j * 16 + i) * out->ldc;
            _mm512_mask_storeu_ps(
                c, some, out->add ? _mm512_add_ps(_mm512_maskz_loadu_ps(some, c), r[i]) : r[i]);
        }
    }
#else
    float sum[TILE_MR * TILE_NR];
    memcpy(sum, acc, sizeof sum);
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < cols; i++) {
            float *c = out->c + (size_t)r * out->ldc + i, x = sum[i * TILE_NR + r];
            *c = out->add ? *c + x : x;
        }
#endif
}

static void pack(struct train_mat x, int32_t rows, int32_t k, int32_t step, float *panel) {
    for (int32_t r0 = 0; r0 < rows; r0 += step, panel += (size_t)step * (size_t)k) {
        int32_t n = rows - r0 < step ? rows - r0 : step;
        struct train_mat part = {x.p + (size_t)r0 * x.row, x.row, x.col};
        if (n < step)
            memset(panel, 0, (size_t)step * (size_t)k * sizeof *panel);
        if (x.row == 1)
            pack_columns(part, n, k, step, panel);
        else if (x.col == 1)
            pack_rows(part, n, k, step, panel);
        else
            pack_some(part, 0, n, 0, k, step, panel);
    }
}

#endif
