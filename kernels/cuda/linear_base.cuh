/* The base's half of the fused linear: one thread copies W slot by slot, four warps multiply and,
 * at the end of a group of tiles, add what the sign warps have summed and store. Part of linear.cu.
 */
#ifndef KERNELS_CUDA_LINEAR_BASE_CUH
#define KERNELS_CUDA_LINEAR_BASE_CUH

#include "kernels/cuda/linear_plan.cuh"

namespace {

template <int N8> __device__ void copy_base(const linear_args &a, const layout &l) {
    using C = config<N8>;
    struct work w = work_of(a.shape);
    uint64_t policy = policy_evict_first();
    struct place at;
    struct group g;
    for (int tile = w.first; tile < w.end; tile += g.n) {
        g = group_at(a.shape, w, tile);
        const char *from = (const char *)a.base + (size_t)tile * w.blocks * BASE_TILE;
        for (int k = 0; k < w.blocks * C::per_block; k++, from += C::slot)
            for (int m = 0; m < g.n; m++, at.advance(C::slots)) {
                barrier_wait(l.empty + at.slot, at.parity ^ 1);
                barrier_arrive_expect(l.full + at.slot, C::slot);
                bulk_copy(l.base + at.slot * C::slot, from + (size_t)m * w.blocks * BASE_TILE,
                          C::slot, l.full + at.slot, policy);
            }
    }
}

/* Adds the finished sums of the signs and stores outputs g and g + 8 of tile m for rows 2t and
 * 2t + 1 of each group of 8. */
template <int N8>
__device__ void store_tile(const linear_args &a, const layout &l, const struct group &g, int m,
                           int n8, int n_rows, const float (&acc)[config<N8>::n8][4]) {
    int lane = threadIdx.x % 32, t = lane % 4, before = 0;
    for (int p = 0; p < g.part; p++)
        before += a.shape.part_rows[p];
    int first = (g.tile + m - a.shape.first_tile[g.part]) * TILE_ROWS + lane / 4;
#pragma unroll
    for (int n = 0; n < config<N8>::n8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int r = (n8 + n) * 8 + 2 * t + e % 2, out = first + e / 2 * 8;
            if (r >= n_rows || out >= a.shape.part_rows[g.part])
                continue;
            float v = acc[n][e];
            if (a.batch->has_delta[r])
                v += l.total[r * ROW_FLOATS + e / 2 * 32 + lane / 4 * 4 + m];
            size_t at = (size_t)r * a.ld_y + before + out;
            if (a.y)
                a.y[at] = __float2half_rn(v);
            else
                a.residual[at] += v;
        }
}

/* One slot: acc += 16 outputs of W times the rows of x in b. The tensor core's own additions round
 * towards zero, so every 128 columns a fresh sum is added properly. */
template <int N8>
__device__ __forceinline__ void base_slot(const char *slot, float (&acc)[config<N8>::n8][4],
                                          const uint4 (&b)[config<N8>::steps][config<N8>::n8]) {
    using C = config<N8>;
#pragma unroll
    for (int half = 0; half < C::steps; half += 4) {
        float d[C::n8][4] = {};
#pragma unroll
        for (int j = half; j < half + 4; j++) {
            uint4 a0 = *(const uint4 *)(slot + j * 1024);
            uint4 a1 = *(const uint4 *)(slot + j * 1024 + 512);
#pragma unroll
            for (int n = 0; n < C::n8; n++)
                mma_f16(d[n], a0.x, a0.y, a0.z, a0.w, b[j][n].x, b[j][n].y);
#pragma unroll
            for (int n = 0; n < C::n8; n++)
                mma_f16(d[n], a1.x, a1.y, a1.z, a1.w, b[j][n].z, b[j][n].w);
        }
#pragma unroll
        for (int n = 0; n < C::n8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                acc[n][e] += d[n][e];
    }
}

/* Of every 32 columns 8 of this lane, of row lane / 4 of each group of 8 rows. */
template <int N8>
__device__ __forceinline__ void load_x(const uint4 *const (&x)[config<N8>::n8],
                                       const bool (&live)[config<N8>::n8], int slot,
                                       uint4 (&b)[config<N8>::steps][config<N8>::n8]) {
    using C = config<N8>;
#pragma unroll
    for (int j = 0; j < C::steps; j++)
#pragma unroll
        for (int n = 0; n < C::n8; n++)
            b[j][n] = live[n] ? __ldcg(x[n] + (slot * C::steps + j) * 4) : make_uint4(0, 0, 0, 0);
}

template <int N8> __device__ void run_base(const linear_args &a, const layout &l) {
    using C = config<N8>;
    struct work w = work_of(a.shape);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int n8 = warp % C::along_rows * C::n8, m0 = warp / C::along_rows;
    int n_rows = a.batch->n_rows, n_phases = a.batch->n_phases;
    int slots_along = w.blocks * C::per_block;

    const uint4 *x[C::n8];
    bool live[C::n8];
#pragma unroll
    for (int n = 0; n < C::n8; n++) {
        int row = (n8 + n) * 8 + lane / 4;
        live[n] = row < n_rows;
        x[n] = (const uint4 *)a.in.x + (size_t)row * w.blocks * (TILE_COLS / 8) + lane % 4;
    }
    uint4 b[C::steps][C::n8], next[C::steps][C::n8];
    load_x<N8>(x, live, 0, b);

    uint32_t turn = 0;
    struct place at;
    struct group g;
    for (int tile = w.first; tile < w.end; tile += g.n, turn ^= 1) {
        g = group_at(a.shape, w, tile);
        float acc[C::tiles][C::n8][4] = {};
        for (int k = 0; k < slots_along; k++) {
            /* The next columns of x; after the last ones the first, for the next group. */
            load_x<N8>(x, live, k + 1 < slots_along ? k + 1 : 0, next);
            /* Every warp waits for every slot, its own or not: a parity cannot tell apart the
             * laps of a warp that has run ahead. */
#pragma unroll
            for (int m = 0; m < GROUP; m++) {
                if (m >= g.n)
                    break;
                barrier_wait(l.full + at.slot, at.parity);
                if (m % C::along_out == m0)
                    base_slot<N8>(l.base + at.slot * C::slot + lane * 16, acc[m / C::along_out], b);
                __syncwarp();
                if (lane == 0)
                    barrier_arrive(l.empty + at.slot);
                at.advance(C::slots);
            }
#pragma unroll
            for (int j = 0; j < C::steps; j++)
#pragma unroll
                for (int n = 0; n < C::n8; n++)
                    b[j][n] = next[j][n];
        }
        if (n_phases)
            barrier_wait(l.total_full, turn);
#pragma unroll
        for (int m = 0; m < GROUP; m++)
            if (m < g.n && m % C::along_out == m0)
                store_tile<N8>(a, l, g, m, n8, n_rows, acc[m / C::along_out]);
        barrier_arrive(l.total_empty);
    }
}

} // namespace

#endif
