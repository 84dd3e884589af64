/* The base's half of the fused linear: one thread copies W slot by slot, one warp copies x, four
 * warps multiply and, at the end of a group of tiles, add what the sign warps have summed and
 * store. Part of linear.cu. */
#ifndef KERNELS_CUDA_LINEAR_BASE_CUH
#define KERNELS_CUDA_LINEAR_BASE_CUH

#include "kernels/cuda/linear_plan.cuh"

namespace {

/* One lane for each tile of the group; each announces its own bytes. */
template <int Q, int H> __device__ void copy_base(const linear_args &a, const layout &l) {
    using C = config<Q>;
    struct work w = work_of<H>(a.shape);
    int lane = threadIdx.x % 32;
    if (lane >= GROUP) /* would miss laps of the ring */
        return;
    uint64_t policy = policy_evict_first();
    struct place at;
    struct group g;
    for (int tile = w.first; tile < w.end; tile += g.n) {
        g = group_at(a.shape, w, tile);
        size_t tile_bytes = (size_t)w.blocks * BASE_TILE;
        const char *from = (const char *)a.base + (tile + lane) * tile_bytes;
        int bytes = C::runs(g.n) * 1024, n = (int)tile_bytes / bytes;
        for (int k = 0; k < n; k++, from += bytes, at.advance(C::slots)) {
            barrier_wait(l.empty + at.slot, at.parity ^ 1);
            barrier_arrive_expect(l.full + at.slot, lane < g.n ? bytes : 0);
            char *to = l.base + at.slot * C::stage + lane * bytes;
            if (lane < g.n && H == 1)
                bulk_copy(to, from, bytes, l.full + at.slot, policy);
            else if (lane < g.n) /* other blocks read it, too */
                bulk_copy(to, from, bytes, l.full + at.slot);
        }
    }
    if (Q < 4 || !a.batch->n_phases) /* else the sign warps do, when they are done */
        prefetch_next(a, H, blockIdx.x % H, H);
}

/* One lane for each quad of rows, likewise. In a slot of x: [quad][run], 512 bytes each. */
template <int Q, int H> __device__ void copy_x(const linear_args &a, const layout &l) {
    using C = config<Q>;
    struct work w = work_of<H>(a.shape);
    struct rows rows = rows_of<H>(a.batch->n_rows);
    int lane = threadIdx.x % 32, n_quads = (rows.end - rows.first + 3) / 4;
    constexpr int bytes = C::x_runs * RUN_BYTES;
    const char *x =
        (const char *)a.in.x + (size_t)(rows.first / 4 + lane) * w.blocks * 8 * RUN_BYTES;
    if (lane >= Q)
        return;
    struct place at;
    struct group g;
    grid_wait();
    for (int tile = w.first; tile < w.end; tile += g.n) {
        g = group_at(a.shape, w, tile);
        for (int k = 0; k < w.blocks * (8 / C::x_runs); k++, at.advance(C::x_slots)) {
            barrier_wait(l.x_empty + at.slot, at.parity ^ 1);
            barrier_arrive_expect(l.x_full + at.slot, lane < n_quads ? bytes : 0);
            if (lane < n_quads)
                bulk_copy(l.x + at.slot * C::x_slot + lane * bytes, x + (size_t)k * bytes, bytes,
                          l.x_full + at.slot);
        }
    }
}

/* Adds the finished sums of the signs and stores outputs g and g + 8 of tile m for row t of each
 * quad. */
template <int Q>
__device__ void store_tile(const linear_args &a, const float *total, const struct group &g, int m,
                           int quad, const struct rows &rows,
                           const float (&acc)[config<Q>::quads][2]) {
    int lane = threadIdx.x % 32, t = lane % 4, before = 0;
    for (int p = 0; p < g.part; p++)
        before += a.shape.part_rows[p];
    int first = (g.tile + m - a.shape.first_tile[g.part]) * TILE_ROWS + lane / 4;
#pragma unroll
    for (int n = 0; n < config<Q>::quads; n++) {
        int near = (quad + n) * 4 + t, r = rows.first + near;
        if (r >= rows.end || a.batch->dense[r] >> g.part & 1)
            continue;
        bool delta = a.batch->has_delta[r];
        float *y = a.y + (size_t)r * a.ld_y + before;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int out = first + e * 8;
            if (out >= a.shape.part_rows[g.part])
                continue;
            float v = acc[n][e];
            if (delta)
                v += total[near * ROW_FLOATS + e * 32 + lane / 4 * 4 + m];
            y[out] = a.add ? y[out] + v : v;
        }
    }
}

/* acc += N tiles times the quads over 128 columns, once or twice. The tensor core's own additions
 * round towards zero, so every 128 columns a fresh sum is added properly. Column 2t of a product is
 * row t's high half, 2t + 1 its low one. No branch and no barrier inside, so that loads go ahead of
 * products and two sums run side by side. */
