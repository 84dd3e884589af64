#include "server/reply.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/json.h"

enum { MAX_TEXT_BYTES = 64 << 20 };

/* JSON has no infinity; the field's other servers write this. */
static const double minus_infinity = -9999.0;

static int64_t count_chars(const char *s, size_t n) {
    int64_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)s[i] & 0xc0) != 0x80;
    return chars;
}

/* --- log-probabilities ---------------------------------------------------------------------- */

/* A piece as a JSON string; bytes that are no text on their own as "bytes:\xe2\x82". */
static json_t *piece_text(const struct tokenizer *t, int32_t id) {
    size_t n = 0;
    const char *piece = tokenizer_piece(t, id, &n);
    json_t *text = json_stringn(piece ? piece : "", piece ? n : 0);
    if (text)
        return text;
    char hex[6 + 4 * DETOK_MAX_BYTES + 1] = "bytes:";
    for (size_t i = 0; i < n && i < DETOK_MAX_BYTES; i++)
        snprintf(hex + 6 + 4 * i, 5, "\\x%02x", (unsigned char)piece[i]);
    return json_string(hex);
}

static json_t *number(float logprob) {
    return json_real(isfinite(logprob) ? (double)logprob : minus_infinity);
}

/* Two ids can have the same text (a byte piece and a piece): the likelier one stays. */
static err_t put_top(const struct reply *r, json_t *top, int32_t id, float logprob) {
    json_t *text = piece_text(r->tokenizer, id);
    if (!text)
        return E_NOMEM;
    const char *key = json_string_value(text);
    json_t *old = strlen(key) == json_string_length(text) ? json_object_get(top, key) : NULL;
    int failed = 0;
    if (strlen(key) != json_string_length(text)) /* jansson's keys end at a NUL byte */
        key = "bytes:\\x00";
    if (!old || json_real_value(old) < (double)logprob)
        failed = json_object_set_new(top, key, number(logprob));
    json_decref(text);
    return failed ? E_NOMEM : E_OK;
}

/* `scored` false: the first id of a prompt, which nothing comes before. */
static err_t add_logprob(struct reply *r, const struct gen_event *event, int64_t offset,
                         bool scored) {
    if (!r->tokens)
        return E_OK;
    err_t e = E_OK;
    json_t *top = scored ? json_object() : json_null();
    for (int32_t i = 0; !e && scored && i < event->n_top; i++)
        e = put_top(r, top, event->top_id[i], event->top_logprob[i]);
    if (!e && scored)
        e = put_top(r, top, event->token, event->logprob); /* the chosen one is always there */
    int failed = json_array_append_new(r->top_logprobs, top);
    failed |=
        json_array_append_new(r->token_logprobs, scored ? number(event->logprob) : json_null());
    failed |= json_array_append_new(r->tokens, piece_text(r->tokenizer, event->token));
    failed |= json_array_append_new(r->text_offset, json_integer(offset));
    return e ? e : failed ? E_NOMEM : E_OK;
}

static err_t add_prompt(struct reply *r, const struct gen_event *event, bool scored) {
    char out[DETOK_MAX_BYTES];
    int64_t at = r->prompt_offset;
    size_t n = detok_push(&r->prompt_detok, event->token, out);
    r->prompt_offset += count_chars(out, n);
    return add_logprob(r, event, at < r->prompt_chars ? at : r->prompt_chars, scored);
}

err_t reply_init(struct reply *r, const struct params *p, const struct tokenizer *t,
                 const int32_t *ids, int32_t n_ids) {
    err_t e = E_OK;
    *r = (struct reply){.params = p, .tokenizer = t, .n_prompt = n_ids, .stop_id = -1};
    buf_init(&r->text, MAX_TEXT_BYTES);
    /* After a prompt of text, the first piece keeps its leading space. */
    bool continues = false;
    for (int32_t i = 0; i < n_ids && !continues; i++)
        continues = !tokenizer_is_special(t, ids[i]);
    detok_init(&r->detok, t, p->skip_special_tokens, continues);
    detok_init(&r->prompt_detok, t, p->skip_special_tokens, false);
    if (p->echo && p->text) {
        e = buf_add(&r->text, p->text, p->n_text);
    } else if (p->echo) {
        char *text = NULL;
        size_t n = 0;
        e = tokenizer_decode(t, ids, n_ids, p->skip_special_tokens, &text, &n);
        if (!e)
            e = buf_add(&r->text, text, n);
        free(text);
    }
    if (e)
        return e;
    r->generated_at = r->text.n;
    r->prompt_chars = count_chars(r->text.data, r->text.n);
    r->offset_chars = r->prompt_chars;
    if (p->gen.n_top < 0)
        return E_OK;
    r->tokens = json_array();
    r->token_logprobs = json_array();
    r->top_logprobs = json_array();
    r->text_offset = json_array();
    if (!r->tokens || !r->token_logprobs || !r->top_logprobs || !r->text_offset)
        return E_NOMEM;
    /* The engine scores ids 1 and up; nothing comes before the first. */
    return p->echo ? add_prompt(r, &(struct gen_event){.token = ids[0]}, false) : E_OK;
}

