/* Attention of wide rows: tiles of 128 queries of one head over the pages (attention.h).
 *
 *   o = sum_t e^(q.k_t / sqrt E) v_t / sum_t e^(q.k_t / sqrt E),  t the keys that the row may see
 *
 * FLOPs: 4 E for each query head, row and key it sees. Bytes: each tile reads its keys and values
 * once, (4 E' + 8) / 128 a query and key, nearly all from the L2. Bound: the tensor cores, then
 * shared memory.
 *
 * Three warpgroups. One keeps a ring of tiles of 64 keys filled by bulk copies and turns their
 * integers into fp16 where they stand: the pages' groups of 8 x 8 are the core matrices that wgmma
 * reads, keys as they are and values transposed. The other two have 64 queries each, with q, the
 * probabilities and the sums in registers; they take turns in starting products, so that one's
 * keep the tensor cores busy while the other does its softmax. A key's scale multiplies its scores,
 * the logarithm of a value's scale is added to them, and the sum of the probabilities is divided by
 * it again, all in FP32. */
#include "kernels/cuda/attention_kv.cuh"
#include "kernels/cuda/attention_wgmma.cuh"
#include "kernels/cuda/launch.h"

namespace {

enum {
    GROUP_ROWS = 64, /* queries of a warpgroup */
    GROUPS = 2,
    TILE_QUERIES = GROUPS * GROUP_ROWS,
    THREADS = (GROUPS + 1) * 128,
    KEYS = 64, /* of a tile */
    TILE_PAGES = KEYS / KV_PAGE_TOKENS,
    /* Barriers of a stage: copied, turned into fp16, no longer needed. */
    COPIED = 0,
    READY = 1,
    FREE = 2,
};
/* Probabilities stand as p 2^7 of a maximum that may lag behind by 2^8: within fp16 either way. */
enum { P_EXPONENT = 7, MOST_LAG = 8 };

/* A stage: keys, values, scales as stored [page][keys, values], then three numbers for each key:
 * what its scores are multiplied by, log2 of its value's scale, and 1 / that scale. */
__host__ __device__ constexpr int row_bytes(int steps) { /* of eight keys */
    return 256 * steps;
}
__host__ __device__ constexpr int values_at(int steps) {
    return KEYS / KV_GROUP * row_bytes(steps);
}
__host__ __device__ constexpr int scales_at(int steps) {
    return 2 * values_at(steps);
}
__host__ __device__ constexpr int factors_at(int steps) {
    return scales_at(steps) + TILE_PAGES * KV_SCALE_BYTES;
}
__host__ __device__ constexpr int stage_bytes(int steps) {
    return factors_at(steps) + 3 * KEYS * 4;
}
/* With more than 128 columns q stands in shared memory, for want of registers. */
__host__ __device__ constexpr int q_bytes(int steps) {
    return steps > 8 ? TILE_QUERIES * steps * 32 : 0;
}
__host__ __device__ constexpr int stages_of(int steps) {
    int n = ((227 << 10) - 1024 - q_bytes(steps)) / stage_bytes(steps);
    return n > 6 ? 6 : n;
}

/* What a block works on. */
struct work {
    gpu_seq seq;
    int window, head, kv, first_wide;
    int first, n_rows;   /* of the tile, in the sequence */
    int tile, n_tiles;   /* of keys: from, how many */
    int last_key, pages; /* of the whole tile of queries; pages of the sequence */
};

[[maybe_unused]] __device__ int window_start(int position, int window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* false: no rows for this block. */
[[maybe_unused]] __device__ bool find_work(const attention_args &a, work &w) {
    if ((int)blockIdx.z >= a.step.counts->n_wide_seqs)
        return false;
    w.seq = a.step.seq[a.step.counts->n_narrow_seqs + blockIdx.z];
    w.first_wide = a.step.counts->n_narrow;
    w.window = a.step.row[w.seq.first].tenant->sliding_window;
    w.first = (int)(gridDim.x - 1 - blockIdx.x) * TILE_QUERIES;
    w.n_rows = min(TILE_QUERIES, w.seq.n - w.first);
    w.head = blockIdx.y;
    w.kv = w.head / (a.n_heads / a.n_kv_heads);
    w.last_key = w.seq.position + w.first + w.n_rows - 1;
    w.tile = window_start(w.seq.position + w.first, w.window) / KEYS;
    w.n_tiles = w.last_key / KEYS - w.tile + 1;
    w.pages = w.last_key / KV_PAGE_TOKENS + 1;
    return w.n_rows > 0;
}

/* ---- the warpgroup that brings keys and values ----------------------------------------------- */

/* One thread: starts the copies of a tile's pages. */
template <int STEPS>
__device__ void copy_tile(const attention_args &a, const work &w, char *stage,
                          const int32_t (&id)[TILE_PAGES], int n, uint64_t *copied) {
    int e = a.head_dim;
    uint32_t groups = KV_PAGE_TOKENS / KV_GROUP, group = 16 * kv_padded(e);
    barrier_arrive_expect(copied, n * (KV_SCALE_BYTES + 2 * groups * group));
    for (int i = 0; i < n; i++) {
        const char *block = kv_block(a, id[i], w.kv);
        bulk_copy(stage + scales_at(STEPS) + i * KV_SCALE_BYTES, block, KV_SCALE_BYTES, copied);
        for (int v = 0; v < 2; v++) {
            const char *from = block + (v ? kv_values_at(e) : kv_keys_at());
            char *to = stage + (v ? values_at(STEPS) : 0) + i * groups * row_bytes(STEPS);
            if (group == row_bytes(STEPS)) {
                bulk_copy(to, from, groups * group, copied);
                continue;
            }
            for (uint32_t g = 0; g < groups; g++) /* columns past E' keep what they had */
                bulk_copy(to + g * row_bytes(STEPS), from + g * group, group, copied);
        }
    }
}

/* A warp's: the pages of the tiles to copy, their ids loaded well before they are wanted. */
struct page_ids {
    const int32_t *from; /* the first tile's first page */
    int n, now, next;    /* pages; lane i has id of page i of 32, and of the 32 after */
};
[[maybe_unused]] __device__ int load_ids(const page_ids &p, int first, int lane) {
    return first + lane < p.n ? p.from[first + lane] : 0;
}

/* Integers -> fp16 multiples of 2^-24, in place; any bits give finite numbers. */
template <int STEPS> __device__ void convert_tile(char *stage, uint32_t magic, int thread) {
    enum { AT_ONCE = STEPS % 4 ? 2 : 4 };
    uint4 *p = (uint4 *)stage + thread;
#pragma unroll 1
    for (int i = 0; i < scales_at(STEPS) / 16 / 128; i += AT_ONCE) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            v[j] = p[(i + j) * 128];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            v[j].x = kv_half(v[j].x, magic), v[j].y = kv_half(v[j].y, magic);
            v[j].z = kv_half(v[j].z, magic), v[j].w = kv_half(v[j].w, magic);
            p[(i + j) * 128] = v[j];
        }
    }
}

