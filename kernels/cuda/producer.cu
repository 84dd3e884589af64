/* The inputs of the fused linears: x = h / rms(h) * w, ctx, or silu(gate) * up in FP32, written as
 *   x       two fp16 halves, hi = fp16(x) and lo = fp16(x - hi), zeros past K
 *   planes  the integers of kernels/delta.h for each set of column scales, stood on end
 *   u       A x of the low-rank pairs
 *
 * A block of 8 warps takes one row and BLOCKS blocks of 256 columns. Every block of a norm sums the
 * squares of the whole row, from the L2: cheaper than a launch or a meeting of blocks. x goes
 * through shared memory, since whoever quantises wants other columns in a lane than whoever stores.
 *
 * Bytes for a row: 4 K read (a norm: 4 K for each block, from the L2), 4 K for x, 2.06 K for each
 * set, 2 K r for a pair of rank r. Bound: latency; two trips to the L2 and a reduction. */
#include "kernels/cuda/planes.cuh"
#include "kernels/cuda/rows.cuh"

namespace {

enum {
    WARPS = 8,
    THREADS = 32 * WARPS,
    PADDED = TILE_COLS + TILE_COLS / 32 * 8, /* so that lanes (g, t) read 32 banks */
};
enum kind { KIND_NORM, KIND_COPY, KIND_SWIGLU };

struct produce_args {
    struct job_table table;
    const float *from; /* [rows][ld] h, ctx or gate|up */
    int32_t ld, n_k, n_blocks, ld_u;
    __half *x;
    struct linear_planes *planes;
    float *u, *partial;
    uint32_t *ticket;
};

__device__ __forceinline__ int padded(int column) {
    return column + column / 32 * 8;
}

/* ---- x --------------------------------------------------------------------------------------- */

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

/* 1 / rms of h [n]; the order of the additions depends on n alone. */
__device__ float norm_scale(const float *h, int n, float eps, float (&part)[WARPS]) {
    float4 sum = {};
#pragma unroll 8
    for (int k = threadIdx.x * 4; k < n; k += THREADS * 4) {
        float4 v = __ldcg((const float4 *)(h + k));
        sum.x = fmaf(v.x, v.x, sum.x);
        sum.y = k + 1 < n ? fmaf(v.y, v.y, sum.y) : sum.y;
        sum.z = k + 2 < n ? fmaf(v.z, v.z, sum.z) : sum.z;
        sum.w = k + 3 < n ? fmaf(v.w, v.w, sum.w) : sum.w;
    }
    float s = warp_sum((sum.x + sum.y) + (sum.z + sum.w));
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = s;
    __syncthreads();
    s = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        s += part[i];
    return 1.0f / sqrtf(s / (float)n + eps);
}

__device__ __forceinline__ float silu_times(float gate, float up) {
    return gate / (1.0f + expf(-gate)) * up;
}

/* ---- column scales, A x ---------------------------------------------------------------------- */

/* The column scales of this lane's columns, as planes_store wants them. */
__device__ __forceinline__ void load_col(const float *col, int k0, int n_k, float (&c)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int k = k0 + planes_column(i);
        c[i] = col && k < n_k ? col[k] : 1.0f;
    }
}

/* Column block k0's share of A x, one warp for a rank: 8 columns a lane. */
__device__ float pair_share(const __half *a, const float *x, int k0, int n_k) {
    int lane = threadIdx.x % 32;
    float sum = 0;
    if (k0 + lane * 8 + 8 <= n_k && n_k % 8 == 0) {
        uint4 w = __ldg((const uint4 *)(a + k0 + lane * 8));
        const __half2 *pair = (const __half2 *)&w;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 v = *(const float2 *)(x + padded(lane * 8 + 2 * i));
            sum = fmaf(__low2float(pair[i]), v.x, sum);
            sum = fmaf(__high2float(pair[i]), v.y, sum);
        }
    } else {
        for (int i = 0; i < 8; i++)
            if (k0 + lane * 8 + i < n_k)
                sum = fmaf(__half2float(a[k0 + lane * 8 + i]), x[padded(lane * 8 + i)], sum);
    }
    return warp_sum(sum);
}

/* The block that arrives last at the row sums the shares, in the order of the columns. */
__device__ void sum_shares(const produce_args &a, int row, int n_u) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicInc(a.ticket + row, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    const float *share = a.partial + (size_t)row * a.n_blocks * a.ld_u;
    for (int i = threadIdx.x; i < n_u; i += THREADS) {
        float sum = 0;
#pragma unroll 8
        for (int b = 0; b < a.n_blocks; b++)
            sum += __ldcg(share + (size_t)b * a.ld_u + i);
        a.u[(size_t)row * a.ld_u + i] = sum;
    }
}

