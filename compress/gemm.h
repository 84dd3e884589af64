/* FP32 matrix products for the calibration model.
 *
 * A matrix is a pointer with two strides, so transposes and the columns of one head cost nothing to
 * name. Results do not depend on the number of threads: a task computes its own block of C alone,
 * and sums run over k in one fixed order. Owner: the thread that opened it; gemm_one may run inside
 * its pool's tasks. */
#ifndef COMPRESS_GEMM_H
#define COMPRESS_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "kernels/cpu/pool.h"

/* The threads and, per thread, the scratch that the packed blocks live in. */
struct gemm {
    struct pool *pool;
    float **scratch; /* [threads] owned */
};
err_t gemm_open(struct gemm *g, int32_t threads); /* threads: 0 = all cores */
void gemm_close(struct gemm *g);                  /* zeroed or opened */

/* Element (i, j) is at p[i * row + j * col]. */
struct mat {
    const float *p;
    size_t row, col;
};
static inline struct mat mat_of(const float *p, size_t ld) {
    return (struct mat){p, ld, 1};
}
static inline struct mat mat_transposed(const float *p, size_t ld) {
    return (struct mat){p, 1, ld};
}

/* C [m, n] (row stride ldc) = A [m, k] B [k, n], or += when add. Neither A nor B may overlap C. */
void gemm(const struct gemm *g, int32_t m, int32_t n, int32_t k, struct mat a, struct mat b,
          float *c, size_t ldc, bool add);
/* The same on the calling thread alone, inside a task of g->pool; thread: as given to the task. */
void gemm_one(const struct gemm *g, int32_t thread, int32_t m, int32_t n, int32_t k, struct mat a,
              struct mat b, float *c, size_t ldc, bool add);

#endif