template <int STEPS>
__device__ void convert_scales(const work &w, char *stage, int tile, float unit, int thread) {
    if (thread >= KEYS)
        return;
    const float *scale = (const float *)(stage + scales_at(STEPS)) +
                         thread / KV_PAGE_TOKENS * (KV_SCALE_BYTES / 4) + thread % KV_PAGE_TOKENS;
    float *factor = (float *)(stage + factors_at(STEPS)) + thread;
    bool stands = tile * KEYS + thread <= w.last_key; /* else nobody wrote it yet */
    float value = stands ? scale[KV_PAGE_TOKENS] : 1.0f;
    factor[0] = stands ? scale[0] * unit : 0.0f;
    factor[KEYS] = log2_fast(value);
    factor[2 * KEYS] = 1.0f / value;
}

template <int STEPS>
__device__ void bring(const attention_args &a, const work &w, char *ring, uint64_t *barriers,
                      int thread) {
    constexpr int STAGES = stages_of(STEPS), BEHIND = STAGES > 2 ? 2 : 1;
    float unit = KV_UNIT * 1.4426950408889634f * rsqrtf((float)a.head_dim);
    uint32_t magic = kv_magic(a);
    int lane = thread % 32, warp = thread / 32;
    page_ids ids = {a.step.page + w.seq.first_page + w.tile * TILE_PAGES,
                    w.pages - w.tile * TILE_PAGES, 0, 0};
    ids.next = load_ids(ids, 0, lane);
    auto copy = [&](int i) { /* all four warps, in order; one of them does it */
                             if (i * TILE_PAGES % 32 == 0) {
                                 ids.now = ids.next;
                                 ids.next = load_ids(ids, i * TILE_PAGES + 32, lane);
                             }
                             if (i % 4 != warp)
                                 return;
                             int32_t id[TILE_PAGES];
                             for (int j = 0; j < TILE_PAGES; j++)
                                 id[j] = __shfl_sync(~0u, ids.now, (i * TILE_PAGES + j) % 32);
                             if (lane == 0) {
                                 uint64_t *b = barriers + 3 * (i % STAGES);
                                 barrier_wait(b + FREE, (i / STAGES & 1) ^ 1);
                                 copy_tile<STEPS>(a, w, ring + i % STAGES * stage_bytes(STEPS), id,
                                                  min(TILE_PAGES, ids.n - i * TILE_PAGES),
                                                  b + COPIED);
                             }
                             __syncwarp();
    };
    for (int i = 0; i < min(STAGES, w.n_tiles); i++)
        copy(i);
    for (int i = 0; i < w.n_tiles; i++) {
        char *stage = ring + i % STAGES * stage_bytes(STEPS);
        barrier_wait(barriers + 3 * (i % STAGES) + COPIED, i / STAGES & 1);
        convert_tile<STEPS>(stage, magic, thread);
        convert_scales<STEPS>(w, stage, w.tile + i, unit, thread);
        engines_fence();
        barrier_arrive(barriers + 3 * (i % STAGES) + READY);
        /* Into the stage of a tile that the others have left by now, or nearly. */
        if (i >= BEHIND && i - BEHIND + STAGES < w.n_tiles)
            copy(i - BEHIND + STAGES);
    }
}

