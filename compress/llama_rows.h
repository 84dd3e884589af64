/* Row operators of the calibration model with their gradients, and its tape. Private to llama_*.c.
 * Every operator is split over rows in the gemm's pool. */
#ifndef COMPRESS_LLAMA_ROWS_H
#define COMPRESS_LLAMA_ROWS_H

#include "compress/fast_exp.h"
#include "compress/llama.h"

/* Activations of one layer, all [M, .]. */
struct llama_acts {
    float *h, *x1, *rms1;   /* residual in [D], normed [D], 1 / rms [1] */
    float *q, *k, *v, *ctx; /* rotated q [H*E], rotated k [K*E], v [K*E], context [H*E] */
    float *mid, *x2, *rms2; /* residual after attention [D], normed [D], 1 / rms [1] */
    float *gate, *up, *act; /* [F] */
};

struct llama_tape {
    int32_t max_rows, n_layers;
    struct llama_acts *layer;   /* [L] */
    float *last, *xf, *rmsf;    /* residual after the last layer [M, D], normed, 1 / rms */
    float *dh, *dx;             /* gradients [M, D] */
    float *dq, *dk, *dv, *dctx; /* gradients like q, k, v, ctx */
    float *dgate, *dup, *dact;  /* gradients [M, F] */
    float *dw;                  /* gradient of the largest matrix */
    float *dembed;              /* [V, D] */
    float *score;               /* [threads, 2, longest, longest] */
    float *partial;             /* [tasks, D] norm gradients, summed in task order */
    float *block;               /* all of the above; owned */
};

/* y [M, D] = x / rms(x) * w; inv [M] = 1 / rms. */
void rows_norm(const struct gemm *g, int32_t n_rows, int32_t dim, float eps, const float *x,
               const float *w, float *y, float *inv);
/* dx [M, D] += gradient through the norm of dy [M, D]; dw [D] = gradient of w. partial: one
 * row of D per 32 rows. */
void rows_norm_back(const struct gemm *g, int32_t n_rows, int32_t dim, const float *x,
                    const float *w, const float *inv, const float *dy, float *dx, float *dw,
                    float *partial);
/* Rotates x [M, heads * E] in place by each row's position; back: the inverse rotation. */
void rows_rope(const struct gemm *g, const struct llama_batch *b, const float *rope, int32_t heads,
               int32_t head_dim, bool back, float *x);
void rows_swiglu(const struct gemm *g, size_t n, const float *gate, const float *up, float *act);
/* dgate, dup [n] from dact [n]. */
void rows_swiglu_back(const struct gemm *g, size_t n, const float *gate, const float *up,
                      const float *dact, float *dgate, float *dup);

/* ctx = causal attention of q over k, v, sequence by sequence (window > 0: the last `window` keys).
 */
void llama_attention(const struct llama *m, const struct gemm *g, const struct llama_batch *b,
                     struct llama_tape *t, const struct llama_acts *a);
/* dq, dk, dv of the tape from dctx; scores are computed again. */
void llama_attention_back(const struct llama *m, const struct gemm *g, const struct llama_batch *b,
                          struct llama_tape *t, const struct llama_acts *a);

#endif
