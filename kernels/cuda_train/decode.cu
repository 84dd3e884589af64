/* Sampling's own operators: attention over a cache, and the choice of an id. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

enum { DECODE_WARPS = 8, DECODE_KEYS = 4, DRAW_THREADS = 1024 };

struct decode_args {
    const int32_t *slot, *position;
    int32_t cap;
    struct train_heads heads;
    const float *q, *k, *v;
    __half *cache_k, *cache_v;
    float *ctx;
};

/* A lane's head dims: 2 lane + 64 i and the one after. */
template <int PAIRS> struct lane_dims { float at[2 * PAIRS]; };
template <int PAIRS>
static __device__ __forceinline__ struct lane_dims<PAIRS> fetch(const float *x, int32_t e) {
    struct lane_dims<PAIRS> r;
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; i++) {
        int32_t d = 2 * ((int32_t)threadIdx.x % 32) + i / 2 * 64 + i % 2;
        r.at[i] = d < e ? x[d] : 0;
    }
    return r;
}
/* The same of a cached row, two numbers at a time: head dims are even. */
template <int PAIRS>
static __device__ __forceinline__ void fetch(__half2 (&r)[PAIRS], const __half *x, int32_t e) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int32_t d = 2 * ((int32_t)threadIdx.x % 32) + i * 64;
        r[i] = d < e ? *(const __half2 *)(x + d) : __half2();
    }
}

/* What a warp has of a row's softmax. */
template <int PAIRS> struct attended {
    float top, sum;
    struct lane_dims<PAIRS> ctx;
};

/* KEYS keys at once, so that their loads run beside one another; those from `end` on do not count.
 */
template <int PAIRS, int KEYS>
static __device__ __forceinline__ void attend(struct attended<PAIRS> &a,
                                              const struct lane_dims<PAIRS> &q, const __half *k,
                                              const __half *v, size_t ld, int32_t e, int32_t n) {
    __half2 key[KEYS][PAIRS], value[KEYS][PAIRS];
    float dot[KEYS], most = a.top;
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        size_t at = (size_t)(j < n ? j : 0) * ld;
        fetch<PAIRS>(key[j], k + at, e), fetch<PAIRS>(value[j], v + at, e);
    }
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        dot[j] = 0;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            float2 x = __half22float2(key[j][i]);
            dot[j] += q.at[2 * i] * x.x + q.at[2 * i + 1] * x.y;
        }
        dot[j] = j < n ? warp_sum(dot[j]) : -INFINITY;
        most = fmaxf(most, dot[j]);
    }
    float shrink = expf(a.top - most);
    a.top = most, a.sum *= shrink;
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; i++)
        a.ctx.at[i] *= shrink;
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        float weight = expf(dot[j] - most);
        a.sum += weight;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            float2 x = __half22float2(value[j][i]);
            a.ctx.at[2 * i] += weight * x.x, a.ctx.at[2 * i + 1] += weight * x.y;
        }
    }
}

/* A block has one head of one row. Its warps take keys in turn, each with a softmax of its own, and
 * are joined in their order. The row's own key and value come from k, v, rounded as the cache will
 * have them: each block attends to it by itself, and the first head of a group puts it there. */
template <int PAIRS> __global__ void decode_kernel(struct decode_args a) {
    __shared__ float part[DECODE_WARPS][64 * PAIRS], tops[DECODE_WARPS], sums[DECODE_WARPS];
    __shared__ __half own_k[64 * PAIRS], own_v[64 * PAIRS];
    int32_t e = a.heads.head_dim, row = (int32_t)blockIdx.x, head = (int32_t)blockIdx.y;
    int32_t group = a.heads.n_heads / a.heads.n_kv_heads, kv = head / group;
    int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;
    int32_t own = a.position[row];
    int32_t from = a.heads.window > 0 && own >= a.heads.window ? own - a.heads.window + 1 : 0;
    size_t ld = (size_t)(a.heads.n_kv_heads * e);
    size_t cache = (size_t)a.slot[row] * (size_t)a.cap * ld + (size_t)(kv * e);
    size_t at_q = (size_t)row * (size_t)(a.heads.n_heads * e) + (size_t)(head * e);
    size_t at_k = (size_t)row * ld + (size_t)(kv * e);
    for (int32_t i = (int32_t)threadIdx.x; i < e; i += 32 * DECODE_WARPS) {
        own_k[i] = __float2half_rn(a.k[at_k + (size_t)i]);
        own_v[i] = __float2half_rn(a.v[at_k + (size_t)i]);
        if (head % group == 0) { /* nobody reads it there meanwhile */
            a.cache_k[cache + (size_t)own * ld + (size_t)i] = own_k[i];
            a.cache_v[cache + (size_t)own * ld + (size_t)i] = own_v[i];
        }
    }
    struct lane_dims<PAIRS> q = fetch<PAIRS>(a.q + at_q, e);
    struct attended<PAIRS> seen = {
        - 1e30f, 0, {
        }
    };
    float scale = 1.0f / sqrtf((float)e);
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; i++)
        q.at[i] *= scale;
    for (int32_t t = from + warp * DECODE_KEYS; t < own; t += DECODE_WARPS * DECODE_KEYS) {
        size_t at = cache + (size_t)t * ld;
        attend<PAIRS, DECODE_KEYS>(seen, q, a.cache_k + at, a.cache_v + at, ld, e, own - t);
    }
    __syncthreads();
    if (warp == 0)
        attend<PAIRS, 1>(seen, q, own_k, own_v, 0, e, 1);
    if (lane == 0)
        tops[warp] = seen.top, sums[warp] = seen.sum;
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; i++)
        part[warp][2 * lane + i / 2 * 64 + i % 2] = seen.ctx.at[i];
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < e; i += 32 * DECODE_WARPS) {
        float most = tops[0], total = 0, out = 0;
        for (int w = 1; w < DECODE_WARPS; w++)
            most = fmaxf(most, tops[w]);
        for (int w = 0; w < DECODE_WARPS; w++) {
            float weight = expf(tops[w] - most);
            total += weight * sums[w];
            out += weight * part[w][i];
        }
        a.ctx[at_q + (size_t)i] = out / total;
    }
}