void reply_free(struct reply *r) {
    buf_free(&r->text);
    json_decref(r->tokens);
    json_decref(r->token_logprobs);
    json_decref(r->top_logprobs);
    json_decref(r->text_offset);
    *r = (struct reply){0};
}

/* --- stop strings --------------------------------------------------------------------------- */

/* Looks for the stop string that starts first in the text from `from` on. */
static const struct stop_text *find_stop(const struct reply *r, size_t from, size_t *at) {
    const struct stop_text *found = NULL;
    if (from >= r->text.n)
        return NULL;
    for (int i = 0; i < r->params->n_stops; i++) {
        const struct stop_text *s = &r->params->stop[i];
        const char *hit = memmem(r->text.data + from, r->text.n - from, s->text, s->n);
        size_t hit_at = hit ? (size_t)(hit - r->text.data) : 0;
        if (hit && (!found || hit_at < *at || (hit_at == *at && s->n < found->n))) {
            found = s;
            *at = hit_at;
        }
    }
    return found;
}

static void end_as(struct reply *r, const char *reason) {
    r->done = true;
    r->finish_reason = reason;
}

/* Checks the text that came with the last push, which began at `fresh`. */
static void check_stops(struct reply *r, size_t fresh) {
    size_t longest = 0, at = 0;
    for (int i = 0; i < r->params->n_stops; i++)
        if (r->params->stop[i].n > longest)
            longest = r->params->stop[i].n;
    if (!longest || (int64_t)r->n_completion < r->params->gen.min_tokens)
        return;
    size_t from = fresh > r->generated_at + longest - 1 ? fresh - (longest - 1) : r->generated_at;
    r->stopped = find_stop(r, from, &at);
    if (!r->stopped)
        return;
    r->text.n = at + (r->params->include_stop ? r->stopped->n : 0);
    end_as(r, "stop");
}

/* How much of the text may be sent: not the tail that could still become a stop string. */
static size_t safe_end(const struct reply *r) {
    size_t end = r->text.n;
    if (r->done)
        return end;
    for (int i = 0; i < r->params->n_stops; i++) {
        const struct stop_text *s = &r->params->stop[i];
        size_t k = r->text.n - r->generated_at;
        k = k < s->n - 1 ? k : s->n - 1;
        while (k && memcmp(r->text.data + r->text.n - k, s->text, k) != 0)
            k--;
        if (r->text.n - k < end)
            end = r->text.n - k;
    }
    return end;
}

/* --- events --------------------------------------------------------------------------------- */

static err_t add_token(struct reply *r, const struct gen_event *event) {
    char out[DETOK_MAX_BYTES];
    r->n_completion++;
    err_t e = add_logprob(r, event, r->offset_chars, true);
    size_t n = detok_push(&r->detok, event->token, out), fresh = r->text.n;
    if (!e)
        e = buf_add(&r->text, out, n);
    if (e)
        return e;
    r->offset_chars += count_chars(out, n);
    check_stops(r, fresh);
    return E_OK;
}

static err_t finish(struct reply *r, const struct gen_event *event) {
    char out[DETOK_MAX_BYTES];
    err_t e = E_OK;
    if (event->finish == GEN_STOP && event->token >= 0) {
        /* The id that ended the text is counted and scored, but is no text. */
        r->stop_id = event->token;
        r->n_completion++;
        e = add_logprob(r, event, r->offset_chars, true);
    }
    size_t fresh = r->text.n, n = detok_flush(&r->detok, out);
    if (!e)
        e = buf_add(&r->text, out, n);
    check_stops(r, fresh);
    if (!r->done)
        end_as(r, event->finish == GEN_STOP ? "stop" : "length");
    return e;
}

