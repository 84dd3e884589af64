/* The fused linear (linear.h) for devices without Hopper's copies, or whose 1-bit product is not
 * native (compute capability 10 and 12): the same bytes, the same integers, the same chains of
 * additions, hence the same bits as linear.cu, which is how it is tested. Plain loads, no
 * pipeline: latency is covered by several blocks on a multiprocessor alone.
 *
 * A block of eight warps has up to 4 tiles of 16 outputs of one part. Warps 7, 6, ... take the
 * jobs, one after the other: the packed bits, shifted and masked with 0x01010101, are the operand
 * of eight products m16n8k32 of 8-bit integers, in whose columns stand the job's rows, first their
 * high bytes, then their low ones. The bytes come from the bit planes by transposing 8 x 8 bits.
 * Warps 0 to 3 have the base's tile 0 to 3 for rows 0 to 31, warps 4 to 7 for the rest. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear.h"

namespace {

enum {
    GROUP = 4,
    WARPS = 8,
    QUADS = 8, /* of 4 rows, of a base warp */
    OUTS = GROUP * TILE_ROWS,
};

/* w[j]'s bit p in every byte = w[p]'s bit j before. */
__device__ __forceinline__ void transpose_bits(uint32_t (&w)[8]) {
    const uint32_t mask[3] = {0x0f0f0f0f, 0x33333333, 0x55555555};
#pragma unroll
    for (int i = 0; i < 3; i++) {
        int d = 4 >> i;
#pragma unroll
        for (int p = 0; p < 8; p++)
            if (!(p & d)) {
                uint32_t x = (w[p] >> d ^ w[p + d]) & mask[i];
                w[p + d] ^= x;
                w[p] ^= x << d;
            }
    }
}

/* Bytes of q of one row and block: [high, low][word t, t + 4][j], byte i of j: column 8i + j. */
__device__ __forceinline__ void load_bytes(const struct linear_planes *planes, bool live,
                                           uint32_t (&b)[2][2][8]) {
#pragma unroll
    for (int p = 0; p < 8; p++) {
        uint4 v = live ? __ldcg(&planes->lane[4 * p + threadIdx.x % 4]) : make_uint4(0, 0, 0, 0);
        b[1][0][p] = v.x, b[1][1][p] = v.y, b[0][0][p] = v.z, b[0][1][p] = v.w;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        transpose_bits(b[i / 2][i % 2]);
}

/* Sums of q over the set bits: rows g and g + 8 of the tile, rows 2t and 2t + 1 of the job. */
__device__ __forceinline__ void count_tile(const uint4 &a, const uint32_t (&b)[2][2][8],
                                           int (&d)[4]) {
    const uint32_t mask = 0x01010101;
#pragma unroll
    for (int e = 0; e < 4; e++)
        d[e] = 0;
#pragma unroll
    for (int j = 0; j < 8; j++)
        mma_u8_s8(d, a.x >> j & mask, a.y >> j & mask, a.z >> j & mask, a.w >> j & mask, b[0][0][j],
                  b[0][1][j]);
#pragma unroll
    for (int e = 0; e < 4; e++)
        d[e] *= 256;
#pragma unroll
    for (int j = 0; j < 8; j++)
        mma_u8_u8(d, a.x >> j & mask, a.y >> j & mask, a.z >> j & mask, a.w >> j & mask, b[1][0][j],
                  b[1][1][j]);
}

/* The tiles of a block's turn. */
struct group {
    int tile, n, part; /* tile: within the part */
};

/* One plane of a job. acc[m][i][e]: output g + 8 i of tile m, row 2t + e of the job. */
__device__ void sum_signs(const linear_args &a, const struct linear_job &job, const struct group &g,
                          float (&acc)[GROUP][2][2]) {
    int lane = threadIdx.x % 32, t = lane % 4, n_blocks = (a.shape.n_k + TILE_COLS - 1) / TILE_COLS;
    const uint4 *tile = (const uint4 *)job.bits[g.part] + (size_t)g.tile * n_blocks * 32 + lane;
    const struct linear_planes *set = a.in.planes + (size_t)job.first_set[g.part] * n_blocks;
#pragma unroll 1
    for (int k = 0; k < n_blocks; k++) {
        uint4 bits[GROUP];
#pragma unroll
        for (int m = 0; m < GROUP; m++)
            bits[m] = __ldcs(tile + ((size_t)min(m, g.n - 1) * n_blocks + k) * 32);
        uint32_t b[2][2][8];
        load_bytes(set + (size_t)(lane / 4) * n_blocks + k, lane / 4 < job.n_rows, b);
        float2 s[2]; /* scale and sum */
#pragma unroll
        for (int e = 0; e < 2; e++)
            s[e] = 2 * t + e < job.n_rows
                       ? __ldcg((const float2 *)&set[(size_t)(2 * t + e) * n_blocks + k].scale)
                       : make_float2(0, 0);
#pragma unroll
        for (int m = 0; m < GROUP; m++) {
            int d[4];
            count_tile(bits[m], b, d);
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[m][i / 2][i % 2] =
                    fmaf(s[i % 2].x, (float)(2 * d[i] - (int)s[i % 2].y), acc[m][i / 2][i % 2]);
        }
    }
}

/* Its low-rank pair, ascending. */
__device__ void sum_pair(const linear_args &a, const struct linear_job &job,
                         const struct linear_pair &pair, const struct group &g,
                         float (&acc)[GROUP][2][2]) {
    int lane = threadIdx.x % 32, rank = pair.rank[g.part], last = a.shape.part_rows[g.part] - 1;
    const float *u = a.in.u + (size_t)job.first_row * a.in.ld_u + pair.first_u[g.part];
    for (int j = 0; j < rank; j++) {
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int r = lane % 4 * 2 + e;
            v[e] = r < job.n_rows ? __ldcg(u + (size_t)r * a.in.ld_u + j) : 0;
        }
#pragma unroll
        for (int i = 0; i < 2 * GROUP; i++) {
            int out = min(g.tile * TILE_ROWS + lane / 4 + 8 * i, last);
            float w = __half2float(pair.b[g.part][(size_t)out * rank + j]);
            acc[i / 2][i % 2][0] = fmaf(w, v[0], acc[i / 2][i % 2][0]);
            acc[i / 2][i % 2][1] = fmaf(w, v[1], acc[i / 2][i % 2][1]);
        }
    }
}

