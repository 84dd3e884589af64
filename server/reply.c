#include "server/reply.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/json.h"

enum {
    MAX_TEXT_BYTES = 64 << 20,
    MAX_LOGPROBS_BYTES = 256 << 20, /* 20 alternatives for 128 Ki ids are about 70 MB */
};

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
static err_t put_piece(const struct reply *r, struct buf *out, int32_t id) {
    size_t n = 0;
    const char *piece = tokenizer_piece(r->tokenizer, id, &n);
    err_t e = json_put_string(out, piece, piece ? n : 0);
    if (e != E_INVAL)
        return e;
    char hex[6 + 4 * DETOK_MAX_BYTES + 1] = "bytes:";
    for (size_t i = 0; i < n && i < DETOK_MAX_BYTES; i++)
        snprintf(hex + 6 + 4 * i, 5, "\\x%02x", (unsigned char)piece[i]);
    return json_put_string(out, hex, strlen(hex));
}

/* The same digits wherever a number stands: harnesses compare them for equality. */
static err_t put_number(struct buf *out, float logprob) {
    char text[32];
    snprintf(text, sizeof text, "%.9g", isfinite(logprob) ? (double)logprob : minus_infinity);
    bool integral = !strpbrk(text, ".e"); /* typed clients want a number that looks like a float */
    return buf_printf(out, "%s%s", text, integral ? ".0" : "");
}

/* Whether key n is equal to one before it; keys[i], n_key[i]: where key i stands and its length. */
static bool is_repeated(const struct buf *out, const size_t *keys, const size_t *n_key, int n) {
    for (int i = 0; i < n; i++)
        if (n_key[i] == n_key[n] && memcmp(out->data + keys[i], out->data + keys[n], n_key[n]) == 0)
            return true;
    return false;
}

/* One object of alternatives, most likely first, the chosen id always among them. Two ids can have
 * the same text (a byte piece and a piece): the likelier one stays. */
static err_t put_top(const struct reply *r, struct buf *out, const struct gen_event *event) {
    size_t keys[GEN_MAX_TOP + 1], n_key[GEN_MAX_TOP + 1];
    err_t e = buf_text(out, "{");
    int n = 0;
    for (int32_t i = 0; !e && i <= event->n_top; i++) {
        bool chosen = i == event->n_top;
        size_t before = out->n;
        if (n)
            e = buf_text(out, ",");
        keys[n] = out->n;
        if (!e)
            e = put_piece(r, out, chosen ? event->token : event->top_id[i]);
        n_key[n] = out->n - keys[n];
        if (!e && is_repeated(out, keys, n_key, n)) {
            out->n = before;
            continue;
        }
        n++;
        if (!e)
            e = buf_text(out, ":");
        if (!e)
            e = put_number(out, chosen ? event->logprob : event->top_logprob[i]);
    }
    return e ? e : buf_text(out, "}");
}

/* `scored` false: the first id of a prompt, which nothing comes before. */
static err_t add_logprob(struct reply *r, const struct gen_event *event, int64_t offset,
                         bool scored) {
    if (!r->has_logprobs)
        return E_OK;
    struct buf *const lists[] = {&r->tokens, &r->token_logprobs, &r->top_logprobs, &r->text_offset};
    err_t e = E_OK;
    for (size_t i = 0; !e && i < 4; i++)
        if (lists[i]->n)
            e = buf_text(lists[i], ",");
    if (!e)
        e = put_piece(r, &r->tokens, event->token);
    if (!e)
        e = scored ? put_number(&r->token_logprobs, event->logprob)
                   : buf_text(&r->token_logprobs, "null");
    if (!e)
        e = scored ? put_top(r, &r->top_logprobs, event) : buf_text(&r->top_logprobs, "null");
    return e ? e : buf_printf(&r->text_offset, "%lld", (long long)offset);
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
    buf_init(&r->tokens, MAX_TEXT_BYTES);
    buf_init(&r->token_logprobs, MAX_TEXT_BYTES);
    buf_init(&r->top_logprobs, MAX_LOGPROBS_BYTES);
    buf_init(&r->text_offset, MAX_TEXT_BYTES);
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
    r->has_logprobs = true;
    /* The engine scores ids 1 and up; nothing comes before the first. */
    return p->echo ? add_prompt(r, &(struct gen_event){.token = ids[0]}, false) : E_OK;
}

