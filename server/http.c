#include "server/http.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "server/json.h"

enum {
    HEARTBEAT_MS = 100,       /* revives a listener that stalled at its connection limit */
    CONNECTION_POOL = 32768,  /* libmicrohttpd's memory per connection: bounds the head */
    BLOCK_BYTES = 16384,      /* most bytes handed over at once */
    DRAIN_BYTES = 32 << 20,   /* a refused body is read up to here, so that the reply is not lost */
    BODY_BYTES_PER_S = 65536, /* a body may take this long on top of the body deadline */
    ADMIN_CONNECTIONS = 64,
};

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
static void kick(struct listener *l) {
    l->kicked = true;
    uv_timer_start(&l->timer, on_timer, 0, 0);
}

static void resume(struct conn *c) {
    if (!c->suspended)
        return;
    c->suspended = false;
    MHD_resume_connection(c->mhd);
    kick(c->listener);
}

static void suspend(struct conn *c) {
    c->suspended = true;
    MHD_suspend_connection(c->mhd);
}

/* --- cutting connections -------------------------------------------------------------------- */

static void gone(struct exchange *x) {
    if (x->on_gone) {
        void (*on_gone)(struct exchange *) = x->on_gone;
        x->on_gone = NULL;
        on_gone(x);
    }
}

