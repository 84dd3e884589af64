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
/* Blocks of 256 columns in a step, as a power of two: as many as fit. */
__device__ __forceinline__ int step_shift(int n_tiles, int n_rows) {
    int block = n_tiles * TILE_BYTES + n_rows * PLANES;
    return 4 * block <= STEP ? 2 : 2 * block <= STEP ? 1 : 0;
}

/* The jobs of the step: as many as there can be rows stand in shared memory, which is all of them
 * unless tenants have several planes. The pairs come after the last phase, as one more pass. */
struct jobs {
    const struct linear_job *near, *far; /* far: of this block's first job, phase 0 */
    const struct linear_pair *pairs;
    int n_near, n, n_all, n_phases, n_passes; /* n: of this block, n_all: of the step */
    struct rows rows;
    __device__ __forceinline__ const struct linear_job *at(int phase, int i) const {
        int j = phase * n + i;
        return j < n_near ? near + j : far + phase * n_all + i;
    }
    /* A job's rows in this block: from which of its own on, and how many. */
    __device__ __forceinline__ int skip(const struct linear_job *job) const {
        return max(0, rows.first - job->first_row);
    }
    __device__ __forceinline__ int n_rows(const struct linear_job *job) const {
        return min(rows.end, job->first_row + job->n_rows) - job->first_row - skip(job);
    }
};

/* Where the copying stands. */
struct ahead {
    struct group g;
    int end, blocks;
    int phase, i, n, n_rows, shift, k; /* n: tiles of the unit */
    int pair_bytes;                    /* of B: the unit is a pair, one step; 0: signs */
    int rank;
    const char *tiles;  /* this lane's bytes of the unit's first tile, block k */
    const char *planes; /* and of the first row's bit planes, block k */
    uint32_t shared;    /* the warp's ring */
    int slot;
    uint64_t policy;
    int next_blocks, next_part, next_parts; /* this warp's share of the next matrix's first bytes */
};

/* The unit's signs, if it has any for the group's part. */
__device__ bool seek_signs(const linear_args &a, const struct jobs &jobs, const struct unit &u,
                           struct ahead &h) {
    int lane = threadIdx.x % 32;
    const struct linear_job *job = jobs.at(h.phase, u.job);
    const char *bits = (const char *)job->bits[h.g.part];
    if (!bits)
        return false;
    int tile = h.g.tile + u.m0 - a.shape.first_tile[h.g.part];
    h.tiles = bits + (size_t)tile * h.blocks * TILE_BYTES + lane * 16;
    h.planes = (const char *)(a.in.planes +
                              (size_t)(job->first_set[h.g.part] + jobs.skip(job)) * h.blocks) +
               lane * 16;
    h.n = u.n, h.n_rows = jobs.n_rows(job), h.k = 0;
    h.shift = step_shift(h.n, h.n_rows);
    h.pair_bytes = 0;
    return true;
}
/* Its low-rank pair: the rows of B for the unit's outputs lie side by side. */
__device__ bool seek_pair(const linear_args &a, const struct jobs &jobs, const struct unit &u,
                          struct ahead &h) {
    int lane = threadIdx.x % 32;
    const struct linear_pair *pair = jobs.pairs + u.job;
    const __half *b = pair->b[h.g.part];
    h.rank = pair->rank[h.g.part];
    if (!b || h.rank > NEAR_RANK)
        return false;
    const struct linear_job *job = jobs.at(0, u.job);
    int out = (h.g.tile + u.m0 - a.shape.first_tile[h.g.part]) * TILE_ROWS;
    h.tiles = (const char *)(b + (size_t)out * h.rank);
    h.pair_bytes = min(u.n * TILE_ROWS, a.shape.part_rows[h.g.part] - out) * h.rank * 2;
    h.n_rows = jobs.n_rows(job), h.k = 0;
    int row = lane / 8, at = lane % 8 * 4; /* of u: this lane's four */
    h.planes = (const char *)(a.in.u + (size_t)(job->first_row + jobs.skip(job) + row) * a.in.ld_u +
                              pair->first_u[h.g.part] + at);
    return true;
}

