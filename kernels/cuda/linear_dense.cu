/* Parts of a linear that a tenant gives as a dense matrix (linear.h): y = w x for its rows.
 *
 * Bytes: 2 N K for each dense tenant, from memory; x from the L2. FLOPs: 4 N K rows (two halves).
 * Bound: device memory up to 16 rows of a tenant; more rows read w again, from the L2.
 *
 * A warp has 16 outputs over the whole of K and takes its operands straight from the row-major
 * matrix: 16 bytes of a row are the lane's columns of two products. The sums are those of the
 * fused linear, operation by operation, so a tenant whose matrix equals the base's has the base's
 * bits. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear.h"

namespace {

enum {
    WARPS = 8,
    QUADS = 2, /* rows / 4 that share a reading of w */
    RUNS = 4,  /* columns / 32 of one fresh sum, and of the registers that copies go to */
};

/* 16 outputs of one part for some quads of rows. */
struct tile {
    const __half *row[2]; /* w's rows g and g + 8 of this lane */
    const uint4 *x;       /* this lane's operand of the first quad, run 0 */
    int n_k, n_runs;      /* n_runs: of 32 columns, a multiple of 8 */
    int first_row, end_row, quad;
};

/* ALIGNED: K is a multiple of 8, so every row starts at 16 bytes. */
template <bool ALIGNED> __device__ __forceinline__ uint4 load_w(const __half *row, int k, int n_k) {
    if constexpr (ALIGNED) {
        return k < n_k ? __ldcs((const uint4 *)(row + k)) : make_uint4(0, 0, 0, 0);
    } else {
        __half v[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = k + i < n_k ? row[k + i] : __float2half_rn(0);
        return *(const uint4 *)v;
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void load_runs(const struct tile &t, int run, uint4 (&w)[RUNS][2]) {
#pragma unroll
    for (int j = 0; j < RUNS; j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            w[j][i] = load_w<ALIGNED>(t.row[i], (run + j) * 32 + (int)threadIdx.x % 4 * 8, t.n_k);
}

/* acc[quad][i]: outputs g + 8 i of row t of the quad. */
template <int N, bool ALIGNED> __device__ void sum_tile(const struct tile &t, float (&acc)[N][2]) {
    int lane = threadIdx.x % 32;
    bool live[N];
#pragma unroll
    for (int q = 0; q < N; q++) {
        int row = (t.quad + q) * 4 + lane / 8;
        live[q] = row >= t.first_row && row < t.end_row;
        acc[q][0] = acc[q][1] = 0;
    }
    uint4 w[RUNS][2], next[RUNS][2];
    load_runs<ALIGNED>(t, 0, w);
#pragma unroll 1
    for (int run = 0; run < t.n_runs; run += RUNS) {
        if (run + RUNS < t.n_runs)
            load_runs<ALIGNED>(t, run + RUNS, next);
        float d[N][4] = {};
#pragma unroll
        for (int j = 0; j < RUNS; j++)
#pragma unroll
            for (int q = 0; q < N; q++) {
                const uint4 *x = t.x + ((size_t)q * t.n_runs + run + j) * 32;
                uint4 b = live[q] ? __ldcg(x) : make_uint4(0, 0, 0, 0);
                mma_f16(d[q], w[j][0].x, w[j][1].x, w[j][0].y, w[j][1].y, b.x, b.y);
                mma_f16(d[q], w[j][0].z, w[j][1].z, w[j][0].w, w[j][1].w, b.z, b.w);
            }
#pragma unroll
        for (int q = 0; q < N; q++) {
            acc[q][0] += d[q][0] + d[q][1];
            acc[q][1] += d[q][2] + d[q][3];
        }
#pragma unroll
        for (int j = 0; j < RUNS; j++)
            w[j][0] = next[j][0], w[j][1] = next[j][1];
    }
}

template <int N, bool ALIGNED>
__device__ void run_tile(const linear_args &a, const struct tile &t, int out, int n_out, int at) {
    int lane = threadIdx.x % 32;
    float acc[N][2];
    sum_tile<N, ALIGNED>(t, acc);
#pragma unroll
    for (int q = 0; q < N; q++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = (t.quad + q) * 4 + lane % 4, n = out + lane / 4 + 8 * i;
            if (row < t.first_row || row >= t.end_row || n >= n_out)
                continue;
            float *y = a.y + (size_t)row * a.ld_y + at + n;
            *y = a.add ? *y + acc[q][i] : acc[q][i];
        }
}

/* 16 outputs of one part of one tenant, all its rows. at: where the part starts in a row of y. */
template <bool ALIGNED>
__device__ void run_part(const linear_args &a, const struct linear_dense &d, int part, int out,
                         int at) {
    int lane = threadIdx.x % 32, last = d.n_out[part] - 1;
    struct tile t = {};
    t.n_k = a.shape.n_k;
    t.n_runs = (t.n_k + TILE_COLS - 1) / TILE_COLS * 8;
    for (int i = 0; i < 2; i++)
        t.row[i] = d.w[part] + (size_t)min(out + lane / 4 + 8 * i, last) * t.n_k;
    t.first_row = d.first_row, t.end_row = d.first_row + d.n_rows;
    int end = (t.end_row + 3) / 4;
    for (t.quad = t.first_row / 4; t.quad < end;) {
        t.x = (const uint4 *)a.in.x + (size_t)t.quad * t.n_runs * 32 + lane;
        if (t.quad + 1 == end) {
            run_tile<1, ALIGNED>(a, t, out, d.n_out[part], at);
            t.quad++;
        } else {
            run_tile<QUADS, ALIGNED>(a, t, out, d.n_out[part], at);
            t.quad += QUADS;
        }
    }
}

template <bool ALIGNED>
__global__ void __launch_bounds__(32 * WARPS, 2)
    dense_kernel(const __grid_constant__ linear_args a) {
    grid_launch_next();
    grid_wait();
    /* Tiles of all tenants and parts in a row; this warp takes every n_warps-th. */
    int n_warps = gridDim.x * WARPS, next = blockIdx.x + threadIdx.x / 32 * gridDim.x;
    int n_dense = a.batch->n_dense;
    for (int i = 0; i < n_dense; i++)
        for (int p = 0, at = 0; p < a.shape.n_parts; at += a.shape.part_rows[p++]) {
            const struct linear_dense &d = a.dense[i];
            if (!d.w[p])
                continue;
            int n = (d.n_out[p] + TILE_ROWS - 1) / TILE_ROWS;
            for (; next < n; next += n_warps)
                run_part<ALIGNED>(a, d, p, next * TILE_ROWS, at);
            next -= n;
        }
}

} // namespace

err_t linear_dense_launch(const struct linear_args *a, int32_t max_rows, cudaStream_t stream) {
    if (max_rows < 1 || max_rows > LINEAR_MAX_ROWS || !a->dense || a->n_thread_blocks < 1)
        return E_INVAL;
    void (*kernel)(linear_args) = a->shape.n_k % 8 ? dense_kernel<false> : dense_kernel<true>;
    return launch_early(kernel, dim3((unsigned)(2 * a->n_thread_blocks)), 32 * WARPS, 0, stream,
                        *a);
}
