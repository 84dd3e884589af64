/* All singular triplets of a matrix in host memory: for comparisons and for matrices whose shorter
 * side is some hundreds. Its time grows with the cube of that side; compress/low_rank.h finds the
 * largest few of any matrix. Pure arithmetic in double, one thread. */
#ifndef COMPRESS_SVD_H
#define COMPRESS_SVD_H

#include <stdint.h>

#include "config/err.h"

/* d [n, k] = sum over i of value[i] u_i v_i', values falling, r = min(n, k) of them. u [n, r], v
 * [r, k]: orthonormal columns and rows; those of values that are nothing but rounding are 0.
 * E_NOMEM. */
err_t svd(int32_t n, int32_t k, const float *d, float *u, float *value, float *v);

#endif
