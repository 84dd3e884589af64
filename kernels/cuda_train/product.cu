/* Dense products by cuBLAS. FP32 operands go to the tensor cores as FP16 times a power of two that
 * brings their largest magnitude to [2^14, 2^15): numbers down to 2^-29 of the largest keep all
 * their bits, gradients however small do not vanish. The sum is FP32 and the scales are undone by
 * alpha, which never leaves the device. Weights are taken as they are. Of operands that are held a
 * copy is made when first asked for. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

enum { CHUNK = THREADS * 4, MAX_SCALE = 60, MAX_BLOCKS = 1024 };

/* Four numbers side by side; wide: they are aligned. */
static __device__ __forceinline__ void load4(float (&v)[4], const float *x, bool wide) {
    if (wide)
        load(v, x);
    else
        v[0] = x[0], v[1] = x[1], v[2] = x[2], v[3] = x[3];
}

/* *bits = largest |x|, which as an unsigned number is in the order of its bits. */
__global__ void largest_kernel(const float *x, size_t n, uint32_t *bits) {
    float most = 0;
    size_t step = (size_t)gridDim.x * CHUNK, at = (size_t)blockIdx.x * CHUNK + threadIdx.x * 4;
#pragma unroll 4
    for (; at + 4 <= n; at += step) {
        float v[4];
        load4(v, x + at, (uintptr_t)x % 16 == 0);
#pragma unroll
        for (int i = 0; i < 4; i++)
            most = fmaxf(most, fabsf(v[i]));
    }
    for (; at < n; at++)
        most = fmaxf(most, fabsf(x[at]));
    struct top top = block_top({most, 0});
    if (threadIdx.x == 0)
        atomicMax(bits, __float_as_uint(top.value));
}

/* to [n] = x * 2^s, *inverse = 2^-s; *next = 0 for the next search. */
__global__ void narrow_kernel(const float *x, size_t n, const uint32_t *bits, uint32_t *next,
                              __half *to, float *inverse) {
    int e = *bits ? 14 - ((int)(*bits >> 23) - 127) : 0;
    e = e > MAX_SCALE ? MAX_SCALE : e < -MAX_SCALE ? -MAX_SCALE : e;
    float scale = __uint_as_float((uint32_t)(127 + e) << 23);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        *inverse = __uint_as_float((uint32_t)(127 - e) << 23);
        *next = 0;
    }
    size_t step = (size_t)gridDim.x * CHUNK, at = (size_t)blockIdx.x * CHUNK + threadIdx.x * 4;
#pragma unroll 4
    for (; at + 4 <= n; at += step) {
        float v[4];
        uint16_t h[4];
        load4(v, x + at, (uintptr_t)x % 16 == 0);
#pragma unroll
        for (int i = 0; i < 4; i++)
            h[i] = to_half(v[i] * scale);
        save(to, at, h);
    }
    for (; at < n; at++)
        to[at] = __float2half_rn(x[at] * scale);
}

__global__ void alpha_kernel(const float *a, const float *b, float *alpha) {
    *alpha = *a * *b;
}

/* An operand in FP16, and 1 / its scale (device). */
struct narrowed {
    const __half *x; /* NULL: an error */
    const float *inverse;
};

static struct narrowed narrow_to(struct cuda_train *c, enum scratch which, float *inverse,
                                 const float *x, size_t n) {
    __half *to = (__half *)cuda_train_scratch(c, which, (n + 7) * sizeof *to);
    if (!to)
        return {NULL, NULL};
    uint32_t *bits = &c->scales->largest[c->search], *next = &c->scales->largest[1 - c->search];
    unsigned blocks = blocks_of(n, CHUNK), parts = blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS;
    largest_kernel<<<parts, THREADS, 0, c->stream>>>(x, n, bits);
    narrow_kernel<<<parts, THREADS, 0, c->stream>>>(x, n, bits, next, to, inverse);
    c->search = 1 - c->search;
    cuda_train_launched(c, "a product's operand");
    return {to, inverse};
}

/* The FP16 copy of x [n]: that which is held, or one in scratch. */
static struct narrowed narrow(struct cuda_train *c, enum scratch which, const float *x, size_t n) {
    struct product_scales *s = c->scales;
    for (int32_t i = 0; i < HELD; i++) {
        struct held *h = &c->held[i];
        enum scratch place = (enum scratch)(SCRATCH_HELD + i);
        if (h->x != x || h->n != n)
            continue;
        struct narrowed r = {(const __half *)c->scratch[place], &s->held[i]};
        if (!h->is_made)
            r = narrow_to(c, place, &s->held[i], x, n);
        h->is_made = r.x != NULL;
        return r;
    }
    return narrow_to(c, which, which == SCRATCH_LEFT ? &s->left : &s->right, x, n);
}

