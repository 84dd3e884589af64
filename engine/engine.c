/* The door: opening and closing, and the I/O thread's side of a request: check, submit, cancel,
 * poll. What the two threads share, and how, is in loop.h. */
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "engine/admission.h"
#include "engine/backend.h"
#include "engine/forward.h"
#include "engine/loop.h"

enum {
    EVENT_SLOTS = 4096,  /* 0.8 MB; several steps' worth */
    CPU_KV_SHARE = 4,    /* kv_tokens 0: this part of the free memory, 1/4 of a host's ... */
    DEVICE_KV_SHARE = 2, /* ... and half of a device's, which has no other use but tenants */
};

/* ---- I/O thread: requests in ----------------------------------------------------------------- */

static struct live *find_live(struct engine *e, uint64_t id) {
    for (int32_t i = 0; i < e->n_live; i++)
        if (e->live[i].id == id)
            return &e->live[i];
    return NULL;
}

static err_t check_state(struct engine *e, const struct gen_request *r, struct why *why) {
    if (atomic_load(&e->failed))
        return why_set(why, E_DEVICE, "%s", err_sentence(E_DEVICE));
    if (e->draining)
        return why_set(why, E_DRAINING, "%s", err_sentence(E_DRAINING));
    if (e->n_live == e->max_live)
        return why_set(why, E_BUSY, "%d requests are running or waiting, the most that are taken",
                       e->n_live);
    if (find_live(e, r->id))
        return why_set(why, E_INVAL, "a request with id %llu is live already",
                       (unsigned long long)r->id);
    return E_OK;
}

err_t engine_submit(struct engine *e, const struct gen_request *r, struct why *why) {
    struct tenant *t = r->tenant ? r->tenant : &e->store.of_base;
    struct seq *q;
    err_t error = check_state(e, r, why);
    if (!error)
        error = admission_check(r, &t->info, (int64_t)e->kv.n_pages * KV_PAGE_TOKENS, why);
    if (error)
        return error;
    error = seq_open(&q, r, t, t->info.eos_id, t->info.n_eos, t->info.vocab);
    if (error)
        return why_set(why, error, "%s", err_sentence(error));
    tenant_ref(t);
    q->arrival = e->n_arrived++;
    e->live[e->n_live++] = (struct live){.id = r->id, .seq = q};
    ring_push(&e->commands, &(struct command){.submit = q, .id = r->id}); /* fits: open_rings */
    ring_wake(&e->commands);
    return E_OK;
}

void engine_cancel(struct engine *e, uint64_t id) {
    struct live *live = find_live(e, id);
    if (!live || live->cancelled)
        return;
    live->cancelled = true;
    ring_push(&e->commands, &(struct command){.id = id}); /* fits: open_rings */
    ring_wake(&e->commands);
}

void engine_drain(struct engine *e) {
    e->draining = true;
}

/* ---- I/O thread: events out ------------------------------------------------------------------ */

static void forget_live(struct engine *e, struct live *live) {
    struct seq *q = live->seq;
    *live = e->live[--e->n_live];
    tenant_unref(q->tenant);
    seq_free(q);
}

int engine_event_fd(const struct engine *e) {
    return e->events.event_fd;
}

size_t engine_poll(struct engine *e, struct gen_event *out, size_t capacity) {
    size_t n = 0;
    ring_clear(&e->events);
    while (n < capacity && ring_pop(&e->events, &out[n])) {
        if (out[n].kind == GEN_DONE || out[n].kind == GEN_FAILED)
            forget_live(e, find_live(e, out[n].id));
        n++;
    }
    return n;
}

/* ---- any thread ------------------------------------------------------------------------------ */

err_t engine_tenant_load(struct engine *e, int fd, const char *label, struct tenant **out,
                         struct why *why) {
    return tenant_load(&e->store, fd, label, out, why);
}

