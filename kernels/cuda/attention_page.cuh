/* The arithmetic of narrow attention (attention_narrow.cu, attention_plain.cu): an item's queries
 * as a tensor core's operand, one page's scores, softmax and product with the values, the sum of an
 * item's pages and of a row's splits. One warp each; who calls them orders them.
 *
 * q k' and p v go through mma_f16 without loss: a slot has two rows of the 16, g with the high and
 * g + 8 with the low fp16 half of its numbers, so that both sums end in the same lane; the stored
 * integers are taken as two fp16 numbers, too (attention_kv.cuh). Every other way of turning 16-bit
 * integers into FP32 costs several instructions a number on the CUDA cores. The scale of a value
 * multiplies its probability, in FP32, before the halves are made.
 *
 * A page's sums are what they would be without any other page; pages are added in their order, and
 * splits in theirs: the bits of a row depend on its keys alone. */
#ifndef KERNELS_CUDA_ATTENTION_PAGE_CUH
#define KERNELS_CUDA_ATTENTION_PAGE_CUH

#include "kernels/cuda/attention_items.cuh"

namespace {

/* p stands as p 2^14 of the page's maximum, q as q 2^14 / max|q|: the fp16 halves that matter stay
 * clear of subnormals and of infinity. */
enum { P_EXPONENT = 14, Q_EXPONENT = 14 };

/* Of a slot and the item's keys. */
struct slot {
    float scale; /* of a product of stored integers, into a power of two */
    int lo, hi;  /* keys that the slot sees; none when lo > hi */
};
/* A page's sums in shared memory: [SLOTS][ld_sum] FP32, then [SLOTS] maximum and sum. */
__host__ __device__ constexpr int ld_sum(int steps) {
    return 16 * steps + 8;
}
__host__ __device__ constexpr int sum_bytes(int steps) {
    return SLOTS * (ld_sum(steps) * 4 + 8);
}
__host__ __device__ constexpr int query_bytes(int steps) { /* [steps][32 lanes][4] */
    return steps * 512;
}

/* The two fp16 halves of x and y. */
__device__ void split_halves(float x, float y, uint32_t &high, uint32_t &low) {
    __half2 h = __floats2half2_rn(x, y);
    float2 f = __half22float2(h);
    __half2 l = __floats2half2_rn(x - f.x, y - f.y);
    high = *(uint32_t *)&h;
    low = *(uint32_t *)&l;
}

/* An item's queries as A operands, [STEPS][lane]: lane (g, t) has columns of slot g. */
template <int STEPS>
__device__ void bring_query(const attention_args &a, const item &it, uint4 *query, slot *slots,
                            int lane) {
    int g = lane / 4, t = lane % 4, e = a.head_dim, group = a.n_heads / a.n_kv_heads;
    int row = (it.slot + g) / group;
    bool used = g < it.n_slots;
    const float *q = a.a.qkv + (size_t)(it.first + (used ? row : 0)) * a.a.ld_qkv +
                     (size_t)(it.kv * group + (it.slot + g) % group) * e;
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
        uint4 x;
        split_halves(v[k][0] * up, v[k][1] * up, x.x, x.y);
        split_halves(v[k][2] * up, v[k][3] * up, x.z, x.w);
        query[k * 32 + lane] = x;
    }
    if (t == 0) {
        slot s;
        s.scale = down * KV_UNIT * 1.4426950408889634f * rsqrtf((float)e);
        s.hi = used ? it.position + row : -1;
        s.lo = used ? window_start(s.hi, it.window) : 0;
        slots[g] = s;
    }
}

/* Products of the queries and a page's 32 keys; of the high and low parts in sums of their own, for
 * shorter chains. */
