/* The arrays of one step, filled from the scheduler's plan: tenants as contiguous row groups, the
 * sequences of a tenant inside its group. The arrays are allocated once and reused by every step.
 * Engine thread only. */
#ifndef ENGINE_BATCH_H
#define ENGINE_BATCH_H

#include "engine/sched.h"

struct batch {
    struct step step;        /* points into the arrays below */
    struct seq **owner;      /* [step.n_seqs] the sequence of each row_seq */
    int32_t *n_logits;       /* [step.n_seqs] its logit rows */
    int32_t *token;          /* [max_rows] owned, as are the following */
    struct row_group *group; /* [max_seqs] */
    struct row_seq *seq;     /* [max_seqs] */
    struct logit_row *logit; /* [max_rows] */
    struct sampled *sampled; /* [max_rows] */
    struct gen_event *event; /* [max_rows + 1] what the step says to one sequence */
};

err_t batch_init(struct batch *b, int32_t max_rows, int32_t max_seqs); /* E_NOMEM */
void batch_free(struct batch *b);

void batch_clear(struct batch *b);
/* Adds the next n_rows rows of a sequence. Sequences of one tenant must be added one after the
 * other. */
void batch_add(struct batch *b, struct seq *q);

#endif
