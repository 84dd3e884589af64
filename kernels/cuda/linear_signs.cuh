/* The tenants' half of the fused linear: eight warps, each with jobs, copies and sums of its own;
 * the finished sums stand in shared memory for the base warps. Part of linear.cu. */
#ifndef KERNELS_CUDA_LINEAR_SIGNS_CUH
#define KERNELS_CUDA_LINEAR_SIGNS_CUH

#include "kernels/cuda/linear_plan.cuh"

namespace {

/* A sign warp copies for itself, some steps ahead: every lane the 16 bytes that it will need
 * itself, so that nothing has to be agreed with anyone. Its unit of work is a job over the
 * group's outputs, or over a half or quarter of them when there are few jobs. */
struct unit {
    int job, m0, n; /* tiles m0 .. m0 + n - 1 of the group; n <= 0: nothing */
};

__device__ __forceinline__ struct unit unit_at(int i, int n_jobs, int n_tiles) {
    int shift = n_jobs <= SIGN_WARPS / 4 ? 2 : n_jobs <= SIGN_WARPS / 2 ? 1 : 0;
    int each = (n_tiles + (1 << shift) - 1) >> shift, m0 = (i & ((1 << shift) - 1)) * each;
    return {i >> shift, m0, min(each, n_tiles - m0)};
}
/* Blocks of 256 columns in a step, as a power of two. */
__device__ __forceinline__ int step_shift(int n_tiles, int n_rows) {
    return n_rows > 2 ? 0 : n_rows == 2 || n_tiles > 2 ? 1 : 2;
}

/* The jobs of the step: as many as there can be rows stand in shared memory, which is all of them
 * unless tenants have several planes. */
struct jobs {
    const struct linear_job *near, *far;
    int n_near, n, n_phases;
    __device__ __forceinline__ const struct linear_job *at(int phase, int i) const {
        int j = phase * n + i;
        return j < n_near ? near + j : far + j;
    }
};

/* Where the copying stands. */
struct ahead {
    struct group g;
    int end, blocks;
    int phase, i, n, n_rows, shift, k; /* n: tiles of the unit */
    const char *tiles;                 /* this lane's bytes of the unit's first tile, block k */
    const char *planes;                /* and of the first row's bit planes, block k */
    uint32_t shared;                   /* the warp's ring */
    int slot;
    uint64_t policy;
};

/* Finds this warp's next unit that has bits for the group's part; none: g.tile = end. */
__device__ void seek(const linear_args &a, const struct jobs &jobs, struct ahead &h) {
    int lane = threadIdx.x % 32;
    for (;;) {
        for (; h.phase < jobs.n_phases; h.phase++, h.i = threadIdx.x / 32 - BASE_WARPS)
            for (;; h.i += SIGN_WARPS) {
                struct unit u = unit_at(h.i, jobs.n, h.g.n);
                if (u.job >= jobs.n)
                    break;
                const struct linear_job *job = jobs.at(h.phase, u.job);
                const char *bits = (const char *)job->bits[h.g.part];
                if (!bits || u.n <= 0)
                    continue;
                int tile = h.g.tile + u.m0 - a.shape.first_tile[h.g.part];
                h.tiles = bits + (size_t)tile * h.blocks * TILE_BYTES + lane * 16;
                h.planes =
                    (const char *)(a.in.planes + (size_t)job->first_set * h.blocks) + lane * 16;
                h.n = u.n, h.n_rows = job->n_rows, h.k = 0;
                h.shift = step_shift(h.n, h.n_rows);
                return;
            }
        h.phase = 0;
        h.g.tile += h.g.n;
        if (h.g.tile >= h.end)
            return;
        struct work w = {0, h.end, 0};
        h.g = group_at(a.shape, w, h.g.tile);
    }
}

/* In a slot, tile m of block b is tile m << SHIFT | b, and so are the bit planes of row r. */
template <int SHIFT>
__device__ __forceinline__ void copy_shift(struct ahead &h, uint32_t to, bool tiles, bool planes) {
    int left = h.blocks - h.k, lane = threadIdx.x % 32;
    if (tiles) {
        const char *from = h.tiles;
#pragma unroll
        for (int m = 0; m < GROUP && m < STEP_TILES >> SHIFT; m++, from += h.blocks * TILE_BYTES)
            if (m < h.n)
#pragma unroll
                for (int b = 0; b < 1 << SHIFT; b++)
                    if (b < left)
                        lane_copy(to + (m << SHIFT | b) * TILE_BYTES + lane * 16,
                                  from + b * TILE_BYTES, h.policy);
    }
    if (planes) {
        const char *from = h.planes;
        to += STEP_TILES * TILE_BYTES + lane * 16;
#pragma unroll
        for (int r = 0; r < STEP_PLANES >> SHIFT; r++, from += h.blocks * PLANES)
            if (r < h.n_rows)
#pragma unroll
                for (int b = 0; b < 1 << SHIFT; b++)
                    if (b < left) {
                        lane_copy(to + (r << SHIFT | b) * PLANES, from + b * PLANES);
                        if (lane == 0)
                            lane_copy(to + (r << SHIFT | b) * PLANES + 512,
                                      from + b * PLANES + 512);
                    }
    }
}

/* Starts the copy of a step, or of one half of it, and goes on to the next. */
template <int DEPTH>
__device__ __forceinline__ void copy_step(const linear_args &a, const struct jobs &jobs,
                                          struct ahead &h, bool tiles, bool planes) {
    if (h.g.tile < h.end) {
        uint32_t to = h.shared + h.slot * STEP;
        if (h.shift == 1)
            copy_shift<1>(h, to, tiles, planes);
        else if (h.shift == 2)
            copy_shift<2>(h, to, tiles, planes);
        else
            copy_shift<0>(h, to, tiles, planes);
        int span = 1 << h.shift;
        h.k += span, h.tiles += span * TILE_BYTES, h.planes += span * PLANES;
        if (h.k >= h.blocks) {
            h.i += SIGN_WARPS;
            seek(a, jobs, h);
        }
    }
    h.slot = h.slot + 1 == DEPTH ? 0 : h.slot + 1;
}

__device__ __forceinline__ uint32_t pair(uint32_t low, uint32_t high) {
    return __byte_perm(low, high, 0x5410);
}

/* i0, i1 = the integers I of this lane's outputs over one block of 256 columns. N tiles, `stride`
 * bytes apart. */
template <int N>
__device__ __forceinline__ void sign_block(const char *tile, int stride, const uint4 &b, float sum,
                                           float &i0, float &i1) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    /* Weights of planes 2t, 2t+1 (low) and 2t+8, 2t+9 (high, over 256; the top plane is negative)
     * in fp16: 1, 2; 4, 8; 16, 32; 64, 128. */
    uint32_t low = 0x40003c00u + 0x08000800u * t;
    uint32_t high = low | (t == 3 ? 0x80000000u : 0);
    float d[4] = {};
#pragma unroll
    for (int m = 0; m < N; m++) {
        uint4 a = *(const uint4 *)(tile + m * stride);
        uint32_t lo[4], hi[4];
        mma_and_popc(lo, a, b.x, b.y);
        mma_and_popc(hi, a, b.z, b.w);
        mma_f16(d, pair(lo[0], lo[1]), pair(lo[2], lo[3]), pair(hi[0], hi[1]), pair(hi[2], hi[3]),
                g == 2 * m ? low : 0, g == 2 * m + 1 ? high : 0);
    }
    /* d: sums over the set bits times 2^-24; I = 2 * sum - (sum of q). */
    i0 = fmaf(fmaf(d[1], 256.0f, d[0]), 33554432.0f, -sum);
    i1 = fmaf(fmaf(d[3], 256.0f, d[2]), 33554432.0f, -sum);
}

