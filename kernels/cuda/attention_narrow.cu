/* Attention of narrow rows over the pages of the KV pool (attention.h).
 *
 *   o = sum_t e^(q.k_t / sqrt E) v_t / sum_t e^(q.k_t / sqrt E),  t the keys that the row may see
 *
 * Bytes: 4 E' + 8 for each key, KV head and sequence, whatever the number of rows and query heads
 * up to eight; partial sums of rows with more than one split, 4 E + 8 each, come on top. FLOPs: 4 E
 * a key and query head, eight times that in the tensor cores. Bound: device memory.
 *
 * An item of work is a split of at most 256 keys, cut at multiples of 256, of one KV head of one
 * sequence for eight *slots*, pairs of a row and a query head. One warp does an item on its own,
 * page after page through a ring of half pages (keys, values) that bulk copies fill ahead, also
 * across items: warps never wait for each other. Items are handed out by a counter.
 *
 * q k' and p v go through mma_f16 without loss: a slot has two rows of the 16, g with the high and
 * g + 8 with the low fp16 half of its numbers, so that both sums end in the same lane; the stored
 * integers are taken as two fp16 numbers, too (attention_kv.cuh). Every other way of turning 16-bit
 * integers into FP32 costs several instructions a number on the CUDA cores. The scale of a value
 * multiplies its probability, in FP32, before the halves are made.
 *
 * The last item of a slot's row to end adds up the row's splits, in their order. */
#include "kernels/cuda/attention_kv.cuh"

