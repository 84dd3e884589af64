/* Sixteen floats at a time, the unit every CPU kernel is written in: one 512-bit register, two of
 * 256 or four of 128 bits, by what the including file is compiled for. The order of every sum is
 * fixed by the sixteen lanes, not by the register width.
 *
 * Included by the isa_*.c files alone. Everything is inlined; nothing here is called through. */
#ifndef KERNELS_CPU_LANES_H
#define KERNELS_CPU_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/f16.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
enum { LANE_VECTORS = 1 };
typedef float fvec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
#elif defined(__AVX2__)
enum { LANE_VECTORS = 2 };
typedef float fvec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
#else
enum { LANE_VECTORS = 4 };
typedef float fvec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(16)));
#endif
enum { LANES = 16, LANES_EACH = LANES / LANE_VECTORS };

struct lanes {
    fvec v[LANE_VECTORS];
};

#define INLINE static inline __attribute__((always_inline, unused))
#define EACH for (int i_ = 0; i_ < LANE_VECTORS; i_++)

INLINE struct lanes lanes_set(float f) {
    struct lanes r;
    EACH r.v[i_] = f - (fvec){0};
    return r;
}
INLINE struct lanes lanes_load(const float *p) {
    struct lanes r;
    EACH memcpy(&r.v[i_], p + i_ * LANES_EACH, sizeof(fvec));
    return r;
}
INLINE void lanes_store(float *p, struct lanes a) {
    EACH memcpy(p + i_ * LANES_EACH, &a.v[i_], sizeof(fvec));
}
/* The first n lanes; the others are zero and their memory is not touched. */
INLINE struct lanes lanes_load_n(const float *p, int32_t n) {
#if defined(__AVX512F__)
    struct lanes r = {{(fvec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)}};
    return r;
#else
    float part[LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return lanes_load(part);
#endif
}
INLINE void lanes_store_n(float *p, struct lanes a, int32_t n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a.v[0]);
#else
    float part[LANES];
    lanes_store(part, a);
    memcpy(p, part, (size_t)n * sizeof *p);
#endif
}
INLINE struct lanes lanes_add(struct lanes a, struct lanes b) {
    EACH a.v[i_] += b.v[i_];
    return a;
}
INLINE struct lanes lanes_sub(struct lanes a, struct lanes b) {
    EACH a.v[i_] -= b.v[i_];
    return a;
}
INLINE struct lanes lanes_mul(struct lanes a, struct lanes b) {
    EACH a.v[i_] *= b.v[i_];
    return a;
}
INLINE struct lanes lanes_div(struct lanes a, struct lanes b) {
    EACH a.v[i_] /= b.v[i_];
    return a;
}
/* a * b + c; rounded once where the machine can. */
INLINE struct lanes lanes_fma(struct lanes a, struct lanes b, struct lanes c) {
#if defined(__AVX512F__)
    c.v[0] = (fvec)_mm512_fmadd_ps((__m512)a.v[0], (__m512)b.v[0], (__m512)c.v[0]);
#elif defined(__AVX2__)
    EACH c.v[i_] = (fvec)_mm256_fmadd_ps((__m256)a.v[i_], (__m256)b.v[i_], (__m256)c.v[i_]);
#else
    EACH c.v[i_] = a.v[i_] * b.v[i_] + c.v[i_];
#endif
    return c;
}
/* b where the mask is set (all ones), else a. */
INLINE fvec fvec_select(fvec a, fvec b, ivec mask) {
    return (fvec)(((ivec)a & ~mask) | ((ivec)b & mask));
}
/* The larger; a NaN in b is dropped, one in a is kept. */
INLINE struct lanes lanes_max(struct lanes a, struct lanes b) {
    EACH a.v[i_] = fvec_select(a.v[i_], b.v[i_], (ivec)(b.v[i_] > a.v[i_]));
    return a;
}
/* The larger magnitude of a and |b|, a >= 0; compared as integers, so infinity beats every number
 * and NaN beats infinity. */
INLINE struct lanes lanes_magnitude(struct lanes a, struct lanes b) {
    EACH {
        ivec m = (ivec)b.v[i_] & 0x7fffffff;
#if defined(__AVX512F__)
        a.v[i_] = (fvec)_mm512_max_epi32((__m512i)m, (__m512i)a.v[i_]);
#elif defined(__AVX2__)
        a.v[i_] = (fvec)_mm256_max_epi32((__m256i)m, (__m256i)a.v[i_]);
#else
        a.v[i_] = fvec_select(a.v[i_], (fvec)m, (ivec)(m > (ivec)a.v[i_]));
#endif
    }
    return a;
}
/* The fixed tree: lane i + lane i+8, then i+4, i+2, i+1. */
INLINE float lanes_sum(struct lanes a) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m512 z = (__m512)a.v[0];
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
#else
    __m256 y = _mm256_add_ps((__m256)a.v[0], (__m256)a.v[1]);
#endif
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
#else
    fvec x = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}