/* Counted from the last warp on, since the first ones have bit planes to make. */
__device__ void run_pairs(const produce_args &a, const struct row_work *w, int row, int block0,
                          int n_blocks, const float *x) {
    int n_u = w->n_u;
    for (int i = WARPS - 1 - threadIdx.x / 32; i < n_u * n_blocks; i += WARPS) {
        int b = i / n_u, r = i % n_u, part = (r >= w->first_u[1]) + (r >= w->first_u[2]);
        if (r - w->first_u[part] >= w->rank[part])
            continue; /* between two parts */
        const __half *of = w->a[part] + (size_t)(r - w->first_u[part]) * a.n_k;
        float sum = pair_share(of, x + b * PADDED, (block0 + b) * TILE_COLS, a.n_k);
        if (threadIdx.x % 32 == 0)
            a.partial[((size_t)row * a.n_blocks + block0 + b) * a.ld_u + r] = sum;
    }
    sum_shares(a, row, n_u);
}

/* ---- the kernel ------------------------------------------------------------------------------ */

template <kind KIND, int BLOCKS>
__global__ void __launch_bounds__(THREADS) produce_kernel(const __grid_constant__ produce_args a) {
    __shared__ __align__(16) float x[BLOCKS * PADDED];
    __shared__ float part[WARPS];
    int row = blockIdx.y, block0 = blockIdx.x * BLOCKS, warp = threadIdx.x / 32;
    int n_blocks = min(BLOCKS, a.n_blocks - block0), k0 = block0 * TILE_COLS;
    grid_launch_next();
    if (row >= a.table.batch->n_rows) {
        grid_wait();
        return;
    }
    const struct row_work *w = a.table.row + row;

    /* Weights: what no earlier kernel of the step writes. */
    int n_tasks = w->n_sets * n_blocks, k = k0 + threadIdx.x;
    float norm[BLOCKS], col[8];
#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
        norm[b] = KIND == KIND_NORM && k + b * TILE_COLS < a.n_k ? w->norm[k + b * TILE_COLS] : 0;
    if (warp < n_tasks)
        load_col(w->col[warp / n_blocks], k0 + warp % n_blocks * TILE_COLS, a.n_k, col);
    grid_wait();

    const float *from = a.from + (size_t)w->source * a.ld;
    float v[BLOCKS], up[BLOCKS], scale = 1;
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        int at = k + b * TILE_COLS;
        v[b] = at < a.n_k ? __ldcg(from + at) : 0;
        up[b] = KIND == KIND_SWIGLU && at < a.n_k ? __ldcg(from + a.n_k + at) : 0;
    }
    if (KIND == KIND_NORM)
        scale = norm_scale(from, a.n_k, w->eps, part);
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        if (KIND == KIND_NORM)
            v[b] = v[b] * scale * norm[b];
        if (KIND == KIND_SWIGLU)
            v[b] = silu_times(v[b], up[b]);
        if (k + b * TILE_COLS >= a.n_k)
            v[b] = 0;
        x[b * PADDED + padded(threadIdx.x)] = v[b];
        if (b < n_blocks) {
            __half *to = a.x + linear_x_at(a.n_blocks, row, k + b * TILE_COLS, 0);
            halves_store(to, v[b]);
        }
    }
    __syncthreads();

    for (int i = warp; i < n_tasks; i += WARPS) {
        int b = i % n_blocks, set = w->first_set + i / n_blocks * w->set_stride;
        if (i != warp)
            load_col(w->col[i / n_blocks], k0 + b * TILE_COLS, a.n_k, col);
        float scaled[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            scaled[j] = x[b * PADDED + padded(planes_column(j))] * col[j];
        planes_store(a.planes + (size_t)set * a.n_blocks + block0 + b, scaled);
    }
    if (w->n_u)
        run_pairs(a, w, row, block0, n_blocks, x);
}

} // namespace

err_t produce_launch(struct job_tables *t, const struct gpu_activations *a, int32_t table,
                     int32_t max_rows, struct linear_args *fill, cudaStream_t stream) {
    if (table < 0 || table >= t->n_tables || max_rows < 1 || max_rows > SLICE_ROWS)
        return E_INVAL;
    bool head = table == t->n_tables - 1;
    enum linear which = head ? LINEAR_QKV : (enum linear)(table % N_LINEARS);
    struct produce_args p = {};
    p.table = table_at(t->base, table);
    p.n_k = table_shape(&t->shape, table).n_k;
    p.n_blocks = tiles_of(p.n_k, TILE_COLS);
    p.ld_u = t->ld_u, p.x = t->x, p.planes = t->planes, p.u = t->u;
    p.partial = t->partial, p.ticket = t->ticket;
    p.from = which == LINEAR_O ? a->ctx : which == LINEAR_DOWN ? a->gate_up : a->h;
    p.ld = which == LINEAR_O ? a->ld_ctx : which == LINEAR_DOWN ? a->ld_gate_up : a->ld_h;
    fill->in = {t->x, t->planes, t->u, t->ld_u};
    fill->batch = p.table.batch;
    fill->jobs = p.table.jobs;
    fill->pairs = p.table.pairs;
    fill->dense = p.table.dense;

    void (*kernel)(produce_args) = which == LINEAR_O      ? produce_kernel<KIND_COPY, 1>
                                   : which == LINEAR_DOWN ? produce_kernel<KIND_SWIGLU, 1>
                                                          : produce_kernel<KIND_NORM, 1>;
    /* The head's rows may come from a table that was made just now. */
    return launch_early(kernel, dim3((unsigned)p.n_blocks, (unsigned)max_rows), THREADS, !head,
                        stream, p);
}
