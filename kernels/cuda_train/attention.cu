/* Causal attention of whole sequences, forwards and backwards, in FP32 on tiles of TILE queries by
 * TILE keys. Forwards a block has a tile of queries of one head and walks the keys with a running
 * softmax. Backwards the scores are computed again: one kernel has a tile of queries, finds their
 * sums and then dq; a second has a tile of keys of one key-value head and walks the queries of all
 * heads that read it, so that dk and dv have one writer and one order.
 *
 * A block is 16 x 16 threads. Thread (y, x) has rows y + 16 r of a tile product; of its columns
 * x + 16 c (scores) or 4 x + 64 c .. + 3 (head dim). Tiles lie in shared memory row by row, 4
 * floats longer than a row, which keeps reads by 4 floats free of conflicts. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

enum { TILE = 64, EACH = TILE / 16, LD_P = TILE + 4, MAX_HEAD = 128 };

/* One head of one sequence in a batch. */
struct attention_args {
    const int32_t *start;
    struct train_heads heads;
    float scale;
    const float *q, *k, *v, *ctx, *dctx;
    float *out, *dq, *dk, *dv;
    float *top, *sum, *dot; /* [M, H]: largest score, sum of exponentials, dctx * ctx */
};

template <int E> struct tile { float at[TILE][E + 4]; };
struct square {
    float at[TILE][LD_P];
};

/* Rows [from, from + TILE) of n rows of head dim e, zeros beyond. */
template <int E>
static __device__ __forceinline__ void fetch(struct tile<E> *to, const float *x, size_t ld,
                                             int32_t from, int32_t n, int32_t e) {
    for (int32_t i = (int32_t)threadIdx.x; i < TILE * E; i += THREADS) {
        int32_t r = i / E, c = i % E;
        to->at[r][c] = from + r < n && c < e ? x[(size_t)(from + r) * ld + (size_t)c] : 0;
    }
}

/* s = a b' */
template <int E>
static __device__ __forceinline__ void dots(float (&s)[EACH][EACH], const struct tile<E> *a,
                                            const struct tile<E> *b) {
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < EACH; r++)
#pragma unroll
        for (int c = 0; c < EACH; c++)
            s[r][c] = 0;
#pragma unroll 1
    for (int e = 0; e < E; e += 4) {
        float u[EACH][4], w[EACH][4];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            load(u[i], &a->at[y + 16 * i][e]);
            load(w[i], &b->at[x + 16 * i][e]);
        }
#pragma unroll
        for (int r = 0; r < EACH; r++)
#pragma unroll
            for (int c = 0; c < EACH; c++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[r][c] += u[r][i] * w[c][i];
    }
}

/* o += p x, [TILE, TILE] by [TILE, E]; o of a thread: rows y + 16 r, columns 4 x + 64 c + i. */
template <int E>
static __device__ __forceinline__ void gather(float (&o)[EACH][E / 64][4], const struct square *p,
                                              const struct tile<E> *x) {
    int y = (int)threadIdx.x / 16, at = (int)threadIdx.x % 16 * 4;
#pragma unroll 1
    for (int j = 0; j < TILE; j += 4) {
        float u[EACH][4];
#pragma unroll
        for (int r = 0; r < EACH; r++)
            load(u[r], &p->at[y + 16 * r][j]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int c = 0; c < E / 64; c++) {
                float w[4];
                load(w, &x->at[j + i][at + 64 * c]);
#pragma unroll
                for (int r = 0; r < EACH; r++)
#pragma unroll
                    for (int l = 0; l < 4; l++)
                        o[r][c][l] += u[r][i] * w[l];
            }
    }
}

