/* Attention on devices without Hopper's bulk copies and warpgroup products: compute capability 8.0
 * and later (attention.h). Bytes and FLOPs as in attention_narrow.cu and attention_wide.cu; bound:
 * latency, since a block copies pages, waits for them, and only then computes. At most 99 KB of
 * shared memory, which all of these devices have.
 *
 * Narrow: a block takes items in turn, a warp a page, with the page's arithmetic that Hopper's
 * kernel has (attention_page.cuh): the same bits.
 *
 * Wide: a block has 64 queries of one head, a warp 16 of them, q, probabilities and sums in
 * registers. Pages come through a ring of three; their integers become fp16 on the way to the
 * tensor core. A key's scale multiplies its column of the scores, a value's scale the probability,
 * both in FP32. */
#include "kernels/cuda/attention_page.cuh"
#include "kernels/cuda/launch.h"

namespace {

enum {
    WARPS = ADD_WARPS,
    THREADS = WARPS * 32,
    STAGES = 3, /* of wide rows */
    WARP_ROWS = 16,
    TILE_QUERIES = WARPS * WARP_ROWS,
    MOST_SHARED = 99 << 10,
};
/* Starts the copy of 16-byte pieces i, i + by .. of a block of the pool. */
__device__ void copy_block(char *to, const char *from, int bytes, int i, int by) {
    uint32_t at = shared_address(to);
    for (; i * 16 < bytes; i += by)
        lane_copy(at + i * 16, from + i * 16);
    lane_copy_commit();
}

/* ---- narrow rows ----------------------------------------------------------------------------- */

/* A block's shared memory: pages, their sums, an item's queries, the plan. */
template <int STEPS> struct layout {
    static constexpr int PAGES = STEPS == 16 ? 2 : WARPS; /* at a time */
    static constexpr int stage_bytes = (int)kv_block_bytes(16 * STEPS);
    static constexpr int bytes = PAGES * (stage_bytes + sum_bytes(STEPS)) + query_bytes(STEPS) +
                                 SLOTS * (int)sizeof(slot) +
                                 MOST_NARROW * ((int)sizeof(sequence) + 4) + 4;
    static_assert(bytes <= MOST_SHARED, "some devices have no more");
    char *stage, *sum, *query;
    slot *slots;
    plan p;

    __device__ layout(char *shared, int n_seqs) {
        stage = shared;
        sum = stage + PAGES * stage_bytes;
        query = sum + PAGES * sum_bytes(STEPS);
        slots = (slot *)(query + query_bytes(STEPS));
        p.seq = (sequence *)(slots + SLOTS);
        p.prefix = (int32_t *)(p.seq + MOST_NARROW);
        p.n_seqs = n_seqs;
    }
};

/* One item; all warps of the block. */
template <int STEPS>
__device__ void do_item(const attention_args &a, const layout<STEPS> &l, const item &it, int warp,
                        int lane) {
    uint32_t magic = kv_magic(a);
    int bytes = (int)kv_block_bytes(a.head_dim);
    total<STEPS> s[OWN_SLOTS];
    start_totals(s);
    if (warp == 0)
        bring_query<STEPS>(a, it, (uint4 *)l.query, l.slots, lane);
    __syncthreads();
    for (int first = it.page; first <= it.last_page; first += l.PAGES) {
        int page = first + warp;
        if (warp < l.PAGES && page <= it.last_page) {
            char *stage = l.stage + warp * l.stage_bytes;
            int id = a.step.page[it.first_page + page];
            copy_block(stage, kv_block(a, id, it.kv), bytes, lane, 32);
            lane_copy_wait<0>();
            __syncwarp();
            sum_page<STEPS>(
                a, stage, page * KV_PAGE_TOKENS, l.query, l.slots, magic,
                (float *)(l.sum + warp * sum_bytes(STEPS)), lane, [] {}, [] {});
        }
        __syncthreads();
        for (int i = 0; i < min((int)l.PAGES, it.last_page + 1 - first); i++)
            add_page(s, (const float *)(l.sum + i * sum_bytes(STEPS)), it.n_slots, warp, lane);
        __syncthreads();
    }
    end_item(a, it, s, warp, lane);
}

template <int STEPS>
__global__ void __launch_bounds__(THREADS) narrow_kernel(const __grid_constant__ attention_args a) {
    extern __shared__ __align__(128) char shared[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    grid_launch_next();
    grid_wait();
    layout<STEPS> l(shared, a.step.counts->n_narrow_seqs);
    if (l.p.n_seqs == 0)
        return;
    if (warp == 0)
        make_plan(a, l.p, lane);
    __syncthreads();
    for (int ticket = blockIdx.x; ticket < l.p.prefix[l.p.n_seqs]; ticket += gridDim.x) {
        item it;
        if (make_item(a, l.p, ticket, it))
            do_item(a, l, it, warp, lane);
    }
}

/* ---- wide rows ------------------------------------------------------------------------------- */

/* Rows g and g + 8 of a warp's 16. */
template <int STEPS> struct sums {
    uint4 q[STEPS];
    uint32_t magic;
    int lo[2], hi[2]; /* keys that a row sees; none when lo > hi */
    float max[2], sum[2];
    float o[2 * STEPS][4];
};

/* Register i of an A operand; i is known to the compiler. */
__device__ __forceinline__ uint32_t &part(uint4 &a, int i) {
    return i == 0 ? a.x : i == 1 ? a.y : i == 2 ? a.z : a.w;
}
__device__ float larger(float a, float b) { /* NaN if one is */
    return b > a || b != b ? b : a;
}

template <int STEPS>
__device__ void start_sums(const attention_args &a, const gpu_seq &seq, int first_wide, int row,
                           int head, int window, sums<STEPS> &s, int lane) {
    int t = lane % 4, e = a.head_dim;
    s.magic = kv_magic(a);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = row + lane / 4 + 8 * h;
        bool used = r < seq.n;
        const __half *q = a.a.qkv16 +
                          (size_t)(seq.first - first_wide + (used ? r : 0)) * a.a.ld_qkv +
                          (size_t)head * e;
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int i = 16 * k + 8 * j + 2 * t;
                part(s.q[k], 2 * j + h) = used && i < e ? *(const uint32_t *)(q + i) : 0;
            }
        s.hi[h] = used ? seq.position + r : -1;
        s.lo[h] = window_start(s.hi[h], window);
        s.max[h] = -INFINITY;
        s.sum[h] = 0;
    }
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s.o[n][i] = 0;
}

