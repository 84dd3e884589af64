/* The arithmetic of fitting a tenant, behind one table of operators with two backends: kernels/cpu
 * (FP32 throughout, the oracle) and kernels/cuda (weights in FP16, large products on tensor cores
 * with FP32 sums; all else FP32).
 *
 * Mental model. A program for a small machine: memory of the device, vectors and matrices in it,
 * and operators that follow one another in the order of their calls. The calibration model
 * (compress/llama*.c), the student and the loss are written once on top of it; nothing in here
 * knows a layer. Operators do not fail one by one: a device's error is kept, later calls do
 * nothing, and settle() reports it.
 *
 * Shape letters: M rows (tokens of all sequences of a batch), D model dim, H query heads, K kv
 * heads, E head dim, F ffn dim, V vocabulary; a weight matrix is [n, k] (out, in). All pointers
 * named "device" come from take() and are read on the host by get() alone; on the CPU they are
 * plain memory. Results depend neither on the number of threads nor on how a device schedules its
 * blocks: sums run in one fixed order. Thread: one at a time per struct train. */
#ifndef KERNELS_TRAIN_H
#define KERNELS_TRAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct train; /* one device opened for fitting */

enum { HELD = 2 };         /* operands of products that stay as they are for a while */
enum { FACTOR_ROWS = 64 }; /* of a block that `factor` and `feedback` take at once */

/* A dense matrix in the backend's type for weights (train_ops.weight_bytes each), device. */
struct train_weights {
    void *w;
    int32_t n, k;
};

/* Numbers as checkpoints store them. */
enum train_number { TRAIN_F32, TRAIN_F16, TRAIN_BF16 };
static inline size_t train_number_bytes(enum train_number type) {
    return type == TRAIN_F32 ? 4 : 2;
}

/* Element (i, j) of a FP32 device matrix is at p[i * row + j * col]. */
struct train_mat {
    const float *p;
    size_t row, col;
};
static inline struct train_mat train_mat(const float *p, size_t ld) {
    return (struct train_mat){p, ld, 1};
}
static inline struct train_mat train_mat_t(const float *p, size_t ld) {
    return (struct train_mat){p, 1, ld};
}

/* Sequences laid end to end; all arrays on the device. embed and rope read id and position alone
 * (so that decoding may use them, its rows being of many sequences), attention the others. */
struct train_batch {
    int32_t n_rows, n_seqs, longest;
    const int32_t *id;       /* [M] */
    const int32_t *start;    /* [n_seqs + 1] first row of each; the last entry is M */
    const int32_t *position; /* [M] of each row in its sequence */
};

struct train_heads {
    int32_t n_heads, n_kv_heads, head_dim, window; /* window 0: none */
};

/* Adam with bias correction, and with a decay of its own (AdamW):
 *     m = 0.9 m + 0.1 g;  v = beta2 v + (1 - beta2) g^2
 *     x -= rate * (m / (1 - 0.9^t) / (sqrt(v / (1 - beta2^t)) + least) + decay * x)
 * t: number of the step, from 1. least: far below the gradients of any number that matters, so that
 * rounding noise is not blown up. */
struct train_adam {
    float rate;
    int32_t t;
    float beta2, least, decay;
};
/* What most are learnt with. */
static inline struct train_adam train_adam(float rate, int32_t t) {
    struct train_adam a = {rate, t, 0.99f, 1e-12f, 0};
    return a;
}

/* A learnt vector; m and v are Adam's running means. Device. */
struct train_vector {
    float *x, *m, *v;
    size_t n;
};

/* One sign plane of an [n, k] matrix in the making:  diag(e^row) S diag(e^col),  S = sign of the
 * hidden reals (0 is +1). The reals are the backend's, in FP16. They move against their gradient g
 * = G e^row e^col over its root mean square, without momentum:
 *     x -= rate * g / sqrt(r c / mean(r) / (1 - 0.99^t))
 * r [n], c [k]: running means (0.99) of the means of g^2 over a row and over a column. */
