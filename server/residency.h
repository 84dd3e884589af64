/* Tenants that are served but not on the device: when memory runs out, the one that was asked for
 * longest ago and is in no request goes away (load.c), and comes back from its file when it is
 * asked for again. Requests for it wait here meanwhile. Loop thread. */
#ifndef SERVER_RESIDENCY_H
#define SERVER_RESIDENCY_H

#include <stdbool.h>

#include "server/registry.h"

struct server;

/* Someone who waits; part of its owner, which must stay until it is woken. */
struct waiter {
    struct waiter *next;
    char name[REGISTRY_NAME_BYTES];
    /* E_OK: look the name up again. Else it cannot be brought back now. */
    void (*wake)(struct waiter *w, err_t e);
};

/* *ready: m can be used at once; else w->wake is called later, never from in here. Errors: E_NOMEM;
 * nobody waits then. */
err_t residency_want(struct server *s, struct served *m, struct waiter *w, bool *ready);

#endif