/* ---- the warpgroups that multiply ------------------------------------------------------------ */

/* Rows g and g + 8 of a warp's 16. */
template <int STEPS> struct sums {
    int lo[2], hi[2]; /* keys that a row sees; none when lo > hi */
    float max[2], sum[2];
    float o[STEPS > 8 ? 2 : 1][STEPS > 8 ? 64 : 8 * STEPS];
};

template <int STEPS>
__device__ void load_q(const attention_args &a, const work &w, int row, uint32_t (&q)[STEPS][4],
                       int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = w.first + row + lane / 4 + 8 * h;
        const __half *from =
            a.a.qkv16 + (size_t)(w.seq.first - w.first_wide + min(r, w.seq.n - 1)) * a.a.ld_qkv +
            (size_t)w.head * a.head_dim;
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int i = 16 * k + 8 * j + lane % 4 * 2;
                q[k][2 * j + h] = i < a.head_dim ? *(const uint32_t *)(from + i) : 0;
            }
    }
}

/* scores of 64 queries and a tile's keys; asynchronous. */
template <int STEPS>
__device__ void start_scores(float (&score)[32], const uint32_t (&q)[STEPS > 8 ? 1 : STEPS][4],
                             uint32_t q_shared, uint32_t stage) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        uint64_t keys = wgmma_matrix(stage + k * 256, 128, row_bytes(STEPS));
        if constexpr (STEPS > 8)
            wgmma_keys(score, wgmma_matrix(q_shared + k * 256, 128, row_bytes(STEPS)), keys, k);
        else
            wgmma_keys(score, q[k], keys, k);
    }
    wgmma_commit();
}

