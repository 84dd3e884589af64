/* What both kernels of the wide product have in common: W + diag(row) S in the registers that the
 * matrix instructions take as A, for 16 outputs x 64 columns at a time, and where a run's 16-output
 * tiles stand. Part of wide.cu and wide_plain.cu. */
#ifndef KERNELS_CUDA_WIDE_MERGE_CUH
#define KERNELS_CUDA_WIDE_MERGE_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/wide.cuh"

enum { WIDE_W_TILE = TILE_ROWS * WIDE_COLS * 2 }; /* bytes of 16 outputs in a stage */

__device__ __forceinline__ int wide_blocks(const wide_args &a) {
    return (a.shape.n_k + TILE_COLS - 1) / TILE_COLS;
}

/* The part of 16-output tile `at` of the run, its rows and its place in the part; clamped. */
struct wide_tile {
    int tile, part, in_part; /* tile: of the whole matrix */
};
__device__ __forceinline__ wide_tile wide_tile_of(const wide_args &a, int at) {
    wide_tile p;
    p.tile = a.first_tile + min(at, a.n_tiles - 1);
    p.part = (p.tile >= a.shape.first_tile[1]) + (p.tile >= a.shape.first_tile[2]);
    p.in_part = p.tile - a.shape.first_tile[p.part];
    return p;
}

/* Outputs of tile `at` that y takes: all 16, or fewer in a last tile, in pieces of 16 bytes. */
__device__ __forceinline__ int wide_outs(const wide_args &a, int at, int piece) {
    int last = a.shape.n_parts - 1;
    int n = a.shape.first_tile[last] * TILE_ROWS + a.shape.part_rows[last];
    int left = n - (a.first_tile + at) * TILE_ROWS;
    return at < a.n_tiles ? min((left + piece - 1) / piece * piece, TILE_ROWS) : 0;
}

struct wide_scales {
    uint32_t minus[2]; /* -row of outputs g, g + 8, twice as fp16 */
};
__device__ __forceinline__ wide_scales wide_scales_of(const wide_args &a, const wide_group &group,
                                                      int at) {
    int g = threadIdx.x % 32 / 4;
    wide_tile p = wide_tile_of(a, at);
    const float *row = group.row[p.part];
    wide_scales c;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int n = p.in_part * TILE_ROWS + g + 8 * i;
        float v = row && n < a.shape.part_rows[p.part] ? -__ldg(row + n) : 0;
        __half2 two = __float2half2_rn(v);
        c.minus[i] = *(const uint32_t *)&two;
    }
    return c;
}

/* a = W + signs of stage Q of four of a block of 256 columns: A operands of four instructions.
 * signs: this lane's words of the tile. */
template <int Q>
__device__ __forceinline__ void wide_merge(uint32_t (&a)[16], const char *w, const uint4 &signs,
                                           const wide_scales &c) {
    int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) { /* 32 columns: two instructions */
        const int word = 2 * Q + half;     /* of 8 in a row of the tile; held by lane word % 4 */
        uint32_t u[2];                     /* bits 8t .. 8t + 7, the odd ones 15 further on, too */
        u[0] = __shfl_sync(~0u, word < 4 ? signs.x : signs.z, lane / 4 * 4 + word % 4);
        u[1] = __shfl_sync(~0u, word < 4 ? signs.y : signs.w, lane / 4 * 4 + word % 4);
        u[0] = __byte_perm(u[0], 0, 0x4440 + t) * 0x8001;
        u[1] = __byte_perm(u[1], 0, 0x4440 + t) * 0x8001;
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint4 v = *(const uint4 *)(w + (half * 2 + step) * 512 + lane * 16);
            const uint32_t from[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int bit = 4 * step + 2 * (i / 2); /* and the next */
                uint32_t d = (u[i % 2] << (15 - bit) & 0x80008000) ^ c.minus[i % 2];
                __half2 sum = __hadd2(*(const __half2 *)&from[i], *(const __half2 *)&d);
                a[(half * 2 + step) * 4 + i] = *(const uint32_t *)&sum;
            }
        }
    }
}

#endif
