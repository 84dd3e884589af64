/* GET /openapi.json: the document of what the listener serves. Addresses and replies stand in
 * openapi.json beside this file; the requests for text are made from the tables that their bodies
 * are checked by (surface.h), error statuses from err.def, keys and scoped addresses from the
 * routes. Loop thread. */
#ifndef SERVER_OPENAPI_H
#define SERVER_OPENAPI_H

#include <jansson.h>
#include <stdbool.h>

struct exchange;
struct server;

void openapi_handle(struct server *s, struct exchange *x);
/* The document of one listener; keyed: keys are asked for there. Given; NULL without memory. */
json_t *openapi_document(bool admin, bool keyed);

#endif
