/* POST /v1/completions, as a surface. */
#ifndef SERVER_COMPLETIONS_H
#define SERVER_COMPLETIONS_H

struct exchange;
struct server;

extern const struct surface surface_completions;
void completions_handle(struct server *s, struct exchange *x);

#endif