namespace {

enum {
    SLOTS = 8,
    QUEUE = 8, /* items begun by the copies and not ended by the sums; more than stages / 2 + 1 */
};
/* p is kept as p 2^7 of a maximum that may lag behind by 2^8, q as q 2^14 / max|q|: their fp16
 * halves stay clear of subnormals and of infinity. */
constexpr float P_EXPONENT = 7, MOST_LAG = 8;
enum { Q_EXPONENT = 14 };

__host__ __device__ constexpr int warps_of(int steps) { /* two a scheduler, if registers allow */
    return steps == 16 ? 4 : 8;
}

__host__ __device__ constexpr int stage_bytes(int steps) {
    return 64 * 16 * steps + KV_SCALE_BYTES;
}
__host__ __device__ constexpr int stages_of(int steps) { /* half pages of a warp */
    return 204000 / warps_of(steps) / (stage_bytes(steps) + 8);
}

struct item {
    int32_t first, n, position, first_page; /* the sequence's */
    int32_t window;                         /* keys that its first row does not see */
    int32_t kv, slot, split;
    int32_t page, last_page; /* of the split that the slots see, from the sequence's first */
    int32_t last_key;        /* that any of them sees */
    int32_t n_splits;        /* of the slots' rows, all together */
};

/* Where the workspace's parts start. */
struct workspace {
    int32_t *next;    /* queue */
    int32_t *arrived; /* [max_narrow H] by (first slot, kv) */
    float2 *sums;     /* [max_narrow H][splits] max, sum */
    float *partial;   /* [max_narrow H][splits][E] */
};
__host__ __device__ int most_splits(int max_context) {
    return (max_context + KV_SPLIT - 1) / KV_SPLIT;
}
__host__ __device__ size_t arrived_bytes(int slots) {
    return ((size_t)slots * 4 + 15) / 16 * 16;
}
__device__ workspace workspace_of(const attention_args &a) {
    workspace w;
    int slots = a.max_narrow * a.n_heads;
    w.next = (int32_t *)a.workspace;
    w.arrived = w.next + 4;
    w.sums = (float2 *)((char *)w.arrived + arrived_bytes(slots));
    w.partial = (float *)(w.sums + (size_t)slots * most_splits(a.max_context));
    return w;
}

/* What items are made of; in shared memory, from the step's tables. */
struct sequence {
    gpu_seq rows;
    int32_t window;
};
struct plan {
    int32_t *prefix; /* [n_seqs + 1] items of the sequences before i */
    sequence *seq;   /* [n_seqs] */
    int n_seqs;
};

/* One warp's view of the block's shared memory, and where its copies are. */
struct ring {
    char *stage;
    uint64_t *full;
    item *queue;
    int at;            /* stage that is filled next */
    int head, page;    /* queue entries so far, page in hand */
    bool values, more; /* which half comes next; tickets are left, or an item is in hand */
    bool begun;        /* the first ticket is taken */
    int32_t my_page;   /* lane i: id of page i of the split */
    item now;
};

__device__ int window_start(int position, int window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* Fills the plan; one warp. Reads the step's tables alone. */
__device__ void make_plan(const attention_args &a, plan &p, int lane) {
    int group = a.n_heads / a.n_kv_heads, before = 0;
    for (int first = 0; first < p.n_seqs; first += 32) {
        int i = first + lane, n = 0;
        if (i < p.n_seqs) {
            const gpu_seq s = a.step.seq[i];
            int window = a.step.row[s.first].tenant->sliding_window;
            int lo = window_start(s.position, window), hi = s.position + s.n - 1;
            n = (hi / KV_SPLIT - lo / KV_SPLIT + 1) * a.n_kv_heads *
                ((s.n * group + SLOTS - 1) / SLOTS);
            p.seq[i] = {s, window};
        }
        int up_to = n;
        for (int d = 1; d < 32; d *= 2) {
            int v = __shfl_up_sync(~0u, up_to, d);
            up_to += lane >= d ? v : 0;
        }
        if (i < p.n_seqs)
            p.prefix[i] = before + up_to - n;
        before += __shfl_sync(~0u, up_to, 31);
    }
    if (lane == 0)
        p.prefix[p.n_seqs] = before;
}

/* The sequence in which ticket stands: the last with prefix <= ticket. */
__device__ int find_seq(const int32_t *prefix, int n, int ticket) {
    int lo = 0;
    while (n > 1) {
        int half = n / 2;
        if (prefix[lo + half] <= ticket)
            lo += half;
        n -= half;
    }
    return lo;
}

/* Makes an item of a ticket; false: its slots see nothing of that split. */
__device__ bool make_item(const attention_args &a, const plan &p, int ticket, item &it) {
    int i = find_seq(p.prefix, p.n_seqs, ticket), group = a.n_heads / a.n_kv_heads;
    const gpu_seq s = p.seq[i].rows;
    int window = p.seq[i].window;
    int tiles = (s.n * group + SLOTS - 1) / SLOTS, rest = ticket - p.prefix[i];
    int tile = rest % tiles;
    rest /= tiles;
    it.first = s.first, it.n = s.n, it.position = s.position, it.first_page = s.first_page;
    it.window = window;
    it.kv = rest % a.n_kv_heads;
    it.slot = tile * SLOTS;
    it.split = rest / a.n_kv_heads + window_start(s.position, window) / KV_SPLIT;
    int first_row = it.slot / group, last_row = min(s.n - 1, (it.slot + SLOTS - 1) / group);
    int lo = window_start(s.position + first_row, window), hi = s.position + last_row;
    it.n_splits = hi / KV_SPLIT - lo / KV_SPLIT + 1;
    int from = max(lo, it.split * KV_SPLIT);
    it.last_key = min(hi, it.split * KV_SPLIT + KV_SPLIT - 1);
    it.page = from / KV_PAGE_TOKENS, it.last_page = it.last_key / KV_PAGE_TOKENS;
    return from <= it.last_key;
}

/* Turns a ticket into the item in hand, or into the end of the queue; may have to be repeated. */
__device__ void next_item(const attention_args &a, const plan &p, ring &r, int ticket, int lane) {
    r.more = ticket < p.prefix[p.n_seqs];
    if (r.more && !make_item(a, p, ticket, r.now)) {
        r.page = 1, r.now.last_page = 0;
        return;
    }
    r.page = r.now.page;
    r.values = false;
    if (r.more && lane <= r.now.last_page - r.now.page)
        r.my_page = a.step.page[r.now.first_page + r.now.page + lane];
    if (!r.more)
        r.now.n = 0;
    if (lane == 0)
        r.queue[r.head % QUEUE] = r.now;
    r.head++;
}

/* Starts the copy of the next half page into the ring's next stage, which is free. early: only of
 * the first item, and pages that no row of this step is in. False: there was none. */
template <int STEPS>
__device__ bool fill(const attention_args &a, const plan &p, ring &r, bool early, int lane,
                     uint64_t policy) {
    while (r.more && r.page > r.now.last_page) {
        int ticket = warps_of(STEPS) * gridDim.x; /* the first ones are dealt out */
        if (early) {
            if (r.begun)
                return false;
            r.begun = true;
            ticket = threadIdx.x / 32 * gridDim.x + blockIdx.x;
        } else { /* as late as can be, so that all warps end together */
            int taken = lane == 0 ? atomicAdd((int32_t *)a.workspace, 1) : 0;
            ticket += __shfl_sync(~0u, taken, 0);
        }
        next_item(a, p, r, ticket, lane);
    }
    if (!r.more || (early && (r.page + 1) * KV_PAGE_TOKENS > r.now.position))
        return false;
    int id = __shfl_sync(~0u, r.my_page, r.page - r.now.page);
    if (lane == 0) {
        int e = a.head_dim;
        int tokens = min(KV_PAGE_TOKENS, r.now.last_key + 1 - r.page * KV_PAGE_TOKENS);
        const char *block = kv_block(a, id, r.now.kv);
        char *to = r.stage + r.at * stage_bytes(STEPS);
        uint32_t bytes = (tokens + KV_GROUP - 1) / KV_GROUP * 16 * kv_padded(e);
        barrier_arrive_expect(r.full + r.at, bytes + (r.values ? 0 : KV_SCALE_BYTES));
        if (r.values)
            bulk_copy(to, block + kv_values_at(e), bytes, r.full + r.at, policy);
        else /* scales and keys */
            bulk_copy(to, block, bytes + KV_SCALE_BYTES, r.full + r.at, policy);
    }
    r.at = r.at + 1 == stages_of(STEPS) ? 0 : r.at + 1;
    r.page += r.values;
    r.values = !r.values;
    return true;
}

/* The two fp16 halves of x and y. */
__device__ void split_halves(float x, float y, uint32_t &high, uint32_t &low) {
    __half2 h = __floats2half2_rn(x, y);
    float2 f = __half22float2(h);
    __half2 l = __floats2half2_rn(x - f.x, y - f.y);
    high = *(uint32_t *)&h;
    low = *(uint32_t *)&l;
}

/* What a warp has of its slots: lane (g, t) of row g works for slot g. */
template <int STEPS> struct sums {
    uint32_t q[STEPS][4], magic;
    float scale; /* of a product of stored integers, into a power of two */
    int lo, hi;  /* keys that the slot sees; none when lo > hi */
    float max, sum;
    float o[2 * STEPS][4];
};

template <int STEPS>
__device__ void start_sums(const attention_args &a, const item &it, sums<STEPS> &s, int lane) {
    int g = lane / 4, t = lane % 4, e = a.head_dim, group = a.n_heads / a.n_kv_heads;
    int slot = it.slot + g, row = slot / group;
    bool used = row < it.n;
    const float *q = a.a.qkv + (size_t)(it.first + (used ? row : 0)) * a.a.ld_qkv +
                     (size_t)(it.kv * group + slot % group) * e;
    float v[STEPS][4];
    uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int i = 16 * k + 8 * h + 2 * t;
            float2 x = used && i < e ? __ldcg((const float2 *)(q + i)) : make_float2(0, 0);
            v[k][2 * h] = x.x, v[k][2 * h + 1] = x.y;
            most = max(most,
                       max(__float_as_uint(x.x) & 0x7fffffff, __float_as_uint(x.y) & 0x7fffffff));
        }
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    /* 2^Q_EXPONENT over the largest's power of two, and its inverse, both normal numbers. */
    int exponent = min(max((int)(most >> 23), 20), 240) - 127;
    float up = __int_as_float((Q_EXPONENT - 1 - exponent + 127) << 23);
    float down = __int_as_float((exponent - Q_EXPONENT + 1 + 127) << 23);
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        split_halves(v[k][0] * up, v[k][1] * up, s.q[k][0], s.q[k][1]);
        split_halves(v[k][2] * up, v[k][3] * up, s.q[k][2], s.q[k][3]);
    }
    s.scale = down * KV_UNIT * 1.4426950408889634f * rsqrtf((float)e);
    s.hi = used ? it.position + row : -1;
    s.lo = used ? window_start(s.hi, it.window) : 0;
    s.max = -INFINITY;
    s.sum = 0;
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s.o[n][i] = 0;
}

