/* Fitting a student to its fine-tune: text that the fine-tune (and the base) wrote themselves, the
 * KL divergence of the student's predictions from the fine-tune's on it, back-propagation, Adam.
 * Of the fine-tune it needs the stream it left (struct lesson), its last norm and lm_head alone.
 * Owner and caller: the tool's main thread. */
#ifndef COMPRESS_FIT_H
#define COMPRESS_FIT_H

#include "compress/corpus.h"
#include "compress/student.h"

/* Where a fit stands: what it needs beside the student to go on. Zeroed: at its beginning. */
struct fit_report {
    int32_t step, next_own, next_other; /* steps done; sequences that come next */
    double first_kl, last_kl;           /* means over the first and the last tenth of the steps */
    int64_t n_rows;
};

/* Who learns from a step's gradients. t: number of the step, from 1. */
struct fit_learner {
    bool (*wants)(void *arg, int32_t i_matrix);
    /* As they come: lm_head, last layer .. first, embedding. */
    void (*matrix)(void *arg, int32_t i_matrix, const float *grad, const struct student_flow *flow,
                   int32_t t);
    /* At the step's end. norm_grad: device [2L + 1, D]. */
    void (*rest)(void *arg, const float *norm_grad, int32_t t);
    void *arg;
};

struct fit_options {
    int32_t steps, rows;         /* rows: tokens of one step */
    int32_t max_length;          /* of a sequence */
    float other_share;           /* of the rows that come from the second lesson */
    float kl_weight, mse_weight; /* of the KL divergence and of the logits' mean squared error */
    /* Of the squared error of what lm_head is given, relative to the fine-tune's own square, over a
     * batch. */
    float final_weight;
    /* Steps after which the last two weigh half, after twice as many a third, ..: they hasten the
     * beginning, where they tell more than the KL divergence does, and are not the aim. 0: they
     * stay as they are. */
    int32_t halved;
    /* At their height: they rise over a tenth of the steps, then fall along a cosine to 0, that of
     * the signs also with the square of the steps left. */
    struct student_rates rates;
    /* In the student's place, which is learnt as student.h has it; NULL: none. */
    const struct fit_learner *learner;
    /* After each step; false: enough for now. NULL: none. */
    bool (*after)(void *arg, const struct fit_report *at);
    void *arg;
};

/* own: text of the fine-tune; other: what it must also answer like the fine-tune (may be empty).
 * Both wrap round, and hold the stream of the fine-tune, `teacher`. Goes on from *report, and stops
 * before its last step where options->after says so. */
err_t fit_run(struct student *s, const struct llama *teacher, const struct lesson *own,
              const struct lesson *other, const struct fit_options *o, struct fit_report *report,
              struct why *why);

/* Adds to *sum over every row of the lesson, which holds the teacher's stream. */
err_t fit_judge(const struct llama *m, const struct llama *teacher, const struct lesson *held,
                struct train_loss *sum, struct progress *p, struct why *why);

#endif
