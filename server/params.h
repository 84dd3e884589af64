/* The body of a completions request, every field validated once. Nothing here knows tenants or the
 * engine's limits; those are checked where the model is known. Any thread. */
#ifndef SERVER_PARAMS_H
#define SERVER_PARAMS_H

#include <jansson.h>

#include "engine/request.h"

enum {
    PARAMS_MAX_STOPS = 16,
    PARAMS_MAX_STOP_BYTES = 4096, /* of all stop strings together */
    PARAMS_MAX_MODEL = 256,
};

struct stop_text {
    char *text; /* owned, UTF-8, not empty */
    size_t n;
};

struct params {
    char model[PARAMS_MAX_MODEL];
    char *text; /* prompt as text, owned; NULL: it came as ids */
    size_t n_text;
    struct gen_request gen; /* ids and bias owned here until they are given on; n_top set */
    struct stop_text stop[PARAMS_MAX_STOPS];
    int n_stops;
    bool echo, stream, include_usage, continuous_usage;
    bool add_special_tokens, include_stop, skip_special_tokens, seeded;
    uint32_t given; /* plain fields that the request set, a bit each (params.c) */
    int n_unknown;  /* fields that were ignored */
};

/* Reads and checks a body. On failure *field (static text or "") names the parameter and nothing is
 * owned. Errors: E_JSON, E_INVAL, E_UNSUPPORTED, E_TOO_LARGE, E_NOMEM. */
err_t params_read(struct params *p, const char *body, size_t n, const char **field,
                  struct why *why);
/* Sampling that the request left open as the model's generation_config.json says; values there that
 * no request could ask for are passed over. `generation` may be NULL. */
void params_apply_defaults(struct params *p, const json_t *generation);
void params_free(struct params *p);

#endif