/* Writes a thread's part of a tile, times scale of its row, into rows [from, n). */
template <int E>
static __device__ __forceinline__ void put_tile(float *x, size_t ld, int32_t from, int32_t n,
                                                int32_t e, const float (&o)[EACH][E / 64][4],
                                                const float (&scale)[EACH]) {
    int y = (int)threadIdx.x / 16, at = (int)threadIdx.x % 16 * 4;
#pragma unroll
    for (int r = 0; r < EACH; r++)
#pragma unroll
        for (int c = 0; c < E / 64; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int32_t row = from + y + 16 * r, col = at + 64 * c + i;
                if (row < n && col < e)
                    x[(size_t)row * ld + (size_t)col] = o[r][c][i] * scale[r];
            }
}

static __device__ __forceinline__ bool sees(int32_t query, int32_t key, int32_t n, int32_t window) {
    return query < n && key <= query && (window <= 0 || key > query - window);
}
/* The first tile of keys that a tile of queries sees. */
static __device__ __forceinline__ int32_t first_key(int32_t query, int32_t window) {
    return window > 0 && query >= window ? (query - window + 1) / TILE * TILE : 0;
}

/* Over the 16 threads that share rows. */
static __device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int i = 8; i; i /= 2)
        x += __shfl_xor_sync(~0u, x, i);
    return x;
}
static __device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int i = 8; i; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

/* Where a block works. */
struct place {
    int32_t n, from, e, window; /* rows of the sequence; first of the tile; head dim */
    size_t row, ld_q, ld_k, at_q,
        at_kv; /* first row of the sequence; strides; its first elements */
};
static __device__ __forceinline__ struct place place_of(const struct attention_args &a,
                                                        int32_t head) {
    struct place p;
    int32_t first = a.start[blockIdx.y], kv = head / (a.heads.n_heads / a.heads.n_kv_heads);
    p.e = a.heads.head_dim;
    p.window = a.heads.window;
    p.n = a.start[blockIdx.y + 1] - first;
    p.from = (int32_t)blockIdx.x * TILE;
    p.row = (size_t)first;
    p.ld_q = (size_t)(a.heads.n_heads * p.e);
    p.ld_k = (size_t)(a.heads.n_kv_heads * p.e);
    p.at_q = p.row * p.ld_q + (size_t)(head * p.e);
    p.at_kv = p.row * p.ld_k + (size_t)(kv * p.e);
    return p;
}

/* Running maximum and sum of a thread's rows: takes a tile of scaled scores and leaves e^(s - top)
 * in s. Returns in shrink what earlier sums are to be multiplied with. */
static __device__ __forceinline__ void soften(const struct place &p, int32_t keys,
                                              float (&s)[EACH][EACH], float (&top)[EACH],
                                              float (&sum)[EACH], float (&shrink)[EACH]) {
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        float most = -INFINITY, part = 0;
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            bool seen = sees(p.from + y + 16 * r, keys + x + 16 * c, p.n, p.window);
            s[r][c] = seen ? s[r][c] : -INFINITY;
            most = fmaxf(most, s[r][c]);
        }
        most = fmaxf(top[r], row_max(most));
        float zero = most > -INFINITY ? most : 0; /* nothing seen yet: all are e^-inf */
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            s[r][c] = expf(s[r][c] - zero);
            part += s[r][c];
        }
        shrink[r] = expf(top[r] - zero);
        sum[r] = sum[r] * shrink[r] + row_sum(part);
        top[r] = most;
    }
}

template <int E> struct forward_shared {
    struct tile<E> q, kv;
    struct square p;
};