template <int STEPS>
__device__ void wide_scores(const sums<STEPS> &s, const char *stage, int steps, int lane,
                            float (&score)[4][4]) {
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[n][i] = 0;
    each_key<STEPS>(
        stage, steps, lane, [&](int k) { return s.q[k]; },
        [&](const uint4 &q, int n, uint32_t b0, uint32_t b1) {
            mma_f16(score[n], q, kv_half(b0, s.magic), kv_half(b1, s.magic));
        });
}

/* score -> p, an A operand for each 16 keys; the rows' maxima, of p times the value's scale as in
 * attention_page.cuh, and sums follow. */
template <int STEPS>
__device__ void wide_softmax(sums<STEPS> &s, const char *stage, int first_key, float unit, int lane,
                             float (&score)[4][4], uint4 (&p)[2]) {
    const float *key_scale = (const float *)stage, *value_scale = key_scale + KV_PAGE_TOKENS;
    float scale[4][2], most[2] = {-INFINITY, -INFINITY}, keep[2], base[2], sum[2] = {};
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int token = 8 * n + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = first_key + token + i % 2, h = i / 2;
            bool seen = key >= s.lo[h] && key <= s.hi[h];
            float vs = key <= s.hi[1] || key <= s.hi[0] ? value_scale[token + i % 2] : 1.0f;
            score[n][i] = seen ? score[n][i] * (key_scale[token + i % 2] * unit) : -INFINITY;
            scale[n][i % 2] = vs;
            most[h] = larger(most[h], score[n][i] + log2_fast(vs));
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        most[h] = larger(most[h], __shfl_xor_sync(~0u, most[h], 1));
        most[h] = larger(most[h], __shfl_xor_sync(~0u, most[h], 2));
        most[h] = larger(most[h], s.max[h]);
        base[h] = most[h] == -INFINITY ? 0.0f : most[h]; /* nothing seen so far */
        keep[h] = exp2_fast(s.max[h] - base[h]);
        s.max[h] = most[h];
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = exp2_fast(score[n][2 * h] - base[h] + P_EXPONENT);
            float y = exp2_fast(score[n][2 * h + 1] - base[h] + P_EXPONENT);
            sum[h] += x + y;
            __half2 v = __floats2half2_rn(x * scale[n][0], y * scale[n][1]);
            part(p[n / 2], n % 2 * 2 + h) = *(uint32_t *)&v;
        }
#pragma unroll
    for (int h = 0; h < 2; h++)
        s.sum[h] = s.sum[h] * keep[h] + sum[h];
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s.o[n][i] *= keep[i / 2];
}

template <int STEPS>
__device__ void wide_values(sums<STEPS> &s, const char *stage, int steps, int lane,
                            const uint4 (&p)[2]) {
    each_value<STEPS>(stage, 0, steps, lane, [&](int half, int n, uint32_t b0, uint32_t b1) {
        mma_f16(s.o[n], p[half], kv_half(b0, s.magic), kv_half(b1, s.magic));
    });
}

template <int STEPS>
__device__ void write_rows(const attention_args &a, const gpu_seq &seq, int first_wide, int row,
                           int head, sums<STEPS> &s, int lane) {
    int e = a.head_dim;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = row + lane / 4 + 8 * h;
        s.sum[h] += __shfl_xor_sync(~0u, s.sum[h], 1);
        s.sum[h] += __shfl_xor_sync(~0u, s.sum[h], 2);
        if (r >= seq.n)
            continue;
        __half *out =
            a.a.ctx16 + (size_t)(seq.first - first_wide + r) * a.a.ld_ctx + (size_t)head * e;
        float by = KV_UNIT / s.sum[h];
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            int i = 8 * n + lane % 4 * 2;
            if (i < e)
                *(__half2 *)(out + i) =
                    __floats2half2_rn(s.o[n][2 * h] * by, s.o[n][2 * h + 1] * by);
        }
    }
}

