/* What is found without gradients: signs, scales and a low-rank pair of one matrix, by least
 * squares of what the matrix does to its inputs.
 *
 * With inputs x of second moments H = sum x x', a difference D and what is stored of it Q, the
 * outputs are wrong by  tr (D - Q) H (D - Q)'.  Under it rows are independent of one another;
 * columns are not: what one column gets wrong, columns that go along with it can make good. So
 *   - signs are chosen column by column, each for what is left of its target after the errors of
 *     those before (GPTQ's error feedback, written with the factor of H in place of its inverse's);
 *   - row scales of all planes solve one small system per row; column scales one system per plane;
 *   - the pair is the nearest of its rank in that measure.
 * The target need not be the difference of the weights: where the inputs come from a prefix that is
 * compressed already, closed_target() moves it so that the outputs are the fine-tune's again.
 *
 * All on the device of a struct train. Owner and caller: the tool's main thread. */
#ifndef COMPRESS_CLOSED_H
#define COMPRESS_CLOSED_H

#include "kernels/kernels.h"
#include "kernels/train.h"

/* Second moments of one linear's inputs: device, owned. */
struct moments {
    float *own;   /* H [k, k]: of the tenant's inputs x */
    float *cross; /* C [k, k] = sum t x', t: the fine-tune's inputs; NULL: the same inputs */
    int32_t k;
    int64_t n_rows;
};

/* Factors and room for matrices up to [n, k]; all device, owned. */
struct closed {
    struct train *t;
    int32_t n, k, n_planes;    /* the most of each */
    float *factor;             /* [k, k] L of the damped moments, the lower triangle alone */
    float *inverse;            /* [blocks, FACTOR_ROWS, FACTOR_ROWS] of its diagonal blocks */
    float *strip, *minus;      /* [max(n, k), FACTOR_ROWS] */
    float *x, *y;              /* [n, k] or [k, k], the larger */
    float *value[MAX_PLANES];  /* [n, k] each */
    float *unit, *zero, *ones; /* identity of FACTOR_ROWS; [max(n, k)] */
    float *dots;               /* [max(n, k)] */
    double *host;              /* [n, planes, planes + 1] */
    float *host_row;           /* [2, longer] */
    size_t longer;             /* max(n, k) */
};

err_t closed_open(struct closed *c, struct train *t, int32_t n, int32_t k, int32_t n_planes,
                  struct why *why);
void closed_close(struct closed *c); /* zeroed or opened, also after an error */

err_t moments_open(struct moments *m, struct train *t, int32_t k, bool cross, struct why *why);
void moments_close(struct moments *m, struct train *t);
void moments_clear(struct moments *m, struct train *t);
/* Adds rows of x [rows, k]; fine [rows, k]: the fine-tune's at the same places, for `cross`. */
void moments_add(struct moments *m, struct train *t, int32_t rows, const float *x,
                 const float *fine);

/* Factorises the moments with `damp` times their diagonal's mean added to it: for closed_target and
 * closed_signs. closed_columns leaves another factor in its place. */
void closed_factor(struct closed *c, const struct moments *m, float damp);
/* d [n, k] += W (C - H) H^-1, W [n, k] the fine-tune's weights: with d the difference, what is to
 * be stored for the outputs of the fine-tune on its own inputs. Nothing without `cross`. */
void closed_target(struct closed *c, const struct moments *m, const struct train_weights *fine,
                   float *d);
/* Signs of all planes with the scales as they are, for d [n, k] less the pair. d is kept. */
void closed_signs(struct closed *c, const struct train_delta *x, const float *d);
/* Row scales of all planes together; a row whose scales would not all be positive keeps its own. */
void closed_rows(struct closed *c, const struct moments *m, const struct train_delta *x,
                 const float *d);
/* Column scales, plane by plane; a column whose scale would not be positive keeps its own. Nothing
 * for planes without. */
void closed_columns(struct closed *c, const struct moments *m, const struct train_delta *x,
                    const float *d, float damp);
/* The pair b [n, rank], a [rank, k] nearest to d [n, k] less the planes. E_NOMEM. */
err_t closed_pair(struct closed *c, const struct moments *m, const struct train_delta *x,
                  const float *d, float *b, float *a);
/* tr (d - Q) H (d - Q)', relative to tr d H d'. */
double closed_error(struct closed *c, const struct moments *m, const struct train_delta *x,
                    const float *d);

#endif
