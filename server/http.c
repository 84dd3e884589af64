#include "server/http.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "server/conn.h"

enum {
    HEARTBEAT_MS = 100,      /* revives a listener that stalled at its connection limit */
    LOOK_BEATS = 10,         /* connections are looked at for an unnoticed end this seldom */
    CONNECTION_POOL = 32768, /* libmicrohttpd's memory per connection: bounds the head */
    ADMIN_CONNECTIONS = 64,
};

/* --- running libmicrohttpd ------------------------------------------------------------------ */

static void listener_run(struct listener *l);

static void on_timer(uv_timer_t *t) {
    listener_run(t->data);
}

static void on_readable(uv_poll_t *p, int status, int events) {
    (void)status, (void)events;
    listener_run(p->data);
}

static void listener_run(struct listener *l) {
    l->kicked = false;
    MHD_run(l->mhd);
    MHD_UNSIGNED_LONG_LONG ms = 0;
    /* Sockets are edge-triggered inside libmicrohttpd: what it still owes is in this timeout. */
    if (l->kicked)
        uv_timer_start(&l->timer, on_timer, 0, 0);
    else if (MHD_get_timeout(l->mhd, &ms) == MHD_YES)
        uv_timer_start(&l->timer, on_timer, ms, 0);
    else
        uv_timer_stop(&l->timer);
}

/* Never runs libmicrohttpd from here: the caller may stand inside one of its callbacks. */
void http_kick(struct listener *l) {
    l->kicked = true;
    uv_timer_start(&l->timer, on_timer, 0, 0);
}

void http_flush(struct http *h) {
    for (int i = 0; i < h->n_listeners; i++)
        if (h->listener[i].kicked)
            listener_run(&h->listener[i]);
}

static void on_heartbeat(uv_timer_t *t) {
    struct http *h = t->data;
    int64_t now = mono_us();
    bool look = ++h->n_beats % LOOK_BEATS == 0;
    for (struct conn *c = h->conns; c; c = c->next) {
        conn_check_deadlines(c, now);
        if (look)
            conn_check_end(c);
    }
    for (int i = 0; i < h->n_listeners; i++)
        listener_run(&h->listener[i]);
}

/* --- opening and closing -------------------------------------------------------------------- */

static void log_mhd(void *cls, const char *format, va_list args) {
    (void)cls;
    char text[256];
    vsnprintf(text, sizeof text, format, args);
    log_debug("mhd", "%s", text);
}

err_t http_open(struct http **out, uv_loop_t *loop, const struct http_limits *limits,
                const struct http_hooks *hooks, struct why *why) {
    struct http *h = calloc(1, sizeof *h);
    if (!h)
        return why_set(why, E_NOMEM, "no memory for the HTTP side");
    h->loop = loop;
    h->limits = *limits;
    h->hooks = *hooks;
    uv_timer_init(loop, &h->heartbeat);
    h->heartbeat.data = h;
    uv_timer_start(&h->heartbeat, on_heartbeat, HEARTBEAT_MS, HEARTBEAT_MS);
    *out = h;
    return E_OK;
}

err_t http_listen(struct http *h, int fd, bool admin, struct why *why) {
    struct listener *l = &h->listener[h->n_listeners];
    *l = (struct listener){.http = h, .admin = admin};
    l->max_conns = admin ? ADMIN_CONNECTIONS : h->limits.max_connections;
    /* libmicrohttpd's own limit lies above ours, because at its limit it does not answer at all. */
    unsigned limit = (unsigned)l->max_conns * 2 + 16;
    l->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, receive_access,
        l, MHD_OPTION_EXTERNAL_LOGGER, log_mhd, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, limit, MHD_OPTION_CONNECTION_TIMEOUT, 0u,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_POOL, MHD_OPTION_STRICT_FOR_CLIENT,
        0, MHD_OPTION_URI_LOG_CALLBACK, receive_uri, l, MHD_OPTION_NOTIFY_COMPLETED,
        receive_completed, l, MHD_OPTION_NOTIFY_CONNECTION, conn_notify, l, MHD_OPTION_END);
    if (!l->mhd) {
        close(fd);
        return why_set(why, E_INTERNAL, "libmicrohttpd does not start: %s", strerror(errno));
    }
    int epoll = MHD_get_daemon_info(l->mhd, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    uv_timer_init(h->loop, &l->timer);
    l->timer.data = l;
    if (uv_poll_init(h->loop, &l->poll, epoll) != 0) {
        MHD_stop_daemon(l->mhd);
        uv_close((uv_handle_t *)&l->timer, NULL);
        return why_set(why, E_INTERNAL, "the loop does not take libmicrohttpd's epoll descriptor");
    }
    l->poll.data = l;
    uv_poll_start(&l->poll, UV_READABLE, on_readable);
    h->n_listeners++;
    http_kick(l);
    return E_OK;
}

void http_close_idle(struct http *h) {
    for (struct conn *c = h->conns; c; c = c->next)
        if (!c->x)
            conn_cut(c);
}

void http_close(struct http *h) {
    if (!h)
        return;
    /* No connection may be suspended when its daemon stops. */
    for (struct conn *c = h->conns; c; c = c->next)
        conn_cut(c);
    int64_t until = mono_us() + 1000000;
    while (h->conns && mono_us() < until) {
        for (int i = 0; i < h->n_listeners; i++)
            listener_run(&h->listener[i]);
        uv_run(h->loop, UV_RUN_NOWAIT);
    }
    for (int i = 0; i < h->n_listeners; i++) {
        struct listener *l = &h->listener[i];
        uv_poll_stop(&l->poll);
        MHD_stop_daemon(l->mhd);
        uv_close((uv_handle_t *)&l->poll, NULL);
        uv_close((uv_handle_t *)&l->timer, NULL);
    }
    uv_close((uv_handle_t *)&h->heartbeat, NULL);
    while (uv_run(h->loop, UV_RUN_NOWAIT))
        ;
    free(h);
}

struct buf http_take_body(struct exchange *x) {
    struct buf body = x->body;
    x->http->stats.body_bytes -= body.n;
    x->body = (struct buf){0};
    return body;
}

int http_busy(const struct http *h) {
    return h->n_exchanges;
}

const struct http_stats *http_stats(const struct http *h) {
    return &h->stats;
}
