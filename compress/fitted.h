/* Compressing with fitting: from two checkpoints to the tensors of a tenant file that answers like
 * the fine-tune. Base, fine-tune and the student's signs lie on one device (compress/fitted.c
 * counts them before it starts), weights are streamed there; compress/diff.h needs no more than one
 * matrix.
 */
#ifndef COMPRESS_FITTED_H
#define COMPRESS_FITTED_H

#include "compress/job.h"

enum { STEPS_USUAL = -1 };

struct fitted_options {
    double bits;          /* of a weight of the linears on average, 1 .. MAX_PLANES: planes, scales
                             and low-rank pairs; one plane with its scales is the least */
    int32_t vocab_planes; /* of embedding and lm_head; 0: as compress/plan.c has it */
    bool dense_vocab;     /* embedding and lm_head whole */
    bool published;       /* one scale a matrix, distilled as BitDelta was published */
    const char *calibration; /* a text to answer like the fine-tune, or NULL */
    const char *device;      /* auto, cpu, cuda */
    int32_t steps;           /* of learning; with few, planes are refitted by least squares first;
                                STEPS_USUAL: as many as the device does in minutes */
    uint64_t seed;
    const char *path;  /* of the file to come: an interrupted fit is kept beside it; NULL: is not */
    bool only_quality; /* is asked for: of a fit that was done and interrupted since, that is known,
                          and nothing is written */
};

/* Fits and writes all tensors (but see only_quality; *written says so). made gets what was done;
 * *quality (given to the caller) what was measured on text that was not fitted on. Errors:
 * E_WRONG_BASE, E_NOMEM, E_INVAL, E_IO, E_FORMAT, E_CANCELLED (a signal: the same call goes on from
 * there), E_NONFINITE, each with a sentence. */
err_t fitted_write(const struct job_base *base, const struct checkpoint *fine,
                   const struct fitted_options *o, struct tenant_writer *w, struct report *report,
                   json_t *made, json_t **quality, bool *written, struct why *why);

#endif
