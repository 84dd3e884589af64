/* Replies of the HTTP side (http.h), whole and streamed: what libmicrohttpd is handed, and how it
 * asks for more. */
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "server/conn.h"
#include "server/json.h"

enum { BLOCK_BYTES = 16384 }; /* most bytes handed to libmicrohttpd at once */

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
    conn_resume(x->conn);
}

void http_reply_error(struct exchange *x, err_t e, const char *param, const struct why *why) {
    char *json = http_error_json(e, param, why);
    if (!x->status) {
        x->error = e;
        x->param = param;
    }
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
    conn_resume(x->conn);
}

err_t http_stream_write(struct exchange *x, const void *data, size_t n) {
    if (x->out.n - x->out_at > HTTP_OUT_BYTES)
        return E_BUSY;
    if (x->out_at > x->out.n / 2) { /* not each time: dropping moves what is left */
        buf_drop(&x->out, x->out_at);
        x->out_at = 0;
    }
    err_t e = buf_add(&x->out, data, n);
    if (!e && !x->conn->progress_us)
        x->conn->progress_us = mono_us();
    conn_resume(x->conn);
    return e;
}

void http_stream_end(struct exchange *x) {
    x->finished = true;
    if (!x->conn->progress_us)
        x->conn->progress_us = mono_us();
    conn_resume(x->conn);
}

void http_abort(struct exchange *x) {
    x->on_gone = NULL; /* the caller knows */
    conn_cut(x->conn);
}

/* libmicrohttpd asks for bytes whenever the socket takes some. */
static ssize_t read_reply(void *cls, uint64_t at, char *to, size_t cap) {
    struct exchange *x = cls;
    struct conn *c = x->conn;
    (void)at;
    if (x->aborted) {
        /* NOTE: not END_WITH_ERROR. For a connection that had been suspended, libmicrohttpd 0.9.75
         * then says "completed" but never comes back to close it. The socket is shut down, so a
         * byte makes the next send fail, and that path does close; the byte reaches nobody. */
        to[0] = '\n';
        return 1;
    }
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
    conn_suspend(c);    /* without this, returning 0 spins */
    return 0;
}

static void add_headers(struct exchange *x, struct MHD_Response *r) {
    MHD_add_response_header(r, "Content-Type", x->content_type);
    MHD_add_response_header(r, "x-request-id", x->id);
    for (const char *const *h = x->headers; h && *h; h += 2)
        MHD_add_response_header(r, h[0], h[1]);
    if (!x->headers)
        MHD_add_response_header(r, "Cache-Control", x->streaming ? "no-cache" : "no-store");
    if (x->streaming)
        MHD_add_response_header(r, "X-Accel-Buffering", "no");
    if (x->close)
        MHD_add_response_header(r, "Connection", "close");
    if (x->status == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    if (x->status == MHD_HTTP_TOO_MANY_REQUESTS || x->status == MHD_HTTP_SERVICE_UNAVAILABLE)
        MHD_add_response_header(r, "Retry-After", "1");
    if (x->ignored[0])
        MHD_add_response_header(r, "x-ignored-fields", x->ignored);
    if (x->allow[0])
        MHD_add_response_header(r, "Allow", x->allow);
}

enum MHD_Result respond_queue(struct exchange *x) {
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