struct train_plane {
    struct train_vector row; /* [n], or [1]: one scale for all; natural logarithms */
    struct train_vector col; /* [k], or n 0: all ones */
    void *signs;             /* from signs_make */
};

/* What a tenant adds to one matrix. */
struct train_delta {
    int32_t n, k, n_planes, rank;
    const struct train_plane *plane; /* host array [n_planes] */
    const float *a, *b;              /* device [rank, k], [n, rank] */
};

/* Sums over rows, added to; host. */
struct train_loss {
    double kl;                          /* KL(teacher || student), nats */
    double mse;                         /* mean over the vocabulary of (student - teacher)^2 */
    double nll, teacher_nll;            /* -log p of the target, over rows with one */
    int64_t n_rows, n_targets, n_agree; /* n_agree: rows whose most likely id is the same */
};

struct train_ops {
    const char *name;    /* "cpu" or "cuda" */
    size_t weight_bytes; /* of one element of train_weights: 4 or 2 */

    void (*close)(struct train *t);
    const char *(*describe)(const struct train *t); /* one line for people; borrowed */

    /* ---- memory. take: zeroed, aligned to 256 bytes; E_NOMEM. put and get wait for nothing but
     * themselves and what came before; copy and zero are of the device. */
    err_t (*take)(struct train *t, size_t bytes, void **device);
    void (*give)(struct train *t, void *device); /* NULL: nothing */
    void (*put)(struct train *t, void *device, const void *host, size_t bytes);
    void (*get)(struct train *t, void *host, const void *device, size_t bytes);
    void (*copy)(struct train *t, void *to, const void *from, size_t bytes);
    void (*zero)(struct train *t, void *device, size_t bytes);
    size_t (*memory_free)(const struct train *t);
    /* The most bytes that this struct train ever had of its device at once, however much others
     * have; 0 where that is the host's memory, whose peak the kernel keeps. */
    size_t (*memory_most)(const struct train *t);
    /* Waits for all that was asked for. E_DEVICE with a sentence; sticky. */
    err_t (*settle)(struct train *t, struct why *why);

    /* ---- dense weights. widen: x [n] = from [n], device; served: rounded to FP16, as the server
     * has a base. */
    void (*widen)(struct train *t, enum train_number type, bool served, size_t n, const void *from,
                  float *x);
    void (*store)(struct train *t, const float *x, struct train_weights *w); /* w = x [n, k] */
    void (*load)(struct train *t, const struct train_weights *w, float *x);  /* x = w */
    /* out = base + planes + b a over the delta's n rows (base may have more: they are copied);
     * base and out have the same shape, and may be the same. */
    void (*merge)(struct train *t, const struct train_weights *base, const struct train_delta *d,
                  struct train_weights *out);
    /* d [n, k] FP32 += sign * (planes + b a), the same sum without the rounding to weights. */
    void (*unmerge)(struct train *t, const struct train_delta *x, float sign, float *d);

    /* From now on x [n] does not change until something else (or NULL) is held in its place, of
     * which there are HELD: what a backend makes of it for products, it may make once. */
    void (*hold)(struct train *t, int32_t place, const float *x, size_t n);
    /* ---- products. y [M, n] (+)= x [M, k] W';  dx [M, k] (+)= dy [M, n] W;  dw [n, k] = dy' x */
    void (*product)(struct train *t, int32_t rows, const float *x, const struct train_weights *w,
                    float *y, bool add);
    void (*product_dx)(struct train *t, int32_t rows, const float *dy,
                       const struct train_weights *w, float *dx, bool add);
    void (*product_dw)(struct train *t, int32_t rows, const float *dy, int32_t n, const float *x,
                       int32_t k, float *dw);
    /* C [m, n] (row stride ldc) (+)= A [m, k] B [k, n], all FP32 with FP32 products. */
    void (*gemm)(struct train *t, int32_t m, int32_t n, int32_t k, struct train_mat a,
                 struct train_mat b, float *c, size_t ldc, bool add);