/* out[i] = lanes_sum of the i-th, in one go where the registers allow it. */
INLINE void lanes_sum4(struct lanes a, struct lanes b, struct lanes c, struct lanes d, float *out) {
#if defined(__AVX512F__)
    __m512 z0 = (__m512)a.v[0], z1 = (__m512)b.v[0], z2 = (__m512)c.v[0], z3 = (__m512)d.v[0];
    __m512 y0 = _mm512_add_ps(_mm512_shuffle_f32x4(z0, z1, 0x44), /* lanes i and i+8 of a, b */
                              _mm512_shuffle_f32x4(z0, z1, 0xee));
    __m512 y1 =
        _mm512_add_ps(_mm512_shuffle_f32x4(z2, z3, 0x44), _mm512_shuffle_f32x4(z2, z3, 0xee));
    __m512 x = _mm512_add_ps(_mm512_shuffle_f32x4(y0, y1, 0x88), /* i and i+4: a, b, c, d */
                             _mm512_shuffle_f32x4(y0, y1, 0xdd));
    x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e)); /* i and i+2 */
    x = _mm512_add_ps(x, _mm512_movehdup_ps(x));      /* i and i+1, in lanes 0, 4, 8, 12 */
    x = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
                              x);
    _mm_storeu_ps(out, _mm512_castps512_ps128(x));
#else
    out[0] = lanes_sum(a);
    out[1] = lanes_sum(b);
    out[2] = lanes_sum(c);
    out[3] = lanes_sum(d);
#endif
}
/* The largest of what lanes_magnitude gathered. */
INLINE float lanes_largest_magnitude(struct lanes a) {
    int32_t m = 0;
#if defined(__AVX512F__)
    m = _mm512_reduce_max_epi32((__m512i)a.v[0]);
#else
    int32_t bits[LANES];
    memcpy(bits, &a, sizeof bits);
    for (int32_t i = 0; i < LANES; i++)
        m = bits[i] > m ? bits[i] : m;
#endif
    float f;
    memcpy(&f, &m, 4);
    return f;
}
/* q[i] = a[i] rounded to the nearest whole number (ties to even), within +-32767; |a| < 2^22. */
INLINE void lanes_store_q(int16_t *q, struct lanes a) {
#if defined(__AVX512F__)
    __m512i whole = _mm512_cvtps_epi32((__m512)a.v[0]);
    whole = _mm512_max_epi32(whole, _mm512_set1_epi32(-32767));
    _mm256_storeu_si256((__m256i *)q, _mm512_cvtsepi32_epi16(whole));
#elif defined(__AVX2__)
    __m256i pair =
        _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)a.v[0]), _mm256_cvtps_epi32((__m256)a.v[1]));
    pair = _mm256_max_epi16(_mm256_permute4x64_epi64(pair, 0xd8), _mm256_set1_epi16(-32767));
    _mm256_storeu_si256((__m256i *)q, pair);
#else
    float v[LANES];
    lanes_store(v, a);
    for (int32_t i = 0; i < LANES; i++) {
        /* Adding 1.5 * 2^23 rounds as the current mode does: to nearest, ties to even. */
        int32_t whole = (int32_t)((v[i] + 12582912.0f) - 12582912.0f);
        whole = whole > 32767 ? 32767 : whole;
        q[i] = (int16_t)(whole < -32767 ? -32767 : whole);
    }
#endif
}
/* Sixteen fp16 values. */
INLINE struct lanes lanes_half(const uint16_t *p) {
    struct lanes r;
#if defined(__AVX512F__)
    r.v[0] = (fvec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    EACH r.v[i_] = (fvec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + i_ * LANES_EACH)));
#else
    typedef uint16_t hvec __attribute__((vector_size(8)));
    EACH { /* kernels/f16.h, four at a time */
        hvec h;
        memcpy(&h, p + i_ * LANES_EACH, sizeof h);
        ivec wide = __builtin_convertvector(h, ivec), m = wide & 0x7fff;
        ivec bits = (m << 13) + (112 << 23);
        fvec small = __builtin_convertvector(m, fvec) * 0x1p-24f;
        bits += (ivec)(m >= 0x7c00) & 112 << 23;
        bits |= (ivec)(m > 0x7c00) & 0x00400000;
        bits = (ivec)fvec_select((fvec)bits, small, (ivec)(m < 0x0400));
        r.v[i_] = (fvec)(bits | (wide & 0x8000) << 16);
    }
#endif
    return r;
}
INLINE struct lanes lanes_half_n(const uint16_t *p, int32_t n) {
    uint16_t part[LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return lanes_half(part);
}
/* e^x to 2 ulp for x <= 88; below -87 the result is 0, above 88 e^88; NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7 (error 2^-27). */
INLINE struct lanes lanes_exp(struct lanes a) {
    EACH {
        fvec x = a.v[i_], lo = -87.0f - (fvec){0}, hi = 88.0f - (fvec){0};
        x = fvec_select(x, lo, (ivec)(x < lo));
        x = fvec_select(x, hi, (ivec)(x > hi));
        /* Adding 1.5 * 2^23 leaves the nearest whole number in the low mantissa bits. */
        fvec shifted = x * 1.44269504089f + 12582912.0f;
        fvec n = shifted - 12582912.0f;
        fvec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
        fvec p = 1.0f / 5040 - (fvec){0};
        p = p * r + 1.0f / 720;
        p = p * r + 1.0f / 120;
        p = p * r + 1.0f / 24;
        p = p * r + 1.0f / 6;
        p = p * r + 0.5f;
        p = p * r * r + r + 1.0f;
        /* A product, not an addition to the exponent bits: a NaN must stay one. */
        p = p * (fvec)(((ivec)shifted << 23) + (127 << 23));
        a.v[i_] = (fvec)((ivec)p & ~(ivec)(a.v[i_] < lo));
    }
    return a;
}

#endif
