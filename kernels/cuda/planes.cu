/* Bit planes of activations: for each row and block of 256 columns the integers q of
 * kernels/delta.h, stood on end: plane p holds bit p of every q (two's complement), in the order in
 * which lanes hold the B operand of mma.m16n8k256. Also the fp16 copy of the row for the base.
 *
 * One warp per (set, block): lane l holds columns l, l + 32, ..., l + 224, so a ballot over bit p
 * of the w-th is word w of plane p. About 400 instructions a warp; the input is in the L2. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear.h"

enum { WARPS = 4 };

/* q of the 8 columns of this lane, and s; the definition is in kernels/delta.h. */
static __device__ float quantise(const float (&v)[8], int (&q)[8]) {
    float m = 0;
    bool finite = true;
#pragma unroll
    for (int w = 0; w < 8; w++) {
        finite = finite && fabsf(v[w]) <= 3.402823466e38f;
        m = fmaxf(m, fabsf(v[w]));
    }
    for (int d = 16; d; d >>= 1)
        m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
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

static __global__ void __launch_bounds__(32 * WARPS) planes_kernel(const planes_args a) {
    int lane = threadIdx.x % 32, block = blockIdx.x * WARPS + threadIdx.x / 32;
    int n_blocks = (a.n_k + TILE_COLS - 1) / TILE_COLS;
    grid_launch_next();
    grid_wait();
    int set = blockIdx.y;
    if (set >= *a.n_sets || block >= n_blocks)
        return;
    int n_rows = *a.n_rows;
    bool plain = set < n_rows;
    int row = plain ? set : a.extra[set - n_rows].row;
    const float *col = plain ? NULL : a.extra[set - n_rows].col;

    float v[8];
#pragma unroll
    for (int w = 0; w < 8; w++) {
        int k = block * TILE_COLS + 32 * w + lane;
        v[w] = k < a.n_k ? __ldcg(a.x + (size_t)row * a.ld_x + k) : 0;
        if (plain)
            a.x16[(size_t)row * n_blocks * TILE_COLS + k] = __float2half_rn(v[w]);
        if (col)
            v[w] *= k < a.n_k ? col[k] : 0;
    }
    int q[8], sum = 0;
    float s = quantise(v, q);
#pragma unroll
    for (int w = 0; w < 8; w++)
        sum += q[w];
    sum = __reduce_add_sync(~0u, sum);

    /* Lane (g, t) keeps words t and t+4 of planes g and g+8. */
    uint32_t word[4] = {0, 0, 0, 0};
    int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int w = 0; w < 8; w++)
#pragma unroll
        for (int p = 0; p < 16; p++) {
            uint32_t b = __ballot_sync(~0u, q[w] >> p & 1);
            if (g == p % 8 && t == w % 4)
                word[p / 8 * 2 + w / 4] = b;
        }
    struct linear_planes *to = a.planes + (size_t)set * n_blocks + block;
    to->lane[lane] = make_uint4(word[0], word[1], word[2], word[3]);
    if (lane == 0)
        *(float4 *)&to->scale = make_float4(s, (float)sum, 0, 0);
}

err_t planes_launch(const struct planes_args *a, int32_t max_rows, int32_t max_sets,
                    cudaStream_t stream) {
    if (a->n_k < 1 || max_rows < 1 || max_rows > LINEAR_MAX_ROWS || max_sets < max_rows)
        return E_INVAL;
    int n_blocks = tiles_of(a->n_k, TILE_COLS);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)tiles_of(n_blocks, WARPS), (unsigned)max_sets);
    config.blockDim = dim3(32 * WARPS);
    config.stream = stream;
    cudaLaunchAttribute early[1];
    early[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, planes_kernel, *a) == cudaSuccess ? 0 : E_DEVICE;
}
