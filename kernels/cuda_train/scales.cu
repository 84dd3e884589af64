/* Scales nearest to a matrix's magnitudes by alternating least squares: with weights w over columns
 *     r_n = sum_k w |d| c / sum_k w c^2,    c_k = sum_n |d| r / sum_n r^2.
 * Each half of a round is a pass over d. */
#include "kernels/cuda_train/reduce.cuh"
#include "kernels/cuda_train/sums.cuh"

enum { ONE_BLOCK = 1024 };

/* u = w c (u may be NULL), *norm = sum of w c^2, by one block; w NULL: ones. start: first c = 1. */
__global__ void weigh_kernel(int32_t n, bool start, float *c, const float *w, float *u,
                             float *norm) {
    double sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += ONE_BLOCK) {
        float scale = start ? 1 : c[i], weight = w ? w[i] : 1;
        if (start)
            c[i] = scale;
        if (u)
            u[i] = weight * scale;
        sum += (double)(weight * scale) * (double)scale;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *norm = (float)sum;
}

__global__ void row_scales_kernel(struct sums_args s, int32_t n_strips, const float *norm,
                                  float *row) {
    int32_t n = (int32_t)blockIdx.x * THREADS + (int32_t)threadIdx.x;
    if (n < s.n)
        row[n] = *norm > 0 ? row_total(s.row_part, n_strips, s.n, n).x / *norm : 0;
}
__global__ void __launch_bounds__(32 * SUM_WARPS)
    col_scales_kernel(struct sums_args s, int32_t n_blocks, const float *norm, float *col) {
    int32_t k = (int32_t)blockIdx.x * 32 + (int32_t)threadIdx.x;
    float2 sum = col_total(s.col_part, n_blocks, s.k, (int32_t)blockIdx.x * 32);
    if (threadIdx.x < 32 && k < s.k)
        col[k] = *norm > 0 ? sum.x / *norm : 0;
}

static __device__ __forceinline__ float log_scale(float x) {
    return x > 1e-13f ? logf(x) : -30.0f; /* 0 once it is stored */
}
__global__ void logs_kernel(int32_t n, const float *x, float *to) {
    int32_t i = (int32_t)blockIdx.x * THREADS + (int32_t)threadIdx.x;
    if (i < n)
        to[i] = log_scale(x[i]);
}
/* One scale for all rows: their mean; one block. */
__global__ void log_mean_kernel(int32_t n, const float *x, float *to) {
    double sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += ONE_BLOCK)
        sum += (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *to = log_scale((float)(sum / (double)n));
}

void cuda_train_scales_fit(struct train *t, int32_t n, int32_t k, const float *d,
                           const float *weight, int32_t rounds, struct train_plane *p) {
    struct cuda_train *c = cuda_train_of(t);
    float *row = (float *)cuda_train_scratch(c, SCRATCH_VECTORS,
                                             ((size_t)n + 2 * (size_t)k + 1) * sizeof(float));
    if (!row || !n || !k)
        return;
    float *col = row + n, *u = col + k, *norm = u + k;
    rounds = p->col.n ? rounds : 1;
    weigh_kernel<<<1, ONE_BLOCK, 0, c->stream>>>(k, true, col, weight, u, norm);
    for (int32_t round = 0; round < rounds; round++) {
        struct sums_args s = {n, k, d, NULL, u, NULL, false, false, NULL, NULL};
        if (!sums_launch(c, &s))
            return;
        row_scales_kernel<<<blocks_of((size_t)n, THREADS), THREADS, 0, c->stream>>>(
            s, (int32_t)sum_strips(k), norm, row);
        if (rounds == 1)
            break;
        weigh_kernel<<<1, ONE_BLOCK, 0, c->stream>>>(n, false, row, NULL, NULL, norm);
        s.v = row;
        if (!sums_launch(c, &s))
            return;
        col_scales_kernel<<<blocks_of((size_t)k, 32), THREADS, 0, c->stream>>>(
            s, (int32_t)sum_blocks(n), norm, col);
        weigh_kernel<<<1, ONE_BLOCK, 0, c->stream>>>(k, false, col, weight, u, norm);
    }
    if (p->row.n == 1 && n > 1)
        log_mean_kernel<<<1, ONE_BLOCK, 0, c->stream>>>(n, row, p->row.x);
    else
        logs_kernel<<<blocks_of((size_t)n, THREADS), THREADS, 0, c->stream>>>(n, row, p->row.x);
    if (p->col.n)
        logs_kernel<<<blocks_of((size_t)k, THREADS), THREADS, 0, c->stream>>>(k, col, p->col.x);
    cuda_train_launched(c, "scales_fit");
}
