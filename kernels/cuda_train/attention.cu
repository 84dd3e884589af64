/* Causal attention of whole sequences, forwards and backwards, on tiles of TILE queries by
 * TILE keys. Forwards a block has a tile of queries of one head and walks the keys with a running
 * softmax. Backwards the scores are computed again: one kernel has a tile of queries, finds their
 * sums and then dq; a second has a tile of keys of one key-value head and walks the queries of all
 * heads that read it, so that dk and dv have one writer and one order.
 *
 * Products of tiles run on tensor cores in TF32, which keeps as many bits as the FP16 of all other
 * products and has FP32's range; sums are FP32, and so is the softmax. A block is 8 warps; a warp
 * has 16 rows of a product and half of its columns (mma.m16n8k8). For the softmax scores pass
 * through shared memory: there thread (y, x) of 16 x 16 has rows y + 16 r and columns x + 16 c.
 * Tiles lie in shared memory row by row, rounded, 4 floats longer than a row, which keeps an
 * operand's reads free of conflicts. */
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

static __device__ __forceinline__ float rounded(float x) {
    uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return __uint_as_float(r);
}

/* Rows [from, from + TILE) of n rows of head dim e, zeros beyond. */
template <int E>
static __device__ __forceinline__ void fetch(struct tile<E> *to, const float *x, size_t ld,
                                             int32_t from, int32_t n, int32_t e) {
    if (e == E && ld % 4 == 0 && (uintptr_t)x % 16 == 0) {
#pragma unroll
        for (int i = 0; i < TILE * E / 4 / THREADS; i++) {
            int32_t at = (int32_t)threadIdx.x + i * THREADS, r = at / (E / 4), c = at % (E / 4) * 4;
            float v[4] = {};
            if (from + r < n)
                load(v, x + (size_t)(from + r) * ld + (size_t)c);
#pragma unroll
            for (int l = 0; l < 4; l++)
                v[l] = rounded(v[l]);
            save(&to->at[r][c], v);
        }
        return;
    }
    for (int32_t i = (int32_t)threadIdx.x; i < TILE * E; i += THREADS) {
        int32_t r = i / E, c = i % E;
        to->at[r][c] = from + r < n && c < e ? rounded(x[(size_t)(from + r) * ld + (size_t)c]) : 0;
    }
}

static __device__ __forceinline__ void multiply(float (&d)[4], const float (&a)[4], float b0,
                                                float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

/* A warp's place in a product: its first row; which half of the columns; rows and columns of a
 * thread's operands. */
struct lanes {
    int32_t row, half, g, t;
};
static __device__ __forceinline__ struct lanes lanes(void) {
    int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;
    return {warp % 4 * 16, warp / 4, lane / 4, lane % 4};
}
/* 16 x 8 of an operand, from row and column on. */
template <typename T>
static __device__ __forceinline__ void left(float (&a)[4], const T *x, const struct lanes &w,
                                            int32_t col) {
    const float *lo = &x->at[w.row + w.g][col + w.t], *hi = &x->at[w.row + w.g + 8][col + w.t];
    a[0] = lo[0], a[1] = hi[0], a[2] = lo[4], a[3] = hi[4];
}

/* s = a b', through p, which keeps it; all threads call. */
template <int E>
static __device__ __forceinline__ void dots(float (&s)[EACH][EACH], const struct tile<E> *a,
                                            const struct tile<E> *b, struct square *p) {
    struct lanes w = lanes();
    float sum[4][4] = {};
#pragma unroll 2
    for (int e = 0; e < E; e += 8) {
        float u[4];
        left(u, a, w, e);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float *v = &b->at[w.half * 32 + j * 8 + w.g][e + w.t];
            multiply(sum[j], u, v[0], v[4]);
        }
    }
    __syncthreads(); /* what was in p is read */
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p->at[w.row + w.g + i / 2 * 8][w.half * 32 + j * 8 + 2 * w.t + i % 2] = sum[j][i];
    __syncthreads();
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < EACH; r++)
#pragma unroll
        for (int c = 0; c < EACH; c++)
            s[r][c] = p->at[y + 16 * r][x + 16 * c];
}

/* A thread's part of [TILE, E]: of column block j rows g, g + 8 and columns 2 t, 2 t + 1. */
template <int E> struct part { float at[E / 16][4]; };

/* o += p x, [TILE, TILE] by [TILE, E] */
template <int E>
static __device__ __forceinline__ void gather(struct part<E> &o, const struct square *p,
                                              const struct tile<E> *x) {
    struct lanes w = lanes();
#pragma unroll 2
    for (int k = 0; k < TILE; k += 8) {
        float u[4];
        left(u, p, w, k);
#pragma unroll
        for (int j = 0; j < E / 16; j++) {
            int32_t col = w.half * (E / 2) + j * 8 + w.g;
            multiply(o.at[j], u, x->at[k + w.t][col], x->at[k + w.t + 4][col]);
        }
    }
}

/* Writes a thread's part of a tile into rows [from, n), times scale and, unless NULL, rows [TILE].
 */
