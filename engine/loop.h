/* The state behind the door, and the engine thread's loop over it: engine.c holds the I/O thread's
 * side, loop.c the engine thread's.
 *
 * Two rings join the threads: commands go in, events come out. Neither can lose anything. Commands:
 * at most three per live request stand in the ring, and live requests are bounded. Events: when the
 * ring is full, the engine thread waits for the I/O thread, which only ever copies them out.
 *
 * A sequence belongs to the I/O thread before its submit and after its last event, to the engine
 * thread between. So the table of live requests, draining and freeing are the I/O thread's alone,
 * and steps, pages and the scheduler the engine thread's. */
#ifndef ENGINE_LOOP_H
#define ENGINE_LOOP_H

#include <pthread.h>
#include <stdatomic.h>

#include "config/ring.h"
#include "engine/batch.h"
#include "engine/tenant.h"

struct command {
    struct seq *submit; /* NULL: cancel `id` */
    uint64_t id;
};

struct live {
    uint64_t id;
    struct seq *seq;
    bool cancelled; /* a cancel was sent */
};

struct engine {
    struct engine_options options;
    struct kernels *kernels;
    struct base_model base;
    struct tenant_store store;
    struct ring commands, events;

    /* I/O thread */
    struct live *live; /* [max_live] owned */
    int32_t n_live, max_live;
    uint64_t n_arrived;
    bool draining;

    /* engine thread, after open */
    struct kv_pool kv;
    struct sched sched;
    struct batch batch;
    struct engine_stats now;
    bool emitted; /* an event was pushed since the last wake */

    /* shared */
    pthread_t thread;
    bool running;         /* the thread was started */
    _Atomic bool closing; /* engine_close wants the thread to end */
    _Atomic int failed;   /* E_DEVICE once the device is lost, else 0 */
    _Atomic int64_t heartbeat_us;
    struct tenant_info hashed_info; /* the base's info with its hash; written before published */
    const struct tenant_info *_Atomic base_info;
    pthread_mutex_t stats_lock; /* guards `stats`; held for one copy */
    struct engine_stats stats;
};

/* The engine thread: takes commands, steps while there is work, sleeps while there is none, until
 * `closing`. */
void *loop_thread(void *engine);

/* Makes the numbers of `now` visible to engine_stats, and wakes the reader of new events. */
void loop_publish(struct engine *e);
/* Shows an info of the base that has its hash, once the fingerprint is known. */
void loop_publish_hash(struct engine *e);

#endif
