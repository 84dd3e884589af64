/* y = (W + diag(row) S) x for many rows of each tenant: a matrix product whose left operand is made
 * on the way to the tensor core.
 *
 * FLOPs: 2 N K for a row. Bound: the tensor cores, from about 300 rows on; the memory below (2 N K
 * bytes of W, once for all tenants). A block of 2 x 4 + 1 warps makes 128 outputs x 256 rows (128
 * rows in the narrower kernel):
 *
 * - W and signs: each of the 8 consumer warps owns 16 outputs. A lane finds in its own 16-byte
 *   pieces of the packed base just the A operand of its warpgroup's instruction, in the k order of
 *   linear_pack. The signs' words give +-row as fp16, added in registers, two weights an
 *   instruction: rounded once, to the nearest fp16 of W + fp16(row).
 * - x comes in that k order, swizzled (wide_place). Two blocks of a cluster work on the same rows:
 *   each copies half, to both.
 * - y goes out through a little shared memory of each warp; residuals by vector additions in the
 * L2, every element by one lane, once.
 *
 * Weights of the next stage are merged while the tensor core works on this one. An output is one
 * chain over ascending k: its bits do not depend on other rows, tenants or the grid. */
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide_merge.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma nv_diag_suppress 177 /* the kernel is empty there: its functions are not used */
#endif

