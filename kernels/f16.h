/* IEEE half <-> float without any instruction set, for code that meets single values; the kernels
 * convert whole vectors by their own means and agree with these bit for bit. */
#ifndef KERNELS_F16_H
#define KERNELS_F16_H

#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
    float f;
    if (magnitude >= 0x7c00) { /* infinity, NaN (made quiet, as the hardware does) */
        bits = 0x7f800000u | magnitude << 13;
        if (magnitude > 0x7c00)
            bits |= 0x00400000u;
    } else if (magnitude >= 0x0400) {
        bits = (magnitude << 13) + (112u << 23);
    } else { /* subnormal: a whole number of 2^-24 */
        f = (float)magnitude * 0x1p-24f;
        memcpy(&bits, &f, 4);
    }
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}

/* Rounds to nearest even; overflow gives infinity. */
static inline uint16_t half_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x1ff));
    if (bits >= 0x47800000) /* 65536 and above; what rounds up to it carries over below */
        return sign | 0x7c00;
    if (bits < 0x38800000) { /* below 2^-14: adding 0.5 aligns the mantissa to 2^-24 and rounds */
        float f;
        memcpy(&f, &bits, 4);
        f += 0.5f;
        memcpy(&bits, &f, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0x0fff + (bits >> 13 & 1);
    return (uint16_t)(sign | ((bits - (112u << 23)) >> 13));
}

#endif
