/* The counter-based generator behind sampling: draw number `draw` of a request with `seed` is a
 * pure function of the two, so it does not depend on the batch, the device or what came before. */
#ifndef KERNELS_DRAW_H
#define KERNELS_DRAW_H

#include <stdint.h>

/* splitmix64's finaliser (Stafford's mix 13): every input bit reaches every output bit. */
static inline uint64_t draw_mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Uniform in [0, 1), 53 bits. */
static inline double draw_uniform(uint64_t seed, uint64_t draw) {
    uint64_t x = draw_mix(draw_mix(seed + 0x9e3779b97f4a7c15u) + (draw + 1) * 0x9e3779b97f4a7c15u);
    return (double)(x >> 11) * 0x1p-53;
}

#endif