template <int E>
__global__ void __launch_bounds__(THREADS) forward_kernel(struct attention_args a) {
    extern __shared__ float4 memory[];
    struct forward_shared<E> *m = (struct forward_shared<E> *)memory;
    struct place p = place_of(a, (int32_t)blockIdx.z);
    if (p.from >= p.n)
        return;
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
    float o[EACH][E / 64][4] = {}, s[EACH][EACH], shrink[EACH], sum[EACH] = {}, top[EACH];
    for (int r = 0; r < EACH; r++)
        top[r] = -INFINITY;
    fetch<E>(&m->q, a.q + p.at_q, p.ld_q, p.from, p.n, p.e);
    for (int32_t keys = first_key(p.from, p.window); keys < p.from + TILE && keys < p.n;
         keys += TILE) {
        __syncthreads();
        fetch<E>(&m->kv, a.k + p.at_kv, p.ld_k, keys, p.n, p.e);
        __syncthreads();
        dots<E>(s, &m->q, &m->kv);
        for (int r = 0; r < EACH; r++)
            for (int c = 0; c < EACH; c++)
                s[r][c] *= a.scale;
        soften(p, keys, s, top, sum, shrink);
        for (int r = 0; r < EACH; r++) {
            for (int c = 0; c < EACH; c++)
                m->p.at[y + 16 * r][x + 16 * c] = s[r][c];
            for (int c = 0; c < E / 64; c++)
                for (int i = 0; i < 4; i++)
                    o[r][c][i] *= shrink[r];
        }
        __syncthreads();
        fetch<E>(&m->kv, a.v + p.at_kv, p.ld_k, keys, p.n, p.e);
        __syncthreads();
        gather<E>(o, &m->p, &m->kv);
    }
    for (int r = 0; r < EACH; r++)
        sum[r] = sum[r] > 0 ? 1.0f / sum[r] : 0;
    put_tile<E>(a.out + p.at_q, p.ld_q, p.from, p.n, p.e, o, sum);
}

template <int E> struct back_shared {
    struct tile<E> own_a, own_b, other_a, other_b; /* q, dctx of queries; k, v of keys */
    struct square p;                               /* probabilities, then the scores' gradients */
};

/* top, sum and dot of a tile's queries, into memory and the thread's registers. */
template <int E>
static __device__ void find_sums(const struct attention_args &a, struct back_shared<E> *m,
                                 const struct place &p, float (&top)[EACH], float (&sum)[EACH],
                                 float (&dot)[EACH]) {
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
    float s[EACH][EACH], shrink[EACH];
    for (int r = 0; r < EACH; r++) {
        top[r] = -INFINITY, sum[r] = 0, dot[r] = 0;
        int32_t row = p.from + y + 16 * r;
        for (int32_t c = x; row < p.n && c < p.e; c += 16)
            dot[r] += m->own_b.at[y + 16 * r][c] * a.ctx[p.at_q + (size_t)row * p.ld_q + (size_t)c];
        dot[r] = row_sum(dot[r]);
    }
    for (int32_t keys = first_key(p.from, p.window); keys < p.from + TILE && keys < p.n;
         keys += TILE) {
        __syncthreads();
        fetch<E>(&m->other_a, a.k + p.at_kv, p.ld_k, keys, p.n, p.e);
        __syncthreads();
        dots<E>(s, &m->own_a, &m->other_a);
        for (int r = 0; r < EACH; r++)
            for (int c = 0; c < EACH; c++)
                s[r][c] *= a.scale;
        soften(p, keys, s, top, sum, shrink);
    }
    for (int r = 0; r < EACH; r++) {
        int32_t row = p.from + y + 16 * r;
        size_t at = (p.row + (size_t)row) * (size_t)a.heads.n_heads + blockIdx.z;
        sum[r] = 1.0f / sum[r];
        if (row < p.n && x == 0)
            a.top[at] = top[r], a.sum[at] = sum[r], a.dot[at] = dot[r];
    }
}

