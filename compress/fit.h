/* Fitting a student to its fine-tune: text that the fine-tune (and the base) wrote themselves, the
 * KL divergence of the student's predictions from the fine-tune's on it, back-propagation, Adam.
 * Owner and caller: the tool's main thread. */
#ifndef COMPRESS_FIT_H
#define COMPRESS_FIT_H

#include "compress/corpus.h"
#include "compress/loss.h"
#include "compress/student.h"

struct fit_options {
    int32_t steps, rows;         /* rows: tokens of one step */
    int32_t max_length;          /* of a sequence */
    float other_share;           /* of the rows that come from the second corpus */
    float kl_weight, mse_weight; /* of the KL divergence and of the logits' mean squared error */
    struct student_rates rates;  /* at their height: they rise over a tenth of the steps, then fall
                                    along a cosine to 0 */
    void (*progress)(void *arg, int32_t done, int32_t total, double kl);
    void *arg;
};

struct fit_report {
    double first_kl, last_kl; /* means over the first and the last tenth of the steps */
    int64_t n_rows;
};

/* own: text of the fine-tune; other: what it must also answer like the fine-tune (may be empty).
 * Both wrap round. */
err_t fit_run(struct student *s, const struct gemm *g, const struct corpus *own,
              const struct corpus *other, const struct fit_options *o, struct fit_report *report,
              struct why *why);

#endif
