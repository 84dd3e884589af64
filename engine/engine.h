/* The door of the engine: a loaded base, tenants on top of it, requests in, events out.
 *
 * An engine owns one backend, the base weights, the KV pages and one thread that runs the steps. A
 * tenant is a reference-counted handle: whoever holds one may submit requests for it, and each live
 * request holds one itself, so replacing or removing a tenant is the caller dropping its reference,
 * while running requests end on the bits they started with. Names exist only in the caller.
 *
 * Threads. engine_submit, engine_cancel, engine_poll and engine_drain: one thread, the "I/O
 * thread". engine_tenant_load: any thread, several at a time. tenant_ref/unref/info and
 * engine_stats: any. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stddef.h>

#include "engine/request.h"

struct engine;

struct engine_options {
    const char *base_dir; /* Hugging Face folder */
    const char *device;   /* "auto", "cpu", "cuda" */
    int32_t threads;      /* CPU threads, 0: all cores */
    int32_t kv_tokens;    /* KV capacity in tokens, rounded up to pages; 0: chosen from memory */
    int32_t max_batch_tokens; /* rows of a step */
    int32_t max_seqs;         /* sequences running at once */
    int32_t max_queue;        /* requests beyond max_seqs that may wait */
    int32_t extra_vocab;      /* rows a tenant may have beyond the base vocabulary */
    size_t max_tenant_bytes;  /* memory for tenants; 0: no limit but the device's */
};

/* Facts of the base or of a tenant that the server shows or checks requests against. */
struct tenant_info {
    char hash[65]; /* content hash of the tenant file, hex. Base: its fingerprint, "" until known */
    uint64_t generation;            /* grows with every load; hash + generation name a tenant */
    int32_t vocab, context, bos_id; /* bos_id -1: none */
    int32_t eos_id[8], n_eos;
    size_t bytes; /* device memory held */
    size_t file_bytes;
    double bits_per_weight; /* delta bits per linear weight, scales included; base: 16 */
    int64_t loaded_unix_s;
    const char *tokenizer_json;  /* tokenizer additions and chat template ("{}": none) */
    const char *generation_json; /* generation defaults ("{}": none) */
    const char *made_json;       /* how it was made */
    const char *quality_json;    /* what it was measured to reach */
};

struct engine_stats {
    int32_t running, waiting;
    int32_t kv_pages, kv_pages_used, page_tokens;
    uint64_t steps, step_us, preemptions, prompt_tokens, generated_tokens;
    uint64_t finished_stop, finished_length, finished_cancelled, finished_failed;
    int32_t last_rows, last_tenants; /* rows and distinct tenants of the last step */
    size_t device_bytes, tenant_bytes;
    int64_t heartbeat_us; /* mono_us() when the engine thread last went round its loop */
};

/* Loads the base, opens the backend, runs one warm-up step and starts the engine thread.
 * Errors: E_IO, E_FORMAT, E_UNSUPPORTED, E_NOMEM, E_DEVICE, each with a sentence. */
err_t engine_open(struct engine **out, const struct engine_options *options, struct why *why);
/* Ends the thread and frees everything. Live requests get no more events; tenants must be unref'ed.
 */
void engine_close(struct engine *e);

/* Borrowed, lives as long as e. A large base's fingerprint is computed behind the first requests:
 * ask again for its hash. */
const struct tenant_info *engine_base_info(const struct engine *e);
const char *engine_describe(const struct engine *e); /* device, instruction set, threads */

/* Reads, checks and places a .bitdelta file. `fd` is borrowed and read from its start; `label`
 * names the file in sentences. On success *out holds one reference. Errors: E_FORMAT, E_WRONG_BASE,
 * E_UNSUPPORTED, E_NOMEM, E_IO, each with a sentence. */
err_t engine_tenant_load(struct engine *e, int fd, const char *label, struct tenant **out,
                         struct why *why);
const struct tenant_info *tenant_info(const struct tenant *t); /* borrowed while a ref is held */
struct tenant *tenant_ref(struct tenant *t);
void tenant_unref(struct tenant *t); /* NULL is fine; the last one frees the memory */

/* Checks every id and bound against the tenant and queues the request. On success the engine owns
 * r->ids and r->bias. Errors: E_TOKEN_RANGE, E_CONTEXT, E_INVAL, E_BUSY (queue full), E_DRAINING.
 */
err_t engine_submit(struct engine *e, const struct gen_request *r, struct why *why);
/* The request ends within one step with GEN_DONE/GEN_CANCELLED; unknown ids are ignored. */
void engine_cancel(struct engine *e, uint64_t id);

/* Readable when events wait; clear it by polling until 0. */
int engine_event_fd(const struct engine *e);
size_t engine_poll(struct engine *e, struct gen_event *out, size_t capacity);

void engine_drain(struct engine *e); /* refuse new requests, finish the live ones */
void engine_stats(const struct engine *e, struct engine_stats *out);

#endif