namespace {

enum {
    CONSUMERS = 8,                  /* warps */
    THREADS = 32 * (CONSUMERS + 4), /* registers are handed over by warpgroups of 4 */
    CLUSTER = 2,
    W_TILE = WIDE_W_TILE,
    W_BYTES = CONSUMERS * W_TILE,
    SIGN_BYTES = CONSUMERS * TILE_BYTES, /* of 256 columns */
    /* Bytes of 16 outputs of a row of y on their way out of a warp: no bank twice. */
    HALF_STRIDE = TILE_ROWS * 2 + 16,
    FLOAT_STRIDE = TILE_ROWS * 4 + 16,
    OUT_BYTES = 16 * FLOAT_STRIDE, /* of a warp, 16 rows at a time */
};

template <int ROWS> struct plan {
    static constexpr int x_bytes = ROWS * WIDE_COLS * 2;
    static constexpr int stage = x_bytes + W_BYTES;
    static constexpr int stages = ROWS == 256 ? 4 : 6;
    static constexpr size_t shared_bytes =
        stages * stage + 2 * SIGN_BYTES + CONSUMERS * OUT_BYTES + 2 * stages * sizeof(uint64_t);
    static_assert(shared_bytes <= 227 * 1024, "more than a block can have");
};

template <int ROWS> struct shared_parts {
    char *ring, *signs, *out; /* a stage: x, then W */
    uint64_t *full, *empty;
    __device__ explicit shared_parts(char *p) {
        ring = p;
        signs = ring + plan<ROWS>::stages * plan<ROWS>::stage;
        out = signs + 2 * SIGN_BYTES;
        full = (uint64_t *)(out + CONSUMERS * OUT_BYTES);
        empty = full + plan<ROWS>::stages;
    }
};

/* ---- tiles ----------------------------------------------------------------------------------- */

/* What a cluster works on: 2 x 128 outputs and ROWS rows of a group. */
struct tile {
    int group;
    int first_row; /* of the tile; a multiple of 8, perhaps before the group's */
    int outs;      /* first 16-output tile of this block, counted from a.first_tile */
};
template <int ROWS>
__device__ __forceinline__ tile tile_of(const wide_args &a, int index, uint32_t rank) {
    int rows = index % a.row_tiles, pair = index / a.row_tiles, g = 0;
    while (g + 1 < a.n_groups && a.group[g + 1].first_tile <= rows)
        g++;
    tile t;
    t.group = g;
    t.first_row = a.group[g].first / 8 * 8 + (rows - a.group[g].first_tile) * ROWS;
    t.outs = (pair * CLUSTER + (int)rank) * (WIDE_OUTS / TILE_ROWS);
    return t;
}
__device__ __forceinline__ int n_tiles(const wide_args &a) {
    constexpr int outs = CLUSTER * WIDE_OUTS / TILE_ROWS;
    return (a.n_tiles + outs - 1) / outs * a.row_tiles;
}
/* ---- y --------------------------------------------------------------------------------------- */

/* Outputs of this warp that y takes. */
__device__ __forceinline__ int outs_of(const wide_args &a, const tile &t, int piece) {
    return wide_outs(a, t.outs + (int)threadIdx.x / 32, piece);
}

/* 16 rows at a time through this warp's own shared memory, so that a lane holds neighbouring
 * outputs of a row. */
template <int ROWS>
__device__ __forceinline__ void store_half(const wide_args &a, const tile &t,
                                           const float (&acc)[ROWS / 2], char *out) {
    int lane = threadIdx.x % 32, row = t.first_row + lane / 2, n = lane % 2 * 8;
    const wide_group &g = a.group[t.group];
    uint32_t to =
        shared_address(out) + (lane / 16 * 8 + lane % 8) * HALF_STRIDE + lane / 8 % 2 * 16;
    const uint4 *from = (const uint4 *)(out + lane / 2 * HALF_STRIDE + n * 2);
    __half *y =
        a.y + (size_t)row * a.ld_y + (a.first_tile + t.outs + threadIdx.x / 32) * TILE_ROWS + n;
    bool wanted = n < outs_of(a, t, 8);
#pragma unroll
    for (int j = 0; j < ROWS; j += 16) {
        uint32_t r[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            __half2 v = __floats2half2_rn(acc[j / 2 + 2 * i], acc[j / 2 + 2 * i + 1]);
            r[i] = *(const uint32_t *)&v;
        }
        __syncwarp();
        store_transposed(to, r[0], r[1], r[2], r[3]);
        __syncwarp();
        if (wanted && row + j >= g.first && row + j < g.first + g.n)
            *(uint4 *)(y + (size_t)j * a.ld_y) = *from;
    }
}

/* Every element is added to by one lane, once. */
template <int ROWS>
__device__ __forceinline__ void add_float(const wide_args &a, const tile &t,
                                          const float (&acc)[ROWS / 2], char *out) {
    int lane = threadIdx.x % 32, row = t.first_row + lane / 4, n = lane % 4 * 4;
    const wide_group &g = a.group[t.group];
    char *to = out + lane % 4 * 2 * FLOAT_STRIDE + lane / 4 * 4;
    float *y = a.residual + (size_t)row * a.ld_y +
               (a.first_tile + t.outs + threadIdx.x / 32) * TILE_ROWS + n;
    bool wanted = n < outs_of(a, t, 4);
#pragma unroll
    for (int j = 0; j < ROWS; j += 16) {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 8; i++) /* rows 2t, 2t + 1 of output g; of output g + 8; rows 8 on */
            *(float *)(to + (i / 4 * 8 + i % 2) * FLOAT_STRIDE + i / 2 % 2 * 32) = acc[j / 2 + i];
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16; i += 8)
            if (wanted && row + j + i >= g.first && row + j + i < g.first + g.n)
                add4(y + (size_t)(j + i) * a.ld_y,
                     *(const float4 *)(out + (lane / 4 + i) * FLOAT_STRIDE + n * 4));
    }
}

/* ---- the warps ------------------------------------------------------------------------------- */

