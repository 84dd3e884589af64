/* What the files of the CUDA backend of kernels/train.h share. All work goes to one stream in the
 * order of the calls; nothing waits but get, settle, distil and a full ring of windows. Operators
 * whose call failed keep the first error (cuda_train_note) and later ones do nothing.
 *
 * The table's operators stand in the file of their subject and are named cuda_train_<operator>; the
 * declarations at the end are in the table's order. Private to kernels/cuda_train. C++ only. */
#ifndef KERNELS_CUDA_TRAIN_H
#define KERNELS_CUDA_TRAIN_H

#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/train.h"

enum {
    WINDOWS = 16,
    PINNED_BYTES = 4 << 20,
    THREADS = 256 /* of a block, unless a kernel says otherwise */
};

/* Device memory that an operator uses while it runs; grows to what was ever asked for. */
enum scratch {
    SCRATCH_LEFT,    /* the FP16 copy of a product's first operand */
    SCRATCH_RIGHT,   /* and of its second */
    SCRATCH_PARTS,   /* partial sums of rows and columns */
    SCRATCH_VECTORS, /* vectors as long as a matrix's sides */
    SCRATCH_ROWS,    /* a few numbers for each row of a batch */
    SCRATCH_HELD,    /* HELD of them: FP16 copies of what is held */
    SCRATCH_HELD_END = SCRATCH_HELD + HELD - 1,
    N_SCRATCH
};

/* A piece of pinned memory between the host and the device. */
struct window {
    char *at;
    cudaEvent_t passed; /* the copy that last used it is done */
    bool used;
};

/* Scale and unscaling of products' operands: device. */
struct product_scales {
    uint32_t largest[2];                  /* magnitudes, as bits: of this search and of the next */
    float left, right, alpha, held[HELD]; /* 1 / an operand's scale; 1 / both */
    float zero, one;
};

/* An operand that does not change for a while (train_ops.hold). */
struct held {
    const float *x;
    size_t n;
    bool is_made; /* its copy and its scale */
};

/* Memory that was taken and not given back. */
struct block {
    void *at;
    size_t bytes;
};

struct cuda_train {
    struct train base;
    cudaStream_t stream;
    cublasHandle_t blas;
    void *blas_workspace;
    struct window window[WINDOWS];
    char *pinned; /* of all windows */
    int32_t next_window;
    struct pool *pool; /* that fills and empties windows */
    void *scratch[N_SCRATCH];
    size_t scratch_bytes[N_SCRATCH];
    struct product_scales *scales; /* device */
    int32_t search;                /* which of scales->largest is 0 */
    struct held held[HELD];
    struct block *block;                      /* [n_blocks] owned */
    size_t n_blocks, cap_blocks, taken, most; /* bytes: now, and at once at any time */
    err_t error;
    struct why why;
    int32_t max_head; /* head dim that attention has room for */
    char description[160];
};

static inline struct cuda_train *cuda_train_of(struct train *t) {
    return (struct cuda_train *)t;
}

