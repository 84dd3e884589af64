/* A tenant's matrices as plain weights: base + delta, in FP32, rounded by whoever stores them. */
#ifndef COMPRESS_MERGE_H
#define COMPRESS_MERGE_H

#include "kernels/kernels.h"

/* Adds the planes and the low-rank pair of d, an [n, k] matrix, to rows [first, first + rows) of
 * the base in w [rows, k]; a dense d replaces them. All cores. */
void merge_rows(float *w, const struct delta *d, int32_t first, int32_t rows, int32_t k);

/* The same for embedding or lm_head, whose rows of their own win. Rows past base_rows (the base has
 * none there) come in as anything and must be among them or dense. */
void merge_vocab_rows(float *w, const struct vocab_matrix *v, int32_t first, int32_t rows,
                      int32_t base_rows, int32_t k);

#endif
