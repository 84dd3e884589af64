#include "server/generation.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "config/clock.h"
#include "config/log.h"
#include "server/fit.h"
#include "server/reply.h"
#include "server/server.h"
#include "server/surface.h"

enum {
    INLINE_BODY_BYTES = 32768, /* larger bodies are parsed by a worker */
    INLINE_TEXT_BYTES = 4096,  /* longer prompts are tokenised by a worker: about 1 ms */
    EVENTS = 64,
    MAX_WAITS = 4, /* a model that was brought back and went again this often is not waited for */
};

/* What the generation knows of one choice beside its text. */
_Static_assert((int)PARAMS_IGNORED_BYTES == (int)HTTP_IGNORED_BYTES &&
                   (int)PARAMS_MAX_MODEL == (int)HTTP_SCOPE_BYTES,
               "copied as they are");

struct ticket {
    uint64_t engine_id;
    int64_t last_token_us;
    bool in_engine, cancelled;
};

/* Freed when neither a worker nor the engine nor an exchange knows it any more. */
struct generation {
    struct server *server;
    const struct surface *surface;
    struct exchange *x; /* NULL: the client is gone or was answered */
    char id[HTTP_ID_BYTES + 16];
    struct buf body;
    struct params params;
    struct served *model; /* one reference */
    struct reply reply;
    struct ticket *tickets; /* [reply.n_choices] owned */
    int n_in_engine;
    bool has_reply, working;
    bool running; /* the engine has it; false again once it is counted */
    uv_work_t work;
    struct waiter waiter; /* for its model; `working` meanwhile */
    int n_waits;
    err_t error;
    const char *field; /* parameter that the error is about */
    struct why why;
    err_t end_with; /* why it was cancelled by us: E_DRAINING, E_DEVICE, ... */
    int64_t start_us;
};

static void release(struct generation *g) {
    if (g->x || g->working || g->n_in_engine)
        return;
    if (g->has_reply)
        reply_free(&g->reply);
    free(g->tickets);
    params_free(&g->params);
    buf_free(&g->body);
    served_unref(g->model);
    free(g);
}

static void detach(struct generation *g) {
    g->x->on_gone = NULL;
    g->x->work = NULL;
    g->x = NULL;
}

static void cancel_one(struct generation *g, int i) {
    struct ticket *t = &g->tickets[i];
    if (t->in_engine && !t->cancelled) {
        t->cancelled = true;
        engine_cancel(g->server->engine, t->engine_id);
    }
}

static void cancel_all(struct generation *g) {
    for (int i = 0; g->n_in_engine && i < g->reply.n_choices; i++)
        cancel_one(g, i);
}

/* Counts and logs what was generated, whoever got it. `how`: NULL: it ended by itself. */
static void count_end(struct generation *g, const char *how) {
    struct server *s = g->server;
    if (!g->running)
        return;
    g->running = false;
    struct tenant_counts *counts = metrics_tenant(&s->metrics, g->model->name);
    int64_t prompt = reply_prompt_tokens(&g->reply), done = reply_completion_tokens(&g->reply);
    const char *finish = how ? how : reply_finish(&g->reply);
    counts->prompt_tokens += (uint64_t)prompt;
    counts->generated_tokens += (uint64_t)done;
    for (int i = 0; i < g->reply.n_choices; i++)
        metrics_finished(&s->metrics, g->reply.choices[i].finish_reason);
    if (!how)
        histogram_add(&s->metrics.whole_s, (double)(mono_us() - g->start_us) / 1e6);
    log_info("request",
             "tenant=%s print=%s req=%s choices=%d prompt=%lld generated=%lld finish=%s us=%lld",
             g->model->name, g->model->fingerprint, g->id, g->reply.n_choices, (long long)prompt,
             (long long)done, finish ? finish : "none", (long long)(mono_us() - g->start_us));
}

static void on_gone(struct exchange *x) {
    struct generation *g = x->work;
    detach(g);
    if (g->n_in_engine && !reply_done(&g->reply)) {
        g->server->metrics.cancelled++;
        count_end(g, "client_left");
    }
    cancel_all(g);
    release(g);
}

/* --- ending --------------------------------------------------------------------------------- */