/* libmicrohttpd owns the descriptor: shutting the socket down makes it find the end itself. */
static void cut(struct conn *c) {
    if (c->cut)
        return;
    c->cut = true;
    if (c->x) {
        c->x->aborted = true;
        gone(c->x);
    }
    shutdown(c->fd, SHUT_RDWR);
    resume(c);
    kick(c->listener);
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

static void check_deadlines(struct conn *c, int64_t now) {
    const struct http_limits *limits = &c->http->limits;
    if (c->cut)
        return;
    if (c->waits_for != WAIT_NONE && now > c->deadline_us) {
        if (c->waits_for != WAIT_IDLE)
            c->http->stats.timed_out++;
        if (c->x && c->x->state != X_WORK)
            send_timeout(c);
        cut(c);
    } else if (c->progress_us && now - c->progress_us > limits->write_us) {
        c->http->stats.timed_out++;
        cut(c);
    }
}

static void on_heartbeat(uv_timer_t *t) {
    struct http *h = t->data;
    int64_t now = mono_us();
    for (struct conn *c = h->conns; c; c = c->next)
        check_deadlines(c, now);
    for (int i = 0; i < h->n_listeners; i++)
        listener_run(&h->listener[i]);
}

static void on_disconnect(uv_poll_t *p, int status, int events) {
    (void)status, (void)events;
    uv_poll_stop(p);
    cut(p->data);
}

/* From here on the client's leaving is ours to notice: libmicrohttpd does not look at suspended
 * connections. Its own epoll set is another one, so watching the same descriptor is allowed. */
static void watch(struct conn *c) {
    if (!c->watch_open && uv_poll_init(c->http->loop, &c->watch, c->fd) == 0) {
        c->watch_open = true;
        c->watch.data = c;
    }
    if (c->watch_open)
        uv_poll_start(&c->watch, UV_DISCONNECT, on_disconnect);
}

/* --- replies -------------------------------------------------------------------------------- */

char *http_error_json(err_t e, const char *param, const struct why *why) {
    const char *text = why && why->text[0] ? why->text : err_sentence(e);
    json_t *object = json_pack("{s:{s:s?,s:s,s:s?,s:s}}", "error", "message", text, "type",
                               err_type(e), "param", param, "code", err_code(e));
    if (!object) /* the sentence is not UTF-8 */
        object = json_pack("{s:{s:s,s:s,s:s?,s:s}}", "error", "message", err_sentence(e), "type",
                           err_type(e), "param", param, "code", err_code(e));
    return json_finish(object, NULL);
}

void http_reply(struct exchange *x, int status, const char *content_type, char *body, size_t n) {
    if (x->status) { /* answered already: our bug, but not worth a crash */
        free(body);
        return;
    }
    x->status = status;
    x->content_type = content_type;
    x->finished = true;
    x->out = (struct buf){.data = body, .n = n, .cap = n, .max_bytes = n};
    resume(x->conn);
}

void http_reply_error(struct exchange *x, err_t e, const char *param, const struct why *why) {
    char *json = http_error_json(e, param, why);
    http_reply(x, err_http_status(e), "application/json", json, json ? strlen(json) : 0);
}

void http_reply_json(struct exchange *x, int status, json_t *tree) {
    size_t n = 0;
    char *text = json_finish(tree, &n);
    if (text)
        http_reply(x, status, "application/json", text, n);
    else
        http_reply_error(x, E_NOMEM, NULL, NULL);
}

void http_stream_begin(struct exchange *x) {
    if (x->status)
        return;
    x->status = MHD_HTTP_OK;
    x->content_type = "text/event-stream";
    x->streaming = true;
    buf_init(&x->out, SIZE_MAX / 4);
    resume(x->conn);
}

err_t http_stream_write(struct exchange *x, const void *data, size_t n) {
    if (x->out.n - x->out_at > HTTP_OUT_BYTES)
        return E_BUSY;
    buf_drop(&x->out, x->out_at);
    x->out_at = 0;
    err_t e = buf_add(&x->out, data, n);
    if (!e && !x->conn->progress_us)
        x->conn->progress_us = mono_us();
    resume(x->conn);
    return e;
}

void http_stream_end(struct exchange *x) {
    x->finished = true;
    if (!x->conn->progress_us)
        x->conn->progress_us = mono_us();
    resume(x->conn);
}

void http_abort(struct exchange *x) {
    x->on_gone = NULL; /* the caller knows */
    cut(x->conn);
}

/* libmicrohttpd asks for bytes whenever the socket takes some. */
static ssize_t read_reply(void *cls, uint64_t at, char *to, size_t cap) {
    struct exchange *x = cls;
    struct conn *c = x->conn;
    (void)at;
    if (x->aborted)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = x->out.n - x->out_at;
    if (n > cap)
        n = cap;
    if (n) {
        memcpy(to, x->out.data + x->out_at, n);
        x->out_at += n;
        c->progress_us = mono_us(); /* until these bytes are taken too */
        return (ssize_t)n;
    }
    if (x->finished)
        return MHD_CONTENT_READER_END_OF_STREAM;
    c->progress_us = 0; /* everything is sent: now the engine is awaited, not the client */
    suspend(c);         /* without this, returning 0 spins */
    return 0;
}

static void add_headers(struct exchange *x, struct MHD_Response *r) {
    MHD_add_response_header(r, "Content-Type", x->content_type);
    MHD_add_response_header(r, "x-request-id", x->id);
    MHD_add_response_header(r, "Cache-Control", x->streaming ? "no-cache" : "no-store");
    if (x->streaming)
        MHD_add_response_header(r, "X-Accel-Buffering", "no");
    if (x->close)
        MHD_add_response_header(r, "Connection", "close");
    if (x->status == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    if (x->status == MHD_HTTP_TOO_MANY_REQUESTS || x->status == MHD_HTTP_SERVICE_UNAVAILABLE)
        MHD_add_response_header(r, "Retry-After", "1");
    if (x->status == MHD_HTTP_CONFLICT)
        MHD_add_response_header(r, "x-should-retry", "false");
    if (x->allow[0])
        MHD_add_response_header(r, "Allow", x->allow);
}

static enum MHD_Result queue(struct exchange *x) {
    uint64_t size = x->streaming ? MHD_SIZE_UNKNOWN : x->out.n;
    x->response = MHD_create_response_from_callback(size, BLOCK_BYTES, read_reply, x, NULL);
    if (!x->response)
        return MHD_NO;
    add_headers(x, x->response);
    x->queued = true;
    x->conn->waits_for = WAIT_NONE;
    x->conn->progress_us = mono_us();
    return MHD_queue_response(x->conn->mhd, (unsigned)x->status, x->response);
}

/* --- receiving ------------------------------------------------------------------------------ */

static enum MHD_Result see_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                  size_t n_name, const char *value, size_t n_value) {
    (void)kind;
    guard_header(cls, name, n_name, value, n_value);
    return MHD_YES;
}

static void make_id(struct exchange *x) {
    unsigned char random[12];
    if (getrandom(random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        memset(random, 0, sizeof random);
    memcpy(x->id, "req-", 5);
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(x->id + 4 + 2 * i, 3, "%02x", random[i]);
}

/* The request line has been read: the exchange begins. */
static void *on_uri(void *cls, const char *uri, struct MHD_Connection *mhd) {
    struct listener *l = cls;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct conn *c = info ? info->socket_context : NULL;
    struct exchange *x = c && !c->x ? calloc(1, sizeof *x) : NULL;
    if (!x)
        return NULL;
    x->http = l->http;
    x->conn = c;
    x->admin = l->admin;
    x->start_us = mono_us();
    make_id(x);
    struct why why = {""};
    err_t e = guard_uri(uri, &why);
    if (e) {
        x->close = true;
        l->http->stats.malformed++;
        http_reply_error(x, e, NULL, &why);
    }
    if (c->waits_for == WAIT_IDLE) { /* a first request keeps the deadline of its connection */
        c->waits_for = WAIT_HEAD;
        c->deadline_us = x->start_us + l->http->limits.header_us;
    }
    c->x = x;
    l->http->n_exchanges++;
    return x;
}

static void refuse(struct exchange *x, err_t e, const struct why *why) {
    x->close = true;
    x->http->stats.malformed++;
    http_reply_error(x, e, NULL, why);
}

static void check_head(struct exchange *x, const char *url, const char *method,
                       const char *version) {
    struct http *h = x->http;
    struct why why = {""};
    MHD_get_connection_values_n(x->conn->mhd, MHD_HEADER_KIND, see_header, &x->head);
    err_t e = guard_end(&x->head, version, &why);
    if (x->head.request_id[0])
        memcpy(x->id, x->head.request_id, sizeof x->head.request_id);
    if (x->status) {
        /* the address was refused already */
    } else if (e) {
        refuse(x, e, &why);
    } else if (x->conn->over_limit) {
        h->stats.over_limit++;
        x->close = true;
        http_reply_error(x, E_CONNECTIONS, NULL, NULL);
    } else if (strlen(url) >= sizeof x->path) {
        http_reply_error(x, E_URI, NULL, NULL);
    } else if (strlen(method) >= sizeof x->method) {
        http_reply_error(x, E_METHOD, NULL, NULL);
    } else {
        memcpy(x->path, url, strlen(url) + 1);
        memcpy(x->method, method, strlen(method) + 1);
        h->hooks.head(h->hooks.cls, x);
        x->head.authorization = NULL; /* borrowed from here on no more */
    }
}

/* First call: the head is complete, the body is not read yet. */
static enum MHD_Result on_head(struct exchange *x, const char *url, const char *method,
                               const char *version) {
    check_head(x, url, method, version);
    uint64_t length = x->head.length;
    if (!x->status && x->head.encoded)
        http_reply_error(x, E_MEDIA, NULL, NULL);
    if (!x->status && length && x->max_body_bytes && !x->head.json)
        http_reply_error(x, E_MEDIA, NULL, NULL);
    if (!x->status && length > x->max_body_bytes)
        http_reply_error(x, E_TOO_LARGE, NULL, NULL);
    if (x->status) {
        /* A client that waits for "100 Continue", or one whose body's end we cannot trust or do
         * not want to wait for, is answered at once; the others when their body has been read,
         * because many clients lose a reply that comes while they write. */
        if (x->head.expects_continue || x->head.transfer || x->head.malformed ||
            x->head.n_length > 1 || length > DRAIN_BYTES)
            x->close = true;
        if (x->close || length == 0)
            return queue(x);
        x->state = X_DRAIN;
    } else {
        x->state = X_BODY;
        buf_init(&x->body, x->max_body_bytes);
    }
    x->conn->waits_for = WAIT_BODY;
    x->conn->deadline_us =
        mono_us() + x->http->limits.body_us + (int64_t)(length / BODY_BYTES_PER_S) * 1000000;
    return MHD_YES;
}

static enum MHD_Result on_body(struct exchange *x, const char *data, size_t n) {
    struct http *h = x->http;
    if (x->state == X_BODY) {
        err_t e = E_OK;
        if (n > h->limits.max_bodies_bytes - h->stats.body_bytes)
            e = E_NOMEM;
        else
            e = buf_add(&x->body, data, n);
        if (!e) {
            h->stats.body_bytes += n;
            return MHD_YES;
        }
        http_reply_error(x, e, NULL, NULL);
        h->stats.body_bytes -= x->body.n;
        buf_free(&x->body);
        x->state = X_DRAIN;
    }
    x->drained_bytes += n;
    return x->drained_bytes > DRAIN_BYTES ? MHD_NO : MHD_YES;
}

static enum MHD_Result on_complete(struct exchange *x) {
    struct http *h = x->http;
    struct conn *c = x->conn;
    if (x->state != X_WORK) {
        c->waits_for = WAIT_NONE;
        bool refused = x->state == X_DRAIN;
        x->state = X_WORK;
        if (!refused)
            h->hooks.request(h->hooks.cls, x);
    }
    if (x->aborted)
        return MHD_NO;
    if (x->status) {
        if (x->streaming)
            watch(c);
        return queue(x);
    }
    watch(c);
    suspend(c);
    return MHD_YES;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *mhd, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *n, void **con_cls) {
    (void)cls, (void)mhd;
    struct exchange *x = *con_cls;
    if (!x) /* no memory for it */
        return MHD_NO;
    if (x->queued)
        return MHD_YES;
    if (x->state == X_HEAD)
        return on_head(x, url, method, version);
    if (*n) {
        size_t size = *n;
        *n = 0;
        return on_body(x, data, size);
    }
    return on_complete(x);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                         enum MHD_RequestTerminationCode how) {
    (void)cls, (void)mhd, (void)how;
    struct exchange *x = *con_cls;
    if (!x)
        return;
    struct conn *c = x->conn;
    struct http *h = x->http;
    if (c->watch_open)
        uv_poll_stop(&c->watch);
    gone(x);
    h->hooks.done(h->hooks.cls, x);
    h->stats.body_bytes -= x->body.n;
    h->n_exchanges--;
    c->x = NULL;
    c->suspended = false;
    c->progress_us = 0;
    c->waits_for = WAIT_IDLE;
    c->deadline_us = mono_us() + h->limits.idle_us;
    if (x->response)
        MHD_destroy_response(x->response);
    buf_free(&x->body);
    buf_free(&x->out);
    free(x);
    *con_cls = NULL;
}

static void on_watch_closed(uv_handle_t *handle) {
    free(handle->data);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **context,
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
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_access, l,
        MHD_OPTION_EXTERNAL_LOGGER, log_mhd, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, limit, MHD_OPTION_CONNECTION_TIMEOUT, 0u,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_POOL, MHD_OPTION_STRICT_FOR_CLIENT,
        0, MHD_OPTION_URI_LOG_CALLBACK, on_uri, l, MHD_OPTION_NOTIFY_COMPLETED, on_completed, l,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, l, MHD_OPTION_END);
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
    kick(l);
    return E_OK;
}

void http_close_idle(struct http *h) {
    for (struct conn *c = h->conns; c; c = c->next)
        if (!c->x)
            cut(c);
}

void http_close(struct http *h) {
    if (!h)
        return;
    /* No connection may be suspended when its daemon stops. */
    for (struct conn *c = h->conns; c; c = c->next)
        cut(c);
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
