/* Fitting on the CPU: what the operators of kernels/cpu/train_*.c share. Private to them.
 *
 * Everything is FP32 but the hidden reals of signs (FP16).
 * Device memory is host memory. Work is split over a pool of threads so that no sum depends on how
 * many there are. Thread: one caller. */
#ifndef KERNELS_CPU_TRAIN_CPU_H
#define KERNELS_CPU_TRAIN_CPU_H

#include "kernels/cpu/pool.h"
#include "kernels/cpu/train_isa.h"

struct train_cpu {
    struct train t; /* first: a struct train * is a struct train_cpu * */
    const struct train_isa *isa;
    struct pool *pool;
    float **panels; /* [threads] packed blocks of a product; owned */
    float *work;    /* scratch of one operator at a time; owned */
    size_t n_work;  /* floats */
    err_t error;    /* the first; told by settle */
    char about[96];
};

static inline struct train_cpu *train_cpu(struct train *t) {
    return (struct train_cpu *)t;
}
/* Scratch of n floats, valid until the next call; NULL when there is no memory, which settle will
 * tell: the operator then does nothing. */
float *train_cpu_work(struct train_cpu *c, size_t n);

static inline int32_t train_tasks(size_t n, size_t step) {
    return (int32_t)((n + step - 1) / step);
}
static inline int32_t train_end(int32_t task, int32_t step, int32_t n) {
    int32_t end = (task + 1) * step;
    return end < n ? end : n;
}

/* ---- the operators (train.h), by file -------------------------------------------------------- */

/* train_gemm.c */
enum { TRAIN_MC = 192, TRAIN_NC = 512, TRAIN_KC = 256 }; /* a block of C, and of k: fits L2 */
enum { TRAIN_PANELS = (TRAIN_MC + 16 + TRAIN_NC + 32) * TRAIN_KC }; /* floats a thread */
void train_cpu_gemm(struct train *t, int32_t m, int32_t n, int32_t k, struct train_mat a,
                    struct train_mat b, float *c, size_t ldc, bool add);
/* The same on the calling thread alone, inside a task of the pool. */
void train_cpu_gemm_one(const struct train_cpu *cpu, int32_t thread, int32_t m, int32_t n,
                        int32_t k, struct train_mat a, struct train_mat b, float *c, size_t ldc,
                        bool add);
void train_cpu_product(struct train *t, int32_t rows, const float *x, const struct train_weights *w,
                       float *y, bool add);
void train_cpu_product_dx(struct train *t, int32_t rows, const float *dy,
                          const struct train_weights *w, float *dx, bool add);
void train_cpu_product_dw(struct train *t, int32_t rows, const float *dy, int32_t n, const float *x,
                          int32_t k, float *dw);

/* train_rows.c */
void train_cpu_embed(struct train *t, const struct train_batch *b, const struct train_weights *w,
                     float *h);
void train_cpu_embed_back(struct train *t, const struct train_batch *b, const float *dh, int32_t n,
                          int32_t k, float *dw);
void train_cpu_norm(struct train *t, int32_t rows, int32_t dim, float eps, const float *x,
                    const float *w, float *y, float *inv);
void train_cpu_norm_back(struct train *t, int32_t rows, int32_t dim, const float *x, const float *w,
                         const float *inv, const float *dy, float *dx, float *dw);
void train_cpu_rope(struct train *t, const struct train_batch *b, const float *table, int32_t heads,
                    int32_t head_dim, bool back, float *x);
void train_cpu_swiglu(struct train *t, size_t n, const float *gate, const float *up, float *act);
void train_cpu_swiglu_back(struct train *t, size_t n, const float *gate, const float *up,
                           const float *dact, float *dgate, float *dup);
void train_cpu_axpy(struct train *t, size_t n, float scale, const float *y, float *x);
void train_cpu_draw(struct train *t, int32_t rows, int32_t vocab, const float *logits,
                    float temperature, const float *u, int32_t *out);
void train_cpu_distil(struct train *t, int32_t rows, int32_t vocab, const float *student,
                      const float *teacher, const int32_t *target, float kl_weight,
                      float mse_weight, float grad_scale, float *grad, struct train_loss *sum);

/* train_attention.c */
void train_cpu_attention(struct train *t, const struct train_batch *b, struct train_heads heads,
                         const float *q, const float *k, const float *v, float *ctx);
void train_cpu_attention_back(struct train *t, const struct train_batch *b,
                              struct train_heads heads, const float *q, const float *k,
                              const float *v, const float *ctx, const float *dctx, float *dq,
                              float *dk, float *dv);
void train_cpu_decode_attention(struct train *t, int32_t rows, const int32_t *slot,
                                const int32_t *position, int32_t cap, struct train_heads heads,
                                const float *q, const float *k, const float *v, void *cache_k,
                                void *cache_v, float *ctx);

/* train_plane.c */
void train_cpu_merge(struct train *t, const struct train_weights *base, const struct train_delta *d,
                     struct train_weights *out);
void train_cpu_unmerge(struct train *t, const struct train_delta *x, float sign, float *d);
void train_cpu_adam(struct train *t, struct train_vector *p, const float *grad,
                    struct train_adam a);
err_t train_cpu_signs_make(struct train *t, int32_t n, int32_t k, void **signs);
void train_cpu_signs_free(struct train *t, void *signs);
void train_cpu_signs_set(struct train *t, const struct train_plane *p, int32_t n, int32_t k,
                         const float *d);
size_t train_cpu_signs_bytes(const struct train *t, int32_t n, int32_t k);
void train_cpu_signs_save(struct train *t, const void *signs, int32_t n, int32_t k, void *host);
void train_cpu_signs_load(struct train *t, void *signs, int32_t n, int32_t k, const void *host);
void train_cpu_signs_get(struct train *t, const void *signs, int32_t n, int32_t k, uint32_t *tiles);
void train_cpu_plane_back(struct train *t, struct train_plane *p, int32_t n, int32_t k,
                          const float *grad, struct train_adam bits, float *row_grad,
                          float *col_grad);
void train_cpu_scales_fit(struct train *t, int32_t n, int32_t k, const float *d,
                          const float *weight, int32_t rounds, struct train_plane *p);

#endif