/* After the head of a stream has gone out, an error is an event. */
static void stream_error(struct exchange *x, err_t e, const struct why *why) {
    char *json = http_error_json(e, NULL, why);
    if (json && !http_stream_write(x, "data: ", 6) && !http_stream_write(x, json, strlen(json)) &&
        !http_stream_write(x, "\n\ndata: [DONE]\n\n", 16))
        http_stream_end(x);
    else
        http_abort(x); /* never a clean end for half an answer */
    free(json);
}

/* Answers with an error and lets go of the exchange. */
static void fail(struct generation *g, err_t e, const char *field, const struct why *why) {
    struct exchange *x = g->x;
    if (x)
        count_end(g, err_code(e));
    if (x) {
        detach(g);
        if (x->streaming)
            stream_error(x, e, why);
        else
            http_reply_error(x, e, field, why);
    }
    cancel_all(g);
    release(g);
}

static void answer(struct generation *g) {
    struct buf out;
    buf_init(&out, SIZE_MAX / 4);
    count_end(g, NULL);
    err_t e = reply_whole(&g->reply, &out);
    if (e) {
        buf_free(&out);
        fail(g, e, NULL, NULL);
        return;
    }
    struct exchange *x = g->x;
    detach(g);
    http_reply(x, 200, "application/json", out.data, out.n);
    cancel_all(g);
    release(g);
}

/* Sends what is due of choice i. */
static void push_stream(struct generation *g, int i) {
    struct exchange *x = g->x;
    struct buf out;
    buf_init(&out, SIZE_MAX / 4);
    err_t e = reply_stream(&g->reply, i, &out);
    if (!e && out.n) {
        http_stream_begin(x);
        e = http_stream_write(x, out.data, out.n);
    }
    buf_free(&out);
    if (e == E_BUSY)
        g->server->metrics.stalled++;
    if (!e && !reply_done(&g->reply))
        return;
    count_end(g, e == E_BUSY ? "client_stalled" : e ? err_code(e) : NULL);
    detach(g);
    if (e)
        http_abort(x);
    else
        http_stream_end(x);
    cancel_all(g);
    release(g);
}

static void left_engine(struct generation *g, int i) {
    live_remove(&g->server->live, g->tickets[i].engine_id);
    g->tickets[i].in_engine = false;
    g->n_in_engine--;
}

/* --- events from the engine ----------------------------------------------------------------- */

static void time_token(struct generation *g, struct ticket *t) {
    struct metrics *m = &g->server->metrics;
    int64_t now = mono_us();
    if (!t->last_token_us)
        histogram_add(&m->first_token_s, (double)(now - g->start_us) / 1e6);
    else
        histogram_add(&m->between_tokens_s, (double)(now - t->last_token_us) / 1e6);
    t->last_token_us = now;
}

static void take_answer(struct generation *g, int i, const struct gen_event *event) {
    if (g->reply.choices[i].done) /* by a stop string; this is what came too late */
        return;
    if (event->kind == GEN_TOKEN)
        time_token(g, &g->tickets[i]);
    err_t e = reply_event(&g->reply, i, event);
    if (e) {
        if (e == E_TOO_LARGE)
            why_set(&g->why, e, "The reply outgrew %d MiB.", REPLY_MAX_BYTES >> 20);
        fail(g, e, NULL, &g->why);
        return;
    }
    if (g->reply.choices[i].done)
        cancel_one(g, i);
    if (g->params.stream)
        push_stream(g, i);
    else if (reply_done(&g->reply))
        answer(g);
}

static void take_event(struct generation *g, int i, const struct gen_event *event) {
    struct server *s = g->server;
    if (event->kind == GEN_DONE || event->kind == GEN_FAILED)
        left_engine(g, i);
    if (event->kind == GEN_FAILED && event->error == E_DEVICE && !s->fatal) {
        s->fatal = E_DEVICE; /* nothing of a device after such an error can be trusted */
        log_error("engine", "note=\"the compute device failed; leaving\"");
        server_drain(s, 1000000);
    }
    if (!g->x)
        release(g);
    else if (event->kind == GEN_FAILED)
        fail(g, event->error, NULL, NULL);
    else if (event->kind == GEN_DONE && event->finish == GEN_CANCELLED && !g->reply.choices[i].done)
        fail(g, g->end_with ? g->end_with : E_CANCELLED, NULL, NULL);
    else
        take_answer(g, i, event);
}