/* Keeps the first failure, with the name of the operator. */
void cuda_train_note(struct cuda_train *c, cudaError_t e, const char *what);
void cuda_train_note_blas(struct cuda_train *c, cublasStatus_t s, const char *what);
void cuda_train_fail(struct cuda_train *c, err_t e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* After a launch. */
static inline void cuda_train_launched(struct cuda_train *c, const char *what) {
    cuda_train_note(c, cudaGetLastError(), what);
}
/* NULL when there is no memory: then the error is kept. What lay in it is lost when it grows. */
void *cuda_train_scratch(struct cuda_train *c, enum scratch which, size_t bytes);
err_t cuda_train_windows_open(struct cuda_train *c);
void cuda_train_windows_close(struct cuda_train *c);
/* Lets kernels have the shared memory that they need; *max_head: how much the device has room for.
 */
cudaError_t cuda_train_attention_setup(int32_t *max_head);

static inline unsigned blocks_of(size_t n, size_t each) {
    return (unsigned)((n + each - 1) / each);
}

/* ---- the operators --------------------------------------------------------------------------- */

err_t cuda_train_take(struct train *t, size_t bytes, void **device);
void cuda_train_give(struct train *t, void *device);
void cuda_train_put(struct train *t, void *device, const void *host, size_t bytes);
void cuda_train_get(struct train *t, void *host, const void *device, size_t bytes);
void cuda_train_copy(struct train *t, void *to, const void *from, size_t bytes);
void cuda_train_zero(struct train *t, void *device, size_t bytes);
size_t cuda_train_memory_free(const struct train *t);
size_t cuda_train_memory_most(const struct train *t);
err_t cuda_train_settle(struct train *t, struct why *why);

void cuda_train_widen(struct train *t, enum train_number type, bool served, size_t n,
                      const void *from, float *x);
void cuda_train_store(struct train *t, const float *x, struct train_weights *w);
void cuda_train_load(struct train *t, const struct train_weights *w, float *x);
void cuda_train_merge(struct train *t, const struct train_weights *base,
                      const struct train_delta *d, struct train_weights *out);
void cuda_train_unmerge(struct train *t, const struct train_delta *x, float sign, float *d);

void cuda_train_hold(struct train *t, int32_t place, const float *x, size_t n);
void cuda_train_product(struct train *t, int32_t rows, const float *x,
                        const struct train_weights *w, float *y, bool add);
void cuda_train_product_dx(struct train *t, int32_t rows, const float *dy,
                           const struct train_weights *w, float *dx, bool add);
void cuda_train_product_dw(struct train *t, int32_t rows, const float *dy, int32_t n,
                           const float *x, int32_t k, float *dw);
void cuda_train_gemm(struct train *t, int32_t m, int32_t n, int32_t k, struct train_mat a,
                     struct train_mat b, float *c, size_t ldc, bool add);

void cuda_train_embed(struct train *t, const struct train_batch *b, const struct train_weights *w,
                      float *h);
void cuda_train_embed_back(struct train *t, const struct train_batch *b, const float *dh, int32_t n,
                           int32_t k, float *dw);
void cuda_train_norm(struct train *t, int32_t rows, int32_t dim, float eps, const float *x,
                     const float *w, float *y, float *inv);
void cuda_train_norm_back(struct train *t, int32_t rows, int32_t dim, const float *x,
                          const float *w, const float *inv, const float *dy, float *dx, float *dw);
void cuda_train_rope(struct train *t, const struct train_batch *b, const float *table,
                     int32_t heads, int32_t head_dim, bool back, float *x);
void cuda_train_swiglu(struct train *t, size_t n, const float *gate, const float *up, float *act);
void cuda_train_swiglu_back(struct train *t, size_t n, const float *gate, const float *up,
                            const float *dact, float *dgate, float *dup);
void cuda_train_attention(struct train *t, const struct train_batch *b, struct train_heads heads,
                          const float *q, const float *k, const float *v, float *ctx);
void cuda_train_attention_back(struct train *t, const struct train_batch *b,
                               struct train_heads heads, const float *q, const float *k,
                               const float *v, const float *ctx, const float *dctx, float *dq,
                               float *dk, float *dv);
void cuda_train_axpy(struct train *t, size_t n, float scale, const float *y, float *x);

void cuda_train_decode_attention(struct train *t, int32_t rows, const int32_t *slot,
                                 const int32_t *position, int32_t cap, struct train_heads heads,
                                 const float *q, const float *k, const float *v, void *cache_k,
                                 void *cache_v, float *ctx);
void cuda_train_draw(struct train *t, int32_t rows, int32_t vocab, const float *logits,
                     float temperature, const float *u, int32_t *out);
void cuda_train_distil(struct train *t, int32_t rows, int32_t vocab, const float *student,
                       const float *teacher, const int32_t *target, float kl_weight,
                       float mse_weight, float grad_scale, float *grad, struct train_loss *sum);

void cuda_train_adam(struct train *t, struct train_vector *p, const float *grad,
                     struct train_adam a);
err_t cuda_train_signs_make(struct train *t, int32_t n, int32_t k, void **signs);
void cuda_train_signs_free(struct train *t, void *signs);
void cuda_train_signs_set(struct train *t, const struct train_plane *p, int32_t n, int32_t k,
                          const float *d);
void cuda_train_plane_back(struct train *t, struct train_plane *p, int32_t n, int32_t k,
                           const float *grad, struct train_adam bits, float *row_grad,
                           float *col_grad);
size_t cuda_train_signs_bytes(const struct train *t, int32_t n, int32_t k);
void cuda_train_signs_save(struct train *t, const void *signs, int32_t n, int32_t k, void *host);
void cuda_train_signs_load(struct train *t, void *signs, int32_t n, int32_t k, const void *host);
void cuda_train_signs_get(struct train *t, const void *signs, int32_t n, int32_t k,
                          uint32_t *tiles);
void cuda_train_scales_fit(struct train *t, int32_t n, int32_t k, const float *d,
                           const float *weight, int32_t rounds, struct train_plane *p);

void cuda_train_factor(struct train *t, int32_t n, float *a, size_t ld, float damp, float *inverse);
void cuda_train_feedback(struct train *t, const struct train_delta *x, int32_t first, int32_t width,
                         const float *l, const float *pushed, float *d, float *const *value);
void cuda_train_row_dots(struct train *t, int32_t n, int32_t k, const float *a, const float *b,
                         float *out);
void cuda_train_row_zeros(struct train *t, int32_t n, int32_t k, const float *x, int32_t *out);
void cuda_train_times(struct train *t, size_t n, const float *y, float *x);

#endif