/* p of a page's 32 keys, as halves in the order of an A operand; s.max, s.sum follow. */
template <int STEPS>
__device__ void page_scores(const sums<STEPS> &s, const char *stage, int steps, int lane,
                            float (&score)[4][4]) {
    uint32_t from = shared_address(stage) + kv_keys_at() + lane % 8 * 16 + lane / 8 % 2 * 128 +
                    lane / 16 * 256 * steps;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[n][i] = 0;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k >= steps)
            break;
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            uint32_t w[4];
            load_matrices(w, from + n * 256 * steps + k * 256);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                mma_f16(score[n + j], s.q[k][0], s.q[k][1], s.q[k][2], s.q[k][3],
                        kv_high(w[2 * j], s.magic), kv_high(w[2 * j + 1], s.magic));
                mma_f16(score[n + j], s.q[k][0], s.q[k][1], s.q[k][2], s.q[k][3], kv_low(w[2 * j]),
                        kv_low(w[2 * j + 1]));
            }
        }
    }
}

/* score -> p in halves, an A operand for each 16 keys; the slot's maximum and sum follow. The
 * maximum is that of p times the value's scale: p then uses fp16's range well even where the
 * likeliest keys have tiny values, as the first token of a text often has. */
template <int STEPS>
__device__ void page_softmax(sums<STEPS> &s, const char *stage, int first_key, int lane,
                             float (&score)[4][4], uint32_t (&p)[2][4]) {
    const float *key_scale = (const float *)stage, *value_scale = key_scale + KV_PAGE_TOKENS;
    float x[4][2], scale[4][2], most = -INFINITY;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int token = 8 * n + lane % 4 * 2;
        float2 ks = *(const float2 *)(key_scale + token);
        float2 vs = *(const float2 *)(value_scale + token);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int key = first_key + token + i;
            bool seen = key >= s.lo && key <= s.hi;
            x[n][i] =
                seen ? (score[n][i] + score[n][i + 2]) * ((i ? ks.y : ks.x) * s.scale) : -INFINITY;
            scale[n][i] = seen ? (i ? vs.y : vs.x) : 1.0f;
            float z = x[n][i] + log2_fast(scale[n][i]);
            most = z > most || z != z ? z : most; /* a NaN stays */
        }
    }
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        float z = __shfl_xor_sync(~0u, most, lanes);
        most = z > most || z != z ? z : most;
    }
    bool grows = !(most <= s.max + MOST_LAG); /* or is NaN */
    float base = grows ? most : s.max, keep = grows ? exp2_fast(s.max - most) : 1.0f;
    s.max = base;
    base = base == -INFINITY ? 0.0f : base - P_EXPONENT; /* nothing seen so far */
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        float e[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            e[i] = exp2_fast(x[n][i] - base);
            sum += e[i];
        }
        split_halves(e[0] * scale[n][0], e[1] * scale[n][1], p[n / 2][n % 2 * 2],
                     p[n / 2][n % 2 * 2 + 1]);
    }
    s.sum = s.sum * keep + sum;
    if (__any_sync(~0u, grows)) {
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s.o[n][i] *= keep;
    }
}

