/* GET /v1/models and /v1/models/{id}: the base first, then the tenants and the aliases by name.
 * Loop thread. */
#ifndef SERVER_MODELS_H
#define SERVER_MODELS_H

struct exchange;
struct server;

void models_list(struct server *s, struct exchange *x);
void models_one(struct server *s, struct exchange *x);

#endif