const struct tenant_info *engine_base_info(const struct engine *e) {
    return atomic_load_explicit(&e->base_info, memory_order_acquire);
}

const char *engine_describe(const struct engine *e) {
    return e->kernels->ops->describe(e->kernels);
}

void engine_stats(const struct engine *e, struct engine_stats *out) {
    struct engine *shared = (struct engine *)(uintptr_t)e; /* only locks change */
    pthread_mutex_lock(&shared->stats_lock);
    *out = e->stats;
    pthread_mutex_unlock(&shared->stats_lock);
    out->heartbeat_us = atomic_load_explicit(&e->heartbeat_us, memory_order_relaxed);
    out->device_bytes = e->kernels->ops->memory_used(e->kernels);
    out->tenant_bytes = tenant_store_bytes(&shared->store);
}

/* ---- open and close -------------------------------------------------------------------------- */

static err_t check_options(const struct engine_options *o, struct why *why) {
    if (o->max_batch_tokens < 1 || o->max_seqs < 1 || o->max_queue < 0 || o->extra_vocab < 0 ||
        o->kv_tokens < 0 || o->threads < 0)
        return why_set(why, E_CONFIG,
                       "max_batch_tokens and max_seqs must be at least 1; max_queue, extra_vocab, "
                       "kv_tokens and threads at least 0");
    if (o->max_seqs > o->max_batch_tokens)
        return why_set(why, E_CONFIG,
                       "max_seqs is %d, more than max_batch_tokens %d: every running sequence "
                       "needs a row in each step",
                       o->max_seqs, o->max_batch_tokens);
    return E_OK;
}

/* kv_tokens 0: a share of the free memory, no more than all sequences can fill, no less than one
 * context. */
static int32_t choose_pages(const struct engine *e) {
    const struct engine_options *o = &e->options;
    if (o->kv_tokens > 0)
        return kv_pages_for(o->kv_tokens);
    const struct kernels_ops *op = e->kernels->ops;
    int32_t context_pages = kv_pages_for(e->base.checkpoint.config.context);
    int64_t most = (int64_t)context_pages * o->max_seqs;
    size_t share = strcmp(op->name, "cpu") == 0 ? CPU_KV_SHARE : DEVICE_KV_SHARE;
    int64_t pages = (int64_t)(op->memory_free(e->kernels) / share / op->kv_page_bytes(e->kernels));
    pages = pages < most ? pages : most;
    return pages > context_pages ? (int32_t)pages : context_pages;
}

static err_t open_kv(struct engine *e, struct why *why) {
    int32_t n_pages = choose_pages(e);
    err_t error = kv_init(&e->kv, n_pages);
    if (!error)
        error = e->kernels->ops->kv_open(e->kernels, n_pages);
    if (error)
        return why_set(
            why, error, "no memory for a KV pool of %d tokens (%zu bytes); set kv_tokens lower",
            n_pages * KV_PAGE_TOKENS, (size_t)n_pages * e->kernels->ops->kv_page_bytes(e->kernels));
    e->now.kv_pages = n_pages;
    e->now.page_tokens = KV_PAGE_TOKENS;
    return E_OK;
}

/* A live request has at most three commands in the ring: a cancel that came too late for the one
 * before it, its submit, its cancel. */
static err_t open_rings(struct engine *e, struct why *why) {
    size_t slots = 16;
    e->max_live = e->options.max_seqs + e->options.max_queue;
    while (slots < 3 * (size_t)e->max_live)
        slots *= 2;
    err_t error = ring_init(&e->commands, sizeof(struct command), slots);
    if (!error)
        error = ring_init(&e->events, sizeof(struct gen_event), EVENT_SLOTS);
    return error ? why_set(why, error, "no memory for the engine's queues") : E_OK;
}