template <int E> __global__ void __launch_bounds__(THREADS) dq_kernel(struct attention_args a) {
    extern __shared__ float4 memory[];
    struct back_shared<E> *m = (struct back_shared<E> *)memory;
    struct place p = place_of(a, (int32_t)blockIdx.z);
    if (p.from >= p.n)
        return;
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
    float s[EACH][EACH], dp[EACH][EACH], top[EACH], sum[EACH], dot[EACH], scale[EACH];
    float dq[EACH][E / 64][4] = {};
    fetch<E>(&m->own_a, a.q + p.at_q, p.ld_q, p.from, p.n, p.e);
    fetch<E>(&m->own_b, a.dctx + p.at_q, p.ld_q, p.from, p.n, p.e);
    __syncthreads();
    find_sums<E>(a, m, p, top, sum, dot);
    for (int32_t keys = first_key(p.from, p.window); keys < p.from + TILE && keys < p.n;
         keys += TILE) {
        __syncthreads();
        fetch<E>(&m->other_a, a.k + p.at_kv, p.ld_k, keys, p.n, p.e);
        fetch<E>(&m->other_b, a.v + p.at_kv, p.ld_k, keys, p.n, p.e);
        __syncthreads();
        dots<E>(s, &m->own_a, &m->other_a);
        dots<E>(dp, &m->own_b, &m->other_b);
        for (int r = 0; r < EACH; r++)
            for (int c = 0; c < EACH; c++) {
                bool seen = sees(p.from + y + 16 * r, keys + x + 16 * c, p.n, p.window);
                float prob = seen ? expf(s[r][c] * a.scale - top[r]) * sum[r] : 0;
                m->p.at[y + 16 * r][x + 16 * c] = prob * (dp[r][c] - dot[r]);
            }
        __syncthreads();
        gather<E>(dq, &m->p, &m->other_a);
    }
    for (int r = 0; r < EACH; r++)
        scale[r] = a.scale;
    put_tile<E>(a.dq + p.at_q, p.ld_q, p.from, p.n, p.e, dq, scale);
}

/* Rows are keys, columns queries. */
template <int E> __global__ void __launch_bounds__(THREADS) dkv_kernel(struct attention_args a) {
    extern __shared__ float4 memory[];
    struct back_shared<E> *m = (struct back_shared<E> *)memory;
    int32_t group = a.heads.n_heads / a.heads.n_kv_heads, head = (int32_t)blockIdx.z * group;
    struct place p = place_of(a, head);
    if (p.from >= p.n)
        return;
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
    float s[EACH][EACH], dp[EACH][EACH], scale[EACH], one[EACH];
    float dk[EACH][E / 64][4] = {}, dv[EACH][E / 64][4] = {};
    fetch<E>(&m->own_a, a.k + p.at_kv, p.ld_k, p.from, p.n, p.e);
    fetch<E>(&m->own_b, a.v + p.at_kv, p.ld_k, p.from, p.n, p.e);
    for (int32_t h = head; h < head + group; h++) {
        size_t at = p.at_q + (size_t)((h - head) * p.e);
        for (int32_t queries = p.from; queries < p.n; queries += TILE) {
            if (p.window > 0 && queries >= p.from + TILE - 1 + p.window)
                break;
            __syncthreads();
            fetch<E>(&m->other_a, a.q + at, p.ld_q, queries, p.n, p.e);
            fetch<E>(&m->other_b, a.dctx + at, p.ld_q, queries, p.n, p.e);
            __syncthreads();
            dots<E>(s, &m->own_a, &m->other_a);
            dots<E>(dp, &m->own_b, &m->other_b);
            for (int c = 0; c < EACH; c++) {
                int32_t query = queries + x + 16 * c;
                size_t of = (p.row + (size_t)query) * (size_t)a.heads.n_heads + (size_t)h;
                bool in = query < p.n;
                float top = in ? a.top[of] : 0, sum = in ? a.sum[of] : 0, dot = in ? a.dot[of] : 0;
                for (int r = 0; r < EACH; r++) {
                    bool seen = sees(query, p.from + y + 16 * r, p.n, p.window);
                    float prob = seen ? expf(s[r][c] * a.scale - top) * sum : 0;
                    m->p.at[y + 16 * r][x + 16 * c] = prob;
                    s[r][c] = prob * (dp[r][c] - dot);
                }
            }
            __syncthreads();
            gather<E>(dv, &m->p, &m->other_b);
            __syncthreads();
            for (int r = 0; r < EACH; r++)
                for (int c = 0; c < EACH; c++)
                    m->p.at[y + 16 * r][x + 16 * c] = s[r][c];
            __syncthreads();
            gather<E>(dk, &m->p, &m->other_a);
        }
    }
    for (int r = 0; r < EACH; r++)
        scale[r] = a.scale, one[r] = 1;
    put_tile<E>(a.dk + p.at_kv, p.ld_k, p.from, p.n, p.e, dk, scale);
    put_tile<E>(a.dv + p.at_kv, p.ld_k, p.from, p.n, p.e, dv, one);
}

