/* The nearest matrix of a small rank, by subspace iteration from a fixed random start. */
#ifndef COMPRESS_LOW_RANK_H
#define COMPRESS_LOW_RANK_H

#include "compress/gemm.h"

/* d [n, k] ~ b a with b [n, rank], a [rank, k], their columns and rows balanced in size. share: how
 * much of d's energy (sum of squares) b a holds, 0 when d is 0. rank <= min(n, k). E_NOMEM. */
err_t low_rank(const struct gemm *g, int32_t n, int32_t k, int32_t rank, const float *d, float *b,
               float *a, double *share);

#endif
