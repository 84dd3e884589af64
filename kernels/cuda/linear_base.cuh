/* The base's half of the fused linear: one thread copies W slot by slot, one warp copies x, four
 * warps multiply and, at the end of a group of tiles, add what the sign warps have summed and
 * store. Part of linear.cu. */
#ifndef KERNELS_CUDA_LINEAR_BASE_CUH
#define KERNELS_CUDA_LINEAR_BASE_CUH

#include "kernels/cuda/linear_plan.cuh"

namespace {

/* The first bytes that this block's successor will copy of the stream's next matrix. */
__device__ void prefetch_next(const linear_args &a) {
    if (!a.next.base)
        return;
    struct work w = share_of(a.next.n_tiles, min(a.n_thread_blocks, a.next.n_tiles));
    size_t tile_bytes = (size_t)a.next.n_blocks * BASE_TILE;
    int n = min(GROUP, min(w.end, a.next.n_tiles) - w.first); /* none for surplus blocks */
    for (int m = 0; m < n; m++)
        bulk_prefetch((const char *)a.next.base + (w.first + m) * tile_bytes,
                      (uint32_t)min((size_t)(NEXT_BYTES / n / 16 * 16), tile_bytes));
}

template <int Q> __device__ void copy_base(const linear_args &a, const layout &l) {
    using C = config<Q>;
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
    prefetch_next(a);
}

/* One lane for each quad of rows. In a slot of x: [quad][run], 512 bytes each. */
template <int Q> __device__ void copy_x(const linear_args &a, const layout &l) {
    using C = config<Q>;
    struct work w = work_of(a.shape);
    int lane = threadIdx.x % 32, n_quads = (a.batch->n_rows + 3) / 4;
    constexpr int bytes = C::x_runs * RUN_BYTES;
    const char *x = (const char *)a.in.x + (size_t)lane * w.blocks * 8 * RUN_BYTES;
    struct place at;
    struct group g;
    grid_wait();
    for (int tile = w.first; tile < w.end; tile += g.n) {
        g = group_at(a.shape, w, tile);
        for (int k = 0; k < w.blocks * (8 / C::x_runs); k++, at.advance(C::x_slots)) {
            barrier_wait(l.x_empty + at.slot, at.parity ^ 1);
            if (lane == 0)
                barrier_arrive_expect(l.x_full + at.slot, n_quads * bytes);
            __syncwarp();
            if (lane < n_quads)
                bulk_copy(l.x + at.slot * C::x_slot + lane * bytes, x + (size_t)k * bytes, bytes,
                          l.x_full + at.slot);
        }
    }
}

/* Adds the finished sums of the signs and stores outputs g and g + 8 of tile m for row t of each
 * quad. */
template <int Q>
__device__ void store_tile(const linear_args &a, const layout &l, const struct group &g, int m,
                           int quad, int n_rows, const float (&acc)[config<Q>::quads][2]) {
    int lane = threadIdx.x % 32, t = lane % 4, before = 0;
    for (int p = 0; p < g.part; p++)
        before += a.shape.part_rows[p];
    int first = (g.tile + m - a.shape.first_tile[g.part]) * TILE_ROWS + lane / 4;
#pragma unroll
    for (int n = 0; n < config<Q>::quads; n++) {
        int r = (quad + n) * 4 + t;
        if (r >= n_rows || a.batch->dense[r] >> g.part & 1)
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
                v += l.total[r * ROW_FLOATS + e * 32 + lane / 4 * 4 + m];
            y[out] = a.add ? y[out] + v : v;
        }
    }
}

/* acc += 16 outputs of each tile times the rows, over one slot of W. The tensor core's own
 * additions round towards zero, so every 128 columns a fresh sum is added properly. Column 2t of
 * a product is row t's high half, 2t + 1 its low one. Only the first n of `tile` are there. */