void generation_poll(struct server *s) {
    struct gen_event events[EVENTS];
    size_t n;
    while ((n = engine_poll(s->engine, events, EVENTS)) > 0) {
        for (size_t i = 0; i < n; i++) {
            const struct live_entry *entry = live_find(&s->live, events[i].id);
            if (entry)
                take_event(entry->g, entry->i_choice, &events[i]);
        }
        http_flush(s->http); /* the first tokens of a large step leave while the last are written */
    }
}

/* --- into the engine ------------------------------------------------------------------------ */

static err_t submit(struct generation *g, int i) {
    struct server *s = g->server;
    struct gen_request request;
    struct ticket *t = &g->tickets[i];
    err_t e = fit_request(&g->params, g->reply.choices[i].prompt, g->model, i % g->params.best_of,
                          &request);
    if (e)
        return e;
    e = live_add(&s->live, g, i, &request.id);
    if (!e) {
        t->engine_id = request.id;
        e = engine_submit(s->engine, &request, &g->why);
        if (e)
            live_remove(&s->live, request.id);
    }
    if (e) {
        free(request.ids);
        free(request.bias);
        return e;
    }
    t->in_engine = true;
    g->n_in_engine++;
    return E_OK;
}

static err_t submit_all(struct generation *g) {
    struct params *p = &g->params;
    if (!p->seeded &&
        getrandom(&p->gen.seed, sizeof p->gen.seed, GRND_NONBLOCK) != (ssize_t)sizeof p->gen.seed)
        p->gen.seed = (uint64_t)mono_us();
    g->tickets = calloc((size_t)g->reply.n_choices, sizeof *g->tickets);
    err_t e = g->tickets ? E_OK : E_NOMEM;
    for (int i = 0; !e && i < g->reply.n_choices; i++)
        e = submit(g, i);
    g->running = !e;
    return e;
}

/* The ids are there: check, and send them off. */
static void go(struct generation *g) {
    err_t e = fit_check(&g->params, g->model->info, &g->field, &g->why);
    if (!e) {
        struct reply_names names = {g->id, g->params.model, g->model->fingerprint,
                                    (int64_t)time(NULL)};
        g->has_reply = true;
        e = reply_init(&g->reply, g->surface, &g->params, g->model->tokenizer, &names);
    }
    if (!e)
        e = submit_all(g);
    if (e) {
        if (e == E_BUSY)
            g->server->metrics.rejected_queue++;
        fail(g, e, g->field, &g->why);
    }
}

/* --- text to ids ---------------------------------------------------------------------------- */

static void prepare(struct generation *g) {
    g->error = g->surface->prepare(&g->params, g->model, g->server->options->max_prompt_bytes,
                                   &g->field, &g->why);
}

static void prepared(struct generation *g) {
    if (!g->x) {
        release(g);
    } else if (g->error) {
        fail(g, g->error, g->field, &g->why);
    } else {
        g->field = NULL;
        go(g);
    }
}

static void work_prepare(uv_work_t *w) {
    prepare(w->data);
}

static void after_prepare(uv_work_t *w, int status) {
    struct generation *g = w->data;
    (void)status;
    g->working = false;
    prepared(g);
}

/* --- body to parameters --------------------------------------------------------------------- */

static void parse(struct generation *g) {
    g->error = params_read(&g->params, g->surface, g->body.data ? g->body.data : "", g->body.n,
                           &g->field, &g->why);
    buf_free(&g->body);
}

/* The engine could never take more at once than it may run and hold. */
static err_t check_choices(struct generation *g) {
    const struct options *o = g->server->options;
    int64_t most = o->max_choices, n = params_choices(&g->params);
    if (most > o->max_seqs + o->max_queue)
        most = o->max_seqs + o->max_queue;
    if (n <= most)
        return E_OK;
    g->field = g->params.n_prompts > 1 ? "prompt" : "n";
    return why_set(&g->why, E_INVAL, "This asks for %lld answers; a request may have %lld.",
                   (long long)n, (long long)most);
}

