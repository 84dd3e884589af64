/* The element-wise operators around the wide linears: norm and SiLU * up, fp16 out.
 *
 * Bytes: norm 4 D in, 2 D out for a row; SiLU * up 4 F in, 2 F out. Bound: device memory, or the L2
 * while a step's activations fit there. */
#include "kernels/cuda/prefill.h"

namespace {

enum { NORM_THREADS = 256, SWIGLU_THREADS = 256 };

/* A block for a row: the second pass over h comes from the L1. */
__global__ void __launch_bounds__(NORM_THREADS)
    norm_kernel(const struct gpu_row *rows, const float *h, __half *x, int32_t ld, int32_t dim,
                int32_t norm_index) {
    __shared__ float partial[NORM_THREADS / 32];
    const struct gpu_tenant *tenant = rows[blockIdx.x].tenant;
    const float *w = tenant->norm + (size_t)norm_index * dim;
    h += (size_t)blockIdx.x * ld;
    x += (size_t)blockIdx.x * ld;
    bool aligned = dim % 4 == 0 && (uintptr_t)w % 16 == 0;
    int fours = aligned ? dim / 4 : 0, i;
    float sum = 0;
    for (i = threadIdx.x; i < fours; i += NORM_THREADS) {
        float4 v = ((const float4 *)h)[i];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    for (i = 4 * fours + threadIdx.x; i < dim; i += NORM_THREADS)
        sum += h[i] * h[i];
    for (int d = 16; d; d >>= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int j = 0; j < NORM_THREADS / 32; j++)
        sum += partial[j];
    float scale = 1 / sqrtf(sum / (float)dim + tenant->norm_eps);
    for (i = threadIdx.x; i < fours; i += NORM_THREADS) {
        float4 v = ((const float4 *)h)[i], f = __ldg((const float4 *)w + i);
        __half2 out[2] = {__floats2half2_rn(v.x * scale * f.x, v.y * scale * f.y),
                          __floats2half2_rn(v.z * scale * f.z, v.w * scale * f.w)};
        ((uint2 *)x)[i] = *(const uint2 *)out;
    }
    for (i = 4 * fours + threadIdx.x; i < dim; i += NORM_THREADS)
        x[i] = __float2half_rn(h[i] * scale * w[i]);
}

/* 8 columns for a thread; the padding up to a multiple of 8 is computed, too. */
__global__ void __launch_bounds__(SWIGLU_THREADS)
    swiglu_kernel(const __half *gate_up, __half *act, int32_t ld_gate_up, int32_t ld_act,
                  int32_t ffn_dim, int32_t up_at) {
    int i = (int)(blockIdx.x * SWIGLU_THREADS + threadIdx.x) * 8;
    if (i >= ffn_dim)
        return;
    const __half *gate = gate_up + (size_t)blockIdx.y * ld_gate_up + i;
    uint4 g4 = *(const uint4 *)gate, u4 = *(const uint4 *)(gate + up_at), out;
    const __half2 *g = (const __half2 *)&g4, *u = (const __half2 *)&u4;
    __half2 *o = (__half2 *)&out;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float2 a = __half22float2(g[j]), b = __half22float2(u[j]);
        o[j] = __floats2half2_rn(a.x / (1 + __expf(-a.x)) * b.x, a.y / (1 + __expf(-a.y)) * b.y);
    }
    *(uint4 *)(act + (size_t)blockIdx.y * ld_act + i) = out;
}

} // namespace

err_t prefill_norm(const struct gpu_step *s, const struct gpu_activations *a, int32_t norm_index,
                   int32_t dim, int32_t n_narrow, int32_t n_wide, cudaStream_t stream) {
    if (n_wide > 0)
        norm_kernel<<<(unsigned)n_wide, NORM_THREADS, 0, stream>>>(
            s->row + n_narrow, a->h + (size_t)n_narrow * a->ld_h, a->x16, a->ld_h, dim, norm_index);
    return cudaGetLastError() == cudaSuccess ? 0 : E_DEVICE;
}

err_t prefill_swiglu(const struct gpu_activations *a, int32_t ffn_dim, int32_t n_wide,
                     cudaStream_t stream) {
    dim3 grid((unsigned)tiles_of(ffn_dim, 8 * SWIGLU_THREADS), (unsigned)n_wide);
    if (n_wide > 0)
        swiglu_kernel<<<grid, SWIGLU_THREADS, 0, stream>>>(
            a->gate_up16, a->act16, a->ld_gate_up, a->ld_act, ffn_dim,
            tiles_of(ffn_dim, TILE_ROWS) * TILE_ROWS);
    return cudaGetLastError() == cudaSuccess ? 0 : E_DEVICE;
}
