/* The daemon's loop: sockets, the engine's events, signals, the watchdog and the end. One thread.
 */
#ifndef SERVER_LOOP_H
#define SERVER_LOOP_H

#include "config/err.h"

struct server;

/* Listens on the two addresses of the options (an empty admin address: no admin listener), after
 * the engine, tokenizer, registry and keys of *s have been opened. Errors: E_CONFIG, E_INTERNAL. */
err_t loop_open(struct server *s, struct why *why);
/* Serves until a signal's drain has ended or the device failed. Returns 0 or s->fatal. */
err_t loop_run(struct server *s);
/* Closes what loop_open opened and everything that requests held. */
void loop_close(struct server *s);

#endif