/* Two items side by side, for the sake of latency: i[0..1] of the first, i[2..3] of the second. */
template <int N>
__device__ __forceinline__ void sign_pair(const char *tile0, const char *tile1, int stride,
                                          const char *planes0, const char *planes1, float2 (&s)[2],
                                          float (&i)[4]) {
    int lane = threadIdx.x % 32;
    const struct linear_planes *p = (const struct linear_planes *)planes0;
    const struct linear_planes *q = (const struct linear_planes *)planes1;
    s[0] = *(const float2 *)&p->scale;
    s[1] = *(const float2 *)&q->scale;
    sign_block<N>(tile0, stride, p->lane[lane], s[0].y, i[0], i[1]);
    sign_block<N>(tile1, stride, q->lane[lane], s[1].y, i[2], i[3]);
}
__device__ __forceinline__ void sign_pair_of(int n, const char *tile0, const char *tile1,
                                             int stride, const char *planes0, const char *planes1,
                                             float2 (&s)[2], float (&i)[4]) {
    if (n == 4)
        sign_pair<4>(tile0, tile1, stride, planes0, planes1, s, i);
    else if (n == 3)
        sign_pair<3>(tile0, tile1, stride, planes0, planes1, s, i);
    else if (n == 2)
        sign_pair<2>(tile0, tile1, stride, planes0, planes1, s, i);
    else
        sign_pair<1>(tile0, tile1, stride, planes0, planes1, s, i);
}

