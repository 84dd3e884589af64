/* A surface is one way to ask for generated text: /v1/completions and /v1/chat/completions. Both
 * run through the same stages (generation.c):
 *
 *   body -> params (common fields and the surface's own) -> ids of each prompt -> prompts x best_of
 *   requests in the engine -> their events -> text of each choice (choice.c) -> JSON (reply.c)
 *
 * and differ in what this struct holds. To add one: a file that defines a `const struct surface`
 * with its field table and its functions, a handler in route.c that calls generation_start(s, x,
 * &it), a row there and one in openapi.c. completions.c is the example. */
#ifndef SERVER_SURFACE_H
#define SERVER_SURFACE_H

#include <stddef.h>

#include "server/choice.h"
#include "server/params.h"

struct served;

enum field_kind {
    FIELD_INTEGER, /* an int32_t of params */
    FIELD_NUMBER,  /* a float */
    FIELD_BOOLEAN, /* a bool */
    FIELD_SPECIAL, /* has a reader of its own */
    /* Would change the output and is not implemented: refused unless the value asks for nothing. */
    FIELD_REFUSED,
};

/* One row of a field table. */
struct field {
    const char *name;
    enum field_kind kind;
    size_t at;               /* offset in struct params (INTEGER, NUMBER, BOOLEAN) */
    double low, high, start; /* a start below low stands for "null" */
    err_t (*read)(struct params *p, json_t *v, struct why *why); /* SPECIAL; v is never null */
    /* SPECIAL: JSON Schema of what it takes. REFUSED: JSON of the one value that asks for nothing,
     * NULL: only null does. */
    const char *json;
    const char *help; /* a sentence for the document */
};

/* Rows of a table. `nothing`: see `json`. */
#define FIELD_AT(member) offsetof(struct params, member)
#define INTEGER_FIELD(name, member, low, high, start, help)                                        \
    { name, FIELD_INTEGER, FIELD_AT(member), low, high, start, NULL, NULL, help }
#define NUMBER_FIELD(name, member, low, high, start, help)                                         \
    { name, FIELD_NUMBER, FIELD_AT(member), low, high, start, NULL, NULL, help }
#define BOOLEAN_FIELD(name, member, start, help)                                                   \
    { name, FIELD_BOOLEAN, FIELD_AT(member), 0, 1, start, NULL, NULL, help }
#define SPECIAL_FIELD(name, read, schema, help)                                                    \
    { name, FIELD_SPECIAL, 0, 0, 0, 0, read, schema, help }
#define ELSEWHERE_FIELD(name, help)                                                                \
    { name, FIELD_REFUSED, 0, 0, 0, 0, NULL, NULL, "Not supported: " help }
#define REFUSED_FIELD(name, nothing)                                                               \
    { name, FIELD_REFUSED, 0, 0, 0, 0, NULL, nothing, "Not supported." }

struct surface {
    const char *id_prefix;             /* "cmpl-" */
    const char *object, *chunk_object; /* "text_completion" */
    const struct field *fields;        /* [n_fields] its own, beside fields_common */
    int n_fields;
    /* A stream begins with a chunk that has no text yet and ends with one that has none any more
     * and alone gives the reason. */
    bool apart;
    /* An answer is a text of its own, unless it continues a message: the space that a tokenizer
     * puts before texts is not part of it. */
    bool anew;
    /* What needs several fields, after all were read. Any thread. */
    err_t (*check)(struct params *p, const char **field, struct why *why);
    /* Gives every prompt its ids with the model's tokenizer; texts of more than max_bytes are
     * refused. Any thread. */
    err_t (*prepare)(struct params *p, const struct served *model, size_t max_bytes,
                     const char **field, struct why *why);
    /* Notes the log-probability of an id of the choice's output (or of its echoed prompt) that
     * begins at character `offset`. `scored` false: nothing comes before this id. Called when
     * n_logprobs >= 0. */
    err_t (*add_logprob)(struct choice *c, const struct gen_event *event, int64_t offset,
                         bool scored);
    /* Writes the members of a choice's object from after "index" up to "finish_reason": its text
     * from..to and the log-probabilities not yet told. chunk: of a stream. */
    void (*put_choice)(struct choice *c, struct buf *out, size_t from, size_t to, bool chunk);
};

extern const struct field fields_common[];
extern const int n_fields_common; /* at most 64: params.given */

#endif
