/* HTTP/1.1 on libuv's loop: two libmicrohttpd daemons (the public and the admin listener), each in
 * epoll mode without a thread of its own, its epoll descriptor watched by the loop.
 *
 * What libmicrohttpd 0.9.75 does not do is done here: a guard on each request's head, absolute
 * deadlines for head, body, idle connections and writing, notice of clients that leave while their
 * request waits, a body budget, 503 of our own above the connection cap, and a heartbeat that
 * revives a listener that stalled at its limit.
 *
 * Everything here belongs to the loop's thread. libmicrohttpd's PostProcessor is never used. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#define MHD_NO_DEPRECATION 1 /* 1.0 renamed options that 0.9.75 has under the old names only */
#include <jansson.h>
#include <microhttpd.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "server/buf.h"
#include "server/guard.h"

enum {
    HTTP_OUT_BYTES = 256 * 1024, /* unsent bytes of one stream; a client this far behind is cut */
    HTTP_MAX_PATH = 512,
    HTTP_ID_BYTES = GUARD_MAX_ID + 1,
    HTTP_SCOPE_BYTES = 256,
    HTTP_IGNORED_BYTES = 160,
};

struct http;
struct conn;
struct listener;

enum exchange_state { X_HEAD, X_BODY, X_DRAIN, X_WORK };

/* One request and its reply. Lives from the request line to libmicrohttpd's "completed" notice;
 * whoever keeps a pointer for longer work sets on_gone and forgets it there. */
struct exchange {
    struct http *http;
    struct conn *conn;
    enum exchange_state state;
    bool admin;                           /* came in through the admin listener */
    char method[16], path[HTTP_MAX_PATH]; /* path: without the scope */
    char scope[HTTP_SCOPE_BYTES];         /* model that the address names: /t/{scope}/..., or "" */
    char id[HTTP_ID_BYTES];               /* x-request-id of the reply */
    struct guard head;                    /* borrowed pointers valid in hooks.head only */
    const struct route *route;            /* set by hooks.head */
    size_t max_body_bytes;                /* set by hooks.head; 0: no body is taken */
    struct buf body;                      /* whole when hooks.request runs */
    size_t drained_bytes;
    int64_t start_us;

    void *work; /* of whoever answers later */
    void (*on_gone)(struct exchange *x);

    int status;        /* 0: not answered yet */
    err_t error;       /* that it was answered with */
    const char *param; /* borrowed, static: what the error is about; or NULL */
    bool streaming, finished, aborted, queued, close;
    const char *content_type;         /* static */
    char allow[64];                   /* Allow header of a 405, or "" */
    char ignored[HTTP_IGNORED_BYTES]; /* x-ignored-fields header, or "" */
    const char *const *headers; /* name, value, ..., NULL: in place of Cache-Control; or NULL */
    struct buf out;
    size_t out_at; /* bytes of out already handed to libmicrohttpd */
    struct MHD_Response *response;
};

struct http_hooks {
    void *cls;
    /* The head is good and complete: find the route, check the key, set max_body_bytes, or refuse
     * by http_reply_error. The body is read afterwards in any case. */
    void (*head)(void *cls, struct exchange *x);
    /* The body is complete: answer now, or later on this thread. */
    void (*request)(void *cls, struct exchange *x);
    /* The exchange is over (x->status 0: the client left before a reply). */
    void (*done)(void *cls, struct exchange *x);
};

struct http_limits {
    int max_connections;     /* of the public listener; the admin listener has a fixed few */
    size_t max_bodies_bytes; /* of all bodies being received together */
    int64_t header_us, body_us, idle_us, write_us;
};

struct http_stats {
    int connections;
    size_t body_bytes;
    uint64_t accepted, over_limit, timed_out, malformed;
};

err_t http_open(struct http **out, uv_loop_t *loop, const struct http_limits *limits,
                const struct http_hooks *hooks, struct why *why);
/* Takes over the listening socket. */
err_t http_listen(struct http *h, int fd, bool admin, struct why *why);
/* Cuts every connection, ends the daemons, frees h. Runs the loop until all handles are closed;
 * exchanges get their on_gone. Call after the loop has stopped. */
void http_close(struct http *h);
/* Sends now what was written since the loop went round. Never from inside of one of the hooks. */
void http_flush(struct http *h);
/* Closes connections that wait for a next request; new requests are still answered. */
void http_close_idle(struct http *h);
/* Moves the body out of the exchange and its budget; the caller frees it. */
struct buf http_take_body(struct exchange *x);
int http_busy(const struct http *h); /* exchanges not yet completed */
const struct http_stats *http_stats(const struct http *h);

/* Whole reply. The content is taken from `body` (given; freed here); content_type is static. */
void http_reply(struct exchange *x, int status, const char *content_type, char *body, size_t n);
/* The same with a JSON tree (given). */
void http_reply_json(struct exchange *x, int status, json_t *tree);
/* Error reply in OpenAI's shape. `param` and `why` may be NULL. */
void http_reply_error(struct exchange *x, err_t e, const char *param, const struct why *why);
/* The JSON text of such an error, malloc'ed; NULL without memory. */
char *http_error_json(err_t e, const char *param, const struct why *why);

/* Server-sent events: begin once, write, then end or abort. A write that finds HTTP_OUT_BYTES
 * unsent returns E_BUSY and takes nothing. Abort ends the connection without a clean last chunk. */
void http_stream_begin(struct exchange *x);
err_t http_stream_write(struct exchange *x, const void *data, size_t n);
void http_stream_end(struct exchange *x);
void http_abort(struct exchange *x);

#endif
