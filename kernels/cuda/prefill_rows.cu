/* What makes the input of a wide linear: norm, SiLU * up, or rows as they stand; fp16, in the order
 * of wide_place.
 *
 * Bytes: norm 4 D in, 2 D out for a row; SiLU * up 4 F in, 2 F out. Bound: device memory, or the L2
 * while a step's activations fit there. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/wide.cuh"

namespace {

enum { NORM_THREADS = 256, ROW_THREADS = 128 };

struct input {
    char *at;
    int32_t max_rows;
};
input input_of(const struct prefill *p) {
    input in;
    in.at = prefill_input(p, &in.max_rows);
    return in;
}
/* Pieces of 32 columns of a row, zeros past K included. */
__host__ __device__ int n_pieces(int n_k) {
    return (n_k + TILE_COLS - 1) / TILE_COLS * (TILE_COLS / 32);
}

/* 32 columns of a row, two in a word: piece q takes words q, 4 + q, 8 + q, 12 + q. */
__device__ __forceinline__ void put(const input &in, int row, int c, const uint32_t (&words)[16]) {
#pragma unroll
    for (int q = 0; q < 4; q++)
        *(uint4 *)(in.at + wide_place(in.max_rows, row, c, q)) =
            make_uint4(words[q], words[4 + q], words[8 + q], words[12 + q]);
}

/* A block for a row: the second pass over h comes from the L1; its results are turned round in
 * shared memory, [n_pieces][16 words]. */
__global__ void __launch_bounds__(NORM_THREADS)
    norm_kernel(const struct gpu_row *rows, const float *h, int32_t ld, int32_t dim,
                int32_t norm_index, input in) {
    extern __shared__ __align__(16) __half2 line[];
    __shared__ float partial[NORM_THREADS / 32];
    grid_launch_next();
    grid_wait();
    const struct gpu_tenant *tenant = rows[blockIdx.x].tenant;
    const float *w = tenant->norm + (size_t)norm_index * dim;
    h += (size_t)blockIdx.x * ld;
    bool aligned = dim % 4 == 0 && (uintptr_t)w % 16 == 0;
    int fours = aligned ? dim / 4 : 0, pieces = n_pieces(dim), i;
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
        line[2 * i] = __floats2half2_rn(v.x * scale * f.x, v.y * scale * f.y);
        line[2 * i + 1] = __floats2half2_rn(v.z * scale * f.z, v.w * scale * f.w);
    }
    for (i = 4 * fours + threadIdx.x; i < 32 * pieces; i += NORM_THREADS)
        ((__half *)line)[i] = __float2half_rn(i < dim ? h[i] * scale * w[i] : 0);
    __syncthreads();
    const uint32_t *words = (const uint32_t *)line;
    for (i = threadIdx.x; i < 4 * pieces; i += NORM_THREADS) {
        const uint32_t *from = words + i / 4 * 16 + i % 4;
        *(uint4 *)(in.at + wide_place(in.max_rows, blockIdx.x, i / 4, i % 4)) =
            make_uint4(from[0], from[4], from[8], from[12]);
    }
}

/* 8 columns from c on of a row of n; zeros past its end. */
__device__ __forceinline__ uint4 load8(const __half *row, int c, int n) {
    if (c + 8 <= n)
        return *(const uint4 *)(row + c);
    __half v[8];
    for (int i = 0; i < 8; i++)
        v[i] = c + i < n ? row[c + i] : __float2half(0);
    uint4 u;
    memcpy(&u, v, 16);
    return u;
}

/* A thread for 32 columns of a row. */
__global__ void __launch_bounds__(ROW_THREADS)
    swiglu_kernel(const __half *gate_up, int32_t ld, int32_t ffn_dim, int32_t up_at, input in) {
    grid_launch_next();
    grid_wait();
    int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
    if (c >= n_pieces(ffn_dim))
        return;
    const __half *gate = gate_up + (size_t)blockIdx.y * ld, *up = gate + up_at;
    uint32_t words[16];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint4 g4 = load8(gate, 32 * c + 8 * i, ffn_dim), u4 = load8(up, 32 * c + 8 * i, ffn_dim);
        const uint32_t gs[4] = {g4.x, g4.y, g4.z, g4.w}, us[4] = {u4.x, u4.y, u4.z, u4.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 a = __half22float2(*(const __half2 *)&gs[j]);
            float2 b = __half22float2(*(const __half2 *)&us[j]);
            __half2 o =
                __floats2half2_rn(a.x / (1 + __expf(-a.x)) * b.x, a.y / (1 + __expf(-a.y)) * b.y);
            words[4 * i + j] = *(const uint32_t *)&o;
        }
    }
    put(in, blockIdx.y, c, words);
}

__global__ void __launch_bounds__(ROW_THREADS)
    take_kernel(const __half *x, int32_t ld, int32_t n_k, input in) {
    grid_launch_next();
    grid_wait();
    int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
    if (c >= n_pieces(n_k))
        return;
    uint32_t words[16];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint4 v = load8(x + (size_t)blockIdx.y * ld, 32 * c + 8 * i, n_k);
        words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
    put(in, blockIdx.y, c, words);
}

dim3 row_grid(int32_t n_k, int32_t rows) {
    return dim3((unsigned)tiles_of(n_pieces(n_k), ROW_THREADS), (unsigned)rows);
}

} // namespace

err_t prefill_norm(struct prefill *p, const struct gpu_step *s, const struct gpu_activations *a,
                   int32_t norm_index, int32_t dim, int32_t n_narrow, int32_t n_wide,
                   cudaStream_t stream) {
    if (n_wide < 1)
        return E_OK;
    return launch_early(norm_kernel, dim3((unsigned)n_wide), NORM_THREADS,
                        (size_t)n_pieces(dim) * 64, stream, s->row + n_narrow,
                        a->h + (size_t)n_narrow * a->ld_h, a->ld_h, dim, norm_index, input_of(p));
}

err_t prefill_swiglu(struct prefill *p, const struct gpu_activations *a, int32_t ffn_dim,
                     int32_t n_wide, cudaStream_t stream) {
    if (n_wide < 1)
        return E_OK;
    return launch_early(swiglu_kernel, row_grid(ffn_dim, n_wide), ROW_THREADS, 0, stream,
                        a->gate_up16, a->ld_gate_up, ffn_dim,
                        tiles_of(ffn_dim, TILE_ROWS) * TILE_ROWS, input_of(p));
}

err_t prefill_take(struct prefill *p, const __half *x, int32_t ld_x, int32_t n_k, int32_t n_wide,
                   cudaStream_t stream) {
    if (n_wide < 1)
        return E_OK;
    return launch_early(take_kernel, row_grid(n_k, n_wide), ROW_THREADS, 0, stream, x, ld_x, n_k,
                        input_of(p));
}