err_t reply_event(struct reply *r, const struct gen_event *event) {
    if (r->done)
        return E_OK;
    if (event->kind == GEN_PROMPT)
        return add_prompt(r, event, true);
    if (event->kind == GEN_TOKEN)
        return add_token(r, event);
    return event->kind == GEN_DONE ? finish(r, event) : E_INTERNAL;
}

/* --- JSON ----------------------------------------------------------------------------------- */

static json_t *slice(const json_t *list, size_t from) {
    json_t *out = json_array();
    for (size_t i = from; i < json_array_size(list); i++)
        json_array_append(out, json_array_get(list, i));
    return out;
}

static json_t *logprobs_from(const struct reply *r, size_t from) {
    if (!r->tokens || (r->params->stream && from == json_array_size(r->tokens)))
        return json_null();
    return json_pack("{s:o,s:o,s:o,s:o}", "tokens", slice(r->tokens, from), "token_logprobs",
                     slice(r->token_logprobs, from), "top_logprobs", slice(r->top_logprobs, from),
                     "text_offset", slice(r->text_offset, from));
}

static json_t *stop_reason(const struct reply *r) {
    if (r->stopped)
        return json_stringn(r->stopped->text, r->stopped->n);
    return r->stop_id >= 0 && r->done ? json_integer(r->stop_id) : json_null();
}

static json_t *usage(const struct reply *r) {
    json_int_t prompt = r->n_prompt, completion = (json_int_t)r->n_completion;
    return json_pack("{s:I,s:I,s:I}", "prompt_tokens", prompt, "completion_tokens", completion,
                     "total_tokens", prompt + completion);
}

/* The object around `choices` (stolen). */
static json_t *envelope(const struct reply *r, json_t *choices) {
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:o}", "id", r->id, "object", "text_completion",
                     "created", (json_int_t)r->created_unix_s, "model", r->model,
                     "system_fingerprint", r->fingerprint, "choices", choices);
}

static json_t *choice(const struct reply *r, size_t from, size_t to, size_t logprobs_at) {
    /* A text cut in half by a byte that is no text cannot happen: the detokeniser gives characters.
     */
    return json_pack("[{s:i,s:o,s:o,s:s?,s:o}]", "index", 0, "text",
                     json_stringn(r->text.data ? r->text.data + from : "", to - from), "logprobs",
                     logprobs_from(r, logprobs_at), "finish_reason", r->finish_reason,
                     "stop_reason", stop_reason(r));
}

char *reply_whole(struct reply *r, size_t *n) {
    json_t *object = envelope(r, choice(r, 0, r->text.n, 0));
    json_object_set_new(object, "usage", usage(r));
    return json_finish(object, n);
}

static err_t add_event(struct buf *out, json_t *object) {
    size_t n = 0;
    char *text = json_finish(object, &n);
    err_t e = text ? buf_text(out, "data: ") : E_NOMEM;
    if (!e)
        e = buf_add(out, text, n);
    if (!e)
        e = buf_text(out, "\n\n");
    free(text);
    return e;
}

err_t reply_stream(struct reply *r, struct buf *out) {
    size_t end = safe_end(r), n_logprobs = json_array_size(r->tokens);
    err_t e = E_OK;
    /* No chunk before the first token: clients take the first one as the time to it. */
    bool begun = r->n_completion > 0 || r->done;
    if (begun && (end > r->sent_at || n_logprobs > r->logprobs_sent || r->done)) {
        json_t *object = envelope(r, choice(r, r->sent_at, end, r->logprobs_sent));
        if (r->params->include_usage)
            json_object_set_new(object, "usage",
                                r->params->continuous_usage ? usage(r) : json_null());
        e = add_event(out, object);
        r->sent_at = end;
        r->logprobs_sent = n_logprobs;
    }
    if (!e && r->done && r->params->include_usage) {
        json_t *object = envelope(r, json_array());
        json_object_set_new(object, "usage", usage(r));
        e = add_event(out, object);
    }
    if (!e && r->done)
        e = buf_text(out, "data: [DONE]\n\n");
    return e;
}
