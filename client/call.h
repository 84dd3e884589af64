/* Calls to a bitdeltad over HTTP, by libcurl: one request at a time on one kept connection, answers
 * read as they come, a descriptor that interrupts them, failures as sentences that say what to do.
 * One thread. */
#ifndef CLIENT_CALL_H
#define CLIENT_CALL_H

#include <jansson.h>
#include <stdbool.h>

#include "config/err.h"

struct caller; /* a server, a key, a connection */

/* url: "http://HOST:PORT", https://, or "unix:PATH"; key: NULL or "" for none (copied, wiped by
 * close). interrupt_fd: readable when the running call shall end, -1: none. Errors: E_USAGE,
 * E_NOMEM. */
err_t caller_open(struct caller **out, const char *url, const char *key, int interrupt_fd,
                  struct why *why);
void caller_close(struct caller *c); /* NULL is fine */

/* Takes bytes of a good reply; an error ends the call with it. */
typedef err_t call_data_fn(void *arg, const char *bytes, size_t n);

/* POSTs `body` to `path` and feeds the reply to `data`. A full server is waited for as it asks, a
 * few times; `note` hears of it (NULL: nobody). Errors: E_CANCELLED (interrupted), E_IO (not
 * reached, or lost), E_UNAUTHORIZED, E_NO_MODEL, E_NO_ROUTE, else E_INVAL with the server's own
 * sentence. */
err_t call_post(struct caller *c, const char *path, const json_t *body, call_data_fn *data,
                void *arg, void (*note)(const char *sentence), struct why *why);
/* GETs a JSON document, given to the caller. `name`, where not NULL, is put, escaped, in place of
 * the one %s of `path`. The same errors. */
err_t call_get(struct caller *c, const char *path, const char *name, json_t **out, struct why *why);

#endif
