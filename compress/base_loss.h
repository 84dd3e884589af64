/* What there is to keep: how far the base is from its fine-tune on the text that a tenant is judged
 * by. */
#ifndef COMPRESS_BASE_LOSS_H
#define COMPRESS_BASE_LOSS_H

#include "compress/fit.h"

/* Adds to *sum over every row of the lesson, which holds the teacher's stream. A base of fewer
 * tokens gets the fine-tune's rows for those it lacks: it is the tenant that keeps nothing else.
 * Both models are on one device with their weights. */
err_t base_loss(const struct llama *base, const struct llama *teacher, const struct lesson *held,
                struct train_loss *sum, struct progress *p, struct why *why);

#endif
