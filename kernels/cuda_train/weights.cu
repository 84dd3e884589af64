/* Dense FP16 weights: to and from FP32, and what a tenant adds to them. A thread of merge has VEC
 * columns of MERGE_ROWS rows in registers: the base is read and the result written once, the low
 * rank pair is an outer product per rank out of cache. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"
#include "kernels/cuda_train/signs.cuh"

enum { MERGE_ROWS = 8, RANKS = 32, MERGE_PLANES = 8 };

__global__ void store_kernel(const float *x, size_t n, __half *w) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        w[i] = __float2half_rn(x[i]);
}
__global__ void load_kernel(const __half *w, size_t n, float *x) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        x[i] = __half2float(w[i]);
}

__global__ void widen_kernel(enum train_number type, bool served, size_t n, const void *from,
                             float *x) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    float value = type == TRAIN_F32 ? ((const float *)from)[i]
                  : type == TRAIN_F16
                      ? __half2float(((const __half *)from)[i])
                      : __uint_as_float((uint32_t)((const uint16_t *)from)[i] << 16);
    x[i] = served ? __half2float(__float2half_rn(value)) : value;
}

void cuda_train_widen(struct train *t, enum train_number type, bool served, size_t n,
                      const void *from, float *x) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !n)
        return;
    widen_kernel<<<blocks_of(n, THREADS), THREADS, 0, c->stream>>>(type, served, n, from, x);
    cuda_train_launched(c, "widen");
}

void cuda_train_store(struct train *t, const float *x, struct train_weights *w) {
    struct cuda_train *c = cuda_train_of(t);
    size_t n = (size_t)w->n * (size_t)w->k;
    if (c->error || !n)
        return;
    store_kernel<<<blocks_of(n, THREADS), THREADS, 0, c->stream>>>(x, n, (__half *)w->w);
    cuda_train_launched(c, "store");
}

void cuda_train_load(struct train *t, const struct train_weights *w, float *x) {
    struct cuda_train *c = cuda_train_of(t);
    size_t n = (size_t)w->n * (size_t)w->k;
    if (c->error || !n)
        return;
    load_kernel<<<blocks_of(n, THREADS), THREADS, 0, c->stream>>>((const __half *)w->w, n, x);
    cuda_train_launched(c, "load");
}

struct merge_plane {
    const float *row, *col; /* logarithms; col NULL: all ones */
    bool one_row;
    const __half *x;
};
struct merge_args {
    int32_t n, n_delta, k, n_planes, rank; /* rows; rows that the delta covers */
    float sign;                            /* of what is added */
    struct merge_plane plane[MERGE_PLANES];
    const float *a, *b;
    const __half *base; /* NULL: add to d */
    __half *out;
    float *d;
};

/* sum += planes of these rows and columns; all threads call. */
template <int VEC>
static __device__ __forceinline__ void add_planes(const struct merge_args &m, int32_t n0, int32_t k,
                                                  float (&sum)[MERGE_ROWS][VEC]) {
    __shared__ float row[MERGE_PLANES][MERGE_ROWS];
    for (int32_t i = (int32_t)threadIdx.x; i < m.n_planes * MERGE_ROWS; i += THREADS) {
        int32_t p = i / MERGE_ROWS, n = n0 + i % MERGE_ROWS;
        row[p][i % MERGE_ROWS] =
            n < m.n_delta ? m.sign * expf(m.plane[p].row[m.plane[p].one_row ? 0 : n]) : 0;
    }
    __syncthreads();
    for (int32_t p = 0; k < m.k && p < m.n_planes; p++) {
        uint16_t x[MERGE_ROWS][VEC];
        float col[VEC];
#pragma unroll
        for (int r = 0; r < MERGE_ROWS; r++)
            if (n0 + r < m.n_delta)
                load(x[r], m.plane[p].x, (size_t)(n0 + r) * (size_t)m.k + (size_t)k);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            col[i] = m.plane[p].col ? expf(m.plane[p].col[k + i]) : 1.0f;
#pragma unroll
        for (int r = 0; r < MERGE_ROWS; r++)
            if (n0 + r < m.n_delta)
#pragma unroll
                for (int i = 0; i < VEC; i++)
                    sum[r][i] += (sign_is_minus(x[r][i]) ? -row[p][r] : row[p][r]) * col[i];
    }
}