void reply_free(struct reply *r) {
    buf_free(&r->text);
    buf_free(&r->tokens);
    buf_free(&r->token_logprobs);
    buf_free(&r->top_logprobs);
    buf_free(&r->text_offset);
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

static err_t put_list(struct buf *out, const char *name, struct buf *list) {
    err_t e = buf_printf(out, "\"%s\":[", name);
    if (!e)
        e = buf_add(out, list->data, list->n);
    list->n = 0; /* said once: the next chunk goes on from here */
    return e ? e : buf_text(out, "]");
}

static err_t put_logprobs(struct reply *r, struct buf *out) {
    if (!r->has_logprobs || (r->params->stream && r->tokens.n == 0))
        return buf_text(out, "null");
    err_t e = buf_text(out, "{");
    if (!e)
        e = put_list(out, "tokens", &r->tokens);
    if (!e)
        e = buf_text(out, ",");
    if (!e)
        e = put_list(out, "token_logprobs", &r->token_logprobs);
    if (!e)
        e = buf_text(out, ",");
    if (!e)
        e = put_list(out, "top_logprobs", &r->top_logprobs);
    if (!e)
        e = buf_text(out, ",");
    if (!e)
        e = put_list(out, "text_offset", &r->text_offset);
    return e ? e : buf_text(out, "}");
}

static err_t put_usage(const struct reply *r, struct buf *out) {
    return buf_printf(out, "{\"prompt_tokens\":%d,\"completion_tokens\":%zu,\"total_tokens\":%zu}",
                      r->n_prompt, r->n_completion, (size_t)r->n_prompt + r->n_completion);
}

/* Everything before the choices. Ids and fingerprints are plain words, a model's name may not be.
 */
static err_t put_head(const struct reply *r, struct buf *out) {
    err_t e = buf_printf(out,
                         "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,"
                         "\"system_fingerprint\":\"%s\",\"model\":",
                         r->id, (long long)r->created_unix_s, r->fingerprint);
    return e ? e : json_put_string(out, r->model, strlen(r->model));
}

/* The one choice with the text from `from` to `to` and the log-probabilities not yet told. */
static err_t put_choice(struct reply *r, struct buf *out, size_t from, size_t to) {
    const char *reason = r->finish_reason;
    err_t e = buf_text(out, ",\"choices\":[{\"index\":0,\"text\":");
    if (!e)
        e = json_put_string(out, r->text.data ? r->text.data + from : "", to - from);
    if (!e)
        e = buf_text(out, ",\"logprobs\":");
    if (!e)
        e = put_logprobs(r, out);
    if (!e)
        e = buf_printf(out, ",\"finish_reason\":%s%s%s,\"stop_reason\":", reason ? "\"" : "",
                       reason ? reason : "null", reason ? "\"" : "");
    if (!e && r->stopped)
        e = json_put_string(out, r->stopped->text, r->stopped->n);
    else if (!e && r->stop_id >= 0)
        e = buf_printf(out, "%d", r->stop_id);
    else if (!e)
        e = buf_text(out, "null");
    return e ? e : buf_text(out, "}]");
}

static err_t put_end(const struct reply *r, struct buf *out, bool usage_key, bool usage) {
    err_t e = usage_key ? buf_text(out, ",\"usage\":") : E_OK;
    if (!e && usage_key)
        e = usage ? put_usage(r, out) : buf_text(out, "null");
    return e ? e : buf_text(out, "}");
}

err_t reply_whole(struct reply *r, struct buf *out) {
    err_t e = put_head(r, out);
    if (!e)
        e = put_choice(r, out, 0, r->text.n);
    return e ? e : put_end(r, out, true, true);
}

static err_t stream_chunk(struct reply *r, struct buf *out, size_t end) {
    const struct params *p = r->params;
    err_t e = buf_text(out, "data: ");
    if (!e)
        e = put_head(r, out);
    if (!e)
        e = put_choice(r, out, r->sent_at, end);
    r->sent_at = end;
    if (!e)
        e = put_end(r, out, p->include_usage, p->continuous_usage);
    return e ? e : buf_text(out, "\n\n");
}

static err_t stream_usage(struct reply *r, struct buf *out) {
    err_t e = buf_text(out, "data: ");
    if (!e)
        e = put_head(r, out);
    if (!e)
        e = buf_text(out, ",\"choices\":[]");
    if (!e)
        e = put_end(r, out, true, true);
    return e ? e : buf_text(out, "\n\n");
}

err_t reply_stream(struct reply *r, struct buf *out) {
    size_t end = safe_end(r);
    err_t e = E_OK;
    /* No chunk before the first token: clients take the first one as the time to it. */
    bool begun = r->n_completion > 0 || r->done;
    if (begun && (end > r->sent_at || r->tokens.n || r->done))
        e = stream_chunk(r, out, end);
    if (!e && r->done && r->params->include_usage)
        e = stream_usage(r, out);
    if (!e && r->done)
        e = buf_text(out, "data: [DONE]\n\n");
    return e;
}
