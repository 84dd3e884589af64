/* Runs a function over a range of rows on all cores. What each row computes must not depend on the
 * others, so results do not depend on the number of threads. */
#ifndef COMPRESS_PARALLEL_H
#define COMPRESS_PARALLEL_H

#include <stdint.h>

typedef void rows_fn(void *arg, int32_t first, int32_t end);

/* Calls fn over blocks of at most `step` rows that cover [0, n). fn must be safe on any thread. */
void parallel_rows(int32_t n, int32_t step, rows_fn *fn, void *arg);

#endif
