/* y = (W + diag(row) S) x for many rows of each tenant: a matrix product whose left operand is made
 * on the way to the tensor core.
 *
 * FLOPs: 2 N K for a row. Bound: the tensor cores, from about 300 rows on; the memory below (2 N K
 * bytes of W, once for all tenants). A block of 8 consumer and 4 copying warps makes 128 outputs x
 * 256 rows, or x 128; one of 4 and 4 makes 64 x 128, where that fills the device better:
 *
 * - W and signs: each consumer warp owns 16 outputs. A lane finds in its own 16-byte
 *   pieces of the packed base just the A operand of its warpgroup's instruction, in the k order of
 *   linear_pack. The signs' words give +-row as fp16, added in registers, two weights an
 *   instruction: rounded once, to the nearest fp16 of W + fp16(row).
 * - x comes in that k order, swizzled (wide_place). Two blocks of a cluster work on the same rows:
 *   each copies half, to both.
 * - y goes out through a little shared memory of each warp; residuals by vector additions in the
 * L2, every element by one lane, once.
 *
 * Weights of the next stage are merged while the tensor core works on this one. The first copies of
 * W start before the kernel before this one has ended (programmatic dependent launch). An output is
 * one chain over ascending k: its bits do not depend on other rows, tenants or the grid. */
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide_merge.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma nv_diag_suppress 177 /* the kernel is empty there: its functions are not used */
#endif

