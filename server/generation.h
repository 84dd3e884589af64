/* One request for generated text, from its body to its reply: parse, find the model, tokenise, ask
 * the engine for every choice, collect their events. All choices share the exchange: a client that
 * leaves cancels all, one that fails fails the request. Loop thread; large bodies are parsed, and
 * long prompts tokenised, by a worker thread on data of their own. */
#ifndef SERVER_GENERATION_H
#define SERVER_GENERATION_H

struct exchange;
struct server;
struct surface;

/* A handler of a route calls this: it answers x, now or later, as the surface says. */
void generation_start(struct server *s, struct exchange *x, const struct surface *surface);
/* Takes the engine's events; call when its descriptor is readable. */
void generation_poll(struct server *s);
/* Ends all that are left with E_DRAINING (or s->fatal): an error event or an error reply. */
void generation_cut(struct server *s);
int generation_live(const struct server *s); /* requests in the engine */
void generation_close(struct server *s);

#endif
