/* Dense products by cuBLAS. FP32 operands go to the tensor cores as FP16 times a power of two that
 * brings their largest magnitude to [2^14, 2^15): numbers down to 2^-29 of the largest keep all
 * their bits, gradients however small do not vanish. The sum is FP32 and the scales are undone by
 * alpha, which never leaves the device. Weights are taken as they are. */
#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

enum { CHUNK = THREADS * 4, MAX_SCALE = 60, MAX_BLOCKS = 2048 };

/* Four numbers side by side; wide: they are aligned. */
static __device__ __forceinline__ void load4(float (&v)[4], const float *x, bool wide) {
    if (wide)
        load(v, x);
    else
        v[0] = x[0], v[1] = x[1], v[2] = x[2], v[3] = x[3];
}

/* part [gridDim.x] = largest |x| of each block's share. */
__global__ void largest_kernel(const float *x, size_t n, float *part) {
    float most = 0;
    size_t step = (size_t)gridDim.x * CHUNK, at = (size_t)blockIdx.x * CHUNK + threadIdx.x * 4;
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
        part[blockIdx.x] = top.value;
}

/* to [n] = x * 2^s. inverse = 2^-s (times *other unless NULL). */
__global__ void narrow_kernel(const float *x, size_t n, const float *part, int32_t n_parts,
                              __half *to, float *inverse, const float *other) {
    struct top most = block_top(part, n_parts);
    int e = most.value > 0 ? 14 - ((int)(__float_as_uint(most.value) >> 23) - 127) : 0;
    e = e > MAX_SCALE ? MAX_SCALE : e < -MAX_SCALE ? -MAX_SCALE : e;
    float scale = __uint_as_float((uint32_t)(127 + e) << 23);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *inverse = __uint_as_float((uint32_t)(127 - e) << 23) * (other ? *other : 1.0f);
    size_t step = (size_t)gridDim.x * CHUNK, at = (size_t)blockIdx.x * CHUNK + threadIdx.x * 4;
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

/* The FP16 copy of x [n] in scratch. other: what *inverse is to contain besides. */
static const __half *narrow(struct cuda_train *c, enum scratch which, const float *x, size_t n,
                            float *inverse, const float *other) {
    __half *to = (__half *)cuda_train_scratch(c, which, (n + 7) * sizeof *to);
    if (!to)
        return NULL;
    float *part = which == SCRATCH_LEFT ? c->scales->left : c->scales->right;
    unsigned blocks = blocks_of(n, CHUNK), parts = blocks < LARGEST_PARTS ? blocks : LARGEST_PARTS,
             wide = blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS;
    largest_kernel<<<parts, THREADS, 0, c->stream>>>(x, n, part);
    narrow_kernel<<<wide, THREADS, 0, c->stream>>>(x, n, part, (int32_t)parts, to, inverse, other);
    cuda_train_launched(c, "a product's operand");
    return to;
}

/* cuBLAS sees every row-major matrix transposed: C' = B' A'. */
static void multiply(struct cuda_train *c, cublasOperation_t op_b, cublasOperation_t op_a,
                     int32_t n, int32_t m, int32_t k, const __half *b, int32_t ldb, const __half *a,
                     int32_t lda, float *out, bool add) {
    const float *beta = add ? &c->scales->one : &c->scales->zero;
    cuda_train_note_blas(c,
                         cublasGemmEx(c->blas, op_b, op_a, n, m, k, &c->scales->alpha, b,
                                      CUDA_R_16F, ldb, a, CUDA_R_16F, lda, beta, out, CUDA_R_32F, n,
                                      CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                         "a product");
}

void cuda_train_product(struct train *t, int32_t rows, const float *x,
                        const struct train_weights *w, float *y, bool add) {
    struct cuda_train *c = cuda_train_of(t);
    const __half *a =
        narrow(c, SCRATCH_LEFT, x, (size_t)rows * (size_t)w->k, &c->scales->alpha, NULL);
    if (a)
        multiply(c, CUBLAS_OP_T, CUBLAS_OP_N, w->n, rows, w->k, (const __half *)w->w, w->k, a, w->k,
                 y, add);
}

void cuda_train_product_dx(struct train *t, int32_t rows, const float *dy,
                           const struct train_weights *w, float *dx, bool add) {
    struct cuda_train *c = cuda_train_of(t);
    const __half *a =
        narrow(c, SCRATCH_LEFT, dy, (size_t)rows * (size_t)w->n, &c->scales->alpha, NULL);
    if (a)
        multiply(c, CUBLAS_OP_N, CUBLAS_OP_N, w->k, rows, w->n, (const __half *)w->w, w->k, a, w->n,
                 dx, add);
}

void cuda_train_product_dw(struct train *t, int32_t rows, const float *dy, int32_t n,
                           const float *x, int32_t k, float *dw) {
    struct cuda_train *c = cuda_train_of(t);
    struct product_scales *s = c->scales;
    const __half *a = narrow(c, SCRATCH_LEFT, dy, (size_t)rows * (size_t)n, &s->left_inverse, NULL);
    const __half *b =
        a ? narrow(c, SCRATCH_RIGHT, x, (size_t)rows * (size_t)k, &s->alpha, &s->left_inverse)
          : NULL;
    if (b)
        multiply(c, CUBLAS_OP_N, CUBLAS_OP_T, k, n, rows, b, k, a, n, dw, false);
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
