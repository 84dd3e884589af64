/* A streamed answer of the completions or the chat API: its text, its tokens, when they came, how
 * it ended. No I/O; any thread. */
#ifndef CLIENT_SPOKEN_H
#define CLIENT_SPOKEN_H

#include <stdbool.h>
#include <stdint.h>

#include "client/sse.h"

struct spoken {
    struct sse sse;
    /* Shows text as it comes, borrowed for the call; NULL: nobody looks. */
    void (*show)(void *arg, const char *text, size_t n);
    void *arg;
    struct why why; /* why a feed failed */

    struct sse_text text; /* all of it, owned */
    size_t n_tokens;
    int64_t sent_us, first_us, last_us; /* 0: not yet */
    char finish[32];                    /* "" until it has ended */
    bool whole;                         /* the stream's last event has come */
};

/* A zeroed struct is ready, with show, arg and sent_us as the caller likes them. */
void spoken_free(struct spoken *a);
/* Bytes of the stream. Errors, with a sentence in a->why: E_FORMAT (no event of these APIs),
 * E_INTERNAL (the server's own sentence), E_TOO_LARGE, E_NOMEM. */
err_t spoken_feed(struct spoken *a, const char *bytes, size_t n);
/* Tokens a second after the first one; of all of them where that is too short to time. */
double spoken_rate(const struct spoken *a);

#endif
