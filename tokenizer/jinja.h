/* Chat templates: a strict subset of Jinja2 that renders byte for byte as transformers does it, and
 * tells of every byte it puts out whether the template or the data wrote it. What it lacks is an
 * error with a line (docs/chat.md lists what there is).
 *
 * A compiled template is read-only: any thread may render it. Nothing is shared between renderings;
 * steps, memory, output and depth of each are bounded. */
#ifndef TOKENIZER_JINJA_H
#define TOKENIZER_JINJA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

struct jinja;

enum {
    JINJA_MAX_BYTES = 1 << 20, /* of a template; published ones have up to 20 KB */
    JINJA_MAX_NAME = 64,
};

/* Errors: E_FORMAT (not a template), E_UNSUPPORTED (names what is missing), E_NOMEM. */
err_t jinja_compile(struct jinja **out, const char *text, size_t n, struct why *why);
void jinja_free(struct jinja *j);
/* Whether it loops over what some expression calls .NAME or ['NAME']: contents as lists of parts.
 */
bool jinja_loops_over(const struct jinja *j, const char *name);

/* A variable. Strings in `value` are data, that is untrusted, unless `trusted`; those under the key
 * `trusted_key` are trusted in any case. */
struct jinja_variable {
    const char *name;
    const json_t *value;
    bool trusted;
    const char *trusted_key; /* NULL: none */
};

struct jinja_limits {
    size_t max_output;  /* bytes rendered */
    size_t max_memory;  /* bytes of all values */
    uint64_t max_steps; /* about one a node or byte looked at */
    int64_t now_unix_s; /* what strftime_now says */
};

struct jinja_text {
    char *text;             /* malloc'ed, n bytes and a NUL */
    unsigned char *trusted; /* malloc'ed [n]: 1 where the template wrote the byte */
    size_t n;
};

/* Errors: E_INVAL (raise_exception, with its words), E_UNSUPPORTED, E_CONTEXT (too much output),
 * E_NOMEM (too much memory), all with the template's line. */
err_t jinja_render(const struct jinja *j, const struct jinja_variable *variables,
                   size_t n_variables, const struct jinja_limits *limits, struct jinja_text *out,
                   struct why *why);
void jinja_text_free(struct jinja_text *t);

#endif
