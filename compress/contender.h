/* What ours is compared with at the same bits: a plain truncated SVD of each difference, and
 * Delta-CoMe's mixed precision (compress/delta_come.h). Of the linears alone: embedding, lm_head
 * and norms are the fine-tune's own, whole, which favours these. An SVD is stored as the pair it
 * is; Delta-CoMe's result as dense matrices, because no kernel of ours serves its packed form: its
 * file is for measuring quality, and the bits it would take are reported. */
#ifndef COMPRESS_CONTENDER_H
#define COMPRESS_CONTENDER_H

#include "compress/diff.h"
#include "kernels/train.h"

enum contender { CONTENDER_NONE, CONTENDER_SVD, CONTENDER_DELTA_COME };

/* "svd", "delta-come"; CONTENDER_NONE for any other name. */
enum contender contender_of(const char *name);

/* One linear, by the method at `bits` per weight; adds to *spent the bits its vectors take. The
 * whole matrix is on the host and on the device a few times over, in FP32. */
err_t contender_write_part(struct train *t, enum contender method, double bits,
                           struct tenant_writer *w, const char *part, struct rows base,
                           struct rows fine, struct report_row *report, double *spent,
                           struct why *why);

#endif
