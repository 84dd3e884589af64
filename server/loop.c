#include "server/loop.h"

#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "server/generation.h"
#include "server/listen.h"
#include "server/load.h"
#include "server/route.h"
#include "server/sdnotify.h"
#include "server/server.h"

enum {
    TICK_MS = 100,
    STALE_ENGINE_US =
        120000000,          /* one step never takes this long, prefill on a slow CPU included */
    CUT_GRACE_US = 1000000, /* for error replies to get out after the drain limit */
    HURRY_US = 200000,      /* drain limit after a second signal */
};

bool server_engine_fresh(const struct server *s) {
    struct engine_stats stats;
    engine_stats(s->engine, &stats);
    bool idle = stats.running == 0 && stats.waiting == 0;
    return idle || mono_us() - stats.heartbeat_us < STALE_ENGINE_US;
}

void server_drain(struct server *s, int64_t limit_us) {
    int64_t until = mono_us() + limit_us;
    if (!s->draining || until < s->drain_until_us)
        s->drain_until_us = until;
    if (s->draining)
        return;
    s->draining = true;
    engine_drain(s->engine);
    http_close_idle(s->http);
    sdnotify("STOPPING=1\nSTATUS=Draining.");
    log_info("drain", "live=%d limit_ms=%lld", generation_live(s), (long long)(limit_us / 1000));
}

static void on_signal(uv_signal_t *signal, int number) {
    struct server *s = signal->data;
    log_info("signal", "number=%d", number);
    server_drain(s, s->draining ? HURRY_US : (int64_t)s->options->drain_timeout * 1000000);
}

/* From a terminal it says that the terminal is gone; from anybody else it asks for a reload. */
static void on_hangup(uv_signal_t *signal, int number) {
    struct server *s = signal->data;
    if (s->on_terminal) {
        on_signal(signal, number);
    } else if (!s->draining) {
        log_info("signal", "number=%d", number);
        folder_reload(s);
    }
}

static void on_engine(uv_poll_t *p, int status, int events) {
    (void)status, (void)events;
    generation_poll(p->data);
}

static void check_drain(struct server *s) {
    int64_t now = mono_us();
    if (http_busy(s->http) == 0 && generation_live(s) == 0) {
        uv_stop(&s->loop);
    } else if (now > s->drain_until_us + CUT_GRACE_US) {
        log_warn("drain", "left=%d note=\"cut at the limit\"", generation_live(s));
        uv_stop(&s->loop);
    } else if (now > s->drain_until_us) {
        generation_cut(s);
    }
}

static void on_tick(uv_timer_t *t) {
    struct server *s = t->data;
    int64_t now = mono_us(), watchdog_us = sdnotify_watchdog_us();
    if (watchdog_us && now - s->last_watchdog_us > watchdog_us && server_engine_fresh(s)) {
        s->last_watchdog_us = now;
        sdnotify("WATCHDOG=1");
    }
    load_continue(s);
    registry_refresh_base(&s->registry, engine_base_info(s->engine));
    if (s->draining)
        check_drain(s);
}

static void on_done(void *cls, struct exchange *x) {
    struct server *s = cls;
    int i = x->route ? (int)(x->route - routes) : n_routes;
    int class = x->status / 100;
    s->metrics.http[i][class >= 1 && class <= 5 ? class : 0]++;
    /* What was refused is for the log: whoever complains has its x-request-id. */
    log_line(x->error ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, x->error ? "refused" : "http",
             "req=%s route=%s%s status=%d code=%s param=%s us=%lld", x->id,
             x->scope[0] ? "/t/..." : "", x->route ? x->route->path : "other", x->status,
             x->error ? err_code(x->error) : "none", x->param ? x->param : "none",
             (long long)(mono_us() - x->start_us));
}

static err_t open_listener(struct server *s, const char *address, bool admin, struct why *why) {
    int fd = -1;
    char name[LISTEN_NAME_BYTES];
    err_t e = listen_open(address, &fd, name, why);
    if (!e)
        e = http_listen(s->http, fd, admin, why);
    if (!e)
        log_info("listen", "%s=%s", admin ? "admin" : "public", name);
    return e;
}

static err_t open_handles(struct server *s, struct why *why) {
    int failed = uv_loop_init(&s->loop);
    if (failed)
        return why_set(why, E_INTERNAL, "no event loop: %s", uv_strerror(failed));
    uv_timer_init(&s->loop, &s->second);
    uv_signal_init(&s->loop, &s->sigterm);
    uv_signal_init(&s->loop, &s->sigint);
    uv_signal_init(&s->loop, &s->sighup);
    s->on_terminal = isatty(STDIN_FILENO); /* asked later, a lost terminal is none */
    s->second.data = s->sigterm.data = s->sigint.data = s->sighup.data = s;
    failed = uv_poll_init(&s->loop, &s->engine_events, engine_event_fd(s->engine));
    s->engine_events.data = s;
    if (!failed)
        failed = uv_poll_start(&s->engine_events, UV_READABLE, on_engine);
    if (!failed)
        failed = uv_signal_start(&s->sigterm, on_signal, SIGTERM);
    if (!failed)
        failed = uv_signal_start(&s->sigint, on_signal, SIGINT);
    if (!failed)
        failed = uv_signal_start(&s->sighup, on_hangup, SIGHUP);
    if (!failed)
        failed = uv_timer_start(&s->second, on_tick, TICK_MS, TICK_MS);
    return failed ? why_set(why, E_INTERNAL, "the event loop: %s", uv_strerror(failed)) : E_OK;
}

err_t loop_open(struct server *s, struct why *why) {
    const struct options *o = s->options;
    const struct http_limits limits = {
        .max_connections = o->max_connections,
        .max_bodies_bytes = 64 * o->max_body,
        .header_us = (int64_t)o->header_timeout * 1000000,
        .body_us = (int64_t)o->body_timeout * 1000000,
        .idle_us = (int64_t)o->idle_timeout * 1000000,
        .write_us = (int64_t)o->write_timeout * 1000000,
    };
    const struct http_hooks hooks = {s, route_head, route_request, on_done};
    err_t e = open_handles(s, why);
    if (!e)
        e = http_open(&s->http, &s->loop, &limits, &hooks, why);
    if (!e)
        e = open_listener(s, o->listen, false, why);
    if (!e && o->admin && *o->admin)
        e = open_listener(s, o->admin, true, why);
    return e;
}

err_t loop_run(struct server *s) {
    sdnotify("READY=1\nSTATUS=Serving.");
    log_info("ready", "model=%s tenants=%d", s->registry.base->name, s->registry.n);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    return s->fatal;
}

void loop_close(struct server *s) {
    uv_poll_stop(&s->engine_events);
    uv_close((uv_handle_t *)&s->engine_events, NULL);
    uv_close((uv_handle_t *)&s->sigterm, NULL);
    uv_close((uv_handle_t *)&s->sigint, NULL);
    uv_close((uv_handle_t *)&s->sighup, NULL);
    uv_close((uv_handle_t *)&s->second, NULL);
    http_close(s->http);
    listen_remove(s->options->admin);
    listen_remove(s->options->listen);
    generation_close(s);
    uv_loop_close(&s->loop);
}
