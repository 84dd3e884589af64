/* What a kernel that makes the input of a fused linear (linear.h) writes: the two fp16 halves of
 * x, and for each block of 256 columns the bit planes of the integers of kernels/delta.h. A warp
 * has one row and one block; lane l holds columns l, l + 32, ..., l + 224 in v[0 .. 7], zeros past
 * K. All lanes must call. Nothing here waits or launches. */
#ifndef KERNELS_CUDA_PLANES_CUH
#define KERNELS_CUDA_PLANES_CUH

#include "kernels/cuda/linear.h"

/* The halves of x; values beyond fp16's range keep a large lo, infinities and NaN stay bad. */
static __device__ __forceinline__ void halves_store(__half *x, int n_blocks, int row, int block,
                                                    const float (&v)[8]) {
    __half *to = x + linear_x_at(n_blocks, row, block * TILE_COLS + (int)(threadIdx.x % 32), 0);
#pragma unroll
    for (int w = 0; w < 8; w++) {
        float near = fabsf(v[w]) < 131000.0f ? fminf(fmaxf(v[w], -65504.0f), 65504.0f) : v[w];
        __half hi = __float2half_rn(near);
        to[w * 256] = hi;
        to[w * 256 + 32] = __float2half_rn(v[w] - __half2float(hi));
    }
}

/* q of the 8 columns of this lane, and s; the definition is in kernels/delta.h. */
static __device__ __forceinline__ float planes_quantise(const float (&v)[8], int (&q)[8]) {
    float m = 0;
    bool finite = true;
#pragma unroll
    for (int w = 0; w < 8; w++) {
        finite = finite && fabsf(v[w]) <= 3.402823466e38f;
        m = fmaxf(m, fabsf(v[w]));
    }
    m = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(m))); /* m >= 0: ordered as bits */
    if (!__all_sync(~0u, finite)) {
#pragma unroll
        for (int w = 0; w < 8; w++)
            q[w] = 0;
        return __int_as_float(0x7fc00000);
    }
    int e = max((int)(__float_as_uint(m) >> 23 & 0xff) - 127 - 14, -100);
    float inverse = __uint_as_float((uint32_t)(127 - e) << 23);
#pragma unroll
    for (int w = 0; w < 8; w++)
        q[w] = min(max(__float2int_rn(v[w] * inverse), -32767), 32767);
    return __uint_as_float((uint32_t)(127 + e) << 23);
}

/* The bit planes of one row and block, its scale and its sum. */
static __device__ __forceinline__ void planes_store(struct linear_planes *to, const float (&v)[8]) {
    int q[8], sum = 0, lane = (int)(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    float s = planes_quantise(v, q);
#pragma unroll
    for (int w = 0; w < 8; w++)
        sum += q[w];
    sum = __reduce_add_sync(~0u, sum);
    /* A ballot over bit p of the w-th columns is word w of plane p; lane (g, t) keeps words t and
     * t + 4 of planes g and g + 8. */
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < 8; w++)
#pragma unroll
        for (int p = 0; p < 16; p++) {
            uint32_t b = __ballot_sync(~0u, q[w] >> p & 1);
            if (g == p % 8 && t == w % 4)
                word[p / 8 * 2 + w / 4] = b;
        }
    to->lane[lane] = make_uint4(word[0], word[1], word[2], word[3]);
    if (lane == 0)
        *(float4 *)&to->scale = make_float4(s, (float)sum, 0, 0);
}

#endif
