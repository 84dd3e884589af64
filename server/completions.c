#include "server/completions.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "config/clock.h"
#include "config/log.h"
#include "server/params.h"
#include "server/reply.h"
#include "server/server.h"

enum {
    INLINE_BODY_BYTES = 32768, /* larger bodies are parsed by a worker */
    INLINE_TEXT_BYTES = 4096,  /* longer prompts are tokenised by a worker: about 1 ms */
    SLOT_BITS = 20,            /* engine id = submission number and slot */
    MAX_LIVE = 1 << SLOT_BITS,
    EVENTS = 64,
};

/* One completion. Freed when neither a worker nor the engine nor an exchange knows it any more. */
struct completion {
    struct server *server;
    struct exchange *x; /* NULL: the client is gone or was answered */
    char id[HTTP_ID_BYTES + 8];
    struct buf body;
    struct params params;
    struct served *model; /* one reference */
    struct reply reply;
    bool has_reply, working, in_engine, cancelled;
    uv_work_t work;
    uint64_t engine_id;
    err_t error;
    const char *field; /* parameter that the error is about */
    struct why why;
    err_t end_with; /* why it was cancelled by us: E_DRAINING, E_BUSY, ... */
    int32_t n_prompt;
    int64_t start_us, last_token_us;
};

static void release(struct completion *c) {
    if (c->x || c->working || c->in_engine)
        return;
    if (c->has_reply)
        reply_free(&c->reply);
    params_free(&c->params);
    buf_free(&c->body);
    served_unref(c->model);
    free(c);
}

static void detach(struct completion *c) {
    c->x->on_gone = NULL;
    c->x->work = NULL;
    c->x = NULL;
}

static void cancel(struct completion *c) {
    if (c->in_engine && !c->cancelled) {
        c->cancelled = true;
        engine_cancel(c->server->engine, c->engine_id);
    }
}