template <int STEPS>
__device__ void page_scores(const char *query, const char *stage, int steps, uint32_t magic,
                            int lane, float (&score)[4][4]) {
    uint32_t from = shared_address(stage) + kv_keys_at() + lane % 8 * 16 + lane / 8 % 2 * 128 +
                    lane / 16 * 256 * steps;
    float low[4][4] = {};
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[n][i] = 0;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k >= steps)
            break;
        uint4 q = ((const uint4 *)query)[k * 32 + lane];
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            uint32_t w[4];
            load_matrices(w, from + n * 256 * steps + k * 256);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                mma_f16(score[n + j], q.x, q.y, q.z, q.w, kv_high(w[2 * j], magic),
                        kv_high(w[2 * j + 1], magic));
                mma_f16(low[n + j], q.x, q.y, q.z, q.w, kv_low(w[2 * j]), kv_low(w[2 * j + 1]));
            }
        }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[n][i] += low[n][i];
}

/* score -> p in halves, an A operand for each 16 keys; gives the slot's maximum and sum. The
 * maximum is that of p times the value's scale: p then uses fp16's range well even where the
 * likeliest keys have tiny values, as the first token of a text often has. */
__device__ float2 page_softmax(const slot &s, const char *stage, int first_key, int lane,
                               const float (&score)[4][4], uint32_t (&p)[2][4]) {
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
    float base = most == -INFINITY ? 0.0f : most - P_EXPONENT, sum = 0; /* nothing seen: all 0 */
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
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return make_float2(most, sum);
}

/* p times columns 16 first .. of a page's values, AT_ONCE steps. */
template <int AT_ONCE>
__device__ void page_values(const char *stage, int first, int steps, uint32_t magic, int lane,
                            const uint32_t (&p)[2][4], float (&o)[2 * AT_ONCE][4]) {
    uint32_t from = shared_address(stage) + first * 256 + lane % 8 * 16 +
                    lane / 8 % 2 * 256 * steps + lane / 16 * 128;
#pragma unroll
    for (int n = 0; n < 2 * AT_ONCE; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n][i] = 0;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (first + k >= steps)
                break;
            uint32_t w[4];
            load_matrices_transposed(w, from + half * 512 * steps + k * 256);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float(&to)[4] = o[2 * k + j];
                mma_f16(to, p[half][0], p[half][1], p[half][2], p[half][3],
                        kv_high(w[2 * j], magic), kv_high(w[2 * j + 1], magic));
                mma_f16(to, p[half][0], p[half][1], p[half][2], p[half][3], kv_low(w[2 * j]),
                        kv_low(w[2 * j + 1]));
            }
        }
}

/* A page in `stage` (a block of the pool as it stands) -> its sums at `to`. read(): all lanes are
 * done with the page, before() the first write. */
template <int STEPS, typename Read, typename Before>
__device__ void sum_page(const attention_args &a, const char *stage, int first_key,
                         const char *query, const slot *slots, uint32_t magic, float *to, int lane,
                         Read read, Before before) {
    constexpr int AT_ONCE = STEPS == 16 ? 8 : STEPS;
    int steps = STEPS == 16 ? kv_padded(a.head_dim) / 16 : STEPS;
    float score[4][4];
    uint32_t p[2][4];
    page_scores<STEPS>(query, stage, steps, magic, lane, score);
    float2 total = page_softmax(slots[lane / 4], stage, first_key, lane, score, p);
#pragma unroll
    for (int first = 0; first < STEPS; first += AT_ONCE) {
        float o[2 * AT_ONCE][4];
        page_values<AT_ONCE>(stage + kv_values_at(16 * steps), first, steps, magic, lane, p, o);
        if (first + AT_ONCE >= STEPS)
            read();
        if (first == 0)
            before();
        float *row = to + lane / 4 * ld_sum(STEPS) + 16 * first + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 2 * AT_ONCE; i++)
            *(float2 *)(row + 8 * i) = make_float2(o[i][0] + o[i][2], o[i][1] + o[i][3]);
    }
    if (lane % 4 == 0)
        ((float2 *)(to + SLOTS * ld_sum(STEPS)))[lane / 4] = total;
}
/* Of one slot: lanes hold columns 2 lane + 64 j. */
template <int STEPS> struct total {
    enum { PAIRS = (STEPS + 3) / 4 };
    float max, sum;
    float2 o[PAIRS];
};

