/* JSON from outside, parsed by jansson within bounds: duplicate keys are refused, and depth and the
 * number of values are counted before anything is allocated, so that a few bytes of text cannot
 * become gigabytes of objects. */
#ifndef CONFIG_JSON_H
#define CONFIG_JSON_H

#include <jansson.h>

#include "config/err.h"

/* label: names the text in sentences. max_values: most values (objects, arrays, scalars) accepted.
 * *out is given to the caller (json_decref). Errors: E_FORMAT with place and reason, E_NOMEM. */
err_t json_parse(json_t **out, const char *text, size_t n, const char *label, int max_depth,
                 size_t max_values, struct why *why);
/* The same with jansson's flags: JSON_ALLOW_NUL where texts are used with their length. */
err_t json_parse_flags(json_t **out, const char *text, size_t n, const char *label, int max_depth,
                       size_t max_values, size_t flags, struct why *why);

#endif