template <int Q, int N>
__device__ __forceinline__ void base_sum(const char *const (&w)[config<Q>::sums], int tile_bytes,
                                         const char *x,
                                         float (&acc)[config<Q>::tiles][config<Q>::quads][2]) {
    using C = config<Q>;
    float d[C::sums][N][C::quads][4] = {};
#pragma unroll
    for (int j = 0; j < 4 * C::sums; j++) {
        auto &e = d[j % C::sums];
        int run = j % C::sums * 4 + j / C::sums;
        uint4 b[C::quads];
#pragma unroll
        for (int q = 0; q < C::quads; q++)
            b[q] = *(const uint4 *)(x + (q * C::x_runs + run) * RUN_BYTES);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const uint4 *tile = (const uint4 *)(w[j % C::sums] + i * tile_bytes + run % 4 * 1024);
            uint4 a0 = tile[0], a1 = tile[32];
#pragma unroll
            for (int q = 0; q < C::quads; q++)
                mma_f16(e[i][q], a0.x, a0.y, a0.z, a0.w, b[q].x, b[q].y);
#pragma unroll
            for (int q = 0; q < C::quads; q++)
                mma_f16(e[i][q], a1.x, a1.y, a1.z, a1.w, b[q].z, b[q].w);
        }
    }
#pragma unroll
    for (int s = 0; s < C::sums; s++)
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int q = 0; q < C::quads; q++) {
                acc[i][q][0] += d[s][i][q][0] + d[s][i][q][1];
                acc[i][q][1] += d[s][i][q][2] + d[s][i][q][3];
            }
}

/* n tiles of the warp, at most config::tiles. */
template <int Q>
__device__ __forceinline__ void base_sum_of(int n, const char *const (&w)[config<Q>::sums],
                                            int tile_bytes, const char *x,
                                            float (&acc)[config<Q>::tiles][config<Q>::quads][2]) {
    constexpr int most = config<Q>::tiles;
    if (n == 1)
        base_sum<Q, 1>(w, tile_bytes, x, acc);
    else if (n == 2 && most >= 2)
        base_sum < Q, most<2 ? 1 : 2>(w, tile_bytes, x, acc);
    else if (n == 3 && most >= 3)
        base_sum < Q, most<3 ? 1 : 3>(w, tile_bytes, x, acc);
    else if (n == 4 && most >= 4)
        base_sum < Q, most<4 ? 1 : 4>(w, tile_bytes, x, acc);
}

template <int Q, int H> __device__ void run_base(const linear_args &a, const layout &l) {
    using C = config<Q>;
    struct work w = work_of<H>(a.shape);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int quad = warp % C::along_rows * C::quads, m0 = warp / C::along_rows;
    struct rows rows = rows_of<H>(a.batch->n_rows);
    int n_phases = a.batch->n_phases;

    uint32_t turn = 0;
    struct place at, x_at;
    struct group g;
    grid_wait(); /* y may be what an earlier kernel reads */
    for (int tile = w.first; tile < w.end; tile += g.n, turn ^= 1) {
        g = group_at(a.shape, w, tile);
        int mine = (g.n - m0 + C::along_out - 1) / C::along_out; /* tiles of this warp */
        int runs = C::runs(g.n);
        float acc[C::tiles][C::quads][2] = {};
        /* Every warp waits for every stage, its own or not: a parity cannot tell apart the laps of
         * a warp that has run ahead. */
#pragma unroll 1
        for (int run = 0; run < w.blocks * 8; run += 4 * C::sums) {
            const char *from[C::sums];
            struct place end = at;
#pragma unroll
            for (int s = 0; s < C::sums; s++) {
                int in_stage = (run + 4 * s) & (runs - 1);
                if (in_stage == 0)
                    barrier_wait(l.full + end.slot, end.parity);
                from[s] = l.base + end.slot * C::stage + (m0 * runs + in_stage) * 1024 + lane * 16;
                if (in_stage + 4 == runs)
                    end.advance(C::slots);
            }
            int in_slot = run % C::x_runs;
            if (in_slot == 0)
                barrier_wait(l.x_full + x_at.slot, x_at.parity);
            base_sum_of<Q>(mine, from, C::along_out * runs * 1024,
                           l.x + x_at.slot * C::x_slot + (quad * C::x_runs + in_slot) * RUN_BYTES +
                               lane * 16,
                           acc);
            __syncwarp();
            /* Every lane arrives for itself: no slower than one for all, and what racecheck can
             * follow. */
            if (in_slot + 4 * C::sums == C::x_runs) {
                barrier_arrive(l.x_empty + x_at.slot);
                x_at.advance(C::x_slots);
            }
            for (; at.slot != end.slot; at.advance(C::slots))
                barrier_arrive(l.empty + at.slot);
        }
        if (n_phases)
            barrier_wait(l.total_full, turn);
#pragma unroll
        for (int i = 0; i < C::tiles; i++)
            if (i < mine)
                store_tile<Q>(a, l.total, g, m0 + i * C::along_out, quad, rows, acc[i]);
        if (n_phases) /* else nobody waits for it */
            barrier_arrive(l.total_empty);
    }
}

} // namespace

#endif
