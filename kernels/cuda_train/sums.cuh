/* Sums of a FP32 matrix x [n, k] over its rows and over its columns in one pass. A block has
 * SUM_ROWS rows by STRIP columns; its warps 8 rows each, lanes VEC columns side by side. Partial
 * sums are added in the order of strips and of blocks by who finishes (row_total, col_total). */
#ifndef KERNELS_CUDA_TRAIN_SUMS_CUH
#define KERNELS_CUDA_TRAIN_SUMS_CUH

#include "kernels/cuda_train/cuda_train.h"

enum { SUM_WARPS = 8, SUM_ROWS = SUM_WARPS * 8, STRIP = 512 };

/* row_part[strip][n] = sum over k of (y u, z u^2),  col_part[block][k] = sum over n of (y v, z v^2)
 * with y = |x| and no z, or, when sign is given, y = x with the sign of `sign` and z = x^2. */
struct sums_args {
    int32_t n, k;
    const float *x;
    const __half *sign; /* [n, k] or NULL */
    const float *u, *v; /* [k], [n] (or [1]); NULL: ones */
    bool logs, one_row; /* u, v are logarithms; v is [1] */
    float2 *row_part, *col_part;
};

static inline unsigned sum_strips(int32_t k) {
    return blocks_of((size_t)k, STRIP);
}
static inline unsigned sum_blocks(int32_t n) {
    return blocks_of((size_t)n, SUM_ROWS);
}
/* Takes row_part and col_part from scratch and launches. False after an error. */
bool sums_launch(struct cuda_train *c, struct sums_args *a);

static __device__ __forceinline__ float2 row_total(const float2 *part, int32_t n_strips, int32_t n,
                                                   int32_t at) {
    float2 sum = {0, 0};
    for (int32_t s = 0; s < n_strips; s++) {
        float2 p = part[(size_t)s * (size_t)n + (size_t)at];
        sum.x += p.x, sum.y += p.y;
    }
    return sum;
}

/* For column first + lane, by a block of SUM_WARPS warps; all call, the first warp has the sum. */
static __device__ __forceinline__ float2 col_total(const float2 *part, int32_t n_blocks, int32_t k,
                                                   int32_t first) {
    __shared__ float2 share[SUM_WARPS][32];
    int32_t lane = (int32_t)threadIdx.x % 32, warp = (int32_t)threadIdx.x / 32;
    float2 sum = {0, 0};
    for (int32_t b = warp; first + lane < k && b < n_blocks; b += SUM_WARPS) {
        float2 p = part[(size_t)b * (size_t)k + (size_t)(first + lane)];
        sum.x += p.x, sum.y += p.y;
    }
    share[warp][lane] = sum;
    __syncthreads();
    for (int w = 1; warp == 0 && w < SUM_WARPS; w++)
        sum.x += share[w][lane].x, sum.y += share[w][lane].y;
    return sum;
}

#endif
