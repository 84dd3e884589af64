/* Who runs in the next step, and with how many rows.
 *
 * Fairness is over tenants: of the waiting requests, that of the tenant with the fewest running
 * sequences goes first, ties by arrival. Every running decode gets its row in every step; what is
 * left of the step's rows goes to prefill: half to the oldest, so that a long prompt moves, the
 * rest to the prompts that are nearest to their end, so that short ones do not wait behind it.
 *
 * Memory: a sequence is admitted when the pages of all its known ids are free, with a reserve of
 * one page per running sequence. When a running one finds no page, the youngest running one is
 * preempted: its pages go, its ids stay, and it is computed again when it is admitted again. The
 * oldest is therefore never held up, and since each sequence fits the pool alone, all of them end.
 *
 * Engine thread only. Allocates at init, never later. */
#ifndef ENGINE_SCHED_H
#define ENGINE_SCHED_H

#include "engine/seq.h"

struct sched {
    struct kv_pool *kv; /* borrowed */
    int32_t max_running, max_rows;
    struct seq **running; /* [max_running] by tenant, then arrival: a step's row order */
    struct seq **waiting; /* [cap_waiting] by arrival */
    int32_t n_running, n_waiting;
    uint64_t preemptions;
};

/* max_live: most sequences at once, waiting ones included. Errors: E_NOMEM. */
err_t sched_init(struct sched *s, struct kv_pool *kv, int32_t max_running, int32_t max_rows,
                 int32_t max_live);
void sched_free(struct sched *s);

void sched_add(struct sched *s, struct seq *q); /* a new request */
/* Forgets a sequence that ended and takes its pages back. */
void sched_remove(struct sched *s, struct seq *q);

/* Plans a step: preempts, admits, and sets n_rows of every running sequence. Returns the number of
 * rows; 0 only when nothing is running or waiting. */
int32_t sched_plan(struct sched *s);

#endif
