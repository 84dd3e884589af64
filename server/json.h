/* JSON bodies in, JSON bodies out, through jansson. Any thread. */
#ifndef SERVER_JSON_H
#define SERVER_JSON_H

#include <jansson.h>

#include "server/buf.h"

enum {
    JSON_MAX_DEPTH = 32,
    JSON_MAX_VALUES = 1 << 19, /* about 40 MB of heap at most; a prompt of ids needs one each */
};

/* Reads one object of a request's body; strings may hold NUL bytes, so use their length. *out:
 * given (json_decref). Errors: E_JSON, E_NOMEM. */
err_t json_read_object(const char *data, size_t n, json_t **out, struct why *why);
/* Appends a JSON string. Errors: E_INVAL (not UTF-8; nothing was added), E_NOMEM, E_TOO_LARGE. */
err_t json_put_string(struct buf *out, const char *text, size_t n);
/* Text of a tree, malloc'ed; frees the tree. NULL without memory. */
char *json_finish(json_t *tree, size_t *n);

#endif