/* A unit with a single row: its chain of additions stays in registers. */
template <int DEPTH>
__device__ __forceinline__ void run_row(const linear_args &a, const struct jobs &jobs,
                                        struct ahead &h, const char *ring, int n, float &acc0,
                                        float &acc1) {
    int shift = step_shift(n, 1), stride = TILE_BYTES << shift;
#pragma unroll 1
    for (int k = 0; k < h.blocks; k += 1 << shift) {
        lane_copy_wait<DEPTH - 1>();
        __syncwarp();
        const char *tile = ring + h.slot * STEP + threadIdx.x % 32 * 16;
        const char *planes = ring + h.slot * STEP + STEP_TILES * TILE_BYTES;
        int count = min(1 << shift, h.blocks - k);
#pragma unroll 1
        for (int b = 0; b < count; b += 2, tile += 2 * TILE_BYTES, planes += 2 * PLANES) {
            int two = b + 1 < count;
            float2 s[2];
            float i[4];
            sign_pair_of(n, tile, tile + two * TILE_BYTES, stride, planes, planes + two * PLANES, s,
                         i);
            acc0 = fmaf(s[0].x, i[0], acc0);
            acc1 = fmaf(s[0].x, i[1], acc1);
            if (two) {
                acc0 = fmaf(s[1].x, i[2], acc0);
                acc1 = fmaf(s[1].x, i[3], acc1);
            }
        }
        __syncwarp(); /* lane 0 overwrites the scales that all have read */
        copy_step<DEPTH>(a, jobs, h, true, true);
        lane_copy_commit();
    }
}

/* A unit with up to LINEAR_JOB_ROWS rows: their chains stand in `total`. */
template <int DEPTH>
__device__ __forceinline__ void run_rows(const linear_args &a, const struct jobs &jobs,
                                         struct ahead &h, const char *ring, int n, int n_rows,
                                         float *total, bool mine) {
    int shift = step_shift(n, n_rows), stride = TILE_BYTES << shift;
#pragma unroll 1
    for (int k = 0; k < h.blocks; k += 1 << shift) {
        lane_copy_wait<DEPTH - 1>();
        __syncwarp();
        const char *slot = ring + h.slot * STEP;
        int count = min(1 << shift, h.blocks - k);
#pragma unroll 1
        for (int b = 0; b < count; b++)
#pragma unroll 1
            for (int r = 0; r < n_rows; r += 2) {
                int two = r + 1 < n_rows;
                const char *tile = slot + b * TILE_BYTES + threadIdx.x % 32 * 16;
                const char *planes = slot + STEP_TILES * TILE_BYTES + (r << shift | b) * PLANES;
                float2 s[2];
                float i[4];
                sign_pair_of(n, tile, tile, stride, planes, planes + (two << shift) * PLANES, s, i);
                for (int j = 0; j <= two && mine; j++) {
                    float *acc = total + (r + j) * ROW_FLOATS;
                    acc[0] = fmaf(j ? s[1].x : s[0].x, j ? i[2] : i[0], k + b ? acc[0] : 0);
                    acc[32] = fmaf(j ? s[1].x : s[0].x, j ? i[3] : i[1], k + b ? acc[32] : 0);
                }
            }
        __syncwarp();
        copy_step<DEPTH>(a, jobs, h, true, true);
        lane_copy_commit();
    }
}

/* One job for some tiles of the group: one plane of a tenant, its rows. A job without bits here
 * leaves zeros, once. */
