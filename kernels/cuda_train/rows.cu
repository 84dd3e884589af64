/* Operators on rows: embedding, norm, rotation, SwiGLU. All are bound by memory. Sums that cross
 * rows have one owner per column, which takes them in a fixed order. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

/* Rows of embed_back are shared out by id % ID_GROUPS, so that an id has one owner. */
enum { ID_GROUPS = 64, COLUMN_GROUPS = 8 };

__global__ void embed_kernel(const int32_t *id, const __half *w, int32_t k, float *h) {
    size_t from = (size_t)id[blockIdx.x] * (size_t)k, to = (size_t)blockIdx.x * (size_t)k;
    for (int32_t i = (int32_t)threadIdx.x; i < k; i += THREADS)
        h[to + (size_t)i] = __half2float(w[from + (size_t)i]);
}

void cuda_train_embed(struct train *t, const struct train_batch *b, const struct train_weights *w,
                      float *h) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !b->n_rows)
        return;
    embed_kernel<<<(unsigned)b->n_rows, THREADS, 0, c->stream>>>(b->id, (const __half *)w->w, w->k,
                                                                 h);
    cuda_train_launched(c, "embed");
}

__global__ void embed_back_kernel(int32_t rows, const int32_t *id, const float *dh, int32_t k,
                                  float *dw) {
    int32_t i = (int32_t)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= k)
        return;
    for (int32_t r = 0; r < rows; r++)
        if (id[r] % ID_GROUPS == (int32_t)blockIdx.y)
            dw[(size_t)id[r] * (size_t)k + (size_t)i] += dh[(size_t)r * (size_t)k + (size_t)i];
}

void cuda_train_embed_back(struct train *t, const struct train_batch *b, const float *dh, int32_t n,
                           int32_t k, float *dw) {
    (void)n;
    struct cuda_train *c = cuda_train_of(t);
    if (c->error)
        return;
    embed_back_kernel<<<dim3(blocks_of((size_t)k, THREADS), ID_GROUPS), THREADS, 0, c->stream>>>(
        b->n_rows, b->id, dh, k, dw);
    cuda_train_launched(c, "embed_back");
}

__global__ void norm_kernel(int32_t dim, float eps, const float *x, const float *w, float *y,
                            float *inv) {
    size_t at = (size_t)blockIdx.x * (size_t)dim;
    float sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < dim; i += THREADS)
        sum += x[at + (size_t)i] * x[at + (size_t)i];
    float scale = 1.0f / sqrtf(block_sum(sum) / (float)dim + eps);
    if (threadIdx.x == 0)
        inv[blockIdx.x] = scale;
    for (int32_t i = (int32_t)threadIdx.x; i < dim; i += THREADS)
        y[at + (size_t)i] = x[at + (size_t)i] * scale * w[i];
}

void cuda_train_norm(struct train *t, int32_t rows, int32_t dim, float eps, const float *x,
                     const float *w, float *y, float *inv) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !rows)
        return;
    norm_kernel<<<(unsigned)rows, THREADS, 0, c->stream>>>(dim, eps, x, w, y, inv);
    cuda_train_launched(c, "norm");
}

/* y = x inv w, inv = (mean x^2 + eps)^-1/2:  dx = inv (dy w - x inv^2 mean(dy w x)) */
__global__ void norm_dx_kernel(int32_t dim, const float *x, const float *w, const float *inv,
                               const float *dy, float *dx) {
    size_t at = (size_t)blockIdx.x * (size_t)dim;
    float dot = 0, scale = inv[blockIdx.x];
    for (int32_t i = (int32_t)threadIdx.x; i < dim; i += THREADS)
        dot += dy[at + (size_t)i] * w[i] * x[at + (size_t)i];
    float shrink = block_sum(dot) * scale * scale * scale / (float)dim;
    for (int32_t i = (int32_t)threadIdx.x; i < dim; i += THREADS)
        dx[at + (size_t)i] += dy[at + (size_t)i] * w[i] * scale - x[at + (size_t)i] * shrink;
}

