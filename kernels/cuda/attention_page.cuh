/* The arithmetic of narrow attention (attention_narrow.cu, attention_plain.cu): an item's queries
 * as a tensor core's operand, one page's scores, softmax and product with the values, the sum of an
 * item's pages. One warp each; who calls them orders them.
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

/* A page's 32 keys as B operands, 16 columns and 8 keys at a time: product(query(k), n, b0, b1)
 * with the integers of columns 16 k .. and keys 8 n .. as they stand. Both kinds of rows go through
 * it. */
template <int STEPS, typename Query, typename Product>
__device__ __forceinline__ void each_key(const char *stage, int steps, int lane, Query query,
                                         Product product) {
    uint32_t from = shared_address(stage) + kv_keys_at() + lane % 8 * 16 + lane / 8 % 2 * 128 +
                    lane / 16 * 256 * steps;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k >= steps)
            break;
        uint4 q = query(k);
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            uint32_t w[4];
            load_matrices(w, from + n * 256 * steps + k * 256);
            product(q, n, w[0], w[1]);
            product(q, n + 1, w[2], w[3]);
        }
    }
}
/* The same of AT_ONCE steps of its values from column 16 first on: product(half, n, b0, b1) with
 * keys 16 half .. and columns 16 first + 8 n ... */
template <int AT_ONCE, typename Product>
__device__ __forceinline__ void each_value(const char *stage, int first, int steps, int lane,
                                           Product product) {
    uint32_t from = shared_address(stage) + kv_values_at(16 * steps) + first * 256 + lane % 8 * 16 +
                    lane / 8 % 2 * 256 * steps + lane / 16 * 128;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (first + k >= steps)
                break;
            uint32_t w[4];
            load_matrices_transposed(w, from + half * 512 * steps + k * 256);
            product(half, 2 * k, w[0], w[1]);
            product(half, 2 * k + 1, w[2], w[3]);
        }
}
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint4 &a, uint32_t b0, uint32_t b1) {
    ::mma_f16(d, a.x, a.y, a.z, a.w, b0, b1);
}

/* Products of the queries and a page's keys; of the high and low parts in sums of their own, for
 * shorter chains. */
template <int STEPS>
__device__ void page_scores(const char *query, const char *stage, int steps, uint32_t magic,
                            int lane, float (&score)[4][4]) {
    float low[4][4] = {};
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[n][i] = 0;
    each_key<STEPS>(
        stage, steps, lane, [&](int k) { return ((const uint4 *)query)[k * 32 + lane]; },
        [&](const uint4 &q, int n, uint32_t b0, uint32_t b1) {
            mma_f16(score[n], q, kv_high(b0, magic), kv_high(b1, magic));
            mma_f16(low[n], q, kv_low(b0), kv_low(b1));
        });
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
                               const float (&score)[4][4], uint4 (&p)[2]) {
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
        uint4 &to = p[n / 2];
        split_halves(e[0] * scale[n][0], e[1] * scale[n][1], n % 2 ? to.z : to.x,
                     n % 2 ? to.w : to.y);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return make_float2(most, sum);
}

/* p times columns 16 first .. of a page's values, AT_ONCE steps. */
template <int AT_ONCE>
__device__ void page_values(const char *stage, int first, int steps, uint32_t magic, int lane,
                            const uint4 (&p)[2], float (&o)[2 * AT_ONCE][4]) {
#pragma unroll
    for (int n = 0; n < 2 * AT_ONCE; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n][i] = 0;
    each_value<AT_ONCE>(stage, first, steps, lane, [&](int half, int n, uint32_t b0, uint32_t b1) {
        mma_f16(o[n], p[half], kv_high(b0, magic), kv_high(b1, magic));
        mma_f16(o[n], p[half], kv_low(b0), kv_low(b1));
    });
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
    uint4 p[2];
    page_scores<STEPS>(query, stage, steps, magic, lane, score);
    float2 total = page_softmax(slots[lane / 4], stage, first_key, lane, score, p);
#pragma unroll
    for (int first = 0; first < STEPS; first += AT_ONCE) {
        float o[2 * AT_ONCE][4];
        page_values<AT_ONCE>(stage, first, steps, magic, lane, p, o);
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

/* Four warps add up an item's pages side by side: warp w has slots w and w + 4. */
enum { ADD_WARPS = 4, OWN_SLOTS = SLOTS / ADD_WARPS };

template <int STEPS> __device__ void start_totals(total<STEPS> (&s)[OWN_SLOTS]) {
#pragma unroll
    for (int j = 0; j < OWN_SLOTS; j++)
        s[j] = {-INFINITY};
}

/* The item's next page. */
template <int STEPS>
__device__ void add_page(total<STEPS> (&s)[OWN_SLOTS], const float *page, int n_slots, int warp,
                         int lane) {
    const float2 *part = (const float2 *)(page + SLOTS * ld_sum(STEPS));
#pragma unroll
    for (int j = 0; j < OWN_SLOTS; j++) {
        int i = warp + ADD_WARPS * j;
        if (i >= n_slots)
            break;
        float2 p = part[i];
        float most = p.x > s[j].max || p.x != p.x ? p.x : s[j].max;
        float base = most == -INFINITY ? 0.0f : most; /* nothing seen so far */
        float keep = exp2_fast(s[j].max - base), weight = exp2_fast(p.x - base);
        s[j].max = most;
        s[j].sum = s[j].sum * keep + p.y * weight;
#pragma unroll
        for (int k = 0; k < s[j].PAIRS; k++) {
            int at = min(2 * lane + 64 * k, ld_sum(STEPS)); /* lanes past the columns: anything */
            float2 v = *(const float2 *)(page + i * ld_sum(STEPS) + at);
            s[j].o[k].x = s[j].o[k].x * keep + v.x * weight;
            s[j].o[k].y = s[j].o[k].y * keep + v.y * weight;
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

/* The warp's slots are added up: to ctx where the row sees this split alone, else as a split's sums
 * for attention_merge.cu; nowhere where it sees nothing of it. */
template <int STEPS>
__device__ void end_item(const attention_args &a, const item &it,
                         const total<STEPS> (&s)[OWN_SLOTS], int warp, int lane) {
    const workspace w = workspace_of(a);
    int e = a.head_dim, group = a.n_heads / a.n_kv_heads;
#pragma unroll
    for (int j = 0; j < OWN_SLOTS; j++) {
        int i = warp + ADD_WARPS * j;
        if (i >= it.n_slots)
            break;
        int row = (it.slot + i) / group, head = it.kv * group + (it.slot + i) % group;
        splits seen = splits_of(it.position + row, it.window);
        row += it.first;
        if (it.split < seen.first || it.split >= seen.first + seen.n)
            continue;
        if (seen.n == 1) {
            float *ctx = a.a.ctx + (size_t)row * a.a.ld_ctx + (size_t)head * e;
            write_total(s[j], KV_UNIT / s[j].sum, e, ctx, lane);
            continue;
        }
        size_t at = w.at(a, row, head) + it.split;
        write_total(s[j], KV_UNIT, e, w.partial + at * e, lane);
        if (lane == 0)
            w.sums[at] = make_float2(s[j].max, s[j].sum);
    }
}

} // namespace

#endif