static err_t open_lists(struct engine *e, struct why *why) {
    const struct engine_options *o = &e->options;
    e->live = calloc((size_t)e->max_live, sizeof *e->live);
    err_t error = e->live ? E_OK : E_NOMEM;
    if (!error)
        error = sched_init(&e->sched, &e->kv, o->max_seqs, o->max_batch_tokens, e->max_live);
    if (!error)
        error = batch_init(&e->batch, o->max_batch_tokens, o->max_seqs);
    return error ? why_set(why, error, "no memory for the engine's lists") : E_OK;
}

static err_t open_model(struct engine *e, const struct engine_options *o, struct why *why) {
    err_t error = base_model_open(&e->base, o->base_dir, why);
    if (error)
        return error;
    struct model_shape *shape = &e->base.checkpoint.config.shape;
    shape->max_vocab = shape->vocab + o->extra_vocab;
    shape->tied = e->base.checkpoint.config.tied;
    error = backend_open(&e->kernels, o->device, shape, o->max_batch_tokens, o->threads, why);
    if (!error)
        error = base_model_load(&e->base, e->kernels, o->threads, why);
    if (!error)
        error = tenant_store_open(&e->store, &e->base, o->max_tenant_bytes, why);
    atomic_store(&e->base_info, &e->store.of_base.info);
    return error;
}

/* One row of the base through everything: pages are touched, code is loaded, a broken device shows
 * before the first client does. */
static err_t warm_up(struct engine *e, struct why *why) {
    struct tenant *t = &e->store.of_base;
    int32_t id = t->info.bos_id >= 0 && t->info.bos_id < t->info.vocab ? t->info.bos_id : 0;
    int32_t page = 0;
    struct seq q = {.request = {.max_tokens = 1, .top_p = 1, .repetition = 1, .n_top = -1},
                    .tenant = t,
                    .ids = &id,
                    .n_prompt = 1,
                    .n_ids = 1,
                    .pages = &page,
                    .n_rows = 1};
    batch_clear(&e->batch);
    batch_add(&e->batch, &q);
    err_t error =
        forward_step(e->kernels, e->base.checkpoint.config.shape.n_layers, &e->batch.step);
    return error
               ? why_set(why, error, "the first step on the device failed: %s", err_sentence(error))
               : E_OK;
}

static err_t start_thread(struct engine *e, struct why *why) {
    atomic_store(&e->heartbeat_us, mono_us());
    loop_publish_hash(e);
    loop_publish(e);
    e->running = pthread_create(&e->thread, NULL, loop_thread, e) == 0;
    return e->running ? E_OK : why_set(why, E_NOMEM, "no thread for the engine");
}

err_t engine_open(struct engine **out, const struct engine_options *options, struct why *why) {
    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return why_set(why, E_NOMEM, "no memory for the engine");
    e->options = *options;
    e->options.base_dir = e->options.device = NULL; /* the caller's; used below alone */
    pthread_mutex_init(&e->stats_lock, NULL);
    err_t error = check_options(options, why);
    if (!error)
        error = open_model(e, options, why);
    if (!error)
        error = open_kv(e, why);
    if (!error)
        error = open_rings(e, why);
    if (!error)
        error = open_lists(e, why);
    if (!error)
        error = warm_up(e, why);
    if (!error)
        error = start_thread(e, why);
    if (error) {
        engine_close(e);
        return error;
    }
    *out = e;
    return E_OK;
}

void engine_close(struct engine *e) {
    if (e->running) {
        atomic_store(&e->closing, true);
        ring_wake(&e->commands);
        pthread_join(e->thread, NULL);
    }
    while (e->n_live > 0)
        forget_live(e, &e->live[0]);
    ring_free(&e->commands);
    ring_free(&e->events);
    batch_free(&e->batch);
    sched_free(&e->sched);
    kv_free(&e->kv);
    free(e->live);
    tenant_store_close(&e->store);
    base_model_close(&e->base);
    if (e->kernels)
        e->kernels->ops->close(e->kernels);
    pthread_mutex_destroy(&e->stats_lock);
    free(e);
}
