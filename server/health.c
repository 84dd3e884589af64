#include "server/health.h"

#include <string.h>

#include "server/server.h"

static void ok(struct exchange *x) {
    static const char text[] = "{\"status\":\"ok\"}";
    char *copy = strdup(text);
    http_reply(x, 200, "application/json", copy, copy ? sizeof text - 1 : 0);
}

void health_handle(struct server *s, struct exchange *x) {
    if (s->fatal)
        http_reply_error(x, s->fatal, NULL, NULL);
    else if (s->draining)
        http_reply_error(x, E_DRAINING, NULL, NULL);
    else if (!server_engine_fresh(s))
        http_reply_error(x, E_DEVICE, NULL, NULL);
    else
        ok(x);
}

void ready_handle(struct server *s, struct exchange *x) {
    struct engine_stats stats;
    engine_stats(s->engine, &stats);
    if (!s->draining && !s->fatal && stats.waiting >= s->options->max_queue)
        http_reply_error(x, E_CONNECTIONS, NULL,
                         &(struct why){"The queue is full; try again shortly."});
    else
        health_handle(s, x);
}

void version_handle(struct server *s, struct exchange *x) {
    (void)s;
    http_reply_json(x, 200, json_pack("{s:s}", "version", options_version()));
}
