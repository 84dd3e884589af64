/* The inputs of the fused linears: x = h / rms(h) * w, ctx, or silu(gate) * up in FP32, written as
 *   x       two fp16 halves, hi = fp16(x) and lo = fp16(x - hi), zeros past K
 *   planes  the integers of kernels/delta.h for each set of column scales, stood on end
 *   u       A x of the low-rank pairs
 *
 * A block of 8 warps takes one row and BLOCKS blocks of 256 columns. Every block of a norm sums the
 * squares of the whole row, from the L2: cheaper than a launch or a meeting of blocks. x goes
 * through shared memory, since whoever quantises wants other columns in a lane than whoever stores.
 *
 * Pairs have blocks of their own, which make the whole row again in shared memory and take some of
 * its ranks over all of K: nothing is left to be summed across blocks, whose meeting took 1.5 us.
 *
 * Bytes for a row: 4 K read (8 K for silu; a norm: 4 K for each block, from the L2), 4 K for x,
 * 2.06 K for each set, 2 K r for a pair of rank r. Bound: latency; two trips to the L2 and a
 * reduction. */
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
    int32_t pair_blocks; /* of a row, before those of its columns */
    __half *x;
    struct linear_planes *planes;
    float *u;
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

/* Adds up the block's sums of squares: 1 / rms of a row of n. */
__device__ __forceinline__ float scale_of(float sum, int n, float eps, float (&part)[WARPS]) {
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum += part[i];
    return rsqrtf(sum / (float)n + eps);
}
__device__ __forceinline__ float add_squares(float sum, const float4 &v) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}
/* The order of the additions depends on n alone. */
__device__ float norm_scale(const float *h, int n, float eps, float (&part)[WARPS]) {
    float sum = 0;
#pragma unroll 4
    for (int k = threadIdx.x * 4; k < n; k += THREADS * 4)
        sum = add_squares(sum, __ldcg((const float4 *)(h + k)));
    return scale_of(sum, n, eps, part);
}

__device__ __forceinline__ float silu_times(float gate, float up) {
    return __fdividef(gate, 1.0f + expf(-gate)) * up;
}

/* The column scales of this lane's columns, as planes_store wants them. */
__device__ __forceinline__ void load_col(const float *col, int k0, int n_k, float (&c)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int k = k0 + planes_column(i);
        c[i] = col && k < n_k ? col[k] : 1.0f;
    }
}

/* ---- A x ------------------------------------------------------------------------------------- */