static void on_gone(struct exchange *x) {
    struct completion *c = x->work;
    detach(c);
    if (c->in_engine && !(c->has_reply && c->reply.done))
        c->server->metrics.cancelled++;
    cancel(c);
    release(c);
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
static void fail(struct completion *c, err_t e, const char *field, const struct why *why) {
    struct exchange *x = c->x;
    if (x) {
        detach(c);
        if (x->streaming)
            stream_error(x, e, why);
        else
            http_reply_error(x, e, field, why);
    }
    cancel(c);
    release(c);
}

static void count_end(struct completion *c) {
    struct server *s = c->server;
    struct tenant_counts *counts = metrics_tenant(&s->metrics, c->model->name);
    counts->prompt_tokens += (uint64_t)c->n_prompt;
    counts->generated_tokens += c->reply.n_completion;
    histogram_add(&s->metrics.whole_s, (double)(mono_us() - c->start_us) / 1e6);
    log_info("request", "tenant=%s print=%s req=%s prompt=%d generated=%zu finish=%s us=%lld",
             c->model->name, c->model->fingerprint, c->id, c->n_prompt, c->reply.n_completion,
             c->reply.finish_reason ? c->reply.finish_reason : "none",
             (long long)(mono_us() - c->start_us));
}

static void answer(struct completion *c) {
    struct buf out;
    buf_init(&out, SIZE_MAX / 4);
    count_end(c);
    struct exchange *x = c->x;
    err_t e = reply_whole(&c->reply, &out);
    if (e) {
        buf_free(&out);
        fail(c, e, NULL, NULL);
        return;
    }
    detach(c);
    http_reply(x, 200, "application/json", out.data, out.n);
    cancel(c);
    release(c);
}

/* Sends what is due of a stream; false: the completion is over and may be freed. */
static bool push_stream(struct completion *c) {
    struct buf out;
    buf_init(&out, SIZE_MAX / 4);
    err_t e = reply_stream(&c->reply, &out);
    if (!e && out.n) {
        http_stream_begin(c->x);
        e = http_stream_write(c->x, out.data, out.n);
    }
    buf_free(&out);
    struct exchange *x = c->x;
    if (e) {
        if (e == E_BUSY)
            c->server->metrics.stalled++;
        detach(c);
        http_abort(x);
        cancel(c);
        release(c);
        return false;
    }
    if (!c->reply.done)
        return true;
    count_end(c);
    detach(c);
    http_stream_end(x);
    cancel(c);
    release(c);
    return false;
}

/* --- events from the engine ----------------------------------------------------------------- */

static void time_token(struct completion *c) {
    struct metrics *m = &c->server->metrics;
    int64_t now = mono_us();
    if (!c->last_token_us)
        histogram_add(&m->first_token_s, (double)(now - c->start_us) / 1e6);
    else
        histogram_add(&m->between_tokens_s, (double)(now - c->last_token_us) / 1e6);
    c->last_token_us = now;
}

static void take_event(struct completion *c, const struct gen_event *event) {
    struct server *s = c->server;
    bool last = event->kind == GEN_DONE || event->kind == GEN_FAILED;
    if (last) {
        c->in_engine = false;
        s->live[c->engine_id & (MAX_LIVE - 1)] = NULL;
        s->n_live--;
    }
    if (event->kind == GEN_FAILED && event->error == E_DEVICE && !s->fatal) {
        s->fatal = E_DEVICE; /* nothing of a device after such an error can be trusted */
        log_error("engine", "note=\"the compute device failed; leaving\"");
        server_drain(s, 1000000);
    }
    if (!c->x) {
        release(c);
    } else if (event->kind == GEN_FAILED) {
        fail(c, event->error, NULL, NULL);
    } else if (event->kind == GEN_DONE && event->finish == GEN_CANCELLED) {
        fail(c, c->end_with ? c->end_with : E_CANCELLED, NULL, NULL);
    } else {
        if (event->kind == GEN_TOKEN)
            time_token(c);
        err_t e = reply_event(&c->reply, event);
        if (e)
            fail(c, e, NULL, NULL);
        else if (c->params.stream)
            push_stream(c);
        else if (c->reply.done)
            answer(c);
    }
}

void completions_poll(struct server *s) {
    struct gen_event events[EVENTS];
    size_t n;
    while ((n = engine_poll(s->engine, events, EVENTS)) > 0)
        for (size_t i = 0; i < n; i++) {
            uint64_t slot = events[i].id & (MAX_LIVE - 1);
            struct completion *c = slot < s->cap_live ? s->live[slot] : NULL;
            if (c && c->engine_id == events[i].id)
                take_event(c, &events[i]);
        }
}

/* --- into the engine ------------------------------------------------------------------------ */

/* A free slot of s->live, growing it. */
static err_t take_slot(struct server *s, uint32_t *slot) {
    if (s->n_live == s->cap_live) {
        uint32_t cap = s->cap_live ? 2 * s->cap_live : 64;
        if (cap > MAX_LIVE)
            return E_BUSY;
        struct completion **grown = realloc(s->live, cap * sizeof *grown);
        if (!grown)
            return E_NOMEM;
        memset(grown + s->cap_live, 0, (cap - s->cap_live) * sizeof *grown);
        s->live = grown;
        s->cap_live = cap;
    }
    uint32_t i = (uint32_t)(s->n_submitted % s->cap_live);
    while (s->live[i])
        i = (i + 1) % s->cap_live;
    *slot = i;
    return E_OK;
}

static bool in_vocab(int32_t id, const struct tenant_info *info) {
    return id >= 0 && id < info->vocab;
}

/* Ids and lengths against the model that was named; the engine checks again. */
static err_t check_against_model(struct completion *c) {
    const struct tenant_info *info = c->model->info;
    const struct gen_request *g = &c->params.gen;
    for (int32_t i = 0; i < g->n_ids; i++)
        if (!in_vocab(g->ids[i], info)) {
            c->field = "prompt";
            return why_set(&c->why, E_TOKEN_RANGE, "'prompt' element %d is outside 0 .. %d.", i,
                           info->vocab - 1);
        }
    for (int32_t i = 0; i < g->n_bias; i++)
        if (!in_vocab(g->bias[i].id, info)) {
            c->field = "logit_bias";
            return why_set(&c->why, E_TOKEN_RANGE, "'logit_bias' id %d is outside 0 .. %d.",
                           g->bias[i].id, info->vocab - 1);
        }
    for (int32_t i = 0; i < g->n_stop_ids; i++)
        if (!in_vocab(g->stop_id[i], info)) {
            c->field = "stop_token_ids";
            return why_set(&c->why, E_TOKEN_RANGE, "'stop_token_ids' id %d is outside 0 .. %d.",
                           g->stop_id[i], info->vocab - 1);
        }
    if (g->n_ids == 0) {
        c->field = "prompt";
        return why_set(&c->why, E_INVAL, "'prompt' gives no token at all.");
    }
    if ((int64_t)g->n_ids + g->max_tokens > info->context) {
        c->field = g->n_ids >= info->context ? "prompt" : "max_tokens";
        return why_set(&c->why, E_CONTEXT,
                       "This model's context is %d tokens; the prompt has %d and max_tokens is %d.",
                       info->context, g->n_ids, g->max_tokens);
    }
    return E_OK;
}

static err_t submit(struct completion *c) {
    struct server *s = c->server;
    struct gen_request *g = &c->params.gen;
    uint32_t slot = 0;
    if (!c->params.seeded &&
        getrandom(&g->seed, sizeof g->seed, GRND_NONBLOCK) != (ssize_t)sizeof g->seed)
        g->seed = (uint64_t)mono_us();
    err_t e = take_slot(s, &slot);
    if (e)
        return e;
    c->engine_id = ++s->n_submitted << SLOT_BITS | slot;
    g->id = c->engine_id;
    g->tenant = c->model->tenant;
    e = engine_submit(s->engine, g, &c->why);
    if (e)
        return e;
    g->ids = NULL; /* the engine's now */
    g->bias = NULL;
    c->in_engine = true;
    s->live[slot] = c;
    s->n_live++;
    return E_OK;
}

/* The ids are there: check, and send them off. */
static void go(struct completion *c) {
    struct gen_request *g = &c->params.gen;
    err_t e = check_against_model(c);
    c->n_prompt = g->n_ids;
    if (!e) {
        c->has_reply = true;
        e = reply_init(&c->reply, &c->params, c->model->tokenizer, g->ids, g->n_ids);
    }
    if (!e) {
        c->reply.id = c->id;
        c->reply.model = c->model->name;
        c->reply.fingerprint = c->model->fingerprint;
        c->reply.created_unix_s = (int64_t)time(NULL);
    }
    if (!e)
        e = submit(c);
    if (e) {
        if (e == E_BUSY)
            c->server->metrics.rejected_queue++;
        fail(c, e, c->field, &c->why);
    }
}

/* --- text to ids ---------------------------------------------------------------------------- */

static void tokenise(struct completion *c) {
    struct params *p = &c->params;
    unsigned flags = ENCODE_PARSE_SPECIAL | (p->add_special_tokens ? ENCODE_SPECIAL_TOKENS : 0u);
    c->field = "prompt";
    c->error = tokenizer_encode(c->model->tokenizer, p->text, p->n_text, flags,
                                c->server->options->max_prompt_bytes, c->model->info->context,
                                &p->gen.ids, &p->gen.n_ids, &c->why);
}

static void tokenised(struct completion *c) {
    if (!c->x)
        release(c);
    else if (c->error)
        fail(c, c->error, c->field, &c->why);
    else
        go(c);
}

static void work_tokenise(uv_work_t *w) {
    tokenise(w->data);
}

static void after_tokenise(uv_work_t *w, int status) {
    struct completion *c = w->data;
    (void)status;
    c->working = false;
    tokenised(c);
}

/* --- body to parameters --------------------------------------------------------------------- */

static void parse(struct completion *c) {
    c->error =
        params_read(&c->params, c->body.data ? c->body.data : "", c->body.n, &c->field, &c->why);
    buf_free(&c->body);
}

static void parsed(struct completion *c) {
    struct server *s = c->server;
    if (!c->x) {
        release(c);
        return;
    }
    if (c->error) {
        s->metrics.rejected_params++;
        fail(c, c->error, c->field, &c->why);
        return;
    }
    s->metrics.unknown_fields += (uint64_t)c->params.n_unknown;
    struct served *model = registry_find(&s->registry, c->params.model);
    if (!model) {
        why_set(&c->why, E_NO_MODEL, "The model '%.64s' does not exist here.", c->params.model);
        fail(c, E_NO_MODEL, "model", &c->why);
        return;
    }
    c->model = served_ref(model);
    params_apply_defaults(&c->params, model->generation);
    metrics_tenant(&s->metrics, model->name)->requests++;
    if (!c->params.text) {
        go(c);
    } else if (c->params.n_text <= INLINE_TEXT_BYTES) {
        tokenise(c);
        tokenised(c);
    } else {
        c->working = true;
        uv_queue_work(&s->loop, &c->work, work_tokenise, after_tokenise);
    }
}

static void work_parse(uv_work_t *w) {
    parse(w->data);
}

static void after_parse(uv_work_t *w, int status) {
    struct completion *c = w->data;
    (void)status;
    c->working = false;
    parsed(c);
}

void completions_handle(struct server *s, struct exchange *x) {
    struct completion *c = calloc(1, sizeof *c);
    if (!c || s->draining) {
        free(c);
        http_reply_error(x, s->draining ? E_DRAINING : E_NOMEM, NULL, NULL);
        return;
    }
    c->server = s;
    c->x = x;
    c->work.data = c;
    c->start_us = x->start_us;
    snprintf(c->id, sizeof c->id, "cmpl-%s", x->id);
    c->body = http_take_body(x);
    x->work = c;
    x->on_gone = on_gone;
    if (c->body.n <= INLINE_BODY_BYTES) {
        parse(c);
        parsed(c);
    } else {
        c->working = true;
        uv_queue_work(&s->loop, &c->work, work_parse, after_parse);
    }
}

/* --- the end of the daemon ------------------------------------------------------------------ */

void completions_cut(struct server *s) {
    for (uint32_t i = 0; i < s->cap_live; i++)
        if (s->live[i]) {
            s->live[i]->end_with = s->fatal ? s->fatal : E_DRAINING;
            cancel(s->live[i]);
        }
}

int completions_live(const struct server *s) {
    return (int)s->n_live;
}

/* The engine is closed: nothing more will come for what it still held. */
void completions_close(struct server *s) {
    for (uint32_t i = 0; i < s->cap_live; i++) {
        struct completion *c = s->live[i];
        if (!c)
            continue;
        s->live[i] = NULL;
        c->in_engine = false;
        if (c->x)
            fail(c, E_DRAINING, NULL, NULL);
        else
            release(c);
    }
    free(s->live);
    s->live = NULL;
    s->cap_live = s->n_live = 0;
}