/* grid: (tiles of the longest sequence, H, sequences); the tiles with most keys come first. */
template <int STEPS>
__global__ void __launch_bounds__(THREADS) wide_kernel(const __grid_constant__ attention_args a) {
    extern __shared__ __align__(128) char shared[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int steps = STEPS == 16 ? kv_padded(a.head_dim) / 16 : STEPS;
    int bytes = (int)kv_block_bytes(a.head_dim);
    grid_launch_next();
    grid_wait();
    if ((int)blockIdx.z >= a.step.counts->n_wide_seqs)
        return;
    const gpu_seq seq = a.step.seq[a.step.counts->n_narrow_seqs + blockIdx.z];
    int first_wide = a.step.counts->n_narrow, window = a.step.row[seq.first].tenant->sliding_window;
    int first = (int)(gridDim.x - 1 - blockIdx.x) * TILE_QUERIES, head = blockIdx.y;
    if (first >= seq.n)
        return;
    int kv = head / (a.n_heads / a.n_kv_heads), last = min(seq.n - 1, first + TILE_QUERIES - 1);
    int page = window_start(seq.position + first, window) / KV_PAGE_TOKENS;
    int end = (seq.position + last) / KV_PAGE_TOKENS + 1;

    auto copy = [&](int i) {
        if (page + i < end)
            copy_block(shared + i % STAGES * bytes,
                       kv_block(a, a.step.page[seq.first_page + page + i], kv), bytes, threadIdx.x,
                       THREADS);
        else
            lane_copy_commit();
    };
    for (int i = 0; i < STAGES - 1; i++)
        copy(i);
    sums<STEPS> s;
    start_sums(a, seq, first_wide, first + warp * WARP_ROWS, head, window, s, lane);
    float unit = KV_UNIT * 1.4426950408889634f * rsqrtf((float)a.head_dim);
    for (int i = 0; page + i < end; i++) {
        const char *stage = shared + i % STAGES * bytes;
        lane_copy_wait<STAGES - 2>();
        __syncthreads(); /* the page is there, and all are done with the one before */
        copy(i + STAGES - 1);
        float score[4][4];
        uint4 p[2];
        wide_scores(s, stage, steps, lane, score);
        wide_softmax(s, stage, (page + i) * KV_PAGE_TOKENS, unit, lane, score, p);
        wide_values(s, stage, steps, lane, p);
    }
    write_rows(a, seq, first_wide, first + warp * WARP_ROWS, head, s, lane);
}

struct variant {
    int32_t steps, narrow_bytes;
    void (*narrow)(attention_args);
    void (*wide)(attention_args);
};
const struct variant variants[] = {
    {4, layout<4>::bytes, narrow_kernel<4>, wide_kernel<4>},
    {5, layout<5>::bytes, narrow_kernel<5>, wide_kernel<5>},
    {6, layout<6>::bytes, narrow_kernel<6>, wide_kernel<6>},
    {8, layout<8>::bytes, narrow_kernel<8>, wide_kernel<8>},
    {16, layout<16>::bytes, narrow_kernel<16>, wide_kernel<16>},
};
static_assert(STAGES * kv_block_bytes(MOST_HEAD_DIM) <= MOST_SHARED, "some devices have no more");

const struct variant *variant_of(const struct attention_args *a) {
    const struct variant *v = variants;
    while (v->steps < 16 && v->steps * 16 != kv_padded(a->head_dim))
        v++;
    return v;
}

} // namespace

err_t attention_plain_setup(void) {
    for (const struct variant &v : variants)
        if (cudaFuncSetAttribute(v.narrow, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 v.narrow_bytes) != cudaSuccess ||
            cudaFuncSetAttribute(v.wide, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 STAGES * (int)kv_block_bytes(v.steps * 16)) != cudaSuccess)
            return E_DEVICE;
    return 0;
}

err_t attention_plain_narrow(const struct attention_args *a, int32_t max_rows,
                             cudaStream_t stream) {
    const struct variant *v = variant_of(a);
    err_t err = launch_early(v->narrow, dim3((unsigned)a->n_thread_blocks), THREADS,
                             (size_t)v->narrow_bytes, stream, *a);
    return err ? err : attention_merge(a, max_rows, stream);
}

err_t attention_plain_wide(const struct attention_args *a, int32_t n_wide_seqs, int32_t longest,
                           cudaStream_t stream) {
    dim3 grid((unsigned)(longest + TILE_QUERIES - 1) / TILE_QUERIES, (unsigned)a->n_heads,
              (unsigned)n_wide_seqs);
    return launch_early(variant_of(a)->wide, grid, THREADS, STAGES * kv_block_bytes(a->head_dim),
                        stream, *a);
}
