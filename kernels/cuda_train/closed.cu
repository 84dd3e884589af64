/* The small operators of the closed form (kernels/train.h): a block's Cholesky factor, error
 * feedback inside a block of columns, sums and products element by element. What grows with the
 * cube of a matrix's side are products by cuBLAS around them, so these are plain. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

enum {
    SIDE = FACTOR_ROWS,
    PAD = SIDE + 1, /* of a row in shared memory, so that columns lie in different banks */
    WARP = 32,
    MOST_PLANES = 8 /* MAX_PLANES of kernels.h */
};

/* One block of SIDE threads: thread i owns row i of the factor, then column i of the inverse. Sums
 * in double: a moment matrix is nearly singular, and a block is 64 KFLOP. */
static __global__ void factor_kernel(int32_t n, float *a, size_t ld, float damp, float *inverse) {
    __shared__ float l[SIDE][PAD], inv[SIDE][PAD];
    int32_t i = (int32_t)threadIdx.x;
    for (int32_t r = 0; r < n; r++)
        if (i <= r)
            l[r][i] = a[(size_t)r * ld + i] + (i == r ? damp : 0.0f);
    __syncthreads();
    for (int32_t j = 0; j < n; j++) {
        double sum = 0;
        if (i >= j && i < n) {
            sum = l[i][j];
            for (int32_t m = 0; m < j; m++)
                sum -= (double)l[i][m] * l[j][m];
        }
        if (i == j)
            l[j][j] = (float)sqrt(sum > 0 ? sum : (double)damp);
        __syncthreads();
        if (i > j && i < n)
            l[i][j] = (float)(sum / l[j][j]);
        __syncthreads();
    }
    if (i < n) /* each its own column: nothing to wait for */
        for (int32_t r = 0; r < n; r++) {
            double sum = r == i ? 1 : 0;
            for (int32_t m = i; m < r; m++)
                sum -= (double)l[r][m] * inv[m][i];
            inv[r][i] = r < i ? 0.0f : (float)(sum / l[r][r]);
        }
    __syncthreads();
    for (int32_t r = 0; r < n; r++)
        if (i < n) {
            inverse[r * n + i] = inv[r][i];
            if (i <= r)
                a[(size_t)r * ld + i] = l[r][i];
        }
}

struct feedback_args {
    int32_t n, k, n_planes, first, width;
    const float *l, *pushed;                          /* [k, k], [n, k] */
    float *d;                                         /* [n, k] */
    const float *row[MOST_PLANES], *col[MOST_PLANES]; /* logarithms; col NULL: ones */
    bool one_row[MOST_PLANES];
    float *value[MOST_PLANES]; /* [n, k] */
};

/* A warp takes WARP rows, a lane each, through the block's columns from the last to the first.
 * Tiles of d and pushed pass through shared memory so that rows are read side by side. */
