/* The state of the daemon's one I/O thread and what its files share. Everything here is touched on
 * that thread only, except where a worker is handed its own piece (generation.c, load.c, kept.c).
 */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <uv.h>

#include "config/options.h"
#include "engine/engine.h"
#include "server/auth.h"
#include "server/folder.h"
#include "server/http.h"
#include "server/kept.h"
#include "server/live.h"
#include "server/metrics.h"
#include "server/playground.h"
#include "server/registry.h"
#include "server/residency.h"
#include "tokenizer/tokenizer.h"

struct load;

struct server {
    const struct options *options;
    struct engine *engine;
    struct tokenizer *tokenizer; /* the base's */
    struct registry registry;
    struct auth public_keys, admin_keys;
    struct metrics metrics;
    struct playground playground;
    struct http *http;
    int deltas_fd; /* directory that admin paths are confined to; -1: none configured */

    uv_loop_t loop;
    uv_poll_t engine_events;
    uv_signal_t sigterm, sigint, sighup;
    uv_timer_t second; /* watchdog, drain */

    struct live live;       /* requests in the engine (generation.c) */
    struct load *loads;     /* tenant files on their way in (load.c) */
    bool loading;           /* the first of them is being read */
    struct waiter *waiters; /* for tenants that are away (residency.c) */
    struct kept kept;       /* what the admin API changed (kept.c) */
    struct folder folder;

    bool draining, on_terminal;
    int64_t drain_until_us;
    err_t fatal; /* the device failed: leave with an error */
    int64_t last_watchdog_us;
};

/* Whether the engine's thread is alive: it went round its loop lately or has nothing to do. */
bool server_engine_fresh(const struct server *s);
/* Stops taking requests and leaves the loop when the running ones have ended, at the latest after
 * `limit_us`. A second call with a smaller limit hurries. */
void server_drain(struct server *s, int64_t limit_us);

#endif
