/* engine/engine.h without a model: every running request gets one token a step. The I/O side
 * (submit, poll, rings, wakes) is that of the real engine, so what is measured is what it costs. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/clock.h"
#include "config/ring.h"
#include "engine/engine.h"
#include "tests/bench/http/bench_http.h"

enum { EVENT_SLOTS = 4096 };

struct bench_shared *bench_shared;

struct command {
    uint64_t id;
    int32_t max_tokens; /* < 0: cancel */
};

struct running {
    uint64_t id;
    int32_t left;
};

struct engine {
    struct tenant_info base;
    struct ring commands, events;
    pthread_t thread;
    _Atomic bool closing;
    struct running running[BENCH_MAX_LIVE];
    int n_running;
    uint64_t steps;
};

static void emit(struct engine *e, const struct gen_event *event) {
    while (!ring_push(&e->events, event) && !atomic_load(&e->closing)) {
        ring_wake(&e->events);
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
}

static void finish(struct engine *e, int i, enum gen_finish how) {
    emit(e,
         &(struct gen_event){.id = e->running[i].id, .kind = GEN_DONE, .token = -1, .finish = how});
    e->running[i] = e->running[--e->n_running];
}

static void take_commands(struct engine *e) {
    struct command c;
    while (ring_pop(&e->commands, &c)) {
        if (c.max_tokens >= 0) {
            e->running[e->n_running++] = (struct running){c.id, c.max_tokens};
            continue;
        }
        for (int i = 0; i < e->n_running; i++)
            if (e->running[i].id == c.id)
                finish(e, i, GEN_CANCELLED);
    }
}

static void sleep_until(int64_t us) {
    int64_t left = us - mono_us();
    if (left > 0)
        nanosleep(&(struct timespec){.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000},
                  NULL);
}

/* One token to the requests of part k of n; from the end, as finish() moves the last one. */
static void emit_part(struct engine *e, int k, int n) {
    uint64_t slot = e->steps % BENCH_STAMPS;
    int low = (int)((int64_t)e->n_running * k / n),
        high = (int)((int64_t)e->n_running * (k + 1) / n);
    atomic_store(&bench_shared->stamp_us[slot * BENCH_MAX_PARTS + (uint64_t)k], mono_us());
    for (int i = high - 1; i >= low; i--) {
        struct running *r = &e->running[i];
        emit(e, &(struct gen_event){.id = r->id,
                                    .kind = GEN_TOKEN,
                                    .token = (int32_t)slot + BENCH_FIRST_ID,
                                    .logprob = -(float)k}); /* tells the client which part */
        if (--r->left <= 0)
            finish(e, i, GEN_LENGTH);
    }
    ring_wake(&e->events);
}

static void *run(void *arg) {
    struct engine *e = arg;
    while (!atomic_load(&e->closing)) {
        ring_clear(&e->commands);
        take_commands(e);
        if (!e->n_running) {
            ring_wait(&e->commands, 1000);
            continue;
        }
        int64_t start = mono_us(), step_us = atomic_load(&bench_shared->step_us);
        int parts = step_us ? atomic_load(&bench_shared->parts) : 1;
        for (int k = parts - 1; k >= 0; k--) {
            emit_part(e, k, parts);
            sleep_until(start + step_us * (parts - k) / parts);
        }
        e->steps++;
    }
    return NULL;
}

err_t engine_open(struct engine **out, const struct engine_options *options, struct why *why) {
    struct engine *e = calloc(1, sizeof *e);
    (void)options, (void)why;
    if (!e)
        return E_NOMEM;
    e->base = (struct tenant_info){
        .hash = "null", .vocab = 4096, .context = 1 << 20, .bos_id = 1, .tokenizer_json = "{}"};
    if (ring_init(&e->commands, sizeof(struct command), 16384) ||
        ring_init(&e->events, sizeof(struct gen_event), EVENT_SLOTS) ||
        pthread_create(&e->thread, NULL, run, e) != 0)
        return E_NOMEM;
    *out = e;
    return E_OK;
}

void engine_close(struct engine *e) {
    atomic_store(&e->closing, true);
    ring_wake(&e->commands);
    pthread_join(e->thread, NULL);
    ring_free(&e->commands);
    ring_free(&e->events);
    free(e);
}

err_t engine_submit(struct engine *e, const struct gen_request *r, struct why *why) {
    (void)why;
    if (!ring_push(&e->commands, &(struct command){r->id, r->max_tokens}))
        return E_BUSY;
    free(r->ids);
    free(r->bias);
    ring_wake(&e->commands);
    return E_OK;
}

void engine_cancel(struct engine *e, uint64_t id) {
    ring_push(&e->commands, &(struct command){id, -1});
    ring_wake(&e->commands);
}

size_t engine_poll(struct engine *e, struct gen_event *out, size_t capacity) {
    size_t n = 0;
    ring_clear(&e->events);
    while (n < capacity && ring_pop(&e->events, &out[n]))
        n++;
    return n;
}

int engine_event_fd(const struct engine *e) {
    return e->events.event_fd;
}

const struct tenant_info *engine_base_info(const struct engine *e) {
    return &e->base;
}

const char *engine_describe(const struct engine *e) {
    (void)e;
    return "device=none";
}

void engine_drain(struct engine *e) {
    (void)e;
}

void engine_stats(const struct engine *e, struct engine_stats *out) {
    *out = (struct engine_stats){.steps = e->steps, .heartbeat_us = mono_us()};
}

err_t engine_tenant_load(struct engine *e, int fd, const char *label, struct tenant **out,
                         struct why *why) {
    (void)e, (void)fd, (void)label, (void)out;
    return why_set(why, E_UNSUPPORTED, "there is no engine");
}

const struct tenant_info *tenant_info(const struct tenant *t) {
    (void)t;
    return NULL;
}

struct tenant *tenant_ref(struct tenant *t) {
    return t;
}

void tenant_unref(struct tenant *t) {
    (void)t;
}