template <int STEPS>
__device__ void page_values(sums<STEPS> &s, const char *stage, int steps, int lane,
                            const uint32_t (&p)[2][4]) {
    uint32_t from =
        shared_address(stage) + lane % 8 * 16 + lane / 8 % 2 * 256 * steps + lane / 16 * 128;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            if (k >= steps)
                break;
            uint32_t w[4];
            load_matrices_transposed(w, from + half * 512 * steps + k * 256);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float(&o)[4] = s.o[2 * k + j];
                mma_f16(o, p[half][0], p[half][1], p[half][2], p[half][3],
                        kv_high(w[2 * j], s.magic), kv_high(w[2 * j + 1], s.magic));
                mma_f16(o, p[half][0], p[half][1], p[half][2], p[half][3], kv_low(w[2 * j]),
                        kv_low(w[2 * j + 1]));
            }
        }
}

/* Adds up the splits [lo, hi] of one row and head, in their order, eight on their way at a time.
 * Lanes hold columns 2 lane + 64 j. */
template <int STEPS>
__device__ void combine_slot(const float2 *sums, const float *partial, int lo, int hi, int e,
                             float *out, int lane) {
    enum { AHEAD = STEPS == 16 ? 4 : 8, PAIRS = (STEPS + 3) / 4 };
    float most = -INFINITY, sum = 0;
    float2 o[PAIRS] = {};
    for (int i = lo; i <= hi; i += AHEAD) {
        float2 s[AHEAD], v[AHEAD][PAIRS];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int at = min(i + j, hi);
            s[j] = __ldcg(sums + at);
#pragma unroll
            for (int k = 0; k < PAIRS; k++)
                if (2 * lane + 64 * k < e)
                    v[j][k] = __ldcg((const float2 *)(partial + (size_t)at * e) + lane + 32 * k);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (i + j > hi)
                break;
            float old = most;
            most = s[j].x > most || s[j].x != s[j].x ? s[j].x : most;
            float keep = exp2_fast(old - most), weight = exp2_fast(s[j].x - most);
            sum = sum * keep + s[j].y * weight;
#pragma unroll
            for (int k = 0; k < PAIRS; k++) {
                o[k].x = o[k].x * keep + v[j][k].x * weight;
                o[k].y = o[k].y * keep + v[j][k].y * weight;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < PAIRS; k++)
        if (2 * lane + 64 * k < e)
            *(float2 *)(out + 2 * lane + 64 * k) = make_float2(o[k].x / sum, o[k].y / sum);
}

template <int STEPS>
__device__ void combine(const attention_args &a, const item &it, const workspace &w, int lane) {
    int e = a.head_dim, group = a.n_heads / a.n_kv_heads, splits = most_splits(a.max_context);
    for (int slot = it.slot; slot < it.slot + SLOTS && slot / group < it.n; slot++) {
        int row = it.first + slot / group, head = it.kv * group + slot % group;
        int hi = it.position + slot / group, lo = window_start(hi, it.window);
        size_t at = ((size_t)row * a.n_heads + head) * splits;
        combine_slot<STEPS>(w.sums + at, w.partial + at * e, lo / KV_SPLIT, hi / KV_SPLIT, e,
                            a.a.ctx + (size_t)row * a.a.ld_ctx + (size_t)head * e, lane);
    }
}

template <int STEPS>
__device__ void end_item(const attention_args &a, const item &it, sums<STEPS> &s, int lane) {
    int g = lane / 4, t = lane % 4, e = a.head_dim, group = a.n_heads / a.n_kv_heads;
    int slot = it.slot + g;
    s.sum += __shfl_xor_sync(~0u, s.sum, 1);
    s.sum += __shfl_xor_sync(~0u, s.sum, 2);
    bool used = slot / group < it.n, alone = it.n_splits == 1;
    int row = it.first + (used ? slot / group : 0), head = it.kv * group + slot % group;
    workspace w = workspace_of(a);
    size_t at = ((size_t)row * a.n_heads + head) * most_splits(a.max_context) + it.split;
    float *out = alone ? a.a.ctx + (size_t)row * a.a.ld_ctx + head * e : w.partial + at * e;
    float divide = alone ? s.sum : 1.0f;
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++) {
        int i = 8 * n + 2 * t;
        if (used && i < e)
            *(float2 *)(out + i) = make_float2((s.o[n][0] + s.o[n][2]) * KV_UNIT / divide,
                                               (s.o[n][1] + s.o[n][3]) * KV_UNIT / divide);
    }
    if (alone)
        return;
    if (used && t == 0)
        w.sums[at] = make_float2(s.max, s.sum);
    __threadfence();
    __syncwarp();
    int32_t *arrived = w.arrived + (it.first * group + it.slot) * a.n_kv_heads + it.kv, before = 0;
    if (lane == 0)
        before = atomicAdd(arrived, 1);
    if (__shfl_sync(~0u, before, 0) == it.n_splits - 1) {
        __threadfence();
        combine<STEPS>(a, it, w, lane);
        if (lane == 0)
            *arrived = 0; /* for the next launch */
    }
}

