/* Requests of the HTTP side (http.h) coming in: address, head, body, end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "config/clock.h"
#include "server/conn.h"

enum {
    DRAIN_BYTES = 32 << 20,   /* a refused body is read up to here, so that the reply is not lost */
    BODY_BYTES_PER_S = 65536, /* a body may take this long on top of the body deadline */
};

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
    static const char digits[] = "0123456789abcdef";
    char *to = x->id + 4;
    memcpy(x->id, "req-", 4);
    for (size_t i = 0; i < sizeof random; i++) {
        *to++ = digits[random[i] >> 4];
        *to++ = digits[random[i] & 15];
    }
    *to = 0;
}

/* The request line has been read: the exchange begins. */
void *receive_uri(void *cls, const char *uri, struct MHD_Connection *mhd) {
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

/* length 0: it comes in chunks. */
static void refuse_size(struct exchange *x, uint64_t length) {
    struct why why;
    if (length)
        why_set(&why, E_TOO_LARGE, "The body has %llu bytes; at most %zu are taken here.",
                (unsigned long long)length, x->max_body_bytes);
    else
        why_set(&why, E_TOO_LARGE, "The body has more than the %zu bytes that are taken here.",
                x->max_body_bytes);
    http_reply_error(x, E_TOO_LARGE, NULL, &why);
}

/* First call: the head is complete, the body is not read yet. */
static enum MHD_Result on_head(struct exchange *x, const char *url, const char *method,
                               const char *version) {
    check_head(x, url, method, version);
    uint64_t length = x->head.length;
    bool body = length || x->head.chunked;
    /* Where a body of chunks ends, others on its way may have read otherwise: nothing that comes
     * after it on this connection is taken for a request. */
    x->close |= x->head.chunked;
    if (!x->status && x->head.encoded)
        http_reply_error(x, E_MEDIA, NULL, NULL);
    if (!x->status && body && x->max_body_bytes && !x->head.json)
        http_reply_error(x, E_MEDIA, NULL, NULL);
    if (!x->status && length > x->max_body_bytes)
        refuse_size(x, length);
    if (x->status) {
        /* A client that waits for "100 Continue", or one whose body's end we cannot trust or do
         * not want to wait for, is answered at once; the others when their body has been read,
         * because many clients lose a reply that comes while they write. */
        bool at_once = x->head.expects_continue || x->head.n_transfer > x->head.chunked ||
                       x->head.malformed || x->head.n_length > 1 || length > DRAIN_BYTES;
        x->close |= at_once;
        if ((x->close && !x->head.chunked) || at_once)
            return respond_queue(x);
        x->state = X_DRAIN;
    } else {
        x->state = X_BODY;
        buf_init(&x->body, x->max_body_bytes);
    }
    x->conn->waits_for = WAIT_BODY;
    x->conn->deadline_us =
        mono_us() + x->http->limits.body_us +
        (int64_t)((x->head.chunked ? x->max_body_bytes : length) / BODY_BYTES_PER_S) * 1000000;
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
        if (e == E_TOO_LARGE)
            refuse_size(x, 0);
        else
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
            conn_watch(c);
        return respond_queue(x);
    }
    conn_watch(c);
    conn_suspend(c);
    return MHD_YES;
}

enum MHD_Result receive_access(void *cls, struct MHD_Connection *mhd, const char *url,
                               const char *method, const char *version, const char *data, size_t *n,
                               void **con_cls) {
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

void receive_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                       enum MHD_RequestTerminationCode how) {
    (void)cls, (void)mhd, (void)how;
    struct exchange *x = *con_cls;
    if (!x)
        return;
    struct conn *c = x->conn;
    struct http *h = x->http;
    if (c->watch_open)
        uv_poll_stop(&c->watch);
    conn_gone(x);
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