/* A place in the ring. */
struct cursor {
    int slot;
    uint32_t parity;
    __device__ __forceinline__ void advance(int n) {
        slot++;
        if (slot == n)
            slot = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void release(uint64_t *empty, int slot) {
    if (threadIdx.x % 32 < CLUSTER)
        barrier_arrive_at(empty + slot, threadIdx.x % 32);
}

/* Stage Q of a block of 256 columns; held: the slot that the last stage's instructions read, or -1;
 * keep: the sums go on. */
template <int ROWS, int Q>
__device__ __forceinline__ void
consume_stage(const shared_parts<ROWS> &s, cursor &at, int &held, uint4 &signs, int sign_slot,
              const wide_scales &c, float (&acc)[ROWS / 2], uint32_t (&m)[16], bool keep) {
    using P = plan<ROWS>;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const char *stage = s.ring + at.slot * P::stage;
    barrier_wait(s.full + at.slot, at.parity);
    if (Q == 0)
        signs = *(const uint4 *)(s.signs + sign_slot * SIGN_BYTES + warp * TILE_BYTES + lane * 16);
    wide_merge<Q>(m, stage + P::x_bytes + warp * W_TILE, signs, c);
    uint64_t x = wgmma_descriptor(stage);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma_f16(acc, m + 4 * i, x + 2 * i, keep || i > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (held >= 0)
        release(s.empty, held);
    held = at.slot;
    at.advance(P::stages);
}

template <int ROWS>
__device__ __forceinline__ void consume(const wide_args &a, const shared_parts<ROWS> &s) {
    uint32_t rank = cluster_rank();
    int blocks = wide_blocks(a), all = n_tiles(a), held = -1, sign_slot = 0;
    cursor at = {0, 0};
    for (int index = (int)blockIdx.x / CLUSTER; index < all; index += (int)gridDim.x / CLUSTER) {
        tile t = tile_of<ROWS>(a, index, rank);
        wide_scales c = wide_scales_of(a, a.group[t.group], t.outs + threadIdx.x / 32);
        float acc[ROWS / 2];
        uint32_t m[2][16];
        uint4 signs;
        for (int b = 0; b < blocks; b++, sign_slot ^= 1) {
            consume_stage<ROWS, 0>(s, at, held, signs, sign_slot, c, acc, m[0], b > 0);
            consume_stage<ROWS, 1>(s, at, held, signs, sign_slot, c, acc, m[1], true);
            consume_stage<ROWS, 2>(s, at, held, signs, sign_slot, c, acc, m[0], true);
            consume_stage<ROWS, 3>(s, at, held, signs, sign_slot, c, acc, m[1], true);
        }
        wgmma_wait<0>();
        release(s.empty, held);
        held = -1;
        char *out = s.out + threadIdx.x / 32 * OUT_BYTES;
        if (a.y)
            store_half<ROWS>(a, t, acc, out);
        else
            add_float<ROWS>(a, t, acc, out);
    }
}

/* One warp. Lane i < 8 copies W and signs of the i-th 16 outputs, lane 0 half of x to both blocks
 * of the cluster. Signs of a block of columns come with its first stage; their slot was last read
 * before the slot of that stage was. */
template <int ROWS>
__device__ __forceinline__ void copy(const wide_args &a, const shared_parts<ROWS> &s) {
    using P = plan<ROWS>;
    uint32_t rank = cluster_rank(), half = P::x_bytes / CLUSTER, lane = threadIdx.x % 32;
    int stages = 4 * wide_blocks(a), all = n_tiles(a), sign_slot = 0;
    uint64_t policy = policy_evict_first();
    cursor at = {0, 1};
    for (int index = (int)blockIdx.x / CLUSTER; index < all; index += (int)gridDim.x / CLUSTER) {
        tile t = tile_of<ROWS>(a, index, rank);
        wide_tile p = wide_tile_of(a, t.outs + (int)min(lane, CONSUMERS - 1u));
        const char *x = a.input + wide_place(a.max_rows, t.first_row, 0, 0) + rank * half;
        const char *w = (const char *)a.base + (size_t)(p.tile - a.first_tile) * stages * W_TILE;
        const char *signs = (const char *)a.group[t.group].bits[p.part];
        if (signs)
            signs += (size_t)p.in_part * (stages / 4) * TILE_BYTES;
        uint32_t with_signs = __popc(__ballot_sync(~0u, signs && lane < CONSUMERS));
        for (int i = 0; i < stages; i++) {
            bool first = i % 4 == 0;
            barrier_wait(s.empty + at.slot, at.parity);
            char *to = s.ring + at.slot * P::stage;
            if (lane == 0) {
                barrier_arrive_expect(s.full + at.slot,
                                      P::stage + (first ? with_signs * TILE_BYTES : 0));
                bulk_copy_all(to + rank * half, x, half, s.full + at.slot, 3);
            }
            __syncwarp();
            if (lane < CONSUMERS) {
                bulk_copy(to + P::x_bytes + lane * W_TILE, w, W_TILE, s.full + at.slot, policy);
                if (first && signs)
                    bulk_copy(s.signs + sign_slot * SIGN_BYTES + lane * TILE_BYTES,
                              signs + i / 4 * TILE_BYTES, TILE_BYTES, s.full + at.slot, policy);
            }
            sign_slot ^= i % 4 == 3;
            x += (size_t)a.max_rows * WIDE_COLS * 2;
            w += W_TILE;
            at.advance(P::stages);
        }
    }
}

template <int ROWS>
__global__ void __launch_bounds__(THREADS, 1) wide_kernel(const __grid_constant__ wide_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char shared[];
    shared_parts<ROWS> s(shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < plan<ROWS>::stages; i++) {
            barrier_init(s.full + i, 1);
            barrier_init(s.empty + i, CLUSTER * CONSUMERS);
        }
        barrier_init_fence();
    }
    cluster_sync();
    if (threadIdx.x < 32 * CONSUMERS) {
        registers_grow<232>();
        consume<ROWS>(a, s);
    } else {
        registers_shrink<40>();
        if (threadIdx.x < 32 * (CONSUMERS + 1))
            copy<ROWS>(a, s);
    }
    __syncwarp();
    cluster_sync(); /* no block leaves while the other may still write to it */
#endif
}

int32_t set_row_tiles(wide_args *a, int32_t rows) {
    wide_row_tiles(a, rows);
    return tiles_of(a->n_tiles, CLUSTER * WIDE_OUTS / TILE_ROWS) * a->row_tiles;
}

template <int ROWS> err_t launch(wide_args *a, int32_t clusters, cudaStream_t stream) {
    int32_t all = set_row_tiles(a, ROWS), grid = CLUSTER * (all < clusters ? all : clusters);
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster[1];
    config.gridDim = dim3((unsigned)grid);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = plan<ROWS>::shared_bytes;
    config.stream = stream;
    cluster[0].id = cudaLaunchAttributeClusterDimension;
    cluster[0].val.clusterDim.x = CLUSTER;
    cluster[0].val.clusterDim.y = cluster[0].val.clusterDim.z = 1;
    config.attrs = cluster;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, wide_kernel<ROWS>, (const wide_args &)*a) == cudaSuccess
               ? 0
               : E_DEVICE;
}

} // namespace

void wide_row_tiles(struct wide_args *a, int32_t rows) {
    a->row_tiles = 0;
    for (int32_t g = 0; g < a->n_groups; g++) {
        a->group[g].first_tile = a->row_tiles;
        a->row_tiles += tiles_of(a->group[g].first % 8 + a->group[g].n, rows);
    }
}

err_t wide_setup(void) {
    cudaError_t e =
        cudaFuncSetAttribute(wide_kernel<256>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)plan<256>::shared_bytes);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(wide_kernel<128>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)plan<128>::shared_bytes);
    return e == cudaSuccess ? 0 : E_DEVICE;
}

err_t wide_launch(struct wide_args *a, int32_t multiprocessors, cudaStream_t stream) {
    int32_t clusters = multiprocessors / CLUSTER;
    /* Half a tile takes more than half its time; but the tiles must fill the multiprocessors. */
    int32_t whole = 20 * tiles_of(set_row_tiles(a, 256), clusters);
    int32_t halves = 11 * tiles_of(set_row_tiles(a, 128), clusters);
    return halves < whole ? launch<128>(a, clusters, stream) : launch<256>(a, clusters, stream);
}
