#include "server/choice.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/json.h"
#include "server/surface.h"

enum { MAX_LIST_BYTES = 256 << 20 }; /* 20 alternatives for 128 Ki ids are about 70 MB */

/* JSON has no infinity; the field's other servers write this. */
static const double minus_infinity = -9999.0;

static int64_t count_chars(const char *s, size_t n) {
    int64_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)s[i] & 0xc0) != 0x80;
    return chars;
}

/* --- elements of lists ---------------------------------------------------------------------- */

void choice_put_piece(const struct choice *c, struct buf *out, int32_t id) {
    size_t n = 0;
    if (c->params->pieces_as_ids) {
        buf_printf(out, "\"token_id:%d\"", id);
        return;
    }
    const char *piece = tokenizer_piece(c->tokenizer, id, &n);
    if (json_put_string(out, piece ? piece : "", piece ? n : 0) != E_INVAL)
        return;
    char hex[6 + 4 * DETOK_MAX_BYTES + 1] = "bytes:";
    for (size_t i = 0; i < n && i < DETOK_MAX_BYTES; i++)
        snprintf(hex + 6 + 4 * i, 5, "\\x%02x", (unsigned char)piece[i]);
    json_put_string(out, hex, strlen(hex));
}

void choice_put_number(struct buf *out, float logprob) {
    char text[32];
    snprintf(text, sizeof text, "%.9g", isfinite(logprob) ? (double)logprob : minus_infinity);
    bool integral = !strpbrk(text, ".e"); /* typed clients want a number that looks like a float */
    buf_text(out, text);
    buf_text(out, integral ? ".0" : "");
}

void choice_put_list(struct buf *out, struct buf *list) {
    buf_add(out, "[", 1);
    buf_add(out, list->data, list->n);
    buf_add(out, "]", 1);
    if (list->error)
        out->error = list->error;
    list->n = 0; /* said once: the next chunk goes on from here */
}

/* One entry of prompt_logprobs: {"ID":{"logprob":..,"rank":..,"decoded_token":".."},..}. The rank
 * of an id that is not among the alternatives is not known. */
static void put_prompt_entry(struct choice *c, const struct gen_event *event) {
    struct buf *out = &c->prompt_list;
    int32_t n =
        event->n_top < c->params->prompt_logprobs ? event->n_top : c->params->prompt_logprobs;
    int32_t rank = 0;
    for (int32_t i = 0; i < event->n_top && !rank; i++)
        rank = event->top_id[i] == event->token ? i + 1 : 0;
    buf_text(out, out->n ? ",{" : "{");
    for (int32_t i = -1; i < n; i++) {
        if (i >= 0 && event->top_id[i] == event->token)
            continue;
        buf_printf(out, "%s\"%d\":{\"logprob\":", i >= 0 ? "," : "",
                   i < 0 ? event->token : event->top_id[i]);
        choice_put_number(out, i < 0 ? event->logprob : event->top_logprob[i]);
        if (i >= 0 || rank)
            buf_printf(out, ",\"rank\":%d,\"decoded_token\":", i < 0 ? rank : i + 1);
        else
            buf_text(out, ",\"rank\":null,\"decoded_token\":");
        choice_put_piece(c, out, i < 0 ? event->token : event->top_id[i]);
        buf_text(out, "}");
    }
    buf_text(out, "}");
}

/* --- the prompt ----------------------------------------------------------------------------- */

static err_t add_prompt(struct choice *c, const struct gen_event *event, bool scored) {
    char out[DETOK_MAX_BYTES];
    if (c->params->prompt_logprobs >= 0) {
        if (scored)
            put_prompt_entry(c, event);
        else
            buf_text(&c->prompt_list, "null");
    }
    if (!c->params->echo || c->params->n_logprobs < 0)
        return c->prompt_list.error;
    int64_t at = c->prompt_offset;
    size_t n = detok_push(&c->prompt_detok, event->token, out);
    c->prompt_offset += count_chars(out, n);
    err_t e =
        c->surface->add_logprob(c, event, at < c->prompt_chars ? at : c->prompt_chars, scored);
    return e ? e : c->prompt_list.error;
}

static err_t echo_prompt(struct choice *c) {
    const struct prompt *p = c->prompt;
    if (p->text)
        return buf_add(&c->text, p->text, p->n_text);
    char *text = NULL;
    size_t n = 0;
    err_t e =
        tokenizer_decode(c->tokenizer, p->ids, p->n_ids, c->params->skip_special_tokens, &text, &n);
    if (!e)
        e = buf_add(&c->text, text, n);
    free(text);
    return e;
}

err_t choice_init(struct choice *c, const struct surface *surface, const struct params *p,
                  int i_prompt, const struct tokenizer *t, int index) {
    *c = (struct choice){.surface = surface, .params = p, .tokenizer = t, .stop_id = -1};
    c->prompt = &p->prompt[i_prompt];
    c->index = index;
    buf_init(&c->text, MAX_LIST_BYTES);
    buf_init(&c->ids, MAX_LIST_BYTES);
    buf_init(&c->prompt_list, MAX_LIST_BYTES);
    for (int i = 0; i < CHOICE_LISTS; i++)
        buf_init(&c->list[i], MAX_LIST_BYTES);
    /* After a prompt of text, the first piece keeps its leading space. */
    bool continues = false, anew = surface->anew && !p->continue_final;
    for (int32_t i = 0; i < c->prompt->n_ids && !continues; i++)
        continues = !tokenizer_is_special(t, c->prompt->ids[i]);
    detok_init(&c->detok, t, p->skip_special_tokens, continues && !anew);
    detok_init(&c->prompt_detok, t, p->skip_special_tokens, false);
    err_t e = p->echo ? echo_prompt(c) : E_OK;
    c->generated_at = c->text.n;
    c->prompt_chars = count_chars(c->text.data, c->text.n);
    c->offset_chars = c->prompt_chars;
    /* The engine scores ids 1 and up; nothing comes before the first. */
    if (!e && p->gen.prompt_logprobs)
        e = add_prompt(c, &(struct gen_event){.token = c->prompt->ids[0]}, false);
    return e;
}

