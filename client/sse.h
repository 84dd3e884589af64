/* Server-sent events as bytes arrive: lines are put together, the data of an event handed on.
 * Bounded, no I/O; any thread. */
#ifndef CLIENT_SSE_H
#define CLIENT_SSE_H

#include <stdbool.h>

#include "config/err.h"

enum { SSE_MAX_BYTES = 8 << 20 }; /* of a line, and of an event's data */

struct sse_text {
    char *bytes; /* owned */
    size_t n, cap;
};

struct sse {
    struct sse_text line, data;
    bool has_data;
};

/* Takes an event's data, borrowed for the call; an error ends the stream. */
typedef err_t sse_event_fn(void *arg, const char *data, size_t n);

/* A zeroed struct is ready; sse_free when done. */
void sse_free(struct sse *s);
/* Errors: E_TOO_LARGE, E_NOMEM, and what `event` returns. */
err_t sse_feed(struct sse *s, const char *bytes, size_t n, sse_event_fn *event, void *arg);

#endif