template <int STEPS> __device__ void start_totals(total<STEPS> (&s)[SLOTS]) {
#pragma unroll
    for (int i = 0; i < SLOTS; i++)
        s[i] = {-INFINITY};
}

/* The item's next page; unused slots have seen nothing. */
template <int STEPS>
__device__ void add_page(total<STEPS> (&s)[SLOTS], const float *page, int lane) {
    const float2 *part = (const float2 *)(page + SLOTS * ld_sum(STEPS));
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
        float2 p = part[i];
        float most = p.x > s[i].max || p.x != p.x ? p.x : s[i].max;
        float base = most == -INFINITY ? 0.0f : most; /* nothing seen so far */
        float keep = exp2_fast(s[i].max - base), weight = exp2_fast(p.x - base);
        s[i].max = most;
        s[i].sum = s[i].sum * keep + p.y * weight;
#pragma unroll
        for (int j = 0; j < s[i].PAIRS; j++) {
            int at = min(2 * lane + 64 * j, ld_sum(STEPS)); /* lanes past the columns: anything */
            float2 v = *(const float2 *)(page + i * ld_sum(STEPS) + at);
            s[i].o[j].x = s[i].o[j].x * keep + v.x * weight;
            s[i].o[j].y = s[i].o[j].y * keep + v.y * weight;
        }
    }
}

/* The splits [lo, lo + n) of a row and head: what was written of them. */
struct splits {
    const float2 *sums;
    const float *partial; /* [n][E] */
    int n;
};

/* Up to 32 maxima and sums, one a lane, join a total; gives the weight of each lane's. */
template <int STEPS> __device__ float scale_total(total<STEPS> &s, float2 mine) {
    float most = mine.x, sum;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        float x = __shfl_xor_sync(~0u, most, lanes);
        most = x > most || x != x ? x : most;
    }
    most = s.max > most || s.max != s.max ? s.max : most;
    float keep = exp2_fast(s.max - most), weight = exp2_fast(mine.x - most);
    sum = mine.y * weight;
    for (int lanes = 1; lanes < 32; lanes *= 2)
        sum += __shfl_xor_sync(~0u, sum, lanes);
    s.max = most;
    s.sum = s.sum * keep + sum;
#pragma unroll
    for (int k = 0; k < s.PAIRS; k++)
        s.o[k].x *= keep, s.o[k].y *= keep;
    return weight;
}

/* Adds up the splits of N slots side by side: 32 maxima at a time, then the sums in their order,
 * many on their way. */
