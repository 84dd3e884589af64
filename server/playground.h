/* The playground: one page at "/" from which a person talks to several tenants at once. The page
 * lies in demo/playground and is built into the binary; it holds no secret and can do nothing that
 * its reader's key does not allow, so it is served without one. --no-playground takes it away. */
#ifndef SERVER_PLAYGROUND_H
#define SERVER_PLAYGROUND_H

struct exchange;
struct server;

struct playground {
    char etag[36];    /* quoted hex of the page's hash */
    char policy[512]; /* Content-Security-Policy: this page's own script and style, nothing else */
    const char *headers[13]; /* name, value, ..., NULL */
};

/* Hashes the page, once. */
void playground_init(struct playground *p);
void playground_handle(struct server *s, struct exchange *x);

#endif
