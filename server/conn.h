/* The inside of the HTTP side, shared by http.c, conn.c, receive.c and
 * respond.c only: a connection, its
 * deadlines, and how it is suspended, resumed and cut. Loop thread. */
#ifndef SERVER_CONN_H
#define SERVER_CONN_H

#include "server/http.h"

enum deadline { WAIT_NONE, WAIT_HEAD, WAIT_BODY, WAIT_IDLE };

/* One TCP connection. Freed when its watch handle has closed. */
struct conn {
    struct conn *prev, *next;
    struct http *http;
    struct listener *listener;
    struct MHD_Connection *mhd;
    int fd;
    struct exchange *x; /* the request being served, or NULL */
    enum deadline waits_for;
    int64_t deadline_us; /* for waits_for */
    int64_t progress_us; /* since when a reply waits for the client to read; 0: it does not */
    bool suspended, over_limit, cut;
    bool watch_open;
    uv_poll_t watch; /* notices a client that leaves while its request is suspended */
};

struct listener {
    struct http *http;
    struct MHD_Daemon *mhd;
    bool admin, kicked;
    int n_conns, max_conns;
    uv_poll_t poll;
    uv_timer_t timer;
};

struct http {
    uv_loop_t *loop;
    struct http_limits limits;
    struct http_hooks hooks;
    struct http_stats stats;
    struct listener listener[2];
    int n_listeners, n_exchanges;
    struct conn *conns;
    uv_timer_t heartbeat;
    unsigned n_beats;
};

/* libmicrohttpd's notice of a new or an ended connection; cls is the listener. */
void conn_notify(void *cls, struct MHD_Connection *mhd, void **context,
                 enum MHD_ConnectionNotificationCode how);
/* Suspends the connection; allowed inside libmicrohttpd's callbacks only. */
void conn_suspend(struct conn *c);
/* Undoes a suspension, if there is one; on the loop's thread only. */
void conn_resume(struct conn *c);
/* Begins to notice a client that leaves: libmicrohttpd does not look at suspended connections. */
void conn_watch(struct conn *c);
/* Ends the connection: its exchange is aborted and told so, the socket is shut down. */
void conn_cut(struct conn *c);
/* Cuts the connection if one of its deadlines has passed. */
void conn_check_deadlines(struct conn *c, int64_t now_us);
/* Cuts the connection if it waits for a client that has ended it. */
void conn_check_end(struct conn *c);
/* Tells whoever works on the exchange that its client is gone; at most once. */
void conn_gone(struct exchange *x);

/* Runs the listener's daemon soon, never from inside of one of its callbacks (http.c). */
void http_kick(struct listener *l);
/* What libmicrohttpd calls for each request (receive.c); cls is the listener. */
void *receive_uri(void *cls, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result receive_access(void *cls, struct MHD_Connection *mhd, const char *url,
                               const char *method, const char *version, const char *data, size_t *n,
                               void **con_cls);
void receive_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                       enum MHD_RequestTerminationCode how);
/* Hands a reply that was given to libmicrohttpd (respond.c). */
enum MHD_Result respond_queue(struct exchange *x);

#endif