    /* ---- rows. back: gradients */
    void (*embed)(struct train *t, const struct train_batch *b, const struct train_weights *w,
                  float *h); /* h [M, k] = w[id] */
    /* dw [n, k] += rows of dh [M, k] at their ids, in row order. */
    void (*embed_back)(struct train *t, const struct train_batch *b, const float *dh, int32_t n,
                       int32_t k, float *dw);
    /* y [M, D] = x / rms(x) * w; inv [M] = 1 / rms */
    void (*norm)(struct train *t, int32_t rows, int32_t dim, float eps, const float *x,
                 const float *w, float *y, float *inv);
    /* dx [M, D] += gradient through the norm of dy; dw [D] = gradient of w */
    void (*norm_back)(struct train *t, int32_t rows, int32_t dim, const float *x, const float *w,
                      const float *inv, const float *dy, float *dx, float *dw);
    /* Rotates x [M, heads * E] in place by each row's position; table [context, E/2, 2] cos, sin.
     */
    void (*rope)(struct train *t, const struct train_batch *b, const float *table, int32_t heads,
                 int32_t head_dim, bool back, float *x);
    void (*swiglu)(struct train *t, size_t n, const float *gate, const float *up, float *act);
    void (*swiglu_back)(struct train *t, size_t n, const float *gate, const float *up,
                        const float *dact, float *dgate, float *dup);
    /* ctx [M, H*E] = causal attention of q [M, H*E] over k, v [M, K*E], sequence by sequence. */
    void (*attention)(struct train *t, const struct train_batch *b, struct train_heads heads,
                      const float *q, const float *k, const float *v, float *ctx);
    /* dq, dk, dv written; scores are computed again. */
    void (*attention_back)(struct train *t, const struct train_batch *b, struct train_heads heads,
                           const float *q, const float *k, const float *v, const float *ctx,
                           const float *dctx, float *dq, float *dk, float *dv);
    /* x += scale * y; y may be x. */
    void (*axpy)(struct train *t, size_t n, float scale, const float *y, float *x);

    /* ---- decoding with a cache. Row i is position[i] of the sequence that lives in slot[i];
     * caches are [slots, cap, K*E] of weight_bytes a number, rows already hold rotated keys.
     * Appends k, v and attends. slot, position: device [M]. */
    void (*decode_attention)(struct train *t, int32_t rows, const int32_t *slot,
                             const int32_t *position, int32_t cap, struct train_heads heads,
                             const float *q, const float *k, const float *v, void *cache_k,
                             void *cache_v, float *ctx);
    /* out [M] device: the most likely id (temperature 0, lowest id wins) or a draw from
     * softmax(logits / temperature) by the uniform number u[i] (device) in [0, 1): the first id
     * whose running sum of probabilities exceeds u. */
    void (*draw)(struct train *t, int32_t rows, int32_t vocab, const float *logits,
                 float temperature, const float *u, int32_t *out);

    /* ---- loss. student, teacher [M, V]; target [M] device: the id that follows, -1 for none;
     * NULL: none anywhere. Adds to *sum (waits). grad (NULL, or [M, V], may be `student`): gradient
     * of grad_scale * sum over rows of (kl_weight * kl + mse_weight * mse). */
    void (*distil)(struct train *t, int32_t rows, int32_t vocab, const float *student,
                   const float *teacher, const int32_t *target, float kl_weight, float mse_weight,
                   float grad_scale, float *grad, struct train_loss *sum);

