/* Eigenvectors of a small symmetric matrix in host memory: some hundred rows, its time grows with
 * their cube. Pure arithmetic in double, one thread. */
#ifndef COMPRESS_EIGEN_H
#define COMPRESS_EIGEN_H

#include <stdint.h>

#include "config/err.h"

/* a [n, n] symmetric, destroyed = sum over i of value[i] x_i x_i', x_i the rows of vector [n, n],
 * orthonormal; value [n] falling. E_NOMEM. */
err_t eigen(int32_t n, double *a, double *value, double *vector);

#endif