/* Everything of one job, to total [row][OUTS]. */
__device__ void run_job(const linear_args &a, int i, const struct group &g, float *total) {
    int lane = threadIdx.x % 32, t = lane % 4, n_jobs = a.batch->n_jobs;
    float y[GROUP][2][2] = {}, acc[GROUP][2][2];
    for (int p = 0; p < a.batch->n_phases; p++) {
        const struct linear_job &job = a.jobs[p * n_jobs + i];
        const float *row = job.row[g.part];
        if (!row)
            continue;
        memset(acc, 0, sizeof acc);
        sum_signs(a, job, g, acc);
#pragma unroll
        for (int m = 0; m < 2 * GROUP; m++) {
            int out = g.tile * TILE_ROWS + lane / 4 + 8 * m;
            float scale = out < a.shape.part_rows[g.part] ? row[out] : 0;
            y[m / 2][m % 2][0] = fmaf(scale, acc[m / 2][m % 2][0], y[m / 2][m % 2][0]);
            y[m / 2][m % 2][1] = fmaf(scale, acc[m / 2][m % 2][1], y[m / 2][m % 2][1]);
        }
    }
    const struct linear_job &job = a.jobs[i];
    bool pair = a.pairs && a.pairs[i].b[g.part];
    memset(acc, 0, sizeof acc);
    if (pair)
        sum_pair(a, job, a.pairs[i], g, acc);
#pragma unroll
    for (int e = 0; e < 2; e++)
        if (2 * t + e < job.n_rows)
#pragma unroll
            for (int m = 0; m < 2 * GROUP; m++) {
                float v = y[m / 2][m % 2][e];
                total[(job.first_row + 2 * t + e) * OUTS + 8 * m + lane / 4] =
                    pair ? v + acc[m / 2][m % 2][e] : v;
            }
}

