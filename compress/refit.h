/* The student's planes and pairs anew, by least squares of what each linear does to its inputs
 * (compress/closed.h), without gradients: layer by layer, the inputs being those of the student
 * whose earlier layers are refitted already. Owner and caller: the tool's main thread. */
#ifndef COMPRESS_REFIT_H
#define COMPRESS_REFIT_H

#include "compress/corpus.h"
#include "compress/student.h"

struct refit_options {
    int32_t rows, batches; /* tokens of a forward pass; how many of those for every layer */
    float damp;            /* share of the inputs' mean square that is taken for noise in them */
    bool signs;            /* chosen by error feedback; else scales alone */
    bool pairs;            /* too; else they stay as they are */
    /* The fine-tune with its dense weights: what is stored then also makes good what its inputs and
     * the student's have drifted apart; NULL: the difference of the weights is what is wanted. */
    const struct llama *teacher;
    struct progress *p; /* NULL: none */
};

/* Refits signs, scales and pairs of all linears that have planes. own: text to take inputs from.
 * error: NULL, or [n linears] what the outputs are wrong by afterwards, relative to what the
 * difference does to them. E_NOMEM, E_DEVICE, E_IO with a sentence. */
err_t refit_run(struct student *s, const struct corpus *own, const struct refit_options *o,
                double *error, struct why *why);

#endif
