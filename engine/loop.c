/* One turn of the loop: commands, then a step if anything runs or waits, then the numbers. */
#include "engine/loop.h"

#include <string.h>
#include <time.h>

#include "config/clock.h"
#include "config/log.h"
#include "engine/forward.h"

enum {
    EVENT_WAIT_US = 100, /* between two looks at a full event ring */
    IDLE_WAIT_MS = 1000, /* the heartbeat's longest pause */
};

/* ---- events out, commands in ----------------------------------------------------------------- */

static void emit(struct engine *e, const struct gen_event *event) {
    while (!ring_push(&e->events, event)) {
        if (atomic_load(&e->closing)) /* nobody will poll again */
            return;
        ring_wake(&e->events);
        nanosleep(&(struct timespec){.tv_nsec = EVENT_WAIT_US * 1000}, NULL);
    }
    e->emitted = true;
}

static void count_end(struct engine_stats *now, const struct gen_event *last) {
    if (last->kind == GEN_FAILED)
        now->finished_failed++;
    else if (last->finish == GEN_STOP)
        now->finished_stop++;
    else if (last->finish == GEN_LENGTH)
        now->finished_length++;
    else
        now->finished_cancelled++;
}

/* The sequence's last event: after it the sequence is the I/O thread's again. */
static void end_seq(struct engine *e, struct seq *q, struct gen_event last) {
    sched_remove(&e->sched, q);
    count_end(&e->now, &last);
    emit(e, &last);
}

static struct seq *find_seq(const struct sched *s, uint64_t id) {
    for (int32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->request.id == id)
            return s->running[i];
    for (int32_t i = 0; i < s->n_waiting; i++)
        if (s->waiting[i]->request.id == id)
            return s->waiting[i];
    return NULL;
}

static void take_commands(struct engine *e) {
    struct command c;
    while (ring_pop(&e->commands, &c)) {
        struct seq *q = c.submit;
        if (q) {
            sched_add(&e->sched, q);
            e->now.prompt_tokens += (uint64_t)q->n_prompt;
            if (seq_rows_left(q) == 0) /* nothing was asked for */
                end_seq(e, q, seq_done(q, GEN_LENGTH));
        } else if ((q = find_seq(&e->sched, c.id))) {
            end_seq(e, q, seq_done(q, GEN_CANCELLED));
        }
    }
}

/* ---- one step -------------------------------------------------------------------------------- */

static void fail_all(struct engine *e, err_t error) {
    struct sched *s = &e->sched;
    while (s->n_running > 0)
        end_seq(e, s->running[0], seq_failed(s->running[0], error));
    while (s->n_waiting > 0)
        end_seq(e, s->waiting[0], seq_failed(s->waiting[0], error));
}

/* The sequence's rows were computed: report, and let it go when it ended. */
static void advance(struct engine *e, struct seq *q, const struct sampled *result, int32_t n) {
    struct gen_event *event = e->batch.event;
    bool ended;
    int32_t n_events = seq_advance(q, result, n, event, &ended);
    for (int32_t i = 0; i < n_events; i++) {
        e->now.generated_tokens += event[i].kind == GEN_TOKEN;
        if (i < n_events - 1 || !ended)
            emit(e, &event[i]);
    }
    if (ended)
        end_seq(e, q, event[n_events - 1]);
}

static void fill_batch(struct engine *e) {
    batch_clear(&e->batch);
    for (int32_t i = 0; i < e->sched.n_running; i++)
        if (e->sched.running[i]->n_rows > 0)
            batch_add(&e->batch, e->sched.running[i]);
}

static void step(struct engine *e) {
    struct batch *b = &e->batch;
    int64_t start = mono_us();
    sched_plan(&e->sched);
    fill_batch(e);
    err_t error = forward_step(e->kernels, e->base.checkpoint.config.shape.n_layers, &b->step);
    e->now.steps++;
    e->now.step_us += (uint64_t)(mono_us() - start);
    e->now.last_rows = b->step.n_rows;
    e->now.last_tenants = b->step.n_groups;
    if (error) { /* what the pages hold is unknown now */
        log_error("engine", "step failed error=%s rows=%d", err_code(error), b->step.n_rows);
        if (error == E_DEVICE)
            atomic_store(&e->failed, E_DEVICE);
        fail_all(e, error);
        return;
    }
    const struct sampled *result = b->sampled;
    for (int32_t i = 0; i < b->step.n_seqs; i++) {
        advance(e, b->owner[i], result, b->n_logits[i]);
        result += b->n_logits[i];
    }
}

/* ---- the loop -------------------------------------------------------------------------------- */

void loop_publish(struct engine *e) {
    e->now.running = e->sched.n_running;
    e->now.waiting = e->sched.n_waiting;
    e->now.kv_pages_used = e->kv.n_pages - e->kv.n_free;
    e->now.preemptions = e->sched.preemptions;
    pthread_mutex_lock(&e->stats_lock);
    e->stats = e->now;
    pthread_mutex_unlock(&e->stats_lock);
    if (e->emitted)
        ring_wake(&e->events);
    e->emitted = false;
}

/* The release store makes the copy visible before the pointer. */
void loop_publish_hash(struct engine *e) {
    const struct tenant_info *shown = atomic_load_explicit(&e->base_info, memory_order_relaxed);
    const char *hash = shown == &e->hashed_info ? NULL : base_model_fingerprint_now(&e->base);
    if (!hash)
        return;
    e->hashed_info = *shown;
    memcpy(e->hashed_info.hash, hash, sizeof e->hashed_info.hash);
    atomic_store_explicit(&e->base_info, &e->hashed_info, memory_order_release);
}

void *loop_thread(void *arg) {
    struct engine *e = arg;
    while (!atomic_load(&e->closing)) {
        atomic_store_explicit(&e->heartbeat_us, mono_us(), memory_order_relaxed);
        ring_clear(&e->commands); /* before looking: a later push makes the wait return */
        take_commands(e);
        loop_publish_hash(e);
        bool busy = e->sched.n_running + e->sched.n_waiting > 0;
        if (busy && atomic_load(&e->failed))
            fail_all(e, atomic_load(&e->failed));
        else if (busy)
            step(e);
        loop_publish(e);
        if (!busy)
            ring_wait(&e->commands, IDLE_WAIT_MS);
    }
    return NULL;
}
