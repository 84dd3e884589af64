#include "server/reply.h"

#include <stdlib.h>
#include <string.h>

#include "server/json.h"
#include "server/surface.h"

/* --- opening and counting ------------------------------------------------------------------- */

/* Everything before the choices. Ids and fingerprints are plain words, a model's name may not be.
 */
static void put_head(const struct reply *r, struct buf *out, const char *object) {
    buf_printf(out,
               "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"system_fingerprint\":\"%s\","
               "\"model\":",
               r->id, object, (long long)r->created_unix_s, r->fingerprint);
    json_put_string(out, r->model, strlen(r->model));
    buf_text(out, ",\"choices\":[");
}

err_t reply_init(struct reply *r, const struct surface *surface, const struct params *p,
                 const struct tokenizer *t, const struct reply_names *names) {
    *r = (struct reply){.params = p, .surface = surface};
    buf_init(&r->head, 4096);
    r->created_unix_s = names->created_unix_s;
    r->id = strdup(names->id);
    r->model = strdup(names->model);
    r->fingerprint = strdup(names->fingerprint);
    r->choices = calloc((size_t)params_choices(p), sizeof *r->choices);
    if (!r->id || !r->model || !r->fingerprint || !r->choices)
        return E_NOMEM;
    buf_text(&r->head, "data: ");
    put_head(r, &r->head, surface->chunk_object);
    err_t e = r->head.error;
    for (int i = 0; !e && i < params_choices(p); i++) {
        r->n_choices++;
        e = choice_init(&r->choices[i], surface, p, i / p->best_of, t, i);
    }
    return e;
}

void reply_free(struct reply *r) {
    for (int i = 0; i < r->n_choices; i++)
        choice_free(&r->choices[i]);
    free(r->choices);
    free(r->id);
    free(r->model);
    free(r->fingerprint);
    buf_free(&r->head);
    *r = (struct reply){0};
}

err_t reply_event(struct reply *r, int i, const struct gen_event *event) {
    struct choice *c = &r->choices[i];
    if (c->done)
        return E_OK;
    size_t before = choice_bytes(c);
    err_t e = choice_event(c, event);
    r->n_bytes += choice_bytes(c) - before;
    r->n_done += c->done;
    return !e && r->n_bytes > REPLY_MAX_BYTES ? E_TOO_LARGE : e;
}

int64_t reply_prompt_tokens(const struct reply *r) {
    int64_t n = 0;
    for (int i = 0; i < r->params->n_prompts; i++)
        n += r->params->prompt[i].n_ids;
    return n;
}

int64_t reply_completion_tokens(const struct reply *r) {
    int64_t n = 0;
    for (int i = 0; i < r->n_choices; i++)
        n += (int64_t)r->choices[i].n_completion;
    return n;
}

const char *reply_finish(const struct reply *r) {
    return r->n_choices ? r->choices[0].finish_reason : NULL;
}

/* --- JSON ----------------------------------------------------------------------------------- */

static void put_usage(const struct reply *r, struct buf *out) {
    long long prompt = reply_prompt_tokens(r), completion = reply_completion_tokens(r);
    buf_printf(out, "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld}",
               prompt, completion, prompt + completion);
}

static void put_prompt_ids(const struct prompt *p, struct buf *out) {
    buf_text(out, ",\"prompt_token_ids\":[");
    for (int32_t i = 0; i < p->n_ids; i++)
        buf_printf(out, "%s%d", i ? "," : "", p->ids[i]);
    buf_text(out, "]");
}

/* One choice with the text from `from` to `to` and what was not yet told of it. reason: NULL: not
 * said here. */