template <int E> static cudaError_t setup(void) {
    const cudaFuncAttribute shared = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t e = cudaFuncSetAttribute(forward_kernel<E>, shared, sizeof(forward_shared<E>));
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(dq_kernel<E>, shared, sizeof(back_shared<E>));
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(dkv_kernel<E>, shared, sizeof(back_shared<E>));
    return e;
}

cudaError_t cuda_train_attention_setup(int32_t *max_head) {
    cudaError_t e = setup<64>();
    *max_head = 64;
    if (e == cudaSuccess && setup<MAX_HEAD>() == cudaSuccess)
        *max_head = MAX_HEAD;
    cudaGetLastError(); /* said by the results */
    return e;
}

template <int E>
static void launch(struct cuda_train *c, const struct train_batch *b,
                   const struct attention_args &a, bool back) {
    dim3 grid(blocks_of((size_t)b->longest, TILE), (unsigned)b->n_seqs, (unsigned)a.heads.n_heads);
    if (!back) {
        forward_kernel<E><<<grid, THREADS, sizeof(forward_shared<E>), c->stream>>>(a);
        cuda_train_launched(c, "attention");
        return;
    }
    dq_kernel<E><<<grid, THREADS, sizeof(back_shared<E>), c->stream>>>(a);
    grid.z = (unsigned)a.heads.n_kv_heads;
    dkv_kernel<E><<<grid, THREADS, sizeof(back_shared<E>), c->stream>>>(a);
    cuda_train_launched(c, "attention_back");
}

static bool attention_args(struct cuda_train *c, const struct train_batch *b,
                           struct train_heads heads, struct attention_args *a) {
    if (heads.head_dim > c->max_head)
        cuda_train_fail(c, E_UNSUPPORTED,
                        "this CUDA device fits no models with heads of more than %d numbers",
                        c->max_head);
    a->start = b->start;
    a->heads = heads;
    a->scale = 1.0f / sqrtf((float)heads.head_dim);
    return !c->error && b->n_seqs > 0 && b->longest > 0;
}

void cuda_train_attention(struct train *t, const struct train_batch *b, struct train_heads heads,
                          const float *q, const float *k, const float *v, float *ctx) {
    struct cuda_train *c = cuda_train_of(t);
    struct attention_args a = {};
    if (!attention_args(c, b, heads, &a))
        return;
    a.q = q, a.k = k, a.v = v, a.out = ctx;
    if (heads.head_dim <= 64)
        launch<64>(c, b, a, false);
    else
        launch<MAX_HEAD>(c, b, a, false);
}

void cuda_train_attention_back(struct train *t, const struct train_batch *b,
                               struct train_heads heads, const float *q, const float *k,
                               const float *v, const float *ctx, const float *dctx, float *dq,
                               float *dk, float *dv) {
    struct cuda_train *c = cuda_train_of(t);
    struct attention_args a = {};
    size_t n = (size_t)b->n_rows * (size_t)heads.n_heads;
    if (!attention_args(c, b, heads, &a))
        return;
    a.top = (float *)cuda_train_scratch(c, SCRATCH_ROWS, 3 * n * sizeof(float));
    if (!a.top)
        return;
    a.sum = a.top + n, a.dot = a.sum + n;
    a.q = q, a.k = k, a.v = v, a.ctx = ctx, a.dctx = dctx;
    a.dq = dq, a.dk = dk, a.dv = dv;
    if (heads.head_dim <= 64)
        launch<64>(c, b, a, true);
    else
        launch<MAX_HEAD>(c, b, a, true);
}
