/* The wide product (wide.cuh) for devices without Hopper's warpgroup instructions: compute
 * capability 8.0 and all that follow. Same input, same merged weights, rounded at the same place.
 *
 * A block of eight warps makes 128 outputs x 128 rows; a warp 32 outputs x 64 rows of them with
 * mma.m16n8k16, so that what it loads of x serves two tiles of W. Stages of 64 columns of x and W
 * come by cp.async, three in shared memory; a stage's words are the operands as they stand
 * (wide_place, linear_pack), so x costs one ldmatrix for two instructions' B and W none.
 *
 * An output is one chain over ascending k: its bits do not depend on other rows, tenants or the
 * grid. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/wide_merge.cuh"

namespace {

enum {
    WARPS = 8,
    ROWS = 128,   /* of a block */
    PER_WARP = 2, /* tiles of 16 outputs */
    WARP_ROWS = 64,
    EIGHTS = WARP_ROWS / 8,
    X_BYTES = ROWS * WIDE_COLS * 2,
    STAGE = X_BYTES + WIDE_OUTS / TILE_ROWS * WIDE_W_TILE,
    STAGES = 3,
};

/* Outputs first_tile .. of the run and rows of a group. */
struct tile {
    int group, first_row, outs;
};
__device__ __forceinline__ tile tile_of(const wide_args &a, int index) {
    int rows = index % a.row_tiles, g = 0;
    while (g + 1 < a.n_groups && a.group[g + 1].first_tile <= rows)
        g++;
    tile t;
    t.group = g;
    t.first_row = a.group[g].first / 8 * 8 + (rows - a.group[g].first_tile) * ROWS;
    t.outs = index / a.row_tiles * (WIDE_OUTS / TILE_ROWS);
    return t;
}

/* Starts the copies of stage i: x is one run of bytes, W one for each 16 outputs. */
__device__ __forceinline__ void copy_stage(const wide_args &a, const tile &t, int i, int n_stages,
                                           char *shared) {
    uint32_t to = shared_address(shared + i % STAGES * STAGE);
    const char *x = a.input + wide_place(a.max_rows, t.first_row, 0, 0) +
                    (size_t)i * a.max_rows * WIDE_COLS * 2;
#pragma unroll
    for (int at = (int)threadIdx.x * 16; at < X_BYTES; at += 32 * WARPS * 16)
        lane_copy(to + at, x + at);
#pragma unroll
    for (int at = (int)threadIdx.x * 16; at < STAGE - X_BYTES; at += 32 * WARPS * 16) {
        wide_tile p = wide_tile_of(a, t.outs + at / WIDE_W_TILE);
        lane_copy(to + X_BYTES + at,
                  (const char *)a.base +
                      ((size_t)(p.tile - a.first_tile) * n_stages + i) * WIDE_W_TILE +
                      at % WIDE_W_TILE);
    }
}

/* This lane's words of the signs of a block of 256 columns; zeros where there are none. */
__device__ __forceinline__ uint4 load_signs(const wide_args &a, const tile &t, int at, int block) {
    wide_tile p = wide_tile_of(a, at);
    const uint32_t *bits = a.group[t.group].bits[p.part];
    if (!bits || block >= wide_blocks(a))
        return make_uint4(0, 0, 0, 0);
    return __ldg((const uint4 *)bits + ((size_t)p.in_part * wide_blocks(a) + block) * 32 +
                 threadIdx.x % 32);
}

/* Four pieces of 8 columns of 8 rows: B of two instructions. */
__device__ __forceinline__ void load_x(uint32_t (&b)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(shared)
                 : "memory");
}

typedef float sums[PER_WARP][EIGHTS][4];

/* Stage Q of a block of 256 columns. */
template <int Q>
__device__ __forceinline__ void multiply(const char *stage, const uint4 (&signs)[PER_WARP],
                                         const wide_scales (&c)[PER_WARP], sums &acc) {
    int warp = threadIdx.x / 32, q = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
    uint32_t m[PER_WARP][16];
#pragma unroll
    for (int i = 0; i < PER_WARP; i++)
        wide_merge<Q>(m[i], stage + X_BYTES + (warp / 2 * PER_WARP + i) * WIDE_W_TILE, signs[i],
                      c[i]);
    uint32_t x = shared_address(stage) + (warp % 2) * (WARP_ROWS * WIDE_COLS * 2) + r * 128;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
            uint32_t b[4];
            load_x(b, x + n * 1024 + ((half * 4 + q) ^ r) * 16);
#pragma unroll
            for (int i = 0; i < PER_WARP; i++)
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    const uint32_t *w = m[i] + (half * 2 + s) * 4;
                    mma_f16(acc[i][n], w[0], w[1], w[2], w[3], b[2 * s], b[2 * s + 1]);
                }
        }
}

