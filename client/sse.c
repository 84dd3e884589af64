#include "client/sse.h"

#include <stdlib.h>
#include <string.h>

static err_t add(struct sse_text *t, const char *bytes, size_t n) {
    if (n > SSE_MAX_BYTES - t->n)
        return E_TOO_LARGE;
    if (t->n + n > t->cap) {
        size_t cap = 2 * (t->n + n) + 256;
        char *grown = realloc(t->bytes, cap);
        if (!grown)
            return E_NOMEM;
        t->bytes = grown;
        t->cap = cap;
    }
    if (n)
        memcpy(t->bytes + t->n, bytes, n);
    t->n += n;
    return E_OK;
}

void sse_free(struct sse *s) {
    free(s->line.bytes);
    free(s->data.bytes);
    *s = (struct sse){0};
}

/* A line without its end. Fields but data (event, id, retry, comments) say nothing to us. */
static err_t take_line(struct sse *s, const char *line, size_t n, sse_event_fn *event, void *arg) {
    static const char field[] = "data:";
    if (n == 0) {
        bool whole = s->has_data;
        size_t n_data = s->data.n;
        s->has_data = false;
        s->data.n = 0;
        return whole ? event(arg, n_data ? s->data.bytes : "", n_data) : E_OK;
    }
    if (n < sizeof field - 1 || memcmp(line, field, sizeof field - 1) != 0)
        return E_OK;
    line += sizeof field - 1;
    n -= sizeof field - 1;
    if (n && *line == ' ')
        line++, n--;
    err_t e = s->has_data ? add(&s->data, "\n", 1) : E_OK;
    s->has_data = true;
    return e ? e : add(&s->data, line, n);
}

err_t sse_feed(struct sse *s, const char *bytes, size_t n, sse_event_fn *event, void *arg) {
    err_t e = E_OK;
    for (size_t at = 0; !e && at < n;) {
        const char *newline = memchr(bytes + at, '\n', n - at);
        size_t end = newline ? (size_t)(newline - bytes) : n;
        e = add(&s->line, bytes + at, end - at);
        at = end + 1;
        if (e || !newline)
            continue;
        size_t n_line = s->line.n;
        if (n_line && s->line.bytes[n_line - 1] == '\r')
            n_line--;
        s->line.n = 0;
        e = take_line(s, n_line ? s->line.bytes : "", n_line, event, arg);
    }
    return e;
}
