/* Opening and closing the CUDA backend of fitting, its table of operators, and how it keeps its
 * first error. It takes the first device, a stream and a cuBLAS handle with a workspace of its own,
 * so that sums run in one order; device memory is the caller's by take(). */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "kernels/cuda/card.h"
#include "kernels/cuda_train/cuda_train.h"

static const size_t BLAS_WORKSPACE_BYTES = (size_t)64 << 20;

void cuda_train_fail(struct cuda_train *c, err_t e, const char *format, ...) {
    if (c->error)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(c->why.text, sizeof c->why.text, format, args);
    va_end(args);
    c->error = e;
}

void cuda_train_note(struct cuda_train *c, cudaError_t e, const char *what) {
    if (e != cudaSuccess && !c->error)
        c->error = why_set(&c->why, e == cudaErrorMemoryAllocation ? E_NOMEM : E_DEVICE,
                           "the CUDA device failed in %s: %s", what, cudaGetErrorString(e));
}

void cuda_train_note_blas(struct cuda_train *c, cublasStatus_t s, const char *what) {
    if (s != CUBLAS_STATUS_SUCCESS && !c->error)
        c->error = why_set(&c->why, s == CUBLAS_STATUS_ALLOC_FAILED ? E_NOMEM : E_DEVICE,
                           "cuBLAS failed in %s: %s", what, cublasGetStatusString(s));
}

static const char *cuda_train_describe(const struct train *t) {
    return cuda_train_of((struct train *)t)->description;
}

static void cuda_train_close(struct train *t) {
    struct cuda_train *c = cuda_train_of(t);
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    cuda_train_windows_close(c);
    if (c->blas)
        cublasDestroy(c->blas);
    cudaFree(c->blas_workspace);
    cudaFree(c->scales);
    for (int i = 0; i < N_SCRATCH; i++)
        cudaFree(c->scratch[i]);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    free(c->block);
    delete c;
}

static const struct train_ops *ops(void) {
    static struct train_ops o;
    o.name = "cuda";
    o.weight_bytes = sizeof(__half);
    o.close = cuda_train_close;
    o.describe = cuda_train_describe;
    o.take = cuda_train_take;
    o.give = cuda_train_give;
    o.put = cuda_train_put;
    o.get = cuda_train_get;
    o.copy = cuda_train_copy;
    o.zero = cuda_train_zero;
    o.memory_free = cuda_train_memory_free;
    o.memory_most = cuda_train_memory_most;
    o.settle = cuda_train_settle;
    o.widen = cuda_train_widen;
    o.store = cuda_train_store;
    o.load = cuda_train_load;
    o.merge = cuda_train_merge;
    o.unmerge = cuda_train_unmerge;
    o.hold = cuda_train_hold;
    o.product = cuda_train_product;
    o.product_dx = cuda_train_product_dx;
    o.product_dw = cuda_train_product_dw;
    o.gemm = cuda_train_gemm;
    o.embed = cuda_train_embed;
    o.embed_back = cuda_train_embed_back;
    o.norm = cuda_train_norm;
    o.norm_back = cuda_train_norm_back;
    o.rope = cuda_train_rope;
    o.swiglu = cuda_train_swiglu;
    o.swiglu_back = cuda_train_swiglu_back;
    o.attention = cuda_train_attention;
    o.attention_back = cuda_train_attention_back;
    o.axpy = cuda_train_axpy;
    o.decode_attention = cuda_train_decode_attention;
    o.draw = cuda_train_draw;
    o.distil = cuda_train_distil;
    o.adam = cuda_train_adam;
    o.signs_make = cuda_train_signs_make;
    o.signs_free = cuda_train_signs_free;
    o.signs_set = cuda_train_signs_set;
    o.plane_back = cuda_train_plane_back;
    o.signs_bytes = cuda_train_signs_bytes;
    o.signs_save = cuda_train_signs_save;
    o.signs_load = cuda_train_signs_load;
    o.signs_get = cuda_train_signs_get;
    o.scales_fit = cuda_train_scales_fit;
    o.factor = cuda_train_factor;
    o.feedback = cuda_train_feedback;
    o.row_dots = cuda_train_row_dots;
    o.row_zeros = cuda_train_row_zeros;
    o.times = cuda_train_times;
    return &o;
}

static err_t find_device(struct cuda_train *c, struct why *why) {
    cudaDeviceProp p;
    err_t e = card_open(&p, c->description, sizeof c->description, why);
    if (e)
        return e;
    if (cuda_train_attention_setup(&c->max_head) != cudaSuccess)
        return why_set(why, E_UNSUPPORTED,
                       "the CUDA backend of fitting was not built for compute capability %d.%d, "
                       "which %s has; CUDA_ARCH says for which it is built",
                       p.major, p.minor, p.name);
    return E_OK;
}

static err_t open_blas(struct cuda_train *c, struct why *why) {
    cublasStatus_t s = cublasCreate(&c->blas);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasSetStream(c->blas, c->stream); /* before the workspace, which it takes away */
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasSetWorkspace(c->blas, c->blas_workspace, BLAS_WORKSPACE_BYTES);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasSetPointerMode(c->blas, CUBLAS_POINTER_MODE_DEVICE);
    return s == CUBLAS_STATUS_SUCCESS
               ? E_OK
               : why_set(why, E_DEVICE, "cuBLAS does not start: %s", cublasGetStatusString(s));
}

static err_t open_parts(struct cuda_train *c, struct why *why) {
    struct product_scales first = {};
    first.one = 1;
    cudaError_t e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        e = cudaMalloc(&c->blas_workspace, BLAS_WORKSPACE_BYTES);
    if (e == cudaSuccess)
        e = cudaMalloc((void **)&c->scales, sizeof *c->scales);
    if (e == cudaSuccess)
        e = cudaMemcpy(c->scales, &first, sizeof first, cudaMemcpyHostToDevice);
    if (e != cudaSuccess)
        return why_set(why, e == cudaErrorMemoryAllocation ? E_NOMEM : E_DEVICE,
                       "the CUDA device does not answer: %s", cudaGetErrorString(e));
    if (cuda_train_windows_open(c))
        return why_set(why, E_NOMEM, "there is no pinned memory for the way to the CUDA device");
    return open_blas(c, why);
}

extern "C" err_t train_cuda_open(struct train **out, struct why *why) {
    struct cuda_train *c = new (std::nothrow) struct cuda_train();
    if (!c)
        return why_set(why, E_NOMEM, "no memory for the CUDA backend");
    c->base.ops = ops();
    err_t e = find_device(c, why);
    if (!e)
        e = open_parts(c, why);
    if (e) {
        cuda_train_close(&c->base);
        return e;
    }
    *out = &c->base;
    return E_OK;
}
