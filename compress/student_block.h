/* Blocks of rows that the student's tasks work on, and what a plane adds to weights. Private to
 * student*.c. */
#ifndef COMPRESS_STUDENT_BLOCK_H
#define COMPRESS_STUDENT_BLOCK_H

#include "compress/student.h"

enum { BLOCK_ROWS = 32 };

static inline int32_t blocks(const struct student_matrix *x) {
    return (x->n + BLOCK_ROWS - 1) / BLOCK_ROWS;
}
static inline int32_t block_end(const struct student_matrix *x, int32_t task) {
    int32_t end = (task + 1) * BLOCK_ROWS;
    return end < x->n ? end : x->n;
}

/* w [N, K] += sign * diag(row) S diag(col) of the plane. */
void plane_add(const struct gemm *g, const struct student_matrix *x, const struct student_plane *p,
               float sign, float *w);
/* Brings col_scale up to date with col. */
void plane_columns(const struct student_matrix *x, struct student_plane *p);

#endif