    /* ---- learning */
    void (*adam)(struct train *t, struct train_vector *p, const float *grad, struct train_adam a);
    /* Room for the hidden reals of [n, k]; E_NOMEM. signs_free: NULL: nothing. */
    err_t (*signs_make)(struct train *t, int32_t n, int32_t k, void **signs);
    void (*signs_free)(struct train *t, void *signs);
    /* Hidden reals = d [n, k] / (e^row e^col), capped at +-3, so that doubtful signs turn first;
     * their means start anew. */
    void (*signs_set)(struct train *t, const struct train_plane *p, int32_t n, int32_t k,
                      const float *d);
    /* row_grad [n] (or [1]), col_grad [k] (unless the plane has none): gradients of the logarithms,
     * from grad [n, k] of the weights. With bits.rate > 0 then moves the hidden reals against grad
     * * e^row * e^col (straight through); of bits rate and t alone count. */
    void (*plane_back)(struct train *t, struct train_plane *p, int32_t n, int32_t k,
                       const float *grad, struct train_adam bits, float *row_grad, float *col_grad);
    /* All that signs_make holds, out to the host and back in, so that a fit can go on another day:
     * the same bytes give the same steps. signs_bytes of it. */
    size_t (*signs_bytes)(const struct train *t, int32_t n, int32_t k);
    void (*signs_save)(struct train *t, const void *signs, int32_t n, int32_t k, void *host);
    void (*signs_load)(struct train *t, void *signs, int32_t n, int32_t k, const void *host);
    /* The plane's signs in tiles (kernels.h, struct plane), plane_bytes(n, k), into host memory. */
    void (*signs_get)(struct train *t, const void *signs, int32_t n, int32_t k, uint32_t *tiles);
    /* Scales (natural logarithms, -30 for 0) whose outer product is nearest to |d| [n, k]:
     * alternating least squares, `rounds` of them; with one round row means alone. Weighted by
     * weight [k] per column unless NULL. Writes p->row.x, p->col.x. */
    void (*scales_fit)(struct train *t, int32_t n, int32_t k, const float *d, const float *weight,
                       int32_t rounds, struct train_plane *p);

    /* ---- least squares under the inputs' second moments (compress/closed.c), all FP32 */
    /* The lower triangle of a [n, n] (row stride ld), n <= FACTOR_ROWS, symmetric and with `damp`
     * added to its diagonal positive definite, becomes its Cholesky factor L; what is above the
     * diagonal is neither read nor written. inverse [n, n] = L^-1, zero above the diagonal. A pivot
     * that is not positive counts as `damp`. */
    void (*factor)(struct train *t, int32_t n, float *a, size_t ld, float damp, float *inverse);
    /* Chooses signs for columns first .. first + width - 1 (width <= FACTOR_ROWS), the last first,
     * each so that it makes good what its column and those after it got wrong:
     *     u = d_j + (pushed_j + sum over chosen i > j in the block of e_i l_ij) / l_jj
     *     each plane in turn: value = u; u -= the plane's scale, with the sign of u
     *     e_j = d_j - what the planes now are
     * d, pushed [n, k]; d becomes e. l [k, k]: lower Cholesky factor of the second moments. value:
     * host array [n_planes] of device [n, k]. */
    void (*feedback)(struct train *t, const struct train_delta *x, int32_t first, int32_t width,
                     const float *l, const float *pushed, float *d, float *const *value);
    /* out [n] = sum over k of a b, rows of [n, k]. */
    void (*row_dots)(struct train *t, int32_t n, int32_t k, const float *a, const float *b,
                     float *out);
    /* out [n] = how many of a row of x [n, k] are 0. */
    void (*row_zeros)(struct train *t, int32_t n, int32_t k, const float *x, int32_t *out);
    void (*times)(struct train *t, size_t n, const float *y, float *x); /* x *= y */
};

struct train {
    const struct train_ops *ops;
};

/* threads: 0 = all cores. */
err_t train_cpu_open(struct train **out, int32_t threads, struct why *why);
/* The CUDA backend's door, found by name in libbitdelta_train.so (which needs cuBLAS; the serving
 * backend does not). E_UNSUPPORTED: no device that it is built for. */
err_t train_cuda_open(struct train **out, struct why *why);

#ifdef __cplusplus
}
#endif

#endif
