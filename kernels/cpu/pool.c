/* The pool's one shared word is the ticket: (items of the job) << 32 | next item. A thread takes an
 * item by adding 1 and may read the job's fields only if the item it got is a real one: the caller
 * cannot pass to the next job before that item is done, so the fields are stable. A thread that
 * wakes late finds no item and touches nothing, so nobody ever waits for a sleeper. */
#include "kernels/cpu/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "config/clock.h"

enum {
    SPIN_US = 60, /* longer than the serial pieces between two jobs of a step */
    /* Looks at the ticket between two looks at the clock. No PAUSE between them: under a hypervisor
     * a run of them gives the core away, which cost 8 % of a step of the demo model. */
    SPIN_CHECKS = 256,
};

struct worker {
    struct pool *pool;
    pthread_t thread;
    int32_t index;
};

struct pool {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic int32_t done;
    _Alignas(64) _Atomic uint32_t epoch; /* futex word: jobs posted so far */
    _Atomic int32_t sleepers;
    atomic_bool stop;
    pool_fn fn; /* of the current job; see the head comment */
    void *arg;
    int32_t n_threads, n_started;
    struct worker *worker; /* [n_threads - 1] owned */
};

static bool has_item(uint64_t ticket) {
    return (uint32_t)ticket < ticket >> 32;
}

static void take_items(struct pool *p, int32_t thread) {
    int32_t n = 0; /* reported once: the counter's cache line is everybody's */
    while (has_item(atomic_load(&p->ticket))) {
        uint64_t t = atomic_fetch_add(&p->ticket, 1);
        if (!has_item(t))
            break;
        p->fn(p->arg, (int32_t)(uint32_t)t, thread);
        n++;
    }
    if (n > 0)
        atomic_fetch_add(&p->done, n);
}

/* Returns when there may be work. */
static void wait_for_job(struct pool *p) {
    int64_t until = mono_us() + SPIN_US;
    do {
        for (int i = 0; i < SPIN_CHECKS; i++) {
            if (has_item(atomic_load(&p->ticket)) || atomic_load(&p->stop))
                return;
        }
    } while (mono_us() < until);
    uint32_t seen = atomic_load(&p->epoch);
    atomic_fetch_add(&p->sleepers, 1);
    /* The caller posts the ticket, then the epoch, then looks for sleepers: either it sees this one
     * or this one sees the ticket or the new epoch. */
    if (!has_item(atomic_load(&p->ticket)) && !atomic_load(&p->stop))
        syscall(SYS_futex, &p->epoch, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *work(void *arg) {
    struct worker *w = arg;
    while (!atomic_load(&w->pool->stop)) {
        wait_for_job(w->pool);
        take_items(w->pool, w->index);
    }
    return NULL;
}

static void wake(struct pool *p) {
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleepers) > 0)
        syscall(SYS_futex, &p->epoch, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static int32_t usable_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int32_t)n : 1;
}

err_t pool_open(struct pool **out, int32_t threads) {
    struct pool *p = aligned_alloc(64, sizeof *p);
    if (!p)
        return E_NOMEM;
    *p = (struct pool){.n_threads = threads > 0 ? threads : usable_cores()};
    p->worker = calloc((size_t)p->n_threads, sizeof *p->worker);
    if (!p->worker) {
        free(p);
        return E_NOMEM;
    }
    for (int32_t i = 0; i < p->n_threads - 1; i++) {
        p->worker[i] = (struct worker){.pool = p, .index = i + 1};
        if (pthread_create(&p->worker[i].thread, NULL, work, &p->worker[i])) {
            pool_close(p);
            return E_NOMEM;
        }
        p->n_started++;
    }
    *out = p;
    return E_OK;
}

void pool_close(struct pool *p) {
    if (!p)
        return;
    atomic_store(&p->stop, true);
    wake(p);
    for (int32_t i = 0; i < p->n_started; i++)
        pthread_join(p->worker[i].thread, NULL);
    free(p->worker);
    free(p);
}

int32_t pool_threads(const struct pool *p) {
    return p->n_threads;
}

void pool_run(struct pool *p, pool_fn fn, void *arg, int32_t n_items) {
    if (n_items <= 1 || p->n_threads == 1) {
        for (int32_t i = 0; i < n_items; i++)
            fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store(&p->done, 0);
    atomic_store(&p->ticket, (uint64_t)(uint32_t)n_items << 32);
    wake(p);
    take_items(p, 0);
    int64_t until = mono_us() + SPIN_US;
    while (atomic_load(&p->done) < n_items) {
        for (int i = 0; i < SPIN_CHECKS && atomic_load(&p->done) < n_items; i++)
            ;
        if (mono_us() > until)
            sched_yield(); /* the last item's thread may be waiting for this core */
    }
}