template <int DEPTH>
__device__ void run_unit(const linear_args &a, const struct jobs &jobs, const layout &l,
                         const struct group &g, int phase, const struct unit &u, struct ahead &h,
                         const char *ring, uint32_t turn) {
    const struct linear_job *job = jobs.at(phase, u.job);
    int lane = threadIdx.x % 32, t = lane % 4, n_rows = job->n_rows;
    float *total = l.total + job->first_row * ROW_FLOATS + lane + u.m0;
    const float *row = job->row[g.part];
    bool mine = t < u.n;
    if (phase == 0 && (n_rows > 1 || !row))
        barrier_wait(l.total_empty, turn);
    if (!row) {
        for (int r = 0; r < n_rows && phase == 0 && mine; r++)
            total[r * ROW_FLOATS] = total[r * ROW_FLOATS + 32] = 0;
        return;
    }
    int out = (g.tile + u.m0 + t - a.shape.first_tile[g.part]) * TILE_ROWS + lane / 4;
    float scale0 = mine && out < a.shape.part_rows[g.part] ? row[out] : 0;
    float scale1 = mine && out + 8 < a.shape.part_rows[g.part] ? row[out + 8] : 0;
    if (n_rows == 1) {
        float acc0 = 0, acc1 = 0;
        run_row<DEPTH>(a, jobs, h, ring, u.n, acc0, acc1);
        if (phase == 0)
            barrier_wait(l.total_empty, turn);
        if (mine) {
            total[0] = fmaf(scale0, acc0, phase ? total[0] : 0);
            total[32] = fmaf(scale1, acc1, phase ? total[32] : 0);
        }
        return;
    }
    float before[LINEAR_JOB_ROWS][2]; /* the sums of earlier phases */
#pragma unroll
    for (int r = 0; r < LINEAR_JOB_ROWS; r++) {
        bool add = phase && mine && r < n_rows;
        before[r][0] = add ? total[r * ROW_FLOATS] : 0;
        before[r][1] = add ? total[r * ROW_FLOATS + 32] : 0;
    }
    run_rows<DEPTH>(a, jobs, h, ring, u.n, n_rows, total, mine);
#pragma unroll
    for (int r = 0; r < LINEAR_JOB_ROWS; r++)
        if (r < n_rows && mine) {
            float *y = total + r * ROW_FLOATS;
            y[0] = fmaf(scale0, y[0], before[r][0]);
            y[32] = fmaf(scale1, y[32], before[r][1]);
        }
}

template <int N8> __device__ void run_signs(const linear_args &a, const layout &l) {
    constexpr int depth = config<N8>::depth;
    struct work w = work_of(a.shape);
    int warp = threadIdx.x / 32 - BASE_WARPS;
    const char *ring = l.sign + warp * depth * STEP;
    struct jobs jobs = {l.jobs, a.jobs, 0, a.batch->n_jobs, a.batch->n_phases};
    if (!jobs.n_phases) /* then the base warps do not wait either */
        return;
    jobs.n_near = min(N8 * 8, jobs.n * jobs.n_phases);
    for (int i = threadIdx.x - 32 * BASE_WARPS; i < jobs.n_near * 4; i += 32 * SIGN_WARPS)
        ((uint4 *)l.jobs)[i] = ((const uint4 *)a.jobs)[i];
    named_sync<1, 32 * SIGN_WARPS>();
    struct group g = group_at(a.shape, w, w.first);
    struct ahead h = {};
    h.g = g, h.end = w.end, h.blocks = w.blocks, h.i = warp;
    h.shared = shared_address(ring);
    h.policy = policy_evict_first();
    seek(a, jobs, h);
    /* The weights first; x when the previous kernel has written it. */
    struct ahead start = h;
#pragma unroll 1
    for (int i = 0; i < depth; i++)
        copy_step<depth>(a, jobs, h, true, false);
    grid_wait();
    h = start;
#pragma unroll 1
    for (int i = 0; i < depth; i++) {
        copy_step<depth>(a, jobs, h, false, true);
        lane_copy_commit();
    }

    uint32_t turn = 1;
    for (int tile = w.first; tile < w.end; tile += g.n, turn ^= 1) {
        g = group_at(a.shape, w, tile);
        for (int p = 0; p < jobs.n_phases; p++)
            for (int i = warp;; i += SIGN_WARPS) {
                struct unit u = unit_at(i, jobs.n, g.n);
                if (u.job >= jobs.n)
                    break;
                if (u.n > 0)
                    run_unit<depth>(a, jobs, l, g, p, u, h, ring, turn);
            }
        /* A warp without a unit must not report this group before the last one was taken. */
        barrier_wait(l.total_empty, turn);
        barrier_arrive(l.total_full);
    }
}

} // namespace

#endif
