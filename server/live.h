/* The requests that are in the engine, and whose they are: what its events are told apart by. Loop
 * thread. */
#ifndef SERVER_LIVE_H
#define SERVER_LIVE_H

#include <stdint.h>

#include "config/err.h"

struct generation;

struct live_entry {
    uint64_t engine_id; /* 0: free */
    struct generation *g;
    int i_choice;
};

struct live {
    struct live_entry *entry; /* [cap] owned; the low bits of an engine id are its index */
    uint32_t cap, n;
    uint64_t n_submitted;
};

/* A new engine id for the choice. Errors: E_BUSY (a million are live), E_NOMEM. */
err_t live_add(struct live *live, struct generation *g, int i_choice, uint64_t *id);
/* Borrowed until the next live_add; NULL: not live (any more). */
struct live_entry *live_find(const struct live *live, uint64_t id);
void live_remove(struct live *live, uint64_t id);
void live_free(struct live *live);

#endif