template <int STEPS, int N>
__device__ void add_splits(const splits (&from)[N], int e, total<STEPS> (&s)[N], int lane) {
    enum { PAIRS = total<STEPS>::PAIRS, AHEAD = 16 / (N * PAIRS) };
    int n = 0;
#pragma unroll
    for (int i = 0; i < N; i++)
        n = max(n, from[i].n);
    for (int first = 0; first < n; first += 32) {
        float2 mine[N];
        float weight[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            mine[i] = first + lane < from[i].n ? __ldcg(from[i].sums + first + lane)
                                               : make_float2(-INFINITY, 0);
        for (int at = first; at < min(n, first + 32); at += AHEAD) {
            float2 v[N][AHEAD][PAIRS];
#pragma unroll
            for (int i = 0; i < N; i++)
#pragma unroll
                for (int j = 0; j < AHEAD; j++)
#pragma unroll
                    for (int k = 0; k < PAIRS; k++)
                        v[i][j][k] =
                            at + j < from[i].n && 2 * lane + 64 * k < e
                                ? __ldcg((const float2 *)(from[i].partial + (size_t)(at + j) * e) +
                                         lane + 32 * k)
                                : make_float2(0, 0);
            if (at == first)
#pragma unroll
                for (int i = 0; i < N; i++)
                    weight[i] = scale_total(s[i], mine[i]);
#pragma unroll
            for (int i = 0; i < N; i++)
#pragma unroll
                for (int j = 0; j < AHEAD; j++) {
                    float w = __shfl_sync(~0u, weight[i], (at - first + j) % 32);
#pragma unroll
                    for (int k = 0; k < PAIRS; k++) {
                        s[i].o[k].x = fmaf(v[i][j][k].x, w, s[i].o[k].x);
                        s[i].o[k].y = fmaf(v[i][j][k].y, w, s[i].o[k].y);
                    }
                }
        }
    }
}

template <int STEPS>
__device__ void write_total(const total<STEPS> &s, float by, int e, float *out, int lane) {
#pragma unroll
    for (int j = 0; j < s.PAIRS; j++)
        if (2 * lane + 64 * j < e)
            *(float2 *)(out + 2 * lane + 64 * j) = make_float2(s.o[j].x * by, s.o[j].y * by);
}

/* Where the results of an item's slots go. */
struct places {
    const attention_args &a;
    const item &it;
    workspace w;
    int group, n_splits; /* of the workspace */

    __device__ places(const attention_args &args, const item &i)
        : a(args), it(i), w(workspace_of(args)), group(args.n_heads / args.n_kv_heads),
          n_splits(most_splits(args.max_context)) {
    }
    __device__ int row(int slot) const {
        return it.first + (it.slot + slot) / group;
    }
    __device__ int head(int slot) const {
        return it.kv * group + (it.slot + slot) % group;
    }
    __device__ size_t index(int slot) const {
        return (size_t)row(slot) * a.n_heads + head(slot);
    }
    __device__ float *ctx(int slot) const {
        return a.a.ctx + (size_t)row(slot) * a.a.ld_ctx + (size_t)head(slot) * a.head_dim;
    }
    __device__ splits seen(int slot) const {
        int hi = it.position + (it.slot + slot) / group, lo = window_start(hi, it.window);
        size_t at = index(slot) * n_splits + lo / KV_SPLIT;
        return {w.sums + at, w.partial + at * a.head_dim, hi / KV_SPLIT - lo / KV_SPLIT + 1};
    }
};

/* All splits of N slots from first on, the last one twice if there are fewer -> ctx. */
template <int STEPS, int N> __device__ void combine(const places &p, int first, int lane) {
    splits from[N];
    total<STEPS> s[N];
    int slot[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        slot[i] = min(first + i, p.it.n_slots - 1);
        from[i] = p.seen(slot[i]);
        s[i] = {-INFINITY};
    }
    add_splits<STEPS, N>(from, p.a.head_dim, s, lane);
#pragma unroll
    for (int i = 0; i < N; i++)
        write_total(s[i], 1.0f / s[i].sum, p.a.head_dim, p.ctx(slot[i]), lane);
}

/* An item's slots are added up: to ctx, or as a split's sums; the last item of its row goes on. */
template <int STEPS>
__device__ void end_item(const attention_args &a, const item &it, const total<STEPS> (&s)[SLOTS],
                         int lane) {
    const places p(a, it);
    int e = a.head_dim, before = 0;
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
        if (i >= it.n_slots)
            break;
        if (it.n_splits == 1) {
            write_total(s[i], KV_UNIT / s[i].sum, e, p.ctx(i), lane);
            continue;
        }
        size_t at = p.index(i) * p.n_splits + it.split;
        write_total(s[i], KV_UNIT, e, p.w.partial + at * e, lane);
        if (lane == 0)
            p.w.sums[at] = make_float2(s[i].max, s[i].sum);
    }
    if (it.n_splits == 1)
        return;
    __threadfence();
    __syncwarp();
    int32_t *arrived = p.w.arrived + p.index(0);
    if (lane == 0)
        before = atomicAdd(arrived, 1);
    if (__shfl_sync(~0u, before, 0) != it.n_splits - 1)
        return;
    __threadfence();
    if (it.n_slots == 1)
        combine<STEPS, 1>(p, 0, lane);
    else
#pragma unroll 1
        for (int i = 0; i < it.n_slots; i += 2)
            combine<STEPS, 2>(p, i, lane);
    if (lane == 0)
        *arrived = 0; /* for the next launch */
}

} // namespace

#endif
