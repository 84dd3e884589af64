/* Adam, and a step of a sign plane. With g the gradient of the weights, r = e^row, c = e^col, s the
 * signs:  d row_n = r_n sum_k g s c,  d col_k = c_k sum_n g s r,  and the hidden reals move against
 * h = g r c. One pass over g makes the sums of both, and of h^2; a second, which needs those, moves
 * the reals. Both are bound by memory. */
#include <cmath>

#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"
#include "kernels/cuda_train/signs.cuh"
#include "kernels/cuda_train/sums.cuh"

enum { MOVE_ROWS = 8 };

/* Adam's constants, corrections for its means' start at 0, and what decay leaves of a number. */
struct adam {
    float rate, fix1, fix2, beta2, least, keep;
};
#define LEAST_SQUARE 1e-24f

static struct adam adam_at(struct train_adam a) {
    return {a.rate,
            (float)(1 / (1 - pow((double)0.9f, a.t))),
            (float)(1 / (1 - pow((double)a.beta2, a.t))),
            a.beta2,
            a.least,
            1 - a.rate * a.decay};
}

__global__ void adam_kernel(size_t n, const float *grad, float *x, float *m, float *v,
                            struct adam a) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    float g = grad[i], mean = 0.9f * m[i] + (1 - 0.9f) * g,
          square = a.beta2 * v[i] + (1 - a.beta2) * g * g;
    m[i] = mean;
    v[i] = square;
    x[i] = a.keep * x[i] - a.rate * mean * a.fix1 / (sqrtf(square * a.fix2) + a.least);
}

void cuda_train_adam(struct train *t, struct train_vector *p, const float *grad,
                     struct train_adam a) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error || !p->n)
        return;
    adam_kernel<<<blocks_of(p->n, THREADS), THREADS, 0, c->stream>>>(p->n, grad, p->x, p->m, p->v,
                                                                     adam_at(a));
    cuda_train_launched(c, "adam");
}

struct finish_args {
    struct sums_args sums;
    int32_t n_strips, n_blocks, col_blocks; /* col_blocks: of this kernel; those after have rows */
    float *row_grad, *col_grad;             /* [n] (of one row: to be added up), [k] or NULL */
    float *row_mean, *col_mean;             /* of the optimiser; NULL: it rests */
};

__global__ void __launch_bounds__(32 * SUM_WARPS) finish_kernel(struct finish_args a) {
    const struct sums_args &s = a.sums;
    if ((int32_t)blockIdx.x < a.col_blocks) {
        int32_t first = (int32_t)blockIdx.x * 32, k = first + (int32_t)threadIdx.x;
        float2 sum = col_total(s.col_part, a.n_blocks, s.k, first);
        if (threadIdx.x >= 32 || k >= s.k)
            return;
        float scale = s.u ? expf(s.u[k]) : 1.0f;
        if (a.col_grad)
            a.col_grad[k] = sum.x * scale;
        if (a.col_mean)
            a.col_mean[k] =
                0.99f * a.col_mean[k] + (1 - 0.99f) * (sum.y * scale * scale / (float)s.n);
        return;
    }
    int32_t n = ((int32_t)blockIdx.x - a.col_blocks) * THREADS + (int32_t)threadIdx.x;
    if (n >= s.n)
        return;
    float2 sum = row_total(s.row_part, a.n_strips, s.n, n);
    float scale = expf(s.v[s.one_row ? 0 : n]);
    a.row_grad[n] = sum.x * scale;
    if (a.row_mean)
        a.row_mean[n] = 0.99f * a.row_mean[n] + (1 - 0.99f) * (sum.y * scale * scale / (float)s.k);
}

/* *sum = sum of x [n] / over; one block. */
__global__ void total_kernel(int32_t n, const float *x, float over, float *sum) {
    double part = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x)
        part += (double)x[i];
    part = block_sum(part);
    if (threadIdx.x == 0)
        *sum = (float)(part / (double)over);
}

struct move_args {
    int32_t n, k;
    const float *grad, *row, *col; /* col NULL: ones */
    bool one_row;
    struct signs s;
    struct adam bits;
};