void choice_free(struct choice *c) {
    buf_free(&c->text);
    buf_free(&c->ids);
    buf_free(&c->prompt_list);
    for (int i = 0; i < CHOICE_LISTS; i++)
        buf_free(&c->list[i]);
}

size_t choice_bytes(const struct choice *c) {
    size_t n = c->text.cap + c->ids.cap + c->prompt_list.cap;
    for (int i = 0; i < CHOICE_LISTS; i++)
        n += c->list[i].cap;
    return n;
}

/* --- stop strings --------------------------------------------------------------------------- */

/* Looks for the stop string that starts first in the text from `from` on. */
static const struct stop_text *find_stop(const struct choice *c, size_t from, size_t *at) {
    const struct stop_text *found = NULL;
    if (from >= c->text.n)
        return NULL;
    for (int i = 0; i < c->params->n_stops; i++) {
        const struct stop_text *s = &c->params->stop[i];
        const char *hit = memmem(c->text.data + from, c->text.n - from, s->text, s->n);
        size_t hit_at = hit ? (size_t)(hit - c->text.data) : 0;
        if (hit && (!found || hit_at < *at || (hit_at == *at && s->n < found->n))) {
            found = s;
            *at = hit_at;
        }
    }
    return found;
}

static void end_as(struct choice *c, const char *reason) {
    c->done = true;
    c->finish_reason = reason;
}

/* Checks the text that came with the last push, which began at `fresh`. */
static void check_stops(struct choice *c, size_t fresh) {
    size_t longest = 0, at = 0;
    for (int i = 0; i < c->params->n_stops; i++)
        if (c->params->stop[i].n > longest)
            longest = c->params->stop[i].n;
    if (!longest || (int64_t)c->n_completion < c->params->gen.min_tokens)
        return;
    size_t from = fresh > c->generated_at + longest - 1 ? fresh - (longest - 1) : c->generated_at;
    c->stopped = find_stop(c, from, &at);
    if (!c->stopped)
        return;
    c->text.n = at + (c->params->include_stop ? c->stopped->n : 0);
    end_as(c, "stop");
}

size_t choice_safe_end(const struct choice *c) {
    size_t end = c->text.n;
    if (c->done)
        return end;
    for (int i = 0; i < c->params->n_stops; i++) {
        const struct stop_text *s = &c->params->stop[i];
        size_t k = c->text.n - c->generated_at;
        k = k < s->n - 1 ? k : s->n - 1;
        while (k && memcmp(c->text.data + c->text.n - k, s->text, k) != 0)
            k--;
        if (c->text.n - k < end)
            end = c->text.n - k;
    }
    return end;
}

/* --- events --------------------------------------------------------------------------------- */

/* Counts and notes an id that was generated. */
static err_t note_id(struct choice *c, const struct gen_event *event) {
    c->n_completion++;
    c->sum_logprob += (double)event->logprob;
    if (c->params->return_ids) {
        err_t e = buf_printf(&c->ids, "%s%d", c->ids.n ? "," : "", event->token);
        if (e)
            return e;
    }
    return c->params->n_logprobs < 0 ? E_OK
                                     : c->surface->add_logprob(c, event, c->offset_chars, true);
}

static err_t add_token(struct choice *c, const struct gen_event *event) {
    char out[DETOK_MAX_BYTES];
    err_t e = note_id(c, event);
    size_t n = detok_push(&c->detok, event->token, out), fresh = c->text.n;
    if (!e)
        e = buf_add(&c->text, out, n);
    if (e)
        return e;
    c->offset_chars += count_chars(out, n);
    check_stops(c, fresh);
    return E_OK;
}

static err_t finish(struct choice *c, const struct gen_event *event) {
    char out[DETOK_MAX_BYTES];
    err_t e = E_OK;
    if (event->finish == GEN_STOP && event->token >= 0) {
        /* The id that ended the text is counted and scored, but is no text. */
        c->stop_id = event->token;
        e = note_id(c, event);
    }
    size_t fresh = c->text.n, n = detok_flush(&c->detok, out);
    if (!e)
        e = buf_add(&c->text, out, n);
    check_stops(c, fresh);
    if (!c->done)
        end_as(c, event->finish == GEN_STOP ? "stop" : "length");
    return e;
}

err_t choice_event(struct choice *c, const struct gen_event *event) {
    if (c->done)
        return E_OK;
    if (event->kind == GEN_PROMPT)
        return add_prompt(c, event, true);
    if (event->kind == GEN_TOKEN)
        return add_token(c, event);
    return event->kind == GEN_DONE ? finish(c, event) : E_INTERNAL;
}
