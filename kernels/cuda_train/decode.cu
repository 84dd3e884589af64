/* Sampling's own operators: attention over a cache, and the choice of an id. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

enum { DECODE_WARPS = 8, LANE_DIMS = 8, DRAW_THREADS = 1024 };

struct decode_args {
    const int32_t *slot, *position;
    int32_t cap;
    struct train_heads heads;
    const float *q, *k, *v;
    float *cache_k, *cache_v, *ctx;
};

/* A block has one head of one row. Its warps take keys in turn, each with a softmax of its own, and
 * are joined in their order. A lane has head dims lane + 32 i. The row's own key comes from k, v;
 * the first head of a group puts it into the cache, which nobody reads there meanwhile. */
__global__ void decode_kernel(struct decode_args a) {
    __shared__ float part[DECODE_WARPS][32 * LANE_DIMS], tops[DECODE_WARPS], sums[DECODE_WARPS];
    int32_t e = a.heads.head_dim, row = (int32_t)blockIdx.x, head = (int32_t)blockIdx.y;
    int32_t group = a.heads.n_heads / a.heads.n_kv_heads, kv = head / group;
    int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;
    int32_t own = a.position[row];
    int32_t from = a.heads.window > 0 && own >= a.heads.window ? own - a.heads.window + 1 : 0;
    size_t ld = (size_t)(a.heads.n_kv_heads * e);
    size_t cache = (size_t)a.slot[row] * (size_t)a.cap * ld + (size_t)(kv * e);
    size_t at_q = (size_t)row * (size_t)(a.heads.n_heads * e) + (size_t)(head * e);
    size_t at_k = (size_t)row * ld + (size_t)(kv * e);
    float q[LANE_DIMS], ctx[LANE_DIMS] = {}, top = -INFINITY, sum = 0;
    float scale = 1.0f / sqrtf((float)e);
    for (int i = 0; i < LANE_DIMS; i++)
        q[i] = lane + 32 * i < e ? a.q[at_q + (size_t)(lane + 32 * i)] * scale : 0;
    for (int32_t t = from + warp; t <= own; t += DECODE_WARPS) {
        const float *k = t == own ? a.k + at_k : a.cache_k + cache + (size_t)t * ld;
        const float *v = t == own ? a.v + at_k : a.cache_v + cache + (size_t)t * ld;
        float dot = 0;
        for (int i = 0; i < LANE_DIMS; i++)
            dot += lane + 32 * i < e ? q[i] * k[lane + 32 * i] : 0;
        dot = warp_sum(dot);
        float most = fmaxf(top, dot), shrink = expf(top - most), weight = expf(dot - most);
        sum = sum * shrink + weight;
        for (int i = 0; i < LANE_DIMS; i++)
            ctx[i] = ctx[i] * shrink + (lane + 32 * i < e ? weight * v[lane + 32 * i] : 0);
        top = most;
    }
    if (lane == 0)
        tops[warp] = top, sums[warp] = sum;
    for (int i = 0; i < LANE_DIMS; i++)
        part[warp][lane + 32 * i] = ctx[i];
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < e; i += THREADS) {
        float most = tops[0], total = 0, out = 0;
        for (int w = 1; w < DECODE_WARPS; w++)
            most = fmaxf(most, tops[w]);
        for (int w = 0; w < DECODE_WARPS; w++) {
            float weight = expf(tops[w] - most);
            total += weight * sums[w];
            out += weight * part[w][i];
        }
        a.ctx[at_q + (size_t)i] = out / total;
        if (head % group == 0) {
            a.cache_k[cache + (size_t)own * ld + (size_t)i] = a.k[at_k + (size_t)i];
            a.cache_v[cache + (size_t)own * ld + (size_t)i] = a.v[at_k + (size_t)i];
        }
    }
}

void cuda_train_decode_attention(struct train *t, int32_t rows, const int32_t *slot,
                                 const int32_t *position, int32_t cap, struct train_heads heads,
                                 const float *q, const float *k, const float *v, float *cache_k,
                                 float *cache_v, float *ctx) {
    struct cuda_train *c = cuda_train_of(t);
    if (heads.head_dim > 32 * LANE_DIMS)
        cuda_train_fail(c, E_UNSUPPORTED,
                        "the CUDA backend decodes models with heads of at most 256 numbers");
    if (c->error || !rows)
        return;
    struct decode_args a = {slot, position, cap, heads, q, k, v, cache_k, cache_v, ctx};
    decode_kernel<<<dim3((unsigned)rows, (unsigned)heads.n_heads), 32 * DECODE_WARPS, 0,
                    c->stream>>>(a);
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
