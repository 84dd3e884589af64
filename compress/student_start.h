/* How a student's matrix starts, from the weights alone. Private to student*.c. */
#ifndef COMPRESS_STUDENT_START_H
#define COMPRESS_STUDENT_START_H

#include "compress/student.h"

/* Opens the student's reader of the fine-tune, unless it is; student_work gives it up. */
err_t student_read(struct student *s, struct why *why);
/* d (device [N, K]) = fine-tune - base as served. changed [N] (or NULL): whether a row
 * differs at all. Writes the matrix's base, change and zeros. */
err_t student_survey(struct student *s, int32_t i_matrix, float *d, bool *changed, struct why *why);
/* The ground's exact rows, from the fine-tune. Uses the work room. */
err_t student_put_exact_rows(struct student *s, int32_t i_matrix, struct why *why);
/* Pair and planes of a matrix from its difference d (device), which is overwritten. */
err_t student_start(struct student *s, int32_t i_matrix, float *d);

#endif
