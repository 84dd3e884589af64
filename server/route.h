/* The table of addresses: method, path, who may, how large a body, which function. Everything that
 * is not in the table asks for a key first and is then refused. Loop thread. */
#ifndef SERVER_ROUTE_H
#define SERVER_ROUTE_H

#include "server/http.h"

struct server;

enum route_key {
    KEY_NEVER,  /* probes */
    KEY_PUBLIC, /* asked for on the public listener, open on the admin listener */
    KEY_ALWAYS,
};
enum { ON_PUBLIC = 1, ON_ADMIN = 2 };
enum route_body { BODY_NONE, BODY_SMALL, BODY_LARGE }; /* 64 KiB; --max-body */

struct route {
    const char *method,
        *path; /* a path that ends with '/' stands for everything below it, "/" for itself */
    unsigned where;
    enum route_key key;
    enum route_body body;
    void (*handle)(struct server *s, struct exchange *x);
    bool scoped; /* also as /t/{model}/..., for clients that cannot set a model */
};

extern const struct route routes[];
extern const int n_routes;

/* The two hooks of http.h; cls is the server. */
void route_head(void *cls, struct exchange *x);
void route_request(void *cls, struct exchange *x);
/* What follows the prefix of a route that ends with '/'. */
const char *route_rest(const struct exchange *x);

#endif