static void put_choice(const struct reply *r, struct choice *c, int index, struct buf *out,
                       size_t from, size_t to, bool chunk, const char *reason) {
    const struct params *p = r->params;
    buf_printf(out, "{\"index\":%d,", index);
    r->surface->put_choice(c, out, from, to, chunk);
    if (reason)
        buf_printf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":", reason);
    else
        buf_text(out, ",\"finish_reason\":null,\"stop_reason\":");
    if (reason && c->stopped)
        json_put_string(out, c->stopped->text, c->stopped->n);
    else if (reason && c->stop_id >= 0)
        buf_printf(out, "%d", c->stop_id);
    else
        buf_text(out, "null");
    if (p->return_ids) {
        buf_text(out, ",\"token_ids\":");
        choice_put_list(out, &c->ids);
        if (c->n_chunks == 0)
            put_prompt_ids(c->prompt, out);
    }
    if (p->prompt_logprobs >= 0) {
        buf_text(out, ",\"prompt_logprobs\":");
        choice_put_list(out, &c->prompt_list);
    }
    buf_text(out, "}");
}

/* Mean log-probability of a token: what best_of ranks by. */
static double score(const struct choice *c) {
    return c->n_completion ? c->sum_logprob / (double)c->n_completion : 0;
}

/* Puts the n best draws of each prompt, best first; a draw of equal score that came earlier wins.
 */
static void put_best(struct reply *r, struct buf *out) {
    const struct params *p = r->params;
    for (int prompt = 0; prompt < p->n_prompts; prompt++) {
        struct choice *draw = r->choices + prompt * p->best_of;
        bool taken[PARAMS_MAX_N] = {false};
        for (int j = 0; j < p->n; j++) {
            int best = -1;
            for (int i = 0; i < p->best_of; i++)
                if (!taken[i] && (best < 0 || score(&draw[i]) > score(&draw[best])))
                    best = i;
            if (p->best_of == p->n)
                best = j;
            taken[best] = true;
            int index = prompt * p->n + j;
            if (index)
                buf_text(out, ",");
            put_choice(r, &draw[best], index, out, 0, draw[best].text.n, false,
                       draw[best].finish_reason);
        }
    }
}

err_t reply_whole(struct reply *r, struct buf *out) {
    put_head(r, out, r->surface->object);
    put_best(r, out);
    buf_text(out, "],\"usage\":");
    put_usage(r, out);
    return buf_text(out, "}");
}

static void stream_chunk(struct reply *r, struct choice *c, struct buf *out, size_t end,
                         const char *reason) {
    const struct params *p = r->params;
    buf_add(out, r->head.data, r->head.n);
    put_choice(r, c, c->index, out, c->sent_at, end, true, reason);
    c->sent_at = end;
    c->n_chunks++;
    if (p->include_usage && p->continuous_usage) {
        buf_text(out, "],\"usage\":");
        put_usage(r, out);
        buf_text(out, "}\n\n");
    } else {
        buf_text(out, p->include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
    }
}

/* The one chunk without choices: only clients that asked for it can read it. */
static void stream_usage(const struct reply *r, struct buf *out) {
    buf_add(out, r->head.data, r->head.n);
    buf_text(out, "],\"usage\":");
    put_usage(r, out);
    buf_text(out, "}\n\n");
}

err_t reply_stream(struct reply *r, int i, struct buf *out) {
    struct choice *c = &r->choices[i];
    size_t end = choice_safe_end(c);
    /* No chunk before the first token: clients take the first one as the time to it. */
    bool begun = c->n_completion > 0 || c->done, apart = r->surface->apart;
    if (begun && apart && c->n_chunks == 0)
        stream_chunk(r, c, out, c->sent_at, NULL);
    if (begun && (end > c->sent_at || c->list[0].n || c->ids.n || (c->done && !apart)))
        stream_chunk(r, c, out, end, apart ? NULL : c->finish_reason);
    if (apart && c->done)
        stream_chunk(r, c, out, end, c->finish_reason);
    if (reply_done(r)) {
        if (r->params->include_usage)
            stream_usage(r, out);
        buf_text(out, "data: [DONE]\n\n");
    }
    return out->error;
}
