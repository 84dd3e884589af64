/* What stands behind train_plane.signs: the hidden reals and their optimiser, 4 bytes a weight. The
 * sign is the sign bit of x, so that a real too small for FP16 keeps its sign and 0 is +1.
 *
 * Adam's second moment of h [n, k] is kept as its means over rows and over columns; their outer
 * product, divided by the mean of all, stands for it. */
#ifndef KERNELS_CUDA_TRAIN_SIGNS_CUH
#define KERNELS_CUDA_TRAIN_SIGNS_CUH

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct signs {
    __half *x;        /* [n, k] device; owned, with all that follows */
    __nv_bfloat16 *m; /* [n, k] */
    float *row, *col; /* [n], [k] running means of the squares */
    float *mean;      /* [1] of row */
};

static inline __host__ __device__ bool sign_is_minus(uint16_t half_bits) {
    return half_bits >> 15;
}

#endif
