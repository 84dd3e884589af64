/* The JSON of one reply with all its choices, whole or as server-sent events; what the surfaces
 * (surface.h) have in common. Knows neither sockets nor the engine. Loop thread. */
#ifndef SERVER_REPLY_H
#define SERVER_REPLY_H

#include "server/choice.h"

enum { REPLY_MAX_BYTES = 256 << 20 }; /* text and log-probabilities of all choices together */

struct reply {
    const struct params *params; /* borrowed */
    const struct surface *surface;
    struct choice *choices; /* [n_choices] owned; prompt i, draw j at i * best_of + j */
    int n_choices, n_done;
    size_t n_bytes;                 /* held by the choices */
    struct buf head;                /* a stream's chunk up to its choices, made once */
    char *id, *model, *fingerprint; /* owned */
    int64_t created_unix_s;
};

/* What the reply says of itself; copied. */
struct reply_names {
    const char *id, *model, *fingerprint;
    int64_t created_unix_s;
};

/* The prompts of `p` have their ids. Errors: E_NOMEM; reply_free in any case. */
err_t reply_init(struct reply *r, const struct surface *surface, const struct params *p,
                 const struct tokenizer *t, const struct reply_names *names);
void reply_free(struct reply *r);

/* An event of the engine's request behind choice i. Errors: as choice_event; E_TOO_LARGE when the
 * reply outgrows REPLY_MAX_BYTES. */
err_t reply_event(struct reply *r, int i, const struct gen_event *event);
static inline bool reply_done(const struct reply *r) {
    return r->n_done == r->n_choices;
}
int64_t reply_prompt_tokens(const struct reply *r);     /* each prompt once */
int64_t reply_completion_tokens(const struct reply *r); /* of all draws */
const char *reply_finish(const struct reply *r);        /* of the first choice; NULL: not done */

/* Appends the chunk of choice i that is due now, if there is something to say, and once all are
 * done the usage chunk and "[DONE]". */
err_t reply_stream(struct reply *r, int i, struct buf *out);
/* Appends the whole object. */
err_t reply_whole(struct reply *r, struct buf *out);

#endif