static __global__ void __launch_bounds__(WARP) feedback_kernel(feedback_args g) {
    __shared__ float l[SIDE][PAD]; /* [column j][row i] over l_jj; l[j][j] = 1 / l_jj */
    __shared__ float d[WARP][PAD], pushed[WARP][PAD], col[MOST_PLANES][SIDE];
    int32_t lane = (int32_t)threadIdx.x, row0 = (int32_t)blockIdx.x * WARP, n = row0 + lane;
    size_t k = (size_t)g.k;
    for (int32_t i = 0; i < g.width; i++)
        for (int32_t j = lane; j <= i; j += WARP)
            l[j][i] = g.l[(size_t)(g.first + i) * k + g.first + j];
    for (int32_t r = 0; r < WARP && row0 + r < g.n; r++)
        for (int32_t j = lane; j < g.width; j += WARP) {
            size_t at = (size_t)(row0 + r) * k + g.first + j;
            d[r][j] = g.d[at], pushed[r][j] = g.pushed[at];
        }
    for (int32_t p = 0; p < g.n_planes; p++)
        for (int32_t j = lane; j < g.width; j += WARP)
            col[p][j] = g.col[p] ? expf(g.col[p][g.first + j]) : 1.0f;
    __syncwarp();
    for (int32_t j = lane; j < g.width; j += WARP) {
        float inverse = 1 / l[j][j];
        for (int32_t i = j + 1; i < g.width; i++)
            l[j][i] *= inverse;
        l[j][j] = inverse;
    }
    __syncwarp();
    if (n < g.n) {
        float row[MOST_PLANES];
#pragma unroll
        for (int32_t p = 0; p < MOST_PLANES; p++)
            row[p] = p < g.n_planes ? expf(g.row[p][g.one_row[p] ? 0 : n]) : 0.0f;
        for (int32_t j = g.width - 1; j >= 0; j--) {
            float u = d[lane][j] + pushed[lane][j] * l[j][j], stored = 0;
            for (int32_t i = j + 1; i < g.width; i++)
                u += d[lane][i] * l[j][i];
#pragma unroll
            for (int32_t p = 0; p < MOST_PLANES; p++)
                if (p < g.n_planes) {
                    float size = row[p] * col[p][j], step = u >= 0 ? size : -size;
                    g.value[p][(size_t)n * k + g.first + j] = u;
                    u -= step, stored += step;
                }
            d[lane][j] -= stored;
        }
    }
    __syncwarp();
    for (int32_t r = 0; r < WARP && row0 + r < g.n; r++)
        for (int32_t j = lane; j < g.width; j += WARP)
            g.d[(size_t)(row0 + r) * k + g.first + j] = d[r][j];
}

static __global__ void row_dots_kernel(int32_t k, const float *a, const float *b, float *out) {
    const float *x = a + (size_t)blockIdx.x * k, *y = b + (size_t)blockIdx.x * k;
    double sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < k; i += THREADS)
        sum += (double)x[i] * y[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        out[blockIdx.x] = (float)sum;
}

static __global__ void row_zeros_kernel(int32_t k, const float *x, int32_t *out) {
    const float *row = x + (size_t)blockIdx.x * k;
    int32_t count = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < k; i += THREADS)
        count += row[i] == 0;
    count = block_sum(count);
    if (threadIdx.x == 0)
        out[blockIdx.x] = count;
}

static __global__ void times_kernel(size_t n, const float *y, float *x) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        x[i] *= y[i];
}

/* ---- launchers ------------------------------------------------------------------------------- */

void cuda_train_factor(struct train *t, int32_t n, float *a, size_t ld, float damp,
                       float *inverse) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error)
        return;
    factor_kernel<<<1, SIDE, 0, c->stream>>>(n, a, ld, damp, inverse);
    cuda_train_launched(c, "factor");
}

void cuda_train_feedback(struct train *t, const struct train_delta *x, int32_t first, int32_t width,
                         const float *l, const float *pushed, float *d, float *const *value) {
    struct cuda_train *c = cuda_train_of(t);
    feedback_args g = {x->n, x->k, x->n_planes, first, width, l, pushed, d};
    if (c->error)
        return;
    for (int32_t p = 0; p < x->n_planes; p++) {
        g.row[p] = x->plane[p].row.x, g.one_row[p] = x->plane[p].row.n == 1;
        g.col[p] = x->plane[p].col.n ? x->plane[p].col.x : NULL;
        g.value[p] = value[p];
    }
    feedback_kernel<<<blocks_of((size_t)x->n, WARP), WARP, 0, c->stream>>>(g);
    cuda_train_launched(c, "feedback");
}

void cuda_train_row_dots(struct train *t, int32_t n, int32_t k, const float *a, const float *b,
                         float *out) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error)
        return;
    row_dots_kernel<<<(unsigned)n, THREADS, 0, c->stream>>>(k, a, b, out);
    cuda_train_launched(c, "row_dots");
}

void cuda_train_row_zeros(struct train *t, int32_t n, int32_t k, const float *x, int32_t *out) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !n)
        return;
    row_zeros_kernel<<<(unsigned)n, THREADS, 0, c->stream>>>(k, x, out);
    cuda_train_launched(c, "row_zeros");
}

void cuda_train_times(struct train *t, size_t n, const float *y, float *x) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error)
        return;
    times_kernel<<<blocks_of(n, THREADS), THREADS, 0, c->stream>>>(n, y, x);
    cuda_train_launched(c, "times");
}
