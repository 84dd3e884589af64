/* Threads that share one job at a time: the caller (the engine thread) is one of them. Items are
 * taken one by one, so a core that another thread is using holds nobody up, and no result may
 * depend on who took which item. Idle threads spin for a moment, then sleep in the kernel. */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

#include <stdint.h>

#include "config/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct pool;

/* Work on item `item`; `thread` < n_threads names the thread's own scratch. */
typedef void (*pool_fn)(void *arg, int32_t item, int32_t thread);

/* threads: including the caller; 0: as many as cores this process may use.
 * Errors: E_NOMEM (memory or threads). */
err_t pool_open(struct pool **out, int32_t threads);
void pool_close(struct pool *p);
int32_t pool_threads(const struct pool *p);

/* Runs fn for items 0 .. n_items - 1 and returns when all are done. One caller thread. */
void pool_run(struct pool *p, pool_fn fn, void *arg, int32_t n_items);

#ifdef __cplusplus
}
#endif

#endif
