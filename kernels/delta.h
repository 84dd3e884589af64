/* The one definition of the integers behind a sign plane. Every backend and instruction set must
 * produce exactly these, so that results can be compared bit for bit before the final scaling.
 *
 * For a row of activations x [K] and a plane (bits, row [N], col [K] or none):
 *
 *   v[k]  = x[k] * col[k]                     one FP32 product; without col: x[k]
 *   block b holds columns 256 b .. 256 b + 255; columns past K count as v = 0
 *   m_b   = max |v[k]| in the block
 *   s_b   = 2^e, e = max(ilogb(m_b) - 14, -100)           (delta_exponent)
 *   q[k]  = clamp(rint(v[k] / s_b), -32767, 32767)        round to nearest even, 0 if m_b = 0
 *   I_b,n = 2 * (sum of q[k] over set bits of row n) - (sum of all q[k] of the block)
 *
 *   acc   = 0;  for b ascending: acc = acc + s_b * (float)I_b,n
 *   y[n]  = y[n] + row[n] * acc               fused or not
 *
 * |I| <= 256 * 32767 < 2^23, so I is exact in int32 and in FP32; s_b is a power of two, so the
 * product s_b * I is exact too and a fused and an unfused addition agree. The lower bound of e
 * keeps s_b and 1/s_b normal numbers: subnormal x become 0 whether or not a device flushes them. A
 * block with a NaN or an infinity has s_b = NaN and q = 0: the row's output is NaN, nothing else's.
 * Planes are added in order, after the base product and before the low-rank part. */
#ifndef KERNELS_DELTA_H
#define KERNELS_DELTA_H

#include <stdint.h>
#include <string.h>

enum { DELTA_MIN_EXPONENT = -100, DELTA_MAX_Q = 32767 };

/* e for a block whose largest magnitude is `max` (finite, >= 0). */
static inline int32_t delta_exponent(float max) {
    uint32_t bits;
    memcpy(&bits, &max, 4);
    int32_t e = (int32_t)(bits >> 23 & 0xff) - 127 - 14; /* subnormal: -141, clamped below */
    return e < DELTA_MIN_EXPONENT ? DELTA_MIN_EXPONENT : e;
}

/* 2^e for -126 <= e <= 127. */
static inline float delta_pow2(int32_t e) {
    uint32_t bits = (uint32_t)(e + 127) << 23;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

#endif
