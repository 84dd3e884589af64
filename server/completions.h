/* POST /v1/completions: from a body to a request in the engine to a reply. Loop thread; large
 * bodies are parsed, and long prompts tokenised, by a worker thread on data of their own. */
#ifndef SERVER_COMPLETIONS_H
#define SERVER_COMPLETIONS_H

struct exchange;
struct server;

void completions_handle(struct server *s, struct exchange *x);
/* Takes the engine's events; call when its descriptor is readable. */
void completions_poll(struct server *s);
/* Ends all that are left with E_DRAINING (or s->fatal): an error event or an error reply. */
void completions_cut(struct server *s);
int completions_live(const struct server *s);
void completions_close(struct server *s);

#endif