namespace {

enum {
    CLUSTER = 2,
    COPIERS = 4, /* warps; registers are handed over by warpgroups of 4 */
    W_TILE = WIDE_W_TILE,
    /* Bytes of 16 outputs of a row of y on their way out of a warp: no bank twice. */
    HALF_STRIDE = TILE_ROWS * 2 + 16,
    FLOAT_STRIDE = TILE_ROWS * 4 + 16,
    OUT_BYTES = 16 * FLOAT_STRIDE, /* of a warp, 16 rows at a time */
};

/* A block of CONSUMERS warps, 16 outputs each, over ROWS rows. */
template <int ROWS, int CONSUMERS> struct plan {
    static constexpr int rows = ROWS, consumers = CONSUMERS;
    static constexpr int threads = 32 * (CONSUMERS + COPIERS);
    static constexpr int cluster_tiles = CLUSTER * CONSUMERS; /* of 16 outputs */
    static constexpr int x_bytes = ROWS * WIDE_COLS * 2;
    static constexpr int stage = x_bytes + CONSUMERS * W_TILE;
    static constexpr int stages = ROWS == 256 ? 4 : CONSUMERS == 8 ? 6 : 8;
    static constexpr int sign_bytes = CONSUMERS * TILE_BYTES; /* of 256 columns */
    static constexpr size_t shared_bytes =
        stages * stage + 2 * sign_bytes + CONSUMERS * OUT_BYTES + 2 * stages * sizeof(uint64_t);
    static_assert(shared_bytes <= 227 * 1024, "more than a block can have");
};

template <class P> struct shared_parts {
    char *ring, *signs, *out; /* a stage: x, then W */
    uint64_t *full, *empty;
    __device__ explicit shared_parts(char *p) {
        ring = p;
        signs = ring + P::stages * P::stage;
        out = signs + 2 * P::sign_bytes;
        full = (uint64_t *)(out + P::consumers * OUT_BYTES);
        empty = full + P::stages;
    }
};

/* ---- tiles ----------------------------------------------------------------------------------- */

/* What a cluster works on: the outputs of two blocks and P::rows rows of a group. */
struct tile {
    int group;
    int first_row; /* of the tile; a multiple of 8, perhaps before the group's */
    int outs;      /* first 16-output tile of this block, counted from a.first_tile */
};
template <class P>
__device__ __forceinline__ tile tile_of(const wide_args &a, int index, uint32_t rank) {
    int rows = index % a.row_tiles, pair = index / a.row_tiles, g = 0;
    while (g + 1 < a.n_groups && a.group[g + 1].first_tile <= rows)
        g++;
    tile t;
    t.group = g;
    t.first_row = a.group[g].first / 8 * 8 + (rows - a.group[g].first_tile) * P::rows;
    t.outs = (pair * CLUSTER + (int)rank) * P::consumers;
    return t;
}
template <class P> __device__ __forceinline__ int n_tiles(const wide_args &a) {
    return (a.n_tiles + P::cluster_tiles - 1) / P::cluster_tiles * a.row_tiles;
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
template <class P, int Q>
__device__ __forceinline__ void
consume_stage(const shared_parts<P> &s, cursor &at, int &held, uint4 &signs, int sign_slot,
              const wide_scales &c, float (&acc)[P::rows / 2], uint32_t (&m)[16], bool keep) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const char *stage = s.ring + at.slot * P::stage;
    barrier_wait(s.full + at.slot, at.parity);
    if (Q == 0)
        signs =
            *(const uint4 *)(s.signs + sign_slot * P::sign_bytes + warp * TILE_BYTES + lane * 16);
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

template <class P>
__device__ __forceinline__ void consume(const wide_args &a, const shared_parts<P> &s) {
    uint32_t rank = cluster_rank();
    int blocks = wide_blocks(a), all = n_tiles<P>(a), held = -1, sign_slot = 0;
    cursor at = {0, 0};
    grid_wait(); /* y may be what an earlier kernel reads */
    for (int index = (int)blockIdx.x / CLUSTER; index < all; index += (int)gridDim.x / CLUSTER) {
        tile t = tile_of<P>(a, index, rank);
        wide_scales c = wide_scales_of(a, a.group[t.group], t.outs + threadIdx.x / 32);
        float acc[P::rows / 2];
        uint32_t m[2][16];
        uint4 signs;
        for (int b = 0; b < blocks; b++, sign_slot ^= 1) {
            consume_stage<P, 0>(s, at, held, signs, sign_slot, c, acc, m[0], b > 0);
            consume_stage<P, 1>(s, at, held, signs, sign_slot, c, acc, m[1], true);
            consume_stage<P, 2>(s, at, held, signs, sign_slot, c, acc, m[0], true);
            consume_stage<P, 3>(s, at, held, signs, sign_slot, c, acc, m[1], true);
        }
        wgmma_wait<0>();
        release(s.empty, held);
        held = -1;
        char *out = s.out + threadIdx.x / 32 * OUT_BYTES;
        if (a.y)
            store_half<P::rows>(a, t, acc, out);
        else
            add_float<P::rows>(a, t, acc, out);
    }
}

/* What a copying warp brings. Starting a copy takes a lane some 50 cycles, and lanes of a warp take
 * turns, so the warps share out the pieces: warp 0 has the signs of all 16-output tiles and this
 * block's half of x, for both blocks of the cluster; the others have W. Every warp announces what
 * it brings to this block; warp 0 both halves of x. */
template <class P> struct share {
    int first, n; /* 16-output tiles of the block; lane i has tile first + i */
    __device__ explicit share(int warp) {
        first = warp ? P::consumers * (warp - 1) / (COPIERS - 1) : 0;
        n = (warp ? P::consumers * warp / (COPIERS - 1) : P::consumers) - first;
    }
};

/* Signs of a block of columns come with its first stage; their slot was last read before the slot
 * of that stage was. */
template <class P>
__device__ __forceinline__ void copy(const wide_args &a, const shared_parts<P> &s, int warp) {
    const share<P> mine(warp);
    uint32_t rank = cluster_rank(), half = P::x_bytes / CLUSTER, lane = threadIdx.x % 32;
    int stages = 4 * wide_blocks(a), all = n_tiles<P>(a), sign_slot = 0;
    int own = mine.first + min((int)lane, mine.n - 1);
    uint64_t policy = policy_evict_first();
    cursor at = {0, 1};
    if (!warp || a.after_merge)
        grid_wait();
    for (int index = (int)blockIdx.x / CLUSTER; index < all; index += (int)gridDim.x / CLUSTER) {
        tile t = tile_of<P>(a, index, rank);
        wide_tile p = wide_tile_of(a, t.outs + own);
        const char *x = a.input + wide_place(a.max_rows, t.first_row, 0, 0) + rank * half;
        const char *w = (const char *)a.base + (size_t)(p.tile - a.first_tile) * stages * W_TILE;
        const char *signs = (const char *)a.group[t.group].bits[p.part];
        if (signs)
            signs += (size_t)p.in_part * (stages / 4) * TILE_BYTES;
        bool live = (int)lane < mine.n;
        uint32_t sign_bytes = __popc(__ballot_sync(~0u, signs && live)) * TILE_BYTES;
        for (int i = 0; i < stages; i++) {
            bool first = i % 4 == 0;
            barrier_wait(s.empty + at.slot, at.parity);
            char *to = s.ring + at.slot * P::stage;
            uint64_t *full = s.full + at.slot;
            if (lane == 0)
                barrier_arrive_expect(full, warp    ? mine.n * W_TILE
                                            : first ? P::x_bytes + sign_bytes
                                                    : P::x_bytes);
            if (lane == 0 && !warp)
                bulk_copy_all(to + rank * half, x, half, full, 3);
            __syncwarp();
            if (warp && live)
                bulk_copy(to + P::x_bytes + own * W_TILE, w, W_TILE, full, policy);
            else if (first && live && signs)
                bulk_copy(s.signs + sign_slot * P::sign_bytes + own * TILE_BYTES,
                          signs + i / 4 * TILE_BYTES, TILE_BYTES, full, policy);
            sign_slot ^= i % 4 == 3;
            x += (size_t)a.max_rows * WIDE_COLS * 2;
            w += W_TILE;
            at.advance(P::stages);
        }
    }
}

template <class P>
__global__ void __launch_bounds__(P::threads, 1) wide_kernel(const __grid_constant__ wide_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char shared[];
    shared_parts<P> s(shared);
    grid_launch_next();
    if (threadIdx.x == 0) {
        for (int i = 0; i < P::stages; i++) {
            barrier_init(s.full + i, COPIERS);
            barrier_init(s.empty + i, CLUSTER * P::consumers);
        }
        barrier_init_fence();
    }
    cluster_sync();
    if (threadIdx.x < 32 * P::consumers) {
        registers_grow<P::consumers == 8 ? 232 : 240>();
        consume<P>(a, s);
    } else {
        registers_shrink<40>();
        copy<P>(a, s, (int)threadIdx.x / 32 - P::consumers);
    }
    __syncwarp();
    cluster_sync(); /* no block leaves while the other may still write to it */
#endif
}

template <class P> err_t setup() {
    return cudaFuncSetAttribute(wide_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)P::shared_bytes) == cudaSuccess
               ? E_OK
               : E_DEVICE;
}

template <class P> int32_t clusters_of(wide_args *a) {
    wide_row_tiles(a, P::rows);
    return tiles_of(a->n_tiles, P::cluster_tiles) * a->row_tiles;
}

template <class P> err_t launch(wide_args *a, int32_t clusters, cudaStream_t stream) {
    int32_t all = clusters_of<P>(a), grid = CLUSTER * (all < clusters ? all : clusters);
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute with[2];
    config.gridDim = dim3((unsigned)grid);
    config.blockDim = dim3(P::threads);
    config.dynamicSmemBytes = P::shared_bytes;
    config.stream = stream;
    with[0].id = cudaLaunchAttributeClusterDimension;
    with[0].val.clusterDim.x = CLUSTER;
    with[0].val.clusterDim.y = with[0].val.clusterDim.z = 1;
    with[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    with[1].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = with;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, wide_kernel<P>, (const wide_args &)*a) == cudaSuccess
               ? E_OK
               : E_DEVICE;
}

using large = plan<256, 8>;
using middle = plan<128, 8>;
using small = plan<128, 4>;

} // namespace

void wide_row_tiles(struct wide_args *a, int32_t rows) {
    a->row_tiles = 0;
    for (int32_t g = 0; g < a->n_groups; g++) {
        a->group[g].first_tile = a->row_tiles;
        a->row_tiles += tiles_of(a->group[g].first % 8 + a->group[g].n, rows);
    }
}

err_t wide_setup(void) {
    err_t e = setup<large>();
    if (!e)
        e = setup<middle>();
    return e ? e : setup<small>();
}

err_t wide_launch(struct wide_args *a, int32_t multiprocessors, cudaStream_t stream) {
    int32_t clusters = multiprocessors / CLUSTER;
    /* Time of a tile, in units of no meaning; but the tiles must fill the multiprocessors. */
    int32_t l = 20 * tiles_of(clusters_of<large>(a), clusters);
    int32_t m = 13 * tiles_of(clusters_of<middle>(a), clusters);
    int32_t s = 8 * tiles_of(clusters_of<small>(a), clusters);
    if (s < m && s < l)
        return launch<small>(a, clusters, stream);
    return m < l ? launch<middle>(a, clusters, stream) : launch<large>(a, clusters, stream);
}
