/* JSON bodies in, JSON bodies out, through jansson. Any thread. */
#ifndef SERVER_JSON_H
#define SERVER_JSON_H

#include <jansson.h>

#include "config/err.h"

enum {
    JSON_MAX_DEPTH = 32,
    JSON_MAX_VALUES = 1 << 19, /* about 40 MB of heap at most; a prompt of ids needs one each */
};

/* Reads one object of a request's body. *out: given (json_decref). Errors: E_JSON, E_NOMEM. */
err_t json_read_object(const char *data, size_t n, json_t **out, struct why *why);
/* Text of a tree, malloc'ed; frees the tree. NULL without memory. */
char *json_finish(json_t *tree, size_t *n);

#endif