/* o += p v of a tile; asynchronous. */
template <int STEPS>
__device__ void start_values(sums<STEPS> &s, const uint32_t (&p)[4][4], uint32_t stage) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t from = stage + values_at(STEPS) + k * 2 * row_bytes(STEPS);
        wgmma_values(s.o[0], p[k], wgmma_matrix(from, row_bytes(STEPS), 128), 1);
        if constexpr (STEPS > 8)
            wgmma_values(s.o[1], p[k], wgmma_matrix(from + 16 * 128, row_bytes(STEPS), 128), 1);
    }
    wgmma_commit();
}

/* What a lane's columns of the scores are multiplied by, and what is added. */
struct factors {
    float2 scale[8], log[8];
};
template <int STEPS> __device__ void load_factors(const char *stage, int lane, factors &f) {
    const float *from = (const float *)(stage + factors_at(STEPS)) + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        f.scale[n] = *(const float2 *)(from + 8 * n);
        f.log[n] = *(const float2 *)(from + KEYS + 8 * n);
    }
}

/* score -> p in FP32, times 2^P_EXPONENT. Gives what the rows' sums so far must be multiplied by;
 * false: by 1 for all rows of the warp. */
template <int STEPS>
__device__ bool tile_softmax(sums<STEPS> &s, const char *stage, int first_key, bool all_seen,
                             int lane, const factors &f, float (&score)[32], float (&keep)[2]) {
    const float *factor = (const float *)(stage + factors_at(STEPS)) + lane % 4 * 2;
    float most[2] = {-INFINITY, -INFINITY}, base[2], sum[2] = {};
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[4 * n + i] = fmaf(score[4 * n + i], i % 2 ? f.scale[n].y : f.scale[n].x,
                                    i % 2 ? f.log[n].y : f.log[n].x);
    if (!all_seen)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = first_key + 8 * n + lane % 4 * 2 + i % 2;
                if (key < s.lo[i / 2] || key > s.hi[i / 2])
                    score[4 * n + i] = -INFINITY;
            }
#pragma unroll
    for (int i = 0; i < 32; i++)
        most[i / 2 % 2] = fmaxf(most[i / 2 % 2], score[i]);
    bool grown = false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
        most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2));
        bool grows = most[h] > s.max[h] + MOST_LAG;
        keep[h] = grows ? exp2_fast(s.max[h] - most[h]) : 1.0f;
        s.max[h] = grows ? most[h] : s.max[h];
        base[h] = s.max[h] == -INFINITY ? 0.0f : s.max[h] - P_EXPONENT; /* nothing seen so far */
        grown |= grows;
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
        float2 inverse = *(const float2 *)(factor + 2 * KEYS + 8 * n);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            score[4 * n + i] = exp2_fast(score[4 * n + i] - base[i / 2]);
            sum[i / 2] = fmaf(score[4 * n + i], i % 2 ? inverse.y : inverse.x, sum[i / 2]);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++)
        s.sum[h] = fmaf(s.sum[h], keep[h], sum[h]);
    return __any_sync(~0u, grown);
}

template <int STEPS> __device__ void scale_sums(sums<STEPS> &s, const float (&keep)[2]) {
#pragma unroll
    for (int j = 0; j < (STEPS > 8 ? 2 : 1); j++)
#pragma unroll
        for (int i = 0; i < (STEPS > 8 ? 64 : 8 * STEPS); i++)
            s.o[j][i] *= keep[i / 2 % 2];
}

/* p as an A operand for each 16 keys. */
[[maybe_unused]] __device__ void pack(const float (&p)[32], uint32_t (&a)[4][4]) {
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            __half2 v = __floats2half2_rn(p[4 * n + 2 * h], p[4 * n + 2 * h + 1]);
            a[n / 2][n % 2 * 2 + h] = *(uint32_t *)&v;
        }
}