/* STEPS: of 16 columns. 16 serves every head size, the others just their own. */
template <int STEPS>
__global__ void __launch_bounds__(warps_of(STEPS) * 32, 1)
    attention_narrow_kernel(const __grid_constant__ attention_args a) {
    extern __shared__ __align__(128) char shared[];
    constexpr int STAGES = stages_of(STEPS), WARPS = warps_of(STEPS);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int steps = STEPS == 16 ? kv_padded(a.head_dim) / 16 : STEPS;
    char *rings = shared;
    item *queues = (item *)(rings + WARPS * STAGES * stage_bytes(STEPS));
    uint64_t *full = (uint64_t *)(queues + WARPS * QUEUE);
    plan p;
    p.n_seqs = a.step.counts->n_narrow_seqs;
    p.seq = (sequence *)(full + WARPS * STAGES);
    p.prefix = (int32_t *)(p.seq + p.n_seqs);

    grid_launch_next();
    if (p.n_seqs == 0) {
        grid_wait(); /* who waits for this kernel waits for those before it */
        return;
    }
    ring r = {};
    r.stage = rings + warp * STAGES * stage_bytes(STEPS);
    r.full = full + warp * STAGES;
    r.queue = queues + warp * QUEUE;
    if (lane == 0) {
        for (int i = 0; i < STAGES; i++)
            barrier_init(r.full + i, 1);
        barrier_init_fence();
    }
    if (warp == 0)
        make_plan(a, p, lane);
    __syncthreads();

    uint64_t policy = policy_evict_first();
    r.more = true;
    r.page = 1; /* past last_page: fetch an item */
    int filled = 0;
    while (filled < STAGES && fill<STEPS>(a, p, r, true, lane, policy))
        filled++;
    grid_wait();
    for (; filled < STAGES; filled++)
        fill<STEPS>(a, p, r, false, lane, policy);
    int at = 0, parity = 0;
    sums<STEPS> s;
    s.magic = kv_magic(a);
    for (int i = 0;; i++) {
        __syncwarp();
        const item it = r.queue[i % QUEUE];
        if (it.n == 0)
            break;
        start_sums(a, it, s, lane);
        for (int page = it.page; page <= it.last_page; page++) {
            float score[4][4];
            uint32_t weight[2][4];
            const char *stage = r.stage + at * stage_bytes(STEPS);
            barrier_wait(r.full + at, parity);
            page_scores(s, stage, steps, lane, score);
            page_softmax(s, stage, page * KV_PAGE_TOKENS, lane, score, weight);
            __syncwarp();
            fill<STEPS>(a, p, r, false, lane, policy);
            at++;
            if (at == STAGES)
                at = 0, parity ^= 1;
            barrier_wait(r.full + at, parity);
            page_values(s, r.stage + at * stage_bytes(STEPS), steps, lane, weight);
            __syncwarp();
            fill<STEPS>(a, p, r, false, lane, policy);
            at++;
            if (at == STAGES)
                at = 0, parity ^= 1;
        }
        end_item(a, it, s, lane);
    }
}

