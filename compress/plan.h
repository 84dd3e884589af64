/* How each matrix of a tenant is stored: measured sensitivities (compress/sensitivity.h) and a
 * budget of bits (compress/budget.h), or what the published method does. Owner and caller: the
 * tool's main thread. */
#ifndef COMPRESS_PLAN_H
#define COMPRESS_PLAN_H

#include "compress/sensitivity.h"

struct plan_options {
    double bits;          /* of a weight of the linears on average, 1 .. MAX_PLANES */
    int32_t vocab_planes; /* of embedding and lm_head; 0: by what they gain */
    bool dense_vocab;     /* embedding and lm_head whole */
    bool published;       /* sign planes with a scale each, embedding and lm_head exact */
    bool learnt_vocab;    /* published: these are learnt, so that none of their rows stays */
};

/* choice [n_matrices] is written. base, teacher: both models with their dense weights, own: text
 * that the fine-tune wrote; all unused when published. *r: what is expected of it (zero when
 * published). Errors as of sensitivity_open and budget_spend. p: NULL for none. */
err_t plan_choose(const struct plan_options *o, const struct llama *base,
                  const struct llama *teacher, const struct checkpoint *fine,
                  const struct corpus *own, struct budget_choice *choice, struct budget_result *r,
                  struct progress *p, struct why *why);

#endif
