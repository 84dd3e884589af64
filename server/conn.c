#include "server/conn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "config/clock.h"

void conn_resume(struct conn *c) {
    if (!c->suspended)
        return;
    c->suspended = false;
    MHD_resume_connection(c->mhd);
    http_kick(c->listener);
}

void conn_suspend(struct conn *c) {
    c->suspended = true;
    MHD_suspend_connection(c->mhd);
}

void conn_gone(struct exchange *x) {
    if (x->on_gone) {
        void (*on_gone)(struct exchange *) = x->on_gone;
        x->on_gone = NULL;
        on_gone(x);
    }
}

/* libmicrohttpd owns the descriptor: shutting the socket down makes it find the end itself. */
void conn_cut(struct conn *c) {
    if (c->cut)
        return;
    c->cut = true;
    if (c->x) {
        c->x->aborted = true;
        conn_gone(c->x);
    }
    shutdown(c->fd, SHUT_RDWR);
    conn_resume(c);
    http_kick(c->listener);
}

/* libmicrohttpd cannot answer in the middle of a body; nothing was written yet, so we can. */
static void send_timeout(struct conn *c) {
    char text[1024];
    char *json = http_error_json(E_TIMEOUT, NULL, NULL);
    if (!json)
        return;
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
                     "Connection: close\r\nx-request-id: %s\r\nContent-Length: %zu\r\n\r\n%s",
                     c->x->id, strlen(json), json);
    free(json);
    if (n > 0 && (size_t)n < sizeof text) {
        ssize_t sent = send(c->fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)sent; /* a courtesy */
    }
}

void conn_check_deadlines(struct conn *c, int64_t now) {
    const struct http_limits *limits = &c->http->limits;
    if (c->cut)
        return;
    if (c->waits_for != WAIT_NONE && now > c->deadline_us) {
        if (c->waits_for != WAIT_IDLE)
            c->http->stats.timed_out++;
        if (c->x && c->x->state != X_WORK)
            send_timeout(c);
        conn_cut(c);
    } else if (c->progress_us && now - c->progress_us > limits->write_us) {
        c->http->stats.timed_out++;
        conn_cut(c);
    }
}

/* libmicrohttpd takes a short read for "nothing more" and, being told of edges only, never learns
 * of an end that came together with the last bytes. */
void conn_check_end(struct conn *c) {
    char byte;
    if (!c->cut && c->waits_for != WAIT_NONE && recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        conn_cut(c);
}

static void on_disconnect(uv_poll_t *p, int status, int events) {
    (void)status, (void)events;
    uv_poll_stop(p);
    conn_cut(p->data);
}

/* From here on the client's leaving is ours to notice: libmicrohttpd does not look at suspended
 * connections. Its own epoll set is another one, so watching the same descriptor is allowed. */
void conn_watch(struct conn *c) {
    if (!c->watch_open && uv_poll_init(c->http->loop, &c->watch, c->fd) == 0) {
        c->watch_open = true;
        c->watch.data = c;
    }
    if (c->watch_open)
        uv_poll_start(&c->watch, UV_DISCONNECT, on_disconnect);
}

static void on_watch_closed(uv_handle_t *handle) {
    free(handle->data);
}

void conn_notify(void *cls, struct MHD_Connection *mhd, void **context,
                 enum MHD_ConnectionNotificationCode how) {
    struct listener *l = cls;
    struct http *h = l->http;
    struct conn *c = *context;
    if (how == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = c = calloc(1, sizeof *c);
        if (!c)
            return;
        *c = (struct conn){.http = h, .listener = l, .mhd = mhd, .waits_for = WAIT_HEAD};
        c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        c->deadline_us = mono_us() + h->limits.header_us;
        c->over_limit = l->n_conns >= l->max_conns;
        c->next = h->conns;
        if (c->next)
            c->next->prev = c;
        h->conns = c;
        l->n_conns++;
        h->stats.connections++;
        h->stats.accepted++;
    } else if (c) {
        *(c->prev ? &c->prev->next : &h->conns) = c->next;
        if (c->next)
            c->next->prev = c->prev;
        l->n_conns--;
        h->stats.connections--;
        /* libmicrohttpd closes the descriptor after this, so the watch has to be off it by now. */
        if (c->watch_open)
            uv_close((uv_handle_t *)&c->watch, on_watch_closed);
        else
            free(c);
    }
}