__device__ __forceinline__ void l2_fetch(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* Row of A for element r of u; NULL between two parts, whose elements start at multiples of 4. */
__device__ __forceinline__ const __half *rank_row(const struct row_work *w, int r, int n_k) {
    int p = (r >= w->first_u[1]) + (r >= w->first_u[2]);
    bool there = r - w->first_u[p] < w->rank[p];
    return there ? w->a[p] + (size_t)(r - w->first_u[p]) * n_k : NULL;
}

__device__ __forceinline__ float dot4(const uint2 &a, const float4 &x, float sum) {
    const __half2 low = *(const __half2 *)&a.x, high = *(const __half2 *)&a.y;
    sum = fmaf(__low2float(low), x.x, sum);
    sum = fmaf(__high2float(low), x.y, sum);
    sum = fmaf(__low2float(high), x.z, sum);
    return fmaf(__high2float(high), x.w, sum);
}

/* The row's x, or for a norm h * w, which lacks the factor that it returns. For a norm w stands
 * there already. */
template <kind KIND>
__device__ __forceinline__ float fill_row(const produce_args &a, const float *from, float eps,
                                          float4 *x, float (&part)[WARPS]) {
    float sum = 0;
#pragma unroll 4
    for (int q = threadIdx.x; q < a.n_k / 4; q += THREADS) {
        float4 v = __ldcg((const float4 *)from + q);
        if (KIND == KIND_NORM) {
            float4 w = x[q];
            sum = add_squares(sum, v);
            v = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
        }
        if (KIND == KIND_SWIGLU) {
            float4 up = __ldcg((const float4 *)(from + a.n_k) + q);
            auto one = [](float g, float u) { return __fdividef(g, 1.0f + __expf(-g)) * u; };
            v = make_float4(one(v.x, up.x), one(v.y, up.y), one(v.z, up.z), one(v.w, up.w));
        }
        x[q] = v;
    }
    if (KIND == KIND_NORM)
        return scale_of(sum, a.n_k, eps, part);
    __syncthreads();
    return 1;
}

/* A warp has one rank and a segment of the columns, so that few rows keep many warps busy; the sum
 * over segments goes in their order. Code is kept short here: it is read from memory, too. */
enum { SEGMENT = 512 }; /* quads of columns, at least */

template <kind KIND>
__device__ void run_pairs(const produce_args &a, const struct row_work *w, int row, float4 *x,
                          float (&part)[WARPS]) {
    int n_u = w->n_u, warp = threadIdx.x / 32, lane = threadIdx.x % 32, quads = a.n_k / 4;
    int each = max((int)SEGMENT, (quads / WARPS + 31) / 32 * 32);
    int n_segments = (quads + each - 1) / each, at_once = WARPS / n_segments;
    int segment = warp % n_segments, r = (int)blockIdx.x * at_once + warp / n_segments;
    int q0 = segment * each, q1 = min(q0 + each, quads);
    if (warp / n_segments >= at_once) /* warps left over have no rank */
        r = n_u;
    if (KIND == KIND_NORM)
#pragma unroll 1
        for (int q = threadIdx.x; q < quads; q += THREADS)
            x[q] = __ldg((const float4 *)w->norm + q);
    const __half *of = r < n_u ? rank_row(w, r, a.n_k) : NULL;
#pragma unroll 1
    for (int q = q0 + lane * 16; q < q1 && of; q += 512) /* 128 bytes each */
        l2_fetch(of + q * 4);
    grid_wait();

    float scale = fill_row<KIND>(a, a.from + (size_t)w->source * a.ld, w->eps, x, part);
#pragma unroll 1
    for (int base = (int)blockIdx.x * at_once; base < n_u; base += a.pair_blocks * at_once) {
        float sum = 0;
        of = r < n_u ? rank_row(w, r, a.n_k) : NULL;
        if (of) {
#pragma unroll 8
            for (int q = q0 + lane; q < q1; q += 32)
                sum = dot4(__ldg((const uint2 *)of + q), x[q], sum);
        }
        sum = warp_sum(sum);
        __syncthreads();
        if (lane == 0)
            part[warp] = sum;
        __syncthreads();
        if (of && segment == 0 && lane == 0) {
            sum = 0;
#pragma unroll 1
            for (int i = 0; i < n_segments; i++)
                sum += part[warp + i];
            a.u[(size_t)row * a.ld_u + r] = sum * scale;
        }
        if (r < n_u)
            r += a.pair_blocks * at_once;
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

template <kind KIND, int BLOCKS>
__global__ void __launch_bounds__(THREADS, 4)
    produce_kernel(const __grid_constant__ produce_args a) {
    extern __shared__ __align__(16) float x[]; /* [BLOCKS][PADDED], or a whole row for pairs */
    __shared__ float part[WARPS];
    int row = blockIdx.y, block0 = ((int)blockIdx.x - a.pair_blocks) * BLOCKS;
    int n_blocks = min(BLOCKS, a.n_blocks - block0), k0 = block0 * TILE_COLS;
    int warp = threadIdx.x / 32;
    grid_launch_next();
    /* The pointers with the count: a row past the last has old ones, or none. */
    const struct row_work *w = a.table.row + row;
    int n_sets = w->n_sets, n_u = w->n_u;
    bool pairs = (int)blockIdx.x < a.pair_blocks;
    const float *weight = w->norm;
    if (row >= a.table.batch->n_rows || (pairs && !n_u)) {
        grid_wait();
        return;
    }
    if (pairs) {
        run_pairs<KIND>(a, w, row, (float4 *)x, part);
        return;
    }

    /* Weights: what no earlier kernel of the step writes. */
    int n_tasks = n_sets * BLOCKS, k = k0 + threadIdx.x;
    float norm[BLOCKS], col[8];
#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
        norm[b] = KIND == KIND_NORM && k + b * TILE_COLS < a.n_k ? weight[k + b * TILE_COLS] : 0;
    if (warp < n_tasks)
        load_col(w->col[warp / BLOCKS], k0 + warp % BLOCKS * TILE_COLS, a.n_k, col);
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

    /* Blocks of columns past K are there (zeros, in x) but have no place to go. */
#pragma unroll 1
    for (int i = warp; i < n_tasks; i += WARPS) {
        int b = i % BLOCKS, set = w->first_set + i / BLOCKS * w->set_stride;
        if (i != warp)
            load_col(w->col[i / BLOCKS], k0 + b * TILE_COLS, a.n_k, col);
#pragma unroll
        for (int j = 0; j < 8; j++)
            col[j] *= x[b * PADDED + padded(planes_column(j))];
        if (b < n_blocks)
            planes_store(a.planes + (size_t)set * a.n_blocks + block0 + b, col);
    }
}

void (*const producers[3][3])(produce_args) = {
    {produce_kernel<KIND_NORM, 1>, produce_kernel<KIND_NORM, 2>, produce_kernel<KIND_NORM, 4>},
    {produce_kernel<KIND_COPY, 1>, produce_kernel<KIND_COPY, 2>, produce_kernel<KIND_COPY, 4>},
    {produce_kernel<KIND_SWIGLU, 1>, produce_kernel<KIND_SWIGLU, 2>,
     produce_kernel<KIND_SWIGLU, 4>},
};

/* Shared memory of a block: a row of FP32, or x of the columns that a block takes. */
unsigned row_bytes(int32_t n_blocks) {
    return (unsigned)(n_blocks < 5 ? 4 * PADDED : n_blocks * TILE_COLS) * 4;
}

} // namespace

err_t produce_setup(const struct job_tables *t) {
    for (auto &kind : producers)
        for (auto kernel : kind) {
            cudaError_t e = cudaFuncSetAttribute(
                kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)row_bytes(t->max_blocks));
            if (e != cudaSuccess)
                return E_UNSUPPORTED; /* rows longer than shared memory: 57 thousand columns */
        }
    return E_OK;
}

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
    p.from = which == LINEAR_O ? a->ctx : which == LINEAR_DOWN ? a->gate_up : a->h;
    p.ld = which == LINEAR_O ? a->ld_ctx : which == LINEAR_DOWN ? a->ld_gate_up : a->ld_h;
    fill->in = {t->x, t->planes, t->u, t->ld_u};
    fill->batch = p.table.batch;
    fill->jobs = p.table.jobs;
    fill->pairs = p.table.pairs;
    fill->dense = p.table.dense;

    /* More rows, more columns a block: fewer sums of squares, fewer waves of blocks. */
    int columns = max_rows <= 8 ? 0 : max_rows <= 32 ? 1 : 2;
    p.pair_blocks = max_rows <= 4 ? 16 : max_rows <= 16 ? 8 : 4; /* few rows: more at once */
    int kind = which == LINEAR_O ? KIND_COPY : which == LINEAR_DOWN ? KIND_SWIGLU : KIND_NORM;
    unsigned along = (unsigned)(p.pair_blocks + tiles_of(p.n_blocks, 1 << columns));
    /* The head's rows may come from a table that was made just now. */
    return launch_early(producers[kind][columns], dim3(along, (unsigned)max_rows), THREADS,
                        row_bytes(p.n_blocks), !head, stream, p);
}
