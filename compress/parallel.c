#include "compress/parallel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { MAX_THREADS = 128 };

struct work {
    rows_fn *fn;
    void *arg;
    int64_t n, step;
    _Atomic int64_t next; /* a ticket counter: no data is passed through it */
};

static void *work_on(void *arg) {
    struct work *w = arg;
    for (;;) {
        int64_t first = atomic_fetch_add_explicit(&w->next, w->step, memory_order_relaxed);
        if (first >= w->n)
            return NULL;
        int64_t end = first + w->step < w->n ? first + w->step : w->n;
        w->fn(w->arg, (int32_t)first, (int32_t)end);
    }
}

void parallel_rows(int32_t n, int32_t step, rows_fn *fn, void *arg) {
    struct work w = {.fn = fn, .arg = arg, .n = n, .step = step};
    pthread_t thread[MAX_THREADS];
    long cores = sysconf(_SC_NPROCESSORS_ONLN), blocks = (n + step - 1) / step;
    long wanted = cores < blocks ? cores : blocks;
    int started = 0;
    while (started < wanted - 1 && started < MAX_THREADS &&
           pthread_create(&thread[started], NULL, work_on, &w) == 0)
        started++;
    work_on(&w);
    for (int i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
}
