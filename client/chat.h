/* A person's talk with a tenant, on a terminal or in a pipe: one answer, or a session with a
 * history. Reads stdin, writes answers to stdout and everything else to stderr. One thread. */
#ifndef CLIENT_CHAT_H
#define CLIENT_CHAT_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

struct chat_options {
    const char *url, *key;
    const char *tenant; /* NULL: the sentence of the failure lists what there is */
    const char *prompt; /* NULL: from stdin, as a session if that is a terminal */
    const char *system; /* NULL: none */
    bool raw;           /* the text as it is, no template */
    bool stats;
    double temperature, top_p; /* below 0: the tenant's own */
    int32_t max_tokens;        /* 0: the API's own; 256 for text as it is */
    int64_t seed;              /* below 0: random */
};

/* Errors with a sentence: those of client/call.h; E_USAGE without a tenant; E_INVAL. */
err_t chat_run(const struct chat_options *o, struct why *why);

#endif