/* Finds this warp's next unit that has something to copy; none: g.tile = end. */
__device__ void seek(const linear_args &a, const struct jobs &jobs, struct ahead &h) {
    for (;;) {
        for (; h.phase < jobs.n_passes; h.phase++, h.i = threadIdx.x / 32 - BASE_WARPS)
            for (;; h.i += SIGN_WARPS) {
                struct unit u = unit_at(h.i, jobs.n, h.g.n);
                if (u.job >= jobs.n)
                    break;
                if (u.n > 0 && (h.phase < jobs.n_phases ? seek_signs(a, jobs, u, h)
                                                        : seek_pair(a, jobs, u, h)))
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
        for (int m = 0; m < GROUP; m++, from += h.blocks * TILE_BYTES)
            if (m < h.n)
#pragma unroll
                for (int b = 0; b < 1 << SHIFT; b++)
                    if (b < left)
                        lane_copy(to + (m << SHIFT | b) * TILE_BYTES + lane * 16,
                                  from + b * TILE_BYTES, h.policy);
    }
    if (planes) {
        const char *from = h.planes;
        to += (h.n << SHIFT) * TILE_BYTES + lane * 16;
#pragma unroll
        for (int r = 0; r < LINEAR_JOB_ROWS; r++, from += h.blocks * PLANES)
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

/* In a slot of a pair: B as it stands, and at the place of the bit planes u, 128 bytes a row. The
 * end of B, where 16 does not divide its bytes, is read by halves: nothing past it is. */
__device__ __forceinline__ void copy_pair(const struct ahead &h, uint32_t to, bool b, bool u) {
    int lane = threadIdx.x % 32, whole = h.pair_bytes / 16 * 16;
    if (b) {
        for (int at = lane * 16; at < whole; at += 512)
            lane_copy(to + at, h.tiles + at);
        if (lane < (h.pair_bytes - whole) / 2)
            half_copy(to + whole + lane * 2, h.tiles + whole + lane * 2);
    }
    if (u && lane / 8 < h.n_rows && lane % 8 * 4 < h.rank)
        lane_copy(to + STEP_U + lane * 16, h.planes);
}

/* Starts the copy of a step, or of one half of it, and goes on to the next. */
__device__ __forceinline__ void copy_step(const linear_args &a, const struct jobs &jobs,
                                          struct ahead &h, bool tiles, bool planes) {
    if (h.g.tile < h.end) {
        uint32_t to = h.shared + h.slot * STEP;
        if (h.pair_bytes)
            copy_pair(h, to, tiles, planes);
        else if (h.shift == 1)
            copy_shift<1>(h, to, tiles, planes);
        else if (h.shift == 2)
            copy_shift<2>(h, to, tiles, planes);
        else
            copy_shift<0>(h, to, tiles, planes);
        int span = 1 << h.shift;
        h.k += span, h.tiles += span * TILE_BYTES, h.planes += span * PLANES;
        if (h.k >= h.blocks || h.pair_bytes) {
            h.i += SIGN_WARPS;
            seek(a, jobs, h);
            if (h.g.tile >= h.end && h.next_parts)
                prefetch_next(a, h.next_blocks, h.next_part, h.next_parts);
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
__device__ __forceinline__ void run_row(const linear_args &a, const struct jobs &jobs,
                                        struct ahead &h, const char *ring, int n, float &acc0,
                                        float &acc1) {
    int shift = step_shift(n, 1), stride = TILE_BYTES << shift;
#pragma unroll 1
    for (int k = 0; k < h.blocks; k += 1 << shift) {
        lane_copy_wait<DEPTH - 1>();
        __syncwarp();
        const char *tile = ring + h.slot * STEP + threadIdx.x % 32 * 16;
        const char *planes = ring + h.slot * STEP + (n << shift) * TILE_BYTES;
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
        copy_step(a, jobs, h, true, true);
        lane_copy_commit();
    }
}

/* A unit with up to LINEAR_JOB_ROWS rows: their chains stand in `total`. */
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
                const char *planes = slot + (n << shift) * TILE_BYTES + (r << shift | b) * PLANES;
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
        copy_step(a, jobs, h, true, true);
        lane_copy_commit();
    }
}

/* One job for some tiles of the group: one plane of a tenant, its rows. A job without bits here
 * leaves zeros, once. */
__device__ void run_unit(const linear_args &a, const struct jobs &jobs, const layout &l,
                         const struct group &g, int phase, const struct unit &u, struct ahead &h,
                         const char *ring, uint32_t turn) {
    const struct linear_job *job = jobs.at(phase, u.job);
    int lane = threadIdx.x % 32, t = lane % 4, n_rows = jobs.n_rows(job);
    int first = job->first_row + jobs.skip(job) - jobs.rows.first;
    float *total = l.total + first * ROW_FLOATS + lane + u.m0;
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
        run_row(a, jobs, h, ring, u.n, acc0, acc1);
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
    run_rows(a, jobs, h, ring, u.n, n_rows, total, mine);
#pragma unroll
    for (int r = 0; r < LINEAR_JOB_ROWS; r++)
        if (r < n_rows && mine) {
            float *y = total + r * ROW_FLOATS;
            y[0] = fmaf(scale0, y[0], before[r][0]);
            y[32] = fmaf(scale1, y[32], before[r][1]);
        }
}

/* y += B u over a unit, ascending, for each of its rows. */
__device__ __forceinline__ void pair_sum(const __half *b0, const __half *b1, int rank,
                                         const float *u, int ld_u, int n_rows,
                                         float (&acc)[LINEAR_JOB_ROWS][2]) {
    int j = 0;
    if (rank % 8 == 0) /* all rows start at 16 bytes */
        for (; j < rank; j += 8) {
            __half w0[8], w1[8];
            *(uint4 *)w0 = *(const uint4 *)(b0 + j);
            *(uint4 *)w1 = *(const uint4 *)(b1 + j);
#pragma unroll
            for (int r = 0; r < LINEAR_JOB_ROWS; r++) {
                if (r >= n_rows)
                    break;
                float v[8];
                *(float4 *)v = *(const float4 *)(u + (size_t)r * ld_u + j);
                *(float4 *)(v + 4) = *(const float4 *)(u + (size_t)r * ld_u + j + 4);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    acc[r][0] = fmaf(__half2float(w0[i]), v[i], acc[r][0]);
                    acc[r][1] = fmaf(__half2float(w1[i]), v[i], acc[r][1]);
                }
            }
        }
    for (; j < rank; j++) {
        float w0 = __half2float(b0[j]), w1 = __half2float(b1[j]);
#pragma unroll
        for (int r = 0; r < LINEAR_JOB_ROWS; r++)
            if (r < n_rows) {
                float v = u[(size_t)r * ld_u + j];
                acc[r][0] = fmaf(w0, v, acc[r][0]);
                acc[r][1] = fmaf(w1, v, acc[r][1]);
            }
    }
}

/* One job's pair for some tiles of the group. Small ranks come through the ring; larger ones, where
 * the bytes of a lane's own rows are long enough, straight from memory. */
__device__ void run_pair(const linear_args &a, const struct jobs &jobs, const layout &l,
                         const struct group &g, const struct unit &u, struct ahead &h,
                         const char *ring) {
    const struct linear_job *job = jobs.at(0, u.job);
    const struct linear_pair *pair = jobs.pairs + u.job;
    const __half *b = pair->b[g.part];
    int lane = threadIdx.x % 32, t = lane % 4, rank = pair->rank[g.part], n_rows = jobs.n_rows(job);
    int first = job->first_row + jobs.skip(job);
    if (!b)
        return;
    bool mine = t < u.n;
    float acc[LINEAR_JOB_ROWS][2] = {};
    if (rank <= NEAR_RANK) {
        lane_copy_wait<DEPTH - 1>();
        __syncwarp();
        const char *slot = ring + h.slot * STEP;
        const __half *from = (const __half *)slot + (t * TILE_ROWS + lane / 4) * rank;
        if (mine)
            pair_sum(from, from + 8 * rank, rank, (const float *)(slot + STEP_U), NEAR_RANK, n_rows,
                     acc);
        __syncwarp();
        copy_step(a, jobs, h, true, true);
        lane_copy_commit();
    } else if (mine) {
        int out = (g.tile + u.m0 + t - a.shape.first_tile[g.part]) * TILE_ROWS + lane / 4;
        int last = a.shape.part_rows[g.part] - 1;
        pair_sum(b + (size_t)min(out, last) * rank, b + (size_t)min(out + 8, last) * rank, rank,
                 a.in.u + (size_t)first * a.in.ld_u + pair->first_u[g.part], a.in.ld_u, n_rows,
                 acc);
    }
    float *total = l.total + (first - jobs.rows.first) * ROW_FLOATS + lane + u.m0;
#pragma unroll
    for (int r = 0; r < LINEAR_JOB_ROWS; r++)
        if (r < n_rows && mine) {
            total[r * ROW_FLOATS] += acc[r][0];
            total[r * ROW_FLOATS + 32] += acc[r][1];
        }
}

/* Of the step's jobs, which ascend, those with rows in this block: one warp's work. Returns the
 * first; n: how many. */
__device__ int own_jobs(const linear_args &a, const struct rows &rows, int n_all, int &n) {
    int before = 0, begun = 0;
    for (int i = 0; i < n_all; i += 32) {
        int j = i + threadIdx.x % 32;
        int first = j < n_all ? a.jobs[j].first_row : LINEAR_MAX_ROWS;
        int end = j < n_all ? first + a.jobs[j].n_rows : LINEAR_MAX_ROWS + 1;
        before += __popc(__ballot_sync(~0u, end <= rows.first));
        begun += __popc(__ballot_sync(~0u, first < rows.end));
    }
    n = max(0, begun - before);
    return before;
}

/* The tables of this block into shared memory, as far as they fit. */
template <int Q, int H>
__device__ void load_jobs(const linear_args &a, const layout &l, struct jobs &jobs) {
    constexpr int threads = 32 * SIGN_WARPS;
    int thread = threadIdx.x - 32 * BASE_WARPS, first = 0;
    jobs.n_all = jobs.n = a.batch->n_jobs;
    jobs.rows = rows_of<H>(a.batch->n_rows);
    if (H > 1)
        first = own_jobs(a, jobs.rows, jobs.n_all, jobs.n);
    jobs.near = l.jobs, jobs.far = a.jobs + first, jobs.pairs = l.pairs;
    jobs.n_passes = jobs.n_phases + (a.pairs != NULL);
    int n_near = min(4 * Q, jobs.n * jobs.n_phases);
    for (int i = thread; i < n_near * 4; i += threads)
        ((uint4 *)l.jobs)[i] = ((const uint4 *)jobs.at(i / 4 / jobs.n, i / 4 % jobs.n))[i % 4];
    if (a.pairs)
        for (int i = thread; i < jobs.n * 3; i += threads)
            ((uint4 *)l.pairs)[i] = ((const uint4 *)(a.pairs + first))[i];
    jobs.n_near = n_near;
    named_sync<1, threads>();
}

template <int Q, int H> __device__ void run_signs(const linear_args &a, const layout &l) {
    struct work w = work_of<H>(a.shape);
    int warp = threadIdx.x / 32 - BASE_WARPS;
    const char *ring = l.sign + warp * DEPTH * STEP;
    struct jobs jobs = {};
    jobs.n_phases = a.batch->n_phases;
    if (!jobs.n_phases) /* then the base warps do not wait either */
        return;
    load_jobs<Q, H>(a, l, jobs);
    struct group g = group_at(a.shape, w, w.first);
    struct ahead h = {};
    h.g = g, h.end = w.end, h.blocks = w.blocks, h.i = warp;
    h.shared = shared_address(ring);
    h.policy = policy_evict_first();
    h.next_blocks = H, h.next_part = blockIdx.x % H * SIGN_WARPS + warp;
    h.next_parts = Q < 4 ? 0 : H * SIGN_WARPS;
    seek(a, jobs, h);
    /* The weights first; x when the previous kernel has written it. */
    struct ahead start = h;
#pragma unroll 1
    for (int i = 0; i < DEPTH; i++)
        copy_step(a, jobs, h, true, false);
    grid_wait();
    h = start;
#pragma unroll 1
    for (int i = 0; i < DEPTH; i++) {
        copy_step(a, jobs, h, false, true);
        lane_copy_commit();
    }

    uint32_t turn = 1;
    for (int tile = w.first; tile < w.end; tile += g.n, turn ^= 1) {
        g = group_at(a.shape, w, tile);
        for (int p = 0; p < jobs.n_passes; p++)
            for (int i = warp;; i += SIGN_WARPS) {
                struct unit u = unit_at(i, jobs.n, g.n);
                if (u.job >= jobs.n)
                    break;
                if (u.n > 0 && p < jobs.n_phases)
                    run_unit(a, jobs, l, g, p, u, h, ring, turn);
                else if (u.n > 0)
                    run_pair(a, jobs, l, g, u, h, ring);
            }
        /* A warp without a unit must not report this group before the last one was taken. */
        barrier_wait(l.total_empty, turn);
        barrier_arrive(l.total_full);
    }
}

} // namespace

#endif
