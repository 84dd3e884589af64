/* What stands behind train_plane.signs: the hidden reals and the means of their gradients' squares
 * over rows and columns. The sign is the sign bit of x, so that a real too small for FP16 keeps its
 * sign and 0 is +1. */
#ifndef KERNELS_CUDA_TRAIN_SIGNS_CUH
#define KERNELS_CUDA_TRAIN_SIGNS_CUH

#include <cstdint>
#include <cuda_fp16.h>

struct signs {
    __half *x;        /* [n, k] device; owned, with all that follows */
    float *row, *col; /* [n], [k] */
    float *mean;      /* [1] of row */
};

static inline __host__ __device__ bool sign_is_minus(uint16_t half_bits) {
    return half_bits >> 15;
}

#endif