template <int STEPS>
__device__ void write_rows(const attention_args &a, const work &w, int row, sums<STEPS> &s,
                           int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = row + lane / 4 + 8 * h;
        s.sum[h] += __shfl_xor_sync(~0u, s.sum[h], 1);
        s.sum[h] += __shfl_xor_sync(~0u, s.sum[h], 2);
        if (r >= w.n_rows)
            continue;
        __half *out = a.a.ctx16 + (size_t)(w.seq.first - w.first_wide + w.first + r) * a.a.ld_ctx +
                      (size_t)w.head * a.head_dim;
        float by = KV_UNIT / s.sum[h];
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            int i = 8 * n + lane % 4 * 2;
            const float *o = s.o[n / 16] + n % 16 * 4 + 2 * h;
            if (i < a.head_dim)
                *(__half2 *)(out + i) = __floats2half2_rn(o[0] * by, o[1] * by);
        }
    }
}

template <int STEPS>
__device__ void multiply(const attention_args &a, const work &w, const char *ring, char *q_ring,
                         uint64_t *barriers, int group, int thread) {
    constexpr int STAGES = stages_of(STEPS);
    int lane = thread % 32, row = group * GROUP_ROWS + thread / 32 * 16;
    int first = w.seq.position + w.first + group * GROUP_ROWS; /* position of the first row */
    int last = first <= w.last_key ? min(first + GROUP_ROWS - 1, w.last_key) : -1;
    uint32_t q[STEPS > 8 ? 1 : STEPS][4], q_shared = 0;
    if constexpr (STEPS > 8) {
        uint32_t all[STEPS][4];
        load_q(a, w, row, all, lane);
        char *to = q_ring + (group * 8 + thread / 32 * 2) * row_bytes(STEPS) + lane * 4;
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                *(uint32_t *)(to + i % 2 * row_bytes(STEPS) + (2 * k + i / 2) * 128) = all[k][i];
        engines_fence();
        if (group == 0)
            named_sync<1, 128>();
        else
            named_sync<2, 128>();
        q_shared = shared_address(q_ring) + group * 8 * row_bytes(STEPS);
    } else {
        load_q(a, w, row, q, lane);
    }
    sums<STEPS> s;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = row + lane / 4 + 8 * h;
        s.hi[h] = r < w.n_rows ? w.seq.position + w.first + r : -1;
        s.lo[h] = window_start(s.hi[h], w.window);
        s.max[h] = -INFINITY;
        s.sum[h] = 0;
    }
#pragma unroll
    for (int j = 0; j < (STEPS > 8 ? 2 : 1); j++)
#pragma unroll
        for (int i = 0; i < (STEPS > 8 ? 64 : 8 * STEPS); i++)
            s.o[j][i] = 0;
    /* Tiles [from, to) hold keys that some of these rows see. */
    int from = window_start(first, w.window) / KEYS - w.tile, to = last / KEYS - w.tile + 1;
    if (last < 0)
        from = to = 0;
    auto stage_of = [&](int i) { return ring + i % STAGES * stage_bytes(STEPS); };
    auto leave = [&](int i) {
        __syncwarp();
        if (lane == 0)
            barrier_arrive(barriers + 3 * (i % STAGES) + FREE);
    };
    auto wait_for = [&](int i) {
        barrier_wait(barriers + 3 * (i % STAGES) + READY, i / STAGES & 1);
    };
    factors f;
    auto softmax = [&](int i, float(&score)[32], float(&keep)[2]) {
        int key = (w.tile + i) * KEYS;
        bool all_seen = key + KEYS - 1 <= first && key >= window_start(last, w.window);
        return tile_softmax(s, stage_of(i), key, all_seen, lane, f, score, keep);
    };
    /* One turn a tile for each group, also where it sees none of the keys. */
    auto my_turn = [&] {
        if (group == 0)
            named_sync<3, 256>();
        else
            named_sync<4, 256>();
    };
    auto your_turn = [&](int i) {
        if (group == 0)
            named_arrive<4, 256>();
        else if (i < w.n_tiles - 1)
            named_arrive<3, 256>();
    };
    if (group == 1)
        named_arrive<3, 256>();
    float score[32], keep[2];
    uint32_t p[4][4];
    for (int i = 0; i < w.n_tiles && i < from; i++) {
        my_turn();
        your_turn(i);
        wait_for(i);
        leave(i);
    }
    if (from < to) {
        wait_for(from);
        my_turn();
        start_scores<STEPS>(score, q, q_shared, shared_address(stage_of(from)));
        your_turn(from);
        load_factors<STEPS>(stage_of(from), lane, f);
        wgmma_wait<0>();
        softmax(from, score, keep);
        pack(score, p);
        for (int i = from + 1; i < to; i++) {
            wait_for(i);
            my_turn();
            start_scores<STEPS>(score, q, q_shared, shared_address(stage_of(i)));
            start_values(s, p, shared_address(stage_of(i - 1)));
            your_turn(i);
            load_factors<STEPS>(stage_of(i), lane, f);
            wgmma_wait<1>();
            bool scale = softmax(i, score, keep); /* beside the sums of tile i - 1 */
            wgmma_wait<0>();
            leave(i - 1);
            if (scale)
                scale_sums(s, keep);
            pack(score, p);
        }
        start_values(s, p, shared_address(stage_of(to - 1)));
        wgmma_wait<0>();
        leave(to - 1);
    }
    for (int i = from < to ? to : from; i < w.n_tiles; i++) {
        my_turn();
        your_turn(i);
        wait_for(i);
        leave(i);
    }
    write_rows(a, w, row, s, lane);
}

