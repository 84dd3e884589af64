#include "client/spoken.h"

#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "config/json.h"

enum { MAX_DEPTH = 16, MAX_VALUES = 10000, SHORT_US = 5000 };

void spoken_free(struct spoken *a) {
    sse_free(&a->sse);
    free(a->text.bytes);
    *a = (struct spoken){0};
}

static err_t keep(struct spoken *a, const char *text, size_t n) {
    struct sse_text *t = &a->text;
    if (n > SSE_MAX_BYTES - t->n)
        return why_set(&a->why, E_TOO_LARGE, "The answer is longer than %d bytes.", SSE_MAX_BYTES);
    if (t->n + n > t->cap) {
        char *grown = realloc(t->bytes, 2 * (t->n + n));
        if (!grown)
            return why_set(&a->why, E_NOMEM, "No memory for the answer.");
        t->bytes = grown;
        t->cap = 2 * (t->n + n);
    }
    memcpy(t->bytes + t->n, text, n);
    t->n += n;
    if (a->show)
        a->show(a->arg, text, n);
    return E_OK;
}

static err_t take_choice(struct spoken *a, const json_t *choice, bool counted) {
    const json_t *text = json_object_get(choice, "text");
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    if (!text)
        text = json_object_get(json_object_get(choice, "delta"), "content");
    size_t n = json_string_length(text);
    if (n || finish) {
        a->last_us = mono_us();
        a->first_us = a->first_us ? a->first_us : a->last_us;
    }
    if (finish) {
        strncpy(a->finish, finish, sizeof a->finish - 1);
        a->whole = true;
    }
    if (n && !counted) /* a server that does not count along: an event is mostly a token */
        a->n_tokens++;
    return n ? keep(a, json_string_value(text), n) : E_OK;
}

static err_t take_event(void *arg, const char *data, size_t n) {
    struct spoken *a = arg;
    json_t *root = NULL;
    if (n == 6 && memcmp(data, "[DONE]", 6) == 0)
        return E_OK;
    err_t e = json_parse(&root, data, n, "the stream", MAX_DEPTH, MAX_VALUES, &a->why);
    if (e)
        return e;
    const json_t *error = json_object_get(root, "error");
    const char *sentence = json_string_value(json_object_get(error, "message"));
    const json_t *count = json_object_get(json_object_get(root, "usage"), "completion_tokens");
    if (json_is_integer(count) && json_integer_value(count) >= 0)
        a->n_tokens = (size_t)json_integer_value(count);
    if (error)
        e = why_set(&a->why, E_INTERNAL, "%s", sentence ? sentence : "the server failed");
    else
        e = take_choice(a, json_array_get(json_object_get(root, "choices"), 0),
                        json_is_integer(count));
    json_decref(root);
    return e;
}

err_t spoken_feed(struct spoken *a, const char *bytes, size_t n) {
    err_t e = sse_feed(&a->sse, bytes, n, take_event, a);
    if (e && !a->why.text[0])
        why_set(&a->why, e, "%s",
                e == E_TOO_LARGE ? "An event of the stream is too large." : err_sentence(e));
    return e;
}

double spoken_rate(const struct spoken *a) {
    int64_t span = a->last_us - a->first_us;
    if (a->n_tokens > 1 && span >= SHORT_US)
        return 1e6 * (double)(a->n_tokens - 1) / (double)span;
    span = a->last_us - a->sent_us;
    return a->n_tokens && span > 0 ? 1e6 * (double)a->n_tokens / (double)span : 0;
}