void cuda_train_decode_attention(struct train *t, int32_t rows, const int32_t *slot,
                                 const int32_t *position, int32_t cap, struct train_heads heads,
                                 const float *q, const float *k, const float *v, void *cache_k,
                                 void *cache_v, float *ctx) {
    struct cuda_train *c = cuda_train_of(t);
    if (heads.head_dim > 256 || heads.head_dim % 2)
        cuda_train_fail(
            c, E_UNSUPPORTED,
            "the CUDA backend decodes models with heads of at most 256 numbers, an even "
            "count of them");
    if (c->error || !rows)
        return;
    struct decode_args a = {
        slot, position, cap, heads, q, k, v, (__half *)cache_k, (__half *)cache_v, ctx};
    dim3 grid((unsigned)rows, (unsigned)heads.n_heads);
    if (heads.head_dim <= 64)
        decode_kernel<1><<<grid, 32 * DECODE_WARPS, 0, c->stream>>>(a);
    else if (heads.head_dim <= 128)
        decode_kernel<2><<<grid, 32 * DECODE_WARPS, 0, c->stream>>>(a);
    else
        decode_kernel<4><<<grid, 32 * DECODE_WARPS, 0, c->stream>>>(a);
    cuda_train_launched(c, "decode_attention");
}

/* A thread sums the exponentials of the ids of its own stretch; the one whose stretch holds
 * u * total walks it. */
__global__ void draw_kernel(int32_t vocab, const float *logits, float temperature, const float *u,
                            int32_t *out) {
    __shared__ double running[DRAW_THREADS + 1];
    __shared__ int32_t found;
    const float *x = logits + (size_t)blockIdx.x * (size_t)vocab;
    struct top best = block_top(x, vocab);
    int32_t me = (int32_t)threadIdx.x, each = (vocab + DRAW_THREADS - 1) / DRAW_THREADS;
    if (temperature <= 0) {
        if (me == 0)
            out[blockIdx.x] = best.at;
        return;
    }
    int32_t from = me * each, to = from + each < vocab ? from + each : vocab;
    double sum = 0;
    for (int32_t i = from; i < to; i++)
        sum += (double)expf((x[i] - best.value) / temperature);
    if (me == 0)
        running[0] = 0, found = DRAW_THREADS;
    running[me + 1] = sum;
    __syncthreads();
    for (int32_t step = 1; step < DRAW_THREADS; step *= 2) {
        double before = me >= step ? running[me + 1 - step] : 0;
        __syncthreads();
        running[me + 1] += before;
        __syncthreads();
    }
    double want = (double)u[blockIdx.x] * running[DRAW_THREADS];
    if (from < to && running[me + 1] > want)
        atomicMin(&found, me);
    __syncthreads();
    if (found == DRAW_THREADS && me == 0)
        out[blockIdx.x] = best.at;
    if (found != me)
        return;
    double left = want - running[me];
    int32_t id = from;
    for (; id < to - 1; id++)
        if ((left -= (double)expf((x[id] - best.value) / temperature)) < 0)
            break;
    out[blockIdx.x] = id;
}

void cuda_train_draw(struct train *t, int32_t rows, int32_t vocab, const float *logits,
                     float temperature, const float *u, int32_t *out) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !rows)
        return;
    draw_kernel<<<(unsigned)rows, DRAW_THREADS, 0, c->stream>>>(vocab, logits, temperature, u, out);
    cuda_train_launched(c, "draw");
}
