/* The CPU's operators of the closed form (kernels/train.h). Private to kernels/cpu/train*.c. */
#ifndef KERNELS_CPU_TRAIN_CLOSED_H
#define KERNELS_CPU_TRAIN_CLOSED_H

#include "kernels/cpu/pool.h"
#include "kernels/train.h"

void closed_cpu_factor(int32_t n, float *a, size_t ld, float damp, float *inverse);
void closed_cpu_feedback(struct pool *pool, const struct train_delta *x, int32_t first,
                         int32_t width, const float *l, const float *pushed, float *d,
                         float *const *value);
void closed_cpu_row_dots(struct pool *pool, int32_t n, int32_t k, const float *a, const float *b,
                         float *out);
void closed_cpu_row_zeros(struct pool *pool, int32_t n, int32_t k, const float *x, int32_t *out);
void closed_cpu_times(struct pool *pool, size_t n, const float *y, float *x);

#endif