/* 16 outputs of the base for QUADS quads of rows; the chain of linear_base.cuh. */
__device__ void sum_base(const linear_args &a, int tile, int quad, int n_quads,
                         float (&acc)[QUADS][2]) {
    int lane = threadIdx.x % 32, n_runs = (a.shape.n_k + TILE_COLS - 1) / TILE_COLS * 8;
    const uint4 *w = a.base + (size_t)tile * n_runs * 64 + lane;
    const uint4 *x = (const uint4 *)a.in.x + (size_t)quad * n_runs * 32 + lane;
#pragma unroll 1
    for (int run = 0; run < n_runs; run += 4) {
        uint4 v[4][2];
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j / 2][j % 2] = __ldcs(w + ((size_t)run * 2 + j) * 32);
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            if (quad + q >= n_quads)
                break;
            float d[4] = {};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint4 b = __ldcg(x + ((size_t)q * n_runs + run + j) * 32);
                mma_f16(d, v[j][0].x, v[j][0].y, v[j][0].z, v[j][0].w, b.x, b.y);
                mma_f16(d, v[j][1].x, v[j][1].y, v[j][1].z, v[j][1].w, b.z, b.w);
            }
            acc[q][0] += d[0] + d[1];
            acc[q][1] += d[2] + d[3];
        }
    }
}

__device__ void store_group(const linear_args &a, const struct group &g, int m, int quad,
                            const float (&acc)[QUADS][2], const float *total) {
    int lane = threadIdx.x % 32, n_rows = a.batch->n_rows, before = 0;
    for (int p = 0; p < g.part; p++)
        before += a.shape.part_rows[p];
#pragma unroll
    for (int q = 0; q < QUADS; q++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = (quad + q) * 4 + lane % 4, at = m * TILE_ROWS + lane / 4 + 8 * i;
            int out = g.tile * TILE_ROWS + at;
            if (r >= n_rows || out >= a.shape.part_rows[g.part] || a.batch->dense[r] >> g.part & 1)
                continue;
            float v = acc[q][i];
            if (a.batch->has_delta[r])
                v += total[r * OUTS + at];
            float *y = a.y + (size_t)r * a.ld_y + before + out;
            *y = a.add ? *y + v : v;
        }
}

__global__ void __launch_bounds__(32 * WARPS, 2)
    plain_kernel(const __grid_constant__ linear_args a) {
    __shared__ float total[LINEAR_MAX_ROWS * OUTS];
    int warp = threadIdx.x / 32, quad = warp / GROUP * QUADS, m = warp % GROUP;
    grid_launch_next();
    grid_wait();
    int n_jobs = a.batch->n_phases ? a.batch->n_jobs : 0, n_quads = (a.batch->n_rows + 3) / 4;
    int turn = blockIdx.x; /* groups of all parts in a row; this block takes every n-th */
    for (int p = 0; p < a.shape.n_parts; p++) {
        int tiles = a.shape.first_tile[p + 1] - a.shape.first_tile[p];
        int groups = (tiles + GROUP - 1) / GROUP;
        for (; turn < groups; turn += gridDim.x) {
            struct group g = {turn * GROUP, min(GROUP, tiles - turn * GROUP), p};
            for (int i = WARPS - 1 - warp; i < n_jobs; i += WARPS)
                run_job(a, i, g, total);
            float acc[QUADS][2] = {};
            bool mine = m < g.n && quad < n_quads;
            if (mine)
                sum_base(a, a.shape.first_tile[p] + g.tile + m, quad, n_quads, acc);
            __syncthreads();
            if (mine)
                store_group(a, g, m, quad, acc, total);
            __syncthreads();
        }
        turn -= groups;
    }
}

} // namespace

err_t linear_plain_launch(const struct linear_args *a, int32_t max_rows, cudaStream_t stream) {
    if (max_rows < 1 || max_rows > LINEAR_MAX_ROWS || a->n_thread_blocks < 1)
        return E_INVAL;
    return launch_early(plain_kernel, dim3((unsigned)(2 * a->n_thread_blocks)), 32 * WARPS, 0,
                        stream, *a);
}