template <int Q>
__device__ __forceinline__ void base_slot(const layout &l, struct place &x_at, int quad, int n,
                                          const char *const (&tile)[config<Q>::tiles],
                                          float (&acc)[config<Q>::tiles][config<Q>::quads][2]) {
    using C = config<Q>;
    int lane = threadIdx.x % 32;
    const char *x = NULL;
#pragma unroll
    for (int first = 0; first < C::runs; first += 4) {
        float d[C::tiles][C::quads][4] = {};
#pragma unroll
        for (int j = first; j < first + 4; j++) {
            if (j % C::x_runs == 0) {
                barrier_wait(l.x_full + x_at.slot, x_at.parity);
                x = l.x + x_at.slot * C::x_slot + quad * C::x_runs * RUN_BYTES + lane * 16;
            }
            uint4 b[C::quads];
#pragma unroll
            for (int q = 0; q < C::quads; q++)
                b[q] = *(const uint4 *)(x + (q * C::x_runs + j % C::x_runs) * RUN_BYTES);
#pragma unroll
            for (int i = 0; i < C::tiles; i++) {
                if (i >= n)
                    break;
                uint4 a0 = *(const uint4 *)(tile[i] + j * 1024);
                uint4 a1 = *(const uint4 *)(tile[i] + j * 1024 + 512);
#pragma unroll
                for (int q = 0; q < C::quads; q++)
                    mma_f16(d[i][q], a0.x, a0.y, a0.z, a0.w, b[q].x, b[q].y);
#pragma unroll
                for (int q = 0; q < C::quads; q++)
                    mma_f16(d[i][q], a1.x, a1.y, a1.z, a1.w, b[q].z, b[q].w);
            }
            if (j % C::x_runs == C::x_runs - 1) {
                __syncwarp();
                if (lane == 0)
                    barrier_arrive(l.x_empty + x_at.slot);
                x_at.advance(C::x_slots);
            }
        }
#pragma unroll
        for (int i = 0; i < C::tiles; i++)
#pragma unroll
            for (int q = 0; q < C::quads; q++) {
                acc[i][q][0] += d[i][q][0] + d[i][q][1];
                acc[i][q][1] += d[i][q][2] + d[i][q][3];
            }
    }
}

template <int Q> __device__ void run_base(const linear_args &a, const layout &l) {
    using C = config<Q>;
    struct work w = work_of(a.shape);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int quad = warp % C::along_rows * C::quads, m0 = warp / C::along_rows;
    int n_rows = a.batch->n_rows, n_phases = a.batch->n_phases;

    uint32_t turn = 0;
    struct place at, x_at;
    struct group g;
    grid_wait(); /* y may be what an earlier kernel reads */
    for (int tile = w.first; tile < w.end; tile += g.n, turn ^= 1) {
        g = group_at(a.shape, w, tile);
        int mine = (g.n - m0 + C::along_out - 1) / C::along_out; /* tiles of this warp */
        float acc[C::tiles][C::quads][2] = {};
        for (int k = 0; k < w.blocks * C::per_block; k++) {
            /* Every warp waits for every slot, its own or not: a parity cannot tell apart the
             * laps of a warp that has run ahead. */
            const char *from[C::tiles];
            struct place end = at;
#pragma unroll
            for (int m = 0; m < GROUP; m++) {
                if (m >= g.n)
                    break;
                barrier_wait(l.full + end.slot, end.parity);
                if (m % C::along_out == m0)
                    from[m / C::along_out] = l.base + end.slot * C::slot + lane * 16;
                end.advance(C::slots);
            }
            base_slot<Q>(l, x_at, quad, mine, from, acc);
            __syncwarp();
            for (; at.slot != end.slot; at.advance(C::slots))
                if (lane == 0)
                    barrier_arrive(l.empty + at.slot);
        }
        if (n_phases)
            barrier_wait(l.total_full, turn);
#pragma unroll
        for (int i = 0; i < C::tiles; i++)
            if (i < mine)
                store_tile<Q>(a, l, g, m0 + i * C::along_out, quad, n_rows, acc[i]);
        barrier_arrive(l.total_empty);
    }
}

} // namespace

#endif