/* dw = sum over rows of dy x inv; a warp's lanes are columns, its number a share of the rows. */
__global__ void norm_dw_kernel(int32_t rows, int32_t dim, const float *x, const float *inv,
                               const float *dy, float *dw) {
    __shared__ float part[COLUMN_GROUPS][32];
    int32_t lane = (int32_t)(threadIdx.x % 32), group = (int32_t)(threadIdx.x / 32);
    int32_t i = (int32_t)blockIdx.x * 32 + lane;
    float sum = 0;
    for (int32_t r = group; i < dim && r < rows; r += COLUMN_GROUPS) {
        size_t at = (size_t)r * (size_t)dim + (size_t)i;
        sum += dy[at] * x[at] * inv[r];
    }
    part[group][lane] = sum;
    __syncthreads();
    if (group || i >= dim)
        return;
    for (int g = 1; g < COLUMN_GROUPS; g++)
        sum += part[g][lane];
    dw[i] = sum;
}

void cuda_train_norm_back(struct train *t, int32_t rows, int32_t dim, const float *x,
                          const float *w, const float *inv, const float *dy, float *dx, float *dw) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !rows)
        return;
    norm_dx_kernel<<<(unsigned)rows, THREADS, 0, c->stream>>>(dim, x, w, inv, dy, dx);
    norm_dw_kernel<<<blocks_of((size_t)dim, 32), 32 * COLUMN_GROUPS, 0, c->stream>>>(rows, dim, x,
                                                                                     inv, dy, dw);
    cuda_train_launched(c, "norm_back");
}

/* A block has a row; its threads the pairs of all heads. */
__global__ void rope_kernel(const int32_t *position, const float *table, int32_t heads,
                            int32_t half, float sign, float *x) {
    const float *turn = table + (size_t)position[blockIdx.x] * (size_t)(2 * half);
    float *row = x + (size_t)blockIdx.x * (size_t)(2 * heads * half);
    for (int32_t p = (int32_t)threadIdx.x; p < heads * half; p += THREADS) {
        int32_t i = p % half, at = p / half * 2 * half + i;
        float cosine = turn[2 * i], sine = turn[2 * i + 1] * sign;
        float lo = row[at], hi = row[at + half];
        row[at] = lo * cosine - hi * sine;
        row[at + half] = hi * cosine + lo * sine;
    }
}

void cuda_train_rope(struct train *t, const struct train_batch *b, const float *table,
                     int32_t heads, int32_t head_dim, bool back, float *x) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !b->n_rows)
        return;
    rope_kernel<<<(unsigned)b->n_rows, THREADS, 0, c->stream>>>(
        b->position, table, heads, head_dim / 2, back ? -1.0f : 1.0f, x);
    cuda_train_launched(c, "rope");
}

__global__ void swiglu_kernel(size_t n, const float *gate, const float *up, float *act) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        act[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

__global__ void swiglu_back_kernel(size_t n, const float *gate, const float *up, const float *dact,
                                   float *dgate, float *dup) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    float g = gate[i], u = up[i], d = dact[i]; /* the gradients may lie where these do */
    float sig = 1.0f / (1.0f + expf(-g)), silu = g * sig;
    dup[i] = d * silu;
    dgate[i] = d * u * (sig + silu * (1.0f - sig));
}

__global__ void axpy_kernel(size_t n, float scale, const float *y, float *x) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        x[i] += scale * y[i];
}

void cuda_train_swiglu(struct train *t, size_t n, const float *gate, const float *up, float *act) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !n)
        return;
    swiglu_kernel<<<blocks_of(n, THREADS), THREADS, 0, c->stream>>>(n, gate, up, act);
    cuda_train_launched(c, "swiglu");
}

void cuda_train_swiglu_back(struct train *t, size_t n, const float *gate, const float *up,
                            const float *dact, float *dgate, float *dup) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !n)
        return;
    swiglu_back_kernel<<<blocks_of(n, THREADS), THREADS, 0, c->stream>>>(n, gate, up, dact, dgate,
                                                                         dup);
    cuda_train_launched(c, "swiglu_back");
}

void cuda_train_axpy(struct train *t, size_t n, float scale, const float *y, float *x) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !n)
        return;
    axpy_kernel<<<blocks_of(n, THREADS), THREADS, 0, c->stream>>>(n, scale, y, x);
    cuda_train_launched(c, "axpy");
}
