/* What crosses the door between server and engine: a request going in, events coming out. Token ids
 * only, never text. */
#ifndef ENGINE_REQUEST_H
#define ENGINE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

struct tenant; /* a loaded tenant, reference counted: engine.h */

enum {
    GEN_MAX_TOP = 20, /* alternatives per token */
    GEN_MAX_STOP_IDS = 32,
    GEN_MAX_BIAS = 300,
};

struct gen_bias {
    int32_t id;
    float bias;
};

struct gen_request {
    uint64_t id;           /* chosen by the caller, unique among live requests */
    struct tenant *tenant; /* NULL: the base; the engine takes a reference of its own */
    int32_t *ids;          /* [n_ids] prompt, malloc'ed; given to the engine on success */
    int32_t n_ids;
    int32_t max_tokens; /* >= 0; 0 with prompt_logprobs scores the prompt only */
    int32_t min_tokens; /* EOS and stop ids are never drawn before this many */
    bool ignore_eos;
    int32_t stop_id[GEN_MAX_STOP_IDS], n_stop_ids; /* beside the tenant's EOS ids */
    float temperature, top_p, min_p;               /* 0 greedy; 1 off; 0 off */
    int32_t top_k;                                 /* <= 0 off */
    float presence, frequency, repetition;         /* 0, 0, 1 off */
    uint64_t seed;
    struct gen_bias *bias; /* [n_bias] malloc'ed; given to the engine on success; NULL when none */
    int32_t n_bias;
    int32_t n_top;        /* -1: no log-probabilities; 0 .. GEN_MAX_TOP alternatives */
    bool prompt_logprobs; /* also one GEN_PROMPT event per prompt id but the first */
};

enum gen_kind {
    GEN_PROMPT, /* one prompt id scored (ids 1 .. n_ids-1, in order) */
    GEN_TOKEN, /* one id generated; an EOS or stop id that ends the text is not sent as GEN_TOKEN */
    GEN_DONE,  /* the last event of a request: finish says why */
    GEN_FAILED, /* the last event of a request that failed: error says why */
};

enum gen_finish { GEN_STOP, GEN_LENGTH, GEN_CANCELLED };

struct gen_event {
    uint64_t id;
    enum gen_kind kind;
    int32_t token; /* GEN_PROMPT, GEN_TOKEN; for GEN_DONE by GEN_STOP: the stop id, else -1 */
    float logprob; /* of token, raw model distribution */
    int32_t n_top;
    int32_t top_id[GEN_MAX_TOP]; /* descending */
    float top_logprob[GEN_MAX_TOP];
    enum gen_finish finish; /* GEN_DONE */
    err_t error;            /* GEN_FAILED */
};

#endif