/* sum += b a of these rows and columns; all threads call. */
template <int VEC>
static __device__ __forceinline__ void add_pair(const struct merge_args &m, int32_t n0, int32_t k,
                                                float (&sum)[MERGE_ROWS][VEC]) {
    __shared__ float b[MERGE_ROWS][RANKS];
    for (int32_t from = 0; from < m.rank; from += RANKS) {
        int32_t ranks = m.rank - from < RANKS ? m.rank - from : RANKS;
        __syncthreads();
        for (int32_t i = (int32_t)threadIdx.x; i < MERGE_ROWS * RANKS; i += THREADS) {
            int32_t r = i / RANKS, j = i % RANKS;
            bool is = n0 + r < m.n_delta && j < ranks;
            b[r][j] = is ? m.sign * m.b[(size_t)(n0 + r) * (size_t)m.rank + (size_t)(from + j)] : 0;
        }
        __syncthreads();
        for (int32_t j = 0; k < m.k && j < ranks; j++) {
            float a[VEC];
            load(a, m.a + (size_t)(from + j) * (size_t)m.k + (size_t)k);
#pragma unroll
            for (int r = 0; r < MERGE_ROWS; r++)
#pragma unroll
                for (int i = 0; i < VEC; i++)
                    sum[r][i] += b[r][j] * a[i];
        }
    }
}

template <int VEC> __global__ void __launch_bounds__(THREADS) merge_kernel(struct merge_args m) {
    int32_t n0 = (int32_t)blockIdx.y * MERGE_ROWS;
    int32_t k = ((int32_t)blockIdx.x * THREADS + (int32_t)threadIdx.x) * VEC;
    float sum[MERGE_ROWS][VEC] = {};
    if (k < m.k) {
#pragma unroll
        for (int r = 0; r < MERGE_ROWS; r++) {
            size_t at = (size_t)(n0 + r) * (size_t)m.k + (size_t)k;
            uint16_t w[VEC];
            if (n0 + r < m.n && m.base) {
                load(w, m.base, at);
#pragma unroll
                for (int i = 0; i < VEC; i++)
                    sum[r][i] = from_half(w[i]);
            } else if (n0 + r < m.n) {
                load(sum[r], m.d + at);
            }
        }
    }
    add_planes(m, n0, k, sum);
    add_pair(m, n0, k, sum);
    if (k >= m.k)
        return;
#pragma unroll
    for (int r = 0; r < MERGE_ROWS; r++) {
        size_t at = (size_t)(n0 + r) * (size_t)m.k + (size_t)k;
        if (n0 + r < m.n && m.base) {
            uint16_t w[VEC];
#pragma unroll
            for (int i = 0; i < VEC; i++)
                w[i] = to_half(sum[r][i]);
            save(m.out, at, w);
        } else if (n0 + r < m.n) {
            save(m.d + at, sum[r]);
        }
    }
}

static void add_delta(struct cuda_train *c, const struct train_delta *d, struct merge_args m) {
    if (c->error || !m.n)
        return;
    if (d->n_planes > MERGE_PLANES) {
        cuda_train_fail(c, E_UNSUPPORTED, "the CUDA backend fits at most 8 planes to a matrix");
        return;
    }
    m.n_delta = d->n, m.k = d->k, m.n_planes = d->n_planes, m.rank = d->rank;
    m.a = d->a, m.b = d->b;
    for (int32_t i = 0; i < d->n_planes; i++) {
        const struct train_plane *p = &d->plane[i];
        m.plane[i] = {p->row.x, p->col.n ? p->col.x : NULL, p->row.n == 1,
                      ((const struct signs *)p->signs)->x};
    }
    unsigned down = blocks_of((size_t)m.n, MERGE_ROWS);
    if (m.k % 4 == 0 && ((uintptr_t)m.d | (uintptr_t)m.a) % 16 == 0)
        merge_kernel<4>
            <<<dim3(blocks_of((size_t)m.k, 4 * THREADS), down), THREADS, 0, c->stream>>>(m);
    else
        merge_kernel<1><<<dim3(blocks_of((size_t)m.k, THREADS), down), THREADS, 0, c->stream>>>(m);
    cuda_train_launched(c, "merge");
}

void cuda_train_merge(struct train *t, const struct train_weights *base,
                      const struct train_delta *d, struct train_weights *out) {
    struct merge_args m = {};
    m.n = base->n, m.sign = 1;
    m.base = (const __half *)base->w;
    m.out = (__half *)out->w;
    add_delta(cuda_train_of(t), d, m);
}

void cuda_train_unmerge(struct train *t, const struct train_delta *x, float sign, float *d) {
    struct merge_args m = {};
    m.n = x->n, m.sign = sign;
    m.d = d;
    add_delta(cuda_train_of(t), x, m);
}
