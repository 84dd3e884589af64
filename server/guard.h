/* What libmicrohttpd lets through and we do not: request smuggling (a Transfer-Encoding other
 * than one "chunked", or beside Content-Length; repeated Content-Length, Host or Authorization,
 * spaces in names), bytes that do not belong in a header or an address. Pure functions over one
 * request's head; any thread.
 *
 * Known rest: libmicrohttpd 0.9.75 has already joined folded lines, accepted bare line feeds and
 * cut values at a NUL byte when these functions see them. None of these moves a request's end. */
#ifndef SERVER_GUARD_H
#define SERVER_GUARD_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

enum {
    GUARD_MAX_HEADERS = 100,
    GUARD_MAX_URI = 2048,
    GUARD_MAX_ID = 128,
};

struct guard {
    int n_headers, n_length, n_transfer, n_host, n_authorization, n_type;
    bool chunked, malformed, encoded, expects_continue, json;
    uint64_t length;                      /* Content-Length, 0 without one */
    const char *authorization;            /* borrowed from guard_header's value, NULL: none */
    char if_none_match[GUARD_MAX_ID + 1]; /* "" without one, or when it is longer */
    char request_id[GUARD_MAX_ID + 1];    /* the client's, if it is a harmless word; else "" */
};

void guard_init(struct guard *g);
void guard_header(struct guard *g, const char *name, size_t n_name, const char *value,
                  size_t n_value);
/* All headers seen: E_LENGTH_REQUIRED, E_HTTP, E_HEADERS or E_OK. `version` as "HTTP/1.1". */
err_t guard_end(const struct guard *g, const char *version, struct why *why);
/* The raw address as it stood in the request line: E_HTTP, E_URI or E_OK. */
err_t guard_uri(const char *raw, struct why *why);

#endif
