/* What is to be known of every matrix before bits are shared out: how much changed and of what kind
 * (its largest singular values, what one plane leaves of it), and what an error in it costs.
 *
 * The cost is that of the predictions: for a small error e of the weights the KL divergence from
 * the fine-tune grows by e' F e / 2, F the Fisher information. Of F the mean over each row of a
 * matrix is used, estimated from gradients of log p at the fine-tune on text that it wrote itself:
 * there these have mean 0, so the squares of a batch's summed gradients add up to those of its
 * tokens. Owner and caller: the tool's main thread. */
#ifndef COMPRESS_SENSITIVITY_H
#define COMPRESS_SENSITIVITY_H

#include "compress/budget.h"
#include "compress/corpus.h"
#include "compress/llama.h"

enum { SENSITIVITY_ROOTS = 32 };

struct sensitivity {
    struct budget_matrix *matrix;      /* [n_matrices] owned, numbered as in struct llama */
    double (*root)[SENSITIVITY_ROOTS]; /* [n_matrices] what matrix[i].root points to; owned */
    int32_t n_matrices, n_linears;
};

/* base, teacher: both models with their dense weights, on one device; fine_files: the fine-tune as
 * it is stored, of which embedding and lm_head are read. own: text of the fine-tune; of it `rows`
 * tokens at a time, `batches` times. E_NOMEM, E_IO, E_FORMAT, E_DEVICE with a sentence. Free with
 * sensitivity_free, also after an error. p: NULL for none. */
err_t sensitivity_open(struct sensitivity *s, const struct llama *base, const struct llama *teacher,
                       struct llama_source fine_files, const struct corpus *own, int32_t rows,
                       int32_t batches, struct progress *p, struct why *why);
void sensitivity_free(struct sensitivity *s);

#endif
