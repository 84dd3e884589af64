/* The exponential for loops over logits and activations: libm's is a call per element. */
#ifndef COMPRESS_FAST_EXP_H
#define COMPRESS_FAST_EXP_H

#include <stdint.h>

/* e^x, relative error below 2e-6 for x in [-87, 88], clamped outside; written so that the compiler
 * makes vectors of it (libm's is a call per element). */
static inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float z = x * 1.44269504f;
    float n = (z + 12582912.0f) - 12582912.0f; /* nearest whole number, by rounding at 1.5 * 2^23 */
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two pieces */
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f +
                                                  r * (0.0416666667f + r * (0.00833333333f +
                                                                            r * 0.00138888889f)))));
    union {
        int32_t i;
        float f;
    } scale = {((int32_t)n + 127) << 23};
    return p * scale.f;
}

#endif
