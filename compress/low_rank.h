/* The nearest matrix of a rank, small or large, by block subspace iteration; the large products run
 * on the device, what is small on the host.
 *
 * Accuracy: of the energy that the best pair of the rank holds, `b a` holds all but 0.1 %, whatever
 * the spectrum is, and all but 1e-5 where it falls ([4096, 11008], mostly noise, rank 212: 0.04 %).
 * A single value that is one of many near ones may be off by 2 %, others by 1e-4
 * (tests/unit/test_low_rank.c).
 */
#ifndef COMPRESS_LOW_RANK_H
#define COMPRESS_LOW_RANK_H

#include "kernels/train.h"

/* d [n, k] ~ b a with b [n, rank], a [rank, k]: column i of b and row i of a are a singular pair,
 * balanced in size, 0 where d holds nothing more. All on the device; d becomes d - b a. h [k, k]
 * symmetric: nearest in the sense of (d - b a) h (d - b a)', the error of outputs for inputs with
 * these second moments; NULL: plainly nearest. held [rank]: the singular values, squared, falling
 * but for rounding (of d h^1/2 with h); NULL: not asked for. 1 <= rank <= min(n, k). E_NOMEM. */
err_t low_rank(struct train *t, int32_t n, int32_t k, int32_t rank, float *d, const float *h,
               float *b, float *a, double *held);

#endif
