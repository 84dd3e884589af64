/* BitDelta's distillation as its published code does it, to compare with: the mean squared error of
 * all logits on somebody's text, AdamW over every number of the student that is not a sign (one
 * scale a plane, the norms, embedding and lm_head whole), and a truncated gradient: a linear hands
 * back what its base's weights do, as if the student had no planes.
 *
 * It is a fit_learner (compress/fit.h): the loop is that of every fit. Embedding and lm_head are
 * learnt in FP32 and laid down in the student's exact rows after each step. An interrupted run is
 * not kept; it takes a minute. Owner and caller: the tool's main thread. */
#ifndef COMPRESS_PUBLISHED_H
#define COMPRESS_PUBLISHED_H

#include "compress/fit.h"

enum {
    PUBLISHED_LENGTH = 128, /* ids of a text that the model sees */
    PUBLISHED_BATCH = 4,    /* texts of a step */
    PUBLISHED_STEPS = 200,
};

struct published;
/* s: planes with a scale each, and embedding and lm_head whole (budget_choice.whole); its gradient
 * is truncated from now on. Borrowed. steps: that will be made. E_NOMEM. */
err_t published_open(struct published **out, struct student *s, int32_t steps, struct why *why);
void published_close(struct published *p);
/* Valid until published_close. */
struct fit_learner published_learner(struct published *p);
/* Bytes it takes on a device beside the student and its tape. */
double published_bytes(const struct model_config *c);

/* n sequences to distil on, of PUBLISHED_LENGTH ids and one to predict: from `text` (documents as
 * of corpus_add_text), which goes on in as many sequences as it fills; the last of a document is
 * filled up with `pad`, which counts as the rest does. In an order drawn by seed; fewer where the
 * text is at an end. */
err_t published_text(struct corpus *out, const struct tokenizer *t, const char *text, size_t n_text,
                     int32_t length, int32_t pad, int32_t n, uint64_t seed, struct why *why);

#endif
