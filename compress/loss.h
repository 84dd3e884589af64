/* How far one model's logits are from another's, per row and as a gradient. Pure arithmetic. */
#ifndef COMPRESS_LOSS_H
#define COMPRESS_LOSS_H

#include "compress/gemm.h"

/* Sums over rows; divide by n_rows. */
struct loss {
    double kl;  /* KL(teacher || student), nats */
    double mse; /* mean over the vocabulary of (student - teacher)^2 */
    double nll; /* -log p of the next id under the student, over rows with one */
    double teacher_nll;
    int64_t n_rows, n_targets, n_agree; /* n_agree: rows whose most likely id is the same */
};

/* Adds this batch's rows to *sum. student, teacher: logits [M, vocab]. target [M]: id that follows
 * each row, -1 for none; NULL: none anywhere.
 * grad [M, vocab], or NULL: gradient of sum over rows of (kl_weight * kl + mse_weight * mse),
 * times grad_scale; may be `student` itself. */
void loss_distil(const struct gemm *g, int32_t n_rows, int32_t vocab, const float *student,
                 const float *teacher, const int32_t *target, float kl_weight, float mse_weight,
                 float grad_scale, float *grad, struct loss *sum);

#endif