/* A side's share of a step: its scale over the root of its mean square. */
static __device__ __forceinline__ float side_step(float scale, float square) {
    return square > LEAST_SQUARE ? scale / sqrtf(square) : 0;
}

template <int VEC> __global__ void __launch_bounds__(THREADS) move_kernel(struct move_args a) {
    int32_t k = ((int32_t)blockIdx.x * THREADS + (int32_t)threadIdx.x) * VEC;
    int32_t first = (int32_t)blockIdx.y * MOVE_ROWS;
    if (k >= a.k)
        return;
    float col[VEC], grad[MOVE_ROWS][VEC], rate = a.bits.rate * sqrtf(*a.s.mean / a.bits.fix2);
    uint16_t x[MOVE_ROWS][VEC];
#pragma unroll
    for (int r = 0; r < MOVE_ROWS; r++)
        if (first + r < a.n) {
            size_t at = (size_t)(first + r) * (size_t)a.k + (size_t)k;
            load(grad[r], a.grad + at);
            load(x[r], a.s.x, at);
        }
#pragma unroll
    for (int i = 0; i < VEC; i++)
        col[i] = side_step(a.col ? expf(a.col[k + i]) : 1.0f, a.s.col[k + i]);
#pragma unroll
    for (int r = 0; r < MOVE_ROWS; r++) {
        int32_t n = first + r;
        if (n >= a.n)
            return;
        float row = rate * side_step(expf(a.row[a.one_row ? 0 : n]), a.s.row[n]);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            x[r][i] = to_half(from_half(x[r][i]) - grad[r][i] * row * col[i]);
        save(a.s.x, (size_t)n * (size_t)a.k + (size_t)k, x[r]);
    }
}

static void move(struct cuda_train *c, const struct move_args &a) {
    unsigned down = blocks_of((size_t)a.n, MOVE_ROWS);
    if (a.k % 4 == 0 && (uintptr_t)a.grad % 16 == 0)
        move_kernel<4>
            <<<dim3(blocks_of((size_t)a.k, 4 * THREADS), down), THREADS, 0, c->stream>>>(a);
    else
        move_kernel<1><<<dim3(blocks_of((size_t)a.k, THREADS), down), THREADS, 0, c->stream>>>(a);
    cuda_train_launched(c, "plane_back");
}

void cuda_train_plane_back(struct train *t, struct train_plane *p, int32_t n, int32_t k,
                           const float *grad, struct train_adam bits, float *row_grad,
                           float *col_grad) {
    struct cuda_train *c = cuda_train_of(t);
    struct signs *s = (struct signs *)p->signs;
    bool one_row = p->row.n == 1 && n > 1, moves = bits.rate > 0;
    const float *col = p->col.n ? p->col.x : NULL;
    struct finish_args f = {};
    f.sums = {n, k, grad, s->x, col, p->row.x, true, one_row, NULL, NULL};
    if (!n || !sums_launch(c, &f.sums))
        return;
    f.n_strips = (int32_t)sum_strips(k), f.n_blocks = (int32_t)sum_blocks(n);
    f.col_blocks = (int32_t)blocks_of((size_t)k, 32);
    f.col_grad = col ? col_grad : NULL;
    f.row_grad = one_row
                     ? (float *)cuda_train_scratch(c, SCRATCH_VECTORS, (size_t)n * sizeof(float))
                     : row_grad;
    if (!f.row_grad)
        return;
    if (moves)
        f.row_mean = s->row, f.col_mean = s->col;
    finish_kernel<<<(unsigned)f.col_blocks + blocks_of((size_t)n, THREADS), THREADS, 0,
                    c->stream>>>(f);
    if (one_row)
        total_kernel<<<1, 1024, 0, c->stream>>>(n, f.row_grad, 1, row_grad);
    if (moves)
        total_kernel<<<1, 1024, 0, c->stream>>>(n, s->row, (float)n, s->mean);
    cuda_train_launched(c, "plane_back");
    if (moves)
        move(c, {n, k, grad, p->row.x, col, one_row, *s, adam_at(train_adam(bits.rate, bits.t))});
}
