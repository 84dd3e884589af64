/* A product's inner loops, included by each train_isa_*.c: packing panels and the register tile
 * (Goto and van de Geijn's scheme). The tile is 12 x 32 with 512-bit registers, else 6 x 16. */
#ifndef KERNELS_CPU_TRAIN_GEMM_BODY_H
#define KERNELS_CPU_TRAIN_GEMM_BODY_H

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/train_isa.h"

#if defined(__SSE__)
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

/* The loops over i and j unroll whole: the accumulators stay in registers. */
static void tile(int32_t k, const float *a, const float *b, float *out) {
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
    for (int i = 0; i < TILE_MR; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            memcpy(out + i * TILE_NR + j * LANES_EACH, &acc[i][j], sizeof(fvec));
}

static void pack_some(struct train_mat x, int32_t r0, int32_t rows, int32_t l0, int32_t k,
                      int32_t step, float *panel) {
    for (int32_t r = r0; r < rows; r++)
        for (int32_t l = l0; l < k; l++)
            panel[(size_t)l * (size_t)step + (size_t)r] =
                x.p[(size_t)r * x.row + (size_t)l * x.col];
}

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

static void pack(struct train_mat x, int32_t rows, int32_t k, int32_t step, float *panel) {
    for (int32_t r0 = 0; r0 < rows; r0 += step, panel += (size_t)step * (size_t)k) {
        int32_t n = rows - r0 < step ? rows - r0 : step;
        struct train_mat part = {x.p + (size_t)r0 * x.row, x.row, x.col};
        if (n < step)
            memset(panel, 0, (size_t)step * (size_t)k * sizeof *panel);
        if (x.row == 1)
            for (int32_t l = 0; l < k; l++)
                memcpy(panel + (size_t)l * (size_t)step, part.p + (size_t)l * x.col,
                       (size_t)n * sizeof *panel);
        else if (x.col == 1)
            pack_rows(part, n, k, step, panel);
        else
            pack_some(part, 0, n, 0, k, step, panel);
    }
}

#endif