struct variant {
    int32_t steps;
    void (*kernel)(attention_args);
};
const struct variant variants[] = {
    {4, attention_narrow_kernel<4>},   {5, attention_narrow_kernel<5>},
    {6, attention_narrow_kernel<6>},   {8, attention_narrow_kernel<8>},
    {16, attention_narrow_kernel<16>},
};
constexpr size_t shared_bytes(int32_t steps, int32_t max_rows) {
    return (size_t)warps_of(steps) * ((size_t)stages_of(steps) * (size_t)(stage_bytes(steps) + 8) +
                                      QUEUE * sizeof(item)) +
           (size_t)max_rows * (sizeof(sequence) + 4) + 4;
}
static_assert(shared_bytes(4, MOST_NARROW) <= 227 << 10 &&
                  shared_bytes(5, MOST_NARROW) <= 227 << 10 &&
                  shared_bytes(6, MOST_NARROW) <= 227 << 10 &&
                  shared_bytes(8, MOST_NARROW) <= 227 << 10 &&
                  shared_bytes(16, MOST_NARROW) <= 227 << 10,
              "more than a multiprocessor has");

} // namespace

size_t attention_workspace_bytes(int32_t max_narrow, int32_t max_context, int32_t n_heads,
                                 int32_t head_dim) {
    size_t slots = (size_t)max_narrow * (size_t)n_heads;
    return 16 + arrived_bytes((int)slots) +
           slots * (size_t)most_splits(max_context) * (8 + (size_t)head_dim * 4);
}

err_t attention_setup(void) {
    for (const struct variant &v : variants)
        if (cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)shared_bytes(v.steps, MOST_NARROW)) != cudaSuccess)
            return E_DEVICE;
    return attention_wide_setup();
}

err_t attention_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream) {
    if (max_rows < 1 || max_rows > a->max_narrow || max_rows > MOST_NARROW || a->head_dim % 2 ||
        a->head_dim > MOST_HEAD_DIM || a->n_heads % a->n_kv_heads || a->n_thread_blocks < 1)
        return E_INVAL;
    const struct variant *v = variants;
    while (v->steps < 16 && v->steps * 16 != kv_padded(a->head_dim))
        v++;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)a->n_thread_blocks);
    config.blockDim = dim3((unsigned)warps_of(v->steps) * 32);
    config.dynamicSmemBytes = shared_bytes(v->steps, max_rows);
    config.stream = stream;
    cudaLaunchAttribute early[1];
    early[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, v->kernel, *a) == cudaSuccess ? 0 : E_DEVICE;
}
