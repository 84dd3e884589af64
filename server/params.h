/* What a request for text asks for, read from its JSON body; every field is validated once, by the
 * one table that the OpenAPI document is made from, too. The two endpoints (completions, chat)
 * share this struct and the common fields; each adds fields of its own (surface.h). Nothing here
 * knows tenants or the engine's limits; those are checked where the model is known. Any thread. */
#ifndef SERVER_PARAMS_H
#define SERVER_PARAMS_H

#include <jansson.h>

#include "engine/request.h"

enum {
    PARAMS_MAX_STOPS = 16,
    PARAMS_MAX_STOP_CHARS = 256, /* of one */
    PARAMS_MAX_MODEL = 256,
    PARAMS_MAX_N = 128,
    PARAMS_IGNORED_BYTES = 160, /* = HTTP_IGNORED_BYTES */
};

struct stop_text {
    char *text; /* owned, UTF-8, not empty */
    size_t n;
};

/* One prompt: text, ids, or text that became ids. */
struct prompt {
    char *text;    /* owned; NULL: it came as ids, or in messages */
    size_t n_text; /* of messages, too: how much there is to tokenise */
    int32_t *ids;  /* [n_ids] owned; NULL until text was tokenised */
    int32_t n_ids;
};

struct params {
    char model[PARAMS_MAX_MODEL]; /* "": not given */
    struct prompt *prompt;        /* [n_prompts] owned; chat has one */
    int n_prompts;
    struct gen_request gen; /* the sampling part; bias owned here, ids unused */
    struct stop_text stop[PARAMS_MAX_STOPS];
    int n_stops;
    int32_t n, best_of;                  /* choices a prompt is answered with, drawn from */
    int32_t n_logprobs, prompt_logprobs; /* -1: not asked for */
    bool echo, stream, include_usage, continuous_usage;
    bool add_special_tokens, include_stop, skip_special_tokens, seeded;
    bool return_ids, pieces_as_ids;
    /* chat's own */
    json_t *messages, *template_kwargs;          /* owned; NULL: not given */
    int32_t max_completion_tokens, top_logprobs; /* -1: not given */
    bool chat_logprobs, add_generation_prompt, continue_final;
    uint64_t given; /* common fields that the request set, a bit each */
    int n_unknown;  /* fields that were ignored, and the names of the first ones */
    char ignored[PARAMS_IGNORED_BYTES];
};

struct surface;
/* Reads and checks a body. On failure *field (static text or "") names the parameter and nothing is
 * owned. Errors: E_JSON, E_INVAL, E_UNSUPPORTED, E_TOO_LARGE, E_NOMEM. */
err_t params_read(struct params *p, const struct surface *surface, const char *body, size_t n,
                  const char **field, struct why *why);
/* Sampling that the request left open as the model's generation_config.json says; values there that
 * no request could ask for are passed over. `generation` may be NULL. */
void params_apply_defaults(struct params *p, const json_t *generation);
/* Answers that the engine is asked for: prompts times best_of. */
int64_t params_choices(const struct params *p);
void params_free(struct params *p);

/* For the readers of special fields: an integer, also when written as 5.0 (some clients' JSON has
 * only doubles). */
bool params_integer(const json_t *v, double low, double high, int64_t *out);
/* Adds a field that nothing is known of to the names that the client is told of, if it is plain
 * enough for a header. */
void params_note_ignored(char ignored[PARAMS_IGNORED_BYTES], const char *key);
/* `n` more prompts, zeroed; at most once. Errors: E_NOMEM. */
err_t params_add_prompts(struct params *p, size_t n, struct why *why);

#endif