static err_t find_model(struct generation *g) {
    struct server *s = g->server;
    struct params *p = &g->params;
    g->field = "model";
    if (g->x->scope[0]) /* the address has the last word */
        memcpy(p->model, g->x->scope, sizeof g->x->scope);
    if (!p->model[0])
        return why_set(&g->why, E_INVAL, "'model' is required.");
    struct served *model = registry_find(&s->registry, p->model);
    bool ready = true;
    if (!model)
        return why_set(&g->why, E_NO_MODEL, "The model '%.64s' does not exist here.", p->model);
    g->field = NULL;
    if (model != s->registry.base) {
        err_t e = ++g->n_waits > MAX_WAITS ? E_NOMEM : residency_want(s, model, &g->waiter, &ready);
        if (e)
            return e;
    }
    g->working = !ready;
    if (!ready)
        return E_OK;
    g->model = served_ref(model);
    params_apply_defaults(p, model->generation);
    metrics_tenant(&s->metrics, model->name)->requests++;
    return E_OK;
}

static void parsed(struct generation *g);

static void woken(struct waiter *w, err_t e) {
    struct generation *g = (struct generation *)((char *)w - offsetof(struct generation, waiter));
    g->working = false;
    if (e) { /* the log says more */
        g->error = e == E_NOMEM || e == E_DRAINING ? e : E_INTERNAL;
        why_set(&g->why, g->error, "The model '%.64s' cannot be brought back to the device%s.",
                g->params.model, e == E_NOMEM ? " while others are in use" : "");
    }
    parsed(g);
}

static size_t text_bytes(const struct generation *g) {
    size_t n = 0;
    for (int i = 0; i < g->params.n_prompts; i++)
        n += g->params.prompt[i].n_text;
    return n;
}

static void parsed(struct generation *g) {
    struct server *s = g->server;
    if (!g->x) {
        release(g);
        return;
    }
    if (!g->error)
        g->error = check_choices(g);
    if (!g->error)
        g->error = find_model(g);
    if (!g->error && !g->model) /* woken() goes on */
        return;
    if (g->error) {
        s->metrics.rejected_params += g->error != E_NO_MODEL && err_http_status(g->error) < 500;
        fail(g, g->error, g->field, &g->why);
        return;
    }
    s->metrics.unknown_fields += (uint64_t)g->params.n_unknown;
    memcpy(g->x->ignored, g->params.ignored, sizeof g->params.ignored);
    if (text_bytes(g) <= INLINE_TEXT_BYTES) {
        prepare(g);
        prepared(g);
    } else {
        g->working = true;
        uv_queue_work(&s->loop, &g->work, work_prepare, after_prepare);
    }
}

static void work_parse(uv_work_t *w) {
    parse(w->data);
}

static void after_parse(uv_work_t *w, int status) {
    struct generation *g = w->data;
    (void)status;
    g->working = false;
    parsed(g);
}

void generation_start(struct server *s, struct exchange *x, const struct surface *surface) {
    struct generation *g = s->draining ? NULL : calloc(1, sizeof *g);
    if (!g) {
        http_reply_error(x, s->draining ? E_DRAINING : E_NOMEM, NULL, NULL);
        return;
    }
    g->server = s;
    g->surface = surface;
    g->x = x;
    g->work.data = g;
    g->waiter.wake = woken;
    g->start_us = x->start_us;
    snprintf(g->id, sizeof g->id, "%s%s", surface->id_prefix, x->id);
    g->body = http_take_body(x);
    x->work = g;
    x->on_gone = on_gone;
    if (g->body.n <= INLINE_BODY_BYTES) {
        parse(g);
        parsed(g);
    } else {
        g->working = true;
        uv_queue_work(&s->loop, &g->work, work_parse, after_parse);
    }
}

/* --- the end of the daemon ------------------------------------------------------------------ */

void generation_cut(struct server *s) {
    for (uint32_t i = 0; i < s->live.cap; i++)
        if (s->live.entry[i].engine_id) {
            struct generation *g = s->live.entry[i].g;
            g->end_with = s->fatal ? s->fatal : E_DRAINING;
            cancel_all(g);
        }
}

int generation_live(const struct server *s) {
    return (int)s->live.n;
}

/* The engine is closed: nothing more will come for what it still held. */
void generation_close(struct server *s) {
    for (uint32_t i = 0; i < s->live.cap; i++) {
        struct live_entry entry = s->live.entry[i];
        if (!entry.engine_id)
            continue;
        left_engine(entry.g, entry.i_choice);
        if (entry.g->n_in_engine)
            continue;
        if (entry.g->x)
            fail(entry.g, E_DRAINING, NULL, NULL);
        else
            release(entry.g);
    }
    live_free(&s->live);
}