void cuda_train_hold(struct train *t, int32_t place, const float *x, size_t n) {
    cuda_train_of(t)->held[place] = {x, n, false};
}

/* cuBLAS sees every row-major matrix transposed: C' = B' A'. */
static void multiply(struct cuda_train *c, cublasOperation_t op_b, cublasOperation_t op_a,
                     int32_t n, int32_t m, int32_t k, const __half *b, int32_t ldb, const __half *a,
                     int32_t lda, const float *alpha, float *out, bool add) {
    const float *beta = add ? &c->scales->one : &c->scales->zero;
    cuda_train_note_blas(c,
                         cublasGemmEx(c->blas, op_b, op_a, n, m, k, alpha, b, CUDA_R_16F, ldb, a,
                                      CUDA_R_16F, lda, beta, out, CUDA_R_32F, n, CUBLAS_COMPUTE_32F,
                                      CUBLAS_GEMM_DEFAULT),
                         "a product");
}

void cuda_train_product(struct train *t, int32_t rows, const float *x,
                        const struct train_weights *w, float *y, bool add) {
    struct cuda_train *c = cuda_train_of(t);
    struct narrowed a = narrow(c, SCRATCH_LEFT, x, (size_t)rows * (size_t)w->k);
    if (a.x)
        multiply(c, CUBLAS_OP_T, CUBLAS_OP_N, w->n, rows, w->k, (const __half *)w->w, w->k, a.x,
                 w->k, a.inverse, y, add);
}

void cuda_train_product_dx(struct train *t, int32_t rows, const float *dy,
                           const struct train_weights *w, float *dx, bool add) {
    struct cuda_train *c = cuda_train_of(t);
    struct narrowed a = narrow(c, SCRATCH_LEFT, dy, (size_t)rows * (size_t)w->n);
    if (a.x)
        multiply(c, CUBLAS_OP_N, CUBLAS_OP_N, w->k, rows, w->n, (const __half *)w->w, w->k, a.x,
                 w->n, a.inverse, dx, add);
}

void cuda_train_product_dw(struct train *t, int32_t rows, const float *dy, int32_t n,
                           const float *x, int32_t k, float *dw) {
    struct cuda_train *c = cuda_train_of(t);
    struct narrowed a = narrow(c, SCRATCH_LEFT, dy, (size_t)rows * (size_t)n), b = {NULL, NULL};
    if (a.x)
        b = narrow(c, SCRATCH_RIGHT, x, (size_t)rows * (size_t)k);
    if (!b.x)
        return;
    alpha_kernel<<<1, 1, 0, c->stream>>>(a.inverse, b.inverse, &c->scales->alpha);
    cuda_train_launched(c, "a product's scale");
    multiply(c, CUBLAS_OP_N, CUBLAS_OP_T, k, n, rows, b.x, k, a.x, n, &c->scales->alpha, dw, false);
}

/* An operand of `rows` x `cols` as cuBLAS has it, by whichever of its strides is 1. A stride along
 * a side of length 1 means nothing. */
static cublasOperation_t stance(struct train_mat x, int32_t rows, int32_t cols, int *ld) {
    bool plain = x.col == 1 || cols == 1;
    if (plain && rows > 1 && cols > 1 && x.row < (size_t)cols)
        plain = false;
    size_t stride = plain ? x.row : x.col, least = (size_t)(plain ? cols : rows);
    *ld = (int)(stride > least ? stride : least);
    return plain ? CUBLAS_OP_N : CUBLAS_OP_T;
}

void cuda_train_gemm(struct train *t, int32_t m, int32_t n, int32_t k, struct train_mat a,
                     struct train_mat b, float *out, size_t ldc, bool add) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->error)
        return;
    int lda, ldb;
    cublasOperation_t op_a = stance(a, m, k, &lda), op_b = stance(b, k, n, &ldb);
    const float *beta = add ? &c->scales->one : &c->scales->zero;
    cuda_train_note_blas(c,
                         cublasSgemm(c->blas, op_b, op_a, n, m, k, &c->scales->one, b.p, ldb, a.p,
                                     lda, beta, out, (int)ldc),
                         "gemm");
}