template <int E>
static __device__ __forceinline__ void put_tile(float *x, size_t ld, int32_t from, int32_t n,
                                                int32_t e, const struct part<E> &o, float scale,
                                                const float *rows) {
    struct lanes w = lanes();
#pragma unroll
    for (int j = 0; j < E / 16; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int32_t r = w.row + w.g + i / 2 * 8, col = w.half * (E / 2) + j * 8 + 2 * w.t + i % 2;
            if (from + r < n && col < e)
                x[(size_t)(from + r) * ld + (size_t)col] =
                    o.at[j][i] * scale * (rows ? rows[r] : 1.0f);
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
    float rows[TILE]; /* what a row's sums are to be multiplied with */
};

template <int E>
__global__ void __launch_bounds__(THREADS) forward_kernel(struct attention_args a) {
    extern __shared__ float4 memory[];
    struct forward_shared<E> *m = (struct forward_shared<E> *)memory;
    struct place p = place_of(a, (int32_t)blockIdx.z);
    if (p.from >= p.n)
        return;
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
    struct part<E> o = {};
    float s[EACH][EACH], shrink[EACH], sum[EACH] = {}, top[EACH];
    struct lanes w = lanes();
    for (int r = 0; r < EACH; r++)
        top[r] = -INFINITY;
    fetch<E>(&m->q, a.q + p.at_q, p.ld_q, p.from, p.n, p.e);
    for (int32_t keys = first_key(p.from, p.window); keys < p.from + TILE && keys < p.n;
         keys += TILE) {
        __syncthreads();
        fetch<E>(&m->kv, a.k + p.at_kv, p.ld_k, keys, p.n, p.e);
        __syncthreads();
        dots<E>(s, &m->q, &m->kv, &m->p);
        for (int r = 0; r < EACH; r++)
            for (int c = 0; c < EACH; c++)
                s[r][c] *= a.scale;
        soften(p, keys, s, top, sum, shrink);
        for (int r = 0; r < EACH; r++) {
            for (int c = 0; c < EACH; c++)
                m->p.at[y + 16 * r][x + 16 * c] = rounded(s[r][c]);
            if (x == 0)
                m->rows[y + 16 * r] = shrink[r];
        }
        fetch<E>(&m->kv, a.v + p.at_kv, p.ld_k, keys, p.n, p.e);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < E / 16; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o.at[j][i] *= m->rows[w.row + w.g + i / 2 * 8];
        gather<E>(o, &m->p, &m->kv);
    }
    __syncthreads();
    for (int r = 0; r < EACH; r++)
        if (x == 0)
            m->rows[y + 16 * r] = sum[r] > 0 ? 1.0f / sum[r] : 0;
    __syncthreads();
    put_tile<E>(a.out + p.at_q, p.ld_q, p.from, p.n, p.e, o, 1, m->rows);
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
            dot[r] += a.dctx[p.at_q + (size_t)row * p.ld_q + (size_t)c] *
                      a.ctx[p.at_q + (size_t)row * p.ld_q + (size_t)c];
        dot[r] = row_sum(dot[r]);
    }
    for (int32_t keys = first_key(p.from, p.window); keys < p.from + TILE && keys < p.n;
         keys += TILE) {
        __syncthreads();
        fetch<E>(&m->other_a, a.k + p.at_kv, p.ld_k, keys, p.n, p.e);
        __syncthreads();
        dots<E>(s, &m->own_a, &m->other_a, &m->p);
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
    float s[EACH][EACH], dp[EACH][EACH], top[EACH], sum[EACH], dot[EACH];
    struct part<E> dq = {};
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
        dots<E>(s, &m->own_a, &m->other_a, &m->p);
        dots<E>(dp, &m->own_b, &m->other_b, &m->p);
        for (int r = 0; r < EACH; r++)
            for (int c = 0; c < EACH; c++) {
                bool seen = sees(p.from + y + 16 * r, keys + x + 16 * c, p.n, p.window);
                float prob = seen ? expf(s[r][c] * a.scale - top[r]) * sum[r] : 0;
                m->p.at[y + 16 * r][x + 16 * c] = rounded(prob * (dp[r][c] - dot[r]));
            }
        __syncthreads();
        gather<E>(dq, &m->p, &m->other_a);
    }
    put_tile<E>(a.dq + p.at_q, p.ld_q, p.from, p.n, p.e, dq, a.scale, NULL);
}

/* Rows are keys, columns queries. */
template <int E> __global__ void __launch_bounds__(THREADS, 1) dkv_kernel(struct attention_args a) {
    extern __shared__ float4 memory[];
    struct back_shared<E> *m = (struct back_shared<E> *)memory;
    int32_t group = a.heads.n_heads / a.heads.n_kv_heads, head = (int32_t)blockIdx.z * group;
    struct place p = place_of(a, head);
    if (p.from >= p.n)
        return;
    int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
    float s[EACH][EACH], dp[EACH][EACH];
    struct part<E> dk = {}, dv = {};
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
            dots<E>(s, &m->own_a, &m->other_a, &m->p);
            dots<E>(dp, &m->own_b, &m->other_b, &m->p);
            for (int c = 0; c < EACH; c++) {
                int32_t query = queries + x + 16 * c;
                size_t of = (p.row + (size_t)query) * (size_t)a.heads.n_heads + (size_t)h;
                bool in = query < p.n;
                float top = in ? a.top[of] : 0, sum = in ? a.sum[of] : 0, dot = in ? a.dot[of] : 0;
                for (int r = 0; r < EACH; r++) {
                    bool seen = sees(query, p.from + y + 16 * r, p.n, p.window);
                    float prob = seen ? expf(s[r][c] * a.scale - top) * sum : 0;
                    m->p.at[y + 16 * r][x + 16 * c] = rounded(prob);
                    s[r][c] = prob * (dp[r][c] - dot);
                }
            }
            __syncthreads();
            gather<E>(dv, &m->p, &m->other_b);
            __syncthreads();
            for (int r = 0; r < EACH; r++)
                for (int c = 0; c < EACH; c++)
                    m->p.at[y + 16 * r][x + 16 * c] = rounded(s[r][c]);
            __syncthreads();
            gather<E>(dk, &m->p, &m->other_a);
        }
    }
    put_tile<E>(a.dk + p.at_kv, p.ld_k, p.from, p.n, p.e, dk, a.scale, NULL);
    put_tile<E>(a.dv + p.at_kv, p.ld_k, p.from, p.n, p.e, dv, 1, NULL);
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