/* Every element by one lane, once. */
__device__ __forceinline__ void store(const wide_args &a, const tile &t, const sums &acc) {
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    const wide_group &rows = a.group[t.group];
    int first_row = t.first_row + warp % 2 * WARP_ROWS + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        int at = t.outs + warp / 2 * PER_WARP + i, n_outs = wide_outs(a, at, a.y ? 8 : 4);
#pragma unroll
        for (int n = 0; n < EIGHTS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = first_row + n * 8 + e % 2, out = g + e / 2 * 8;
                if (out >= n_outs || row < rows.first || row >= rows.first + rows.n)
                    continue;
                size_t to = (size_t)row * a.ld_y + (a.first_tile + at) * TILE_ROWS + out;
                if (a.y)
                    a.y[to] = __float2half_rn(acc[i][n][e]);
                else
                    a.residual[to] += acc[i][n][e];
            }
    }
}

/* One tile; all threads. */
__device__ __forceinline__ void run_tile(const wide_args &a, const tile &t, char *shared) {
    int n_stages = 4 * wide_blocks(a), first = t.outs + (int)threadIdx.x / 64 * PER_WARP;
    sums acc = {};
    wide_scales c[PER_WARP];
    uint4 signs[PER_WARP], next[PER_WARP];
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        c[i] = wide_scales_of(a, a.group[t.group], first + i);
        next[i] = load_signs(a, t, first + i, 0);
    }
    for (int i = 0; i < STAGES - 1; i++) {
        copy_stage(a, t, i, n_stages, shared);
        lane_copy_commit();
    }
    for (int stage = 0; stage < n_stages; stage += 4) {
#pragma unroll
        for (int q = 0; q < 4; q++) {
            lane_copy_wait<STAGES - 2>();
            __syncthreads(); /* the stage is there, and its successor's slot has been read */
            if (stage + q + STAGES - 1 < n_stages)
                copy_stage(a, t, stage + q + STAGES - 1, n_stages, shared);
            lane_copy_commit();
            if (q == 0)
#pragma unroll
                for (int i = 0; i < PER_WARP; i++) {
                    signs[i] = next[i];
                    next[i] = load_signs(a, t, first + i, stage / 4 + 1);
                }
            const char *at = shared + (stage + q) % STAGES * STAGE;
            if (q == 0)
                multiply<0>(at, signs, c, acc);
            else if (q == 1)
                multiply<1>(at, signs, c, acc);
            else if (q == 2)
                multiply<2>(at, signs, c, acc);
            else
                multiply<3>(at, signs, c, acc);
        }
    }
    store(a, t, acc);
    __syncthreads(); /* the next tile's copies write where this one's were read */
}

__global__ void __launch_bounds__(32 * WARPS, 1)
    wide_plain_kernel(const __grid_constant__ wide_args a) {
    extern __shared__ __align__(128) char shared[];
    int all = (a.n_tiles * TILE_ROWS + WIDE_OUTS - 1) / WIDE_OUTS * a.row_tiles;
    for (int index = (int)blockIdx.x; index < all; index += (int)gridDim.x)
        run_tile(a, tile_of(a, index), shared);
}

} // namespace

err_t wide_plain_setup(void) {
    return cudaFuncSetAttribute(wide_plain_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                STAGES * STAGE) == cudaSuccess
               ? 0
               : E_DEVICE;
}

err_t wide_plain_launch(struct wide_args *a, int32_t multiprocessors, cudaStream_t stream) {
    wide_row_tiles(a, ROWS);
    int32_t all = tiles_of(a->n_tiles * TILE_ROWS, WIDE_OUTS) * a->row_tiles;
    wide_plain_kernel<<<(unsigned)(all < multiprocessors ? all : multiprocessors), 32 * WARPS,
                        STAGES * STAGE, stream>>>(*a);
    return cudaGetLastError() == cudaSuccess ? 0 : E_DEVICE;
}
