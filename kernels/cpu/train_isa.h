/* The inner loops of fitting on the CPU, once per instruction set, chosen once at open. Pure
 * arithmetic on the memory they are given: no allocation, no threads, no globals. Sums run over
 * sixteen FP32 lanes in ascending order and end in one fixed tree (lanes.h). */
#ifndef KERNELS_CPU_TRAIN_ISA_H
#define KERNELS_CPU_TRAIN_ISA_H

#include "kernels/train.h"

/* Adam's step with what depends on its number worked out. */
struct adam_step {
    float rate, fix1, fix2;   /* fix: corrections for the means' start at 0 */
    float beta2, least, keep; /* keep: what decay leaves of x */
};
static const float adam_beta1 = 0.9f;

/* One row of the loss: train_ops.distil. */
struct distil_row {
    int32_t vocab, target;
    const float *student, *teacher; /* [V] */
    float kl_weight, mse_weight, grad_scale;
    float *grad; /* [V], may be student; or NULL */
};

/* One query head of one row over n cached positions, ld floats apart. */
struct decode_head {
    int32_t n, head_dim;
    size_t ld;
    const float *q, *k, *v; /* [E], [n, E], [n, E] */
    float *p, *ctx;         /* [n] scratch, [E] */
};

/* Where a register tile goes: of its rows and columns as many as there are. */
struct tile_out {
    float *c;
    size_t ldc;
    int32_t rows, cols;
    bool add;
};

struct train_isa {
    const char *name;
    bool (*runs_here)(void);
    int32_t mr, nr; /* register tile of a product */
    /* x [rows, k] into panels of `step` rows, k-major: panel[l * step + r]; missing rows are 0. */
    void (*pack)(struct train_mat x, int32_t rows, int32_t k, int32_t step, float *panel);
    /* c [mr, nr] (+)= sum over l < k of a[l][mr] (x) b[l][nr] */
    void (*tile)(int32_t k, const float *a, const float *b, const struct tile_out *out);
    /* The same numbers with a [mr] rows of lda floats, and turned: c [nr, mr] (+)= b' a. */
    void (*tile_turned)(int32_t k, const float *a, size_t lda, const float *b,
                        const struct tile_out *out);

    /* One row of n: train_ops.norm, norm_back (dw added to). */
    void (*norm)(int32_t n, float eps, const float *x, const float *w, float *y, float *inv);
    void (*norm_back)(int32_t n, float inv, const float *x, const float *w, const float *dy,
                      float *dx, float *dw);
    void (*swiglu)(size_t n, const float *gate, const float *up, float *act);
    void (*swiglu_back)(size_t n, const float *gate, const float *up, const float *dact,
                        float *dgate, float *dup);
    void (*axpy)(size_t n, float scale, const float *y, float *x);
    /* p [n] = softmax(scale * p) */
    void (*softmax)(int32_t n, float scale, float *p);
    /* ds [n]: dP to dS = P (dP - sum(dP P)) scale */
    void (*softmax_back)(int32_t n, float scale, const float *p, float *ds);
    void (*decode)(const struct decode_head *h);
    void (*distil)(const struct distil_row *r, struct train_loss *sum);
    /* Id of the largest, the lowest wins. */
    int32_t (*largest)(int32_t n, const float *x);
    /* e [n] = e^((x - top) * scale) */
    void (*weigh)(int32_t n, float top, float scale, const float *x, float *e);

    void (*adam)(size_t n, struct adam_step a, const float *grad, float *x, float *m, float *v);
    /* One row of a plane, k columns; x: hidden reals in FP16.
     * w += row * sign(x) * col */
    void (*plane_add)(int32_t k, const uint16_t *x, float row, const float *col, float *w);
    /* Returns sum of grad * sign * col; col_sum += grad * sign * row. */
    float (*plane_grad)(int32_t k, const uint16_t *x, float row, const float *col,
                        const float *grad, float *col_sum);
    /* Returns sum of (grad * row * col)^2; col_sum += the same. */
    float (*plane_square)(int32_t k, float row, const float *col, const float *grad,
                          float *col_sum);
    /* x -= grad * step * col_step */
    void (*plane_move)(int32_t k, float step, const float *col_step, const float *grad,
                       uint16_t *x);
    /* train_ops.widen */
    void (*widen)(enum train_number type, bool served, size_t n, const void *from, float *x);
    /* x = d / (row * col), within +-cap; 0 where a scale is 0. */
    void (*plane_start)(int32_t k, float row, const float *col, const float *d, float cap,
                        uint16_t *x);
    /* Returns sum of |d| * w; and sums[k] += |d| * row. */
    float (*size_row)(int32_t k, const float *d, const float *w);
    void (*size_cols)(int32_t k, const float *d, float row, float *sums);
};

extern const struct train_isa train_isa_c, train_isa_avx2, train_isa_avx512;

#endif