/* grid: (tiles of the longest sequence, H, sequences); the tiles with most keys come first. */
template <int STEPS>
__global__ void __launch_bounds__(THREADS, 1)
    attention_wide_kernel(const __grid_constant__ attention_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char shared[];
    constexpr int STAGES = stages_of(STEPS);
    char *q_ring = shared + STAGES * stage_bytes(STEPS);
    uint64_t *barriers = (uint64_t *)(q_ring + q_bytes(STEPS));
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(barriers + 3 * i + COPIED, 1);
            barrier_init(barriers + 3 * i + READY, 128);
            barrier_init(barriers + 3 * i + FREE, GROUPS * 4);
        }
        barrier_init_fence();
    }
    __syncthreads();
    grid_launch_next();
    grid_wait();
    work w;
    if (!find_work(a, w))
        return;
    int group = threadIdx.x / 128, thread = threadIdx.x % 128;
    if (group == GROUPS) {
        registers_shrink<56>();
        bring<STEPS>(a, w, shared, barriers, thread);
    } else {
        registers_grow<224>();
        multiply<STEPS>(a, w, shared, q_ring, barriers, group, thread);
    }
#endif
}

struct variant {
    int32_t steps;
    void (*kernel)(attention_args);
    int32_t shared_bytes;
};
constexpr int32_t shared_bytes(int steps) {
    return stages_of(steps) * (stage_bytes(steps) + 24) + q_bytes(steps);
}
const struct variant variants[] = {
    {4, attention_wide_kernel<4>, shared_bytes(4)},
    {5, attention_wide_kernel<5>, shared_bytes(5)},
    {6, attention_wide_kernel<6>, shared_bytes(6)},
    {8, attention_wide_kernel<8>, shared_bytes(8)},
    {16, attention_wide_kernel<16>, shared_bytes(16)},
};

} // namespace

err_t attention_wide_setup(void) {
    for (const struct variant &v : variants)
        if (cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 v.shared_bytes) != cudaSuccess)
            return E_DEVICE;
    return 0;
}

err_t attention_wide(const struct attention_args *a, int32_t n_wide_seqs, int32_t longest,
                     cudaStream_t stream) {
    if (n_wide_seqs < 1 || n_wide_seqs > 65535 || longest < 1 || a->head_dim % 2 ||
        a->head_dim > MOST_HEAD_DIM || a->n_heads % a->n_kv_heads)
        return E_INVAL;
    if (!code_is_hopper())
        return attention_plain_wide(a, n_wide_seqs, longest, stream);
    const struct variant *v = variants;
    while (v->steps * 16 < a->head_dim)
        v++;
    dim3 grid((unsigned)((longest + TILE_QUERIES - 1) / TILE_QUERIES), (unsigned)a->n_heads,
              (unsigned)n_wide_seqs);
    return launch_early(v->kernel, grid, THREADS, (size_t)v->shared_bytes, stream, *a);
}
