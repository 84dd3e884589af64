/* The nearest matrix of a small rank, by subspace iteration from a fixed random start; the large
 * products run on the device, the small ones on the host. */
#ifndef COMPRESS_LOW_RANK_H
#define COMPRESS_LOW_RANK_H

#include "kernels/train.h"

/* d [n, k] ~ b a with b [n, rank], a [rank, k], their columns and rows balanced in size; all on the
 * device. h [k, k] symmetric: nearest in the sense of (d - b a) h (d - b a)', the error of outputs
 * for inputs with these second moments; NULL: plainly nearest. held [rank]: the singular values,
 * squared, falling (of d h^1/2 with h); NULL: not asked for. rank <= min(n, k), 256. E_NOMEM. */
err_t low_rank(struct train *t, int32_t n, int32_t k, int32_t rank, const float *d, const float *h,
               float *b, float *a, double *held);

#endif
