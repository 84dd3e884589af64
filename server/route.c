#include "server/route.h"

#include <stdio.h>
#include <string.h>

#include "server/admin.h"
#include "server/completions.h"
#include "server/health.h"
#include "server/models.h"
#include "server/server.h"
#include "server/tokenize.h"

enum { SMALL_BODY_BYTES = 65536 };

const struct route routes[] = {
    {"POST", "/v1/completions", ON_PUBLIC, KEY_ALWAYS, BODY_LARGE, completions_handle},
    {"GET", "/v1/models", ON_PUBLIC, KEY_ALWAYS, BODY_NONE, models_list},
    {"GET", "/v1/models/", ON_PUBLIC, KEY_ALWAYS, BODY_NONE, models_one},
    {"POST", "/tokenize", ON_PUBLIC, KEY_ALWAYS, BODY_LARGE, tokenize_handle},
    {"POST", "/detokenize", ON_PUBLIC, KEY_ALWAYS, BODY_LARGE, detokenize_handle},
    {"GET", "/tokenizer_info", ON_PUBLIC, KEY_ALWAYS, BODY_NONE, tokenizer_info_handle},
    {"GET", "/health", ON_PUBLIC | ON_ADMIN, KEY_NEVER, BODY_NONE, health_handle},
    {"GET", "/ready", ON_PUBLIC | ON_ADMIN, KEY_NEVER, BODY_NONE, ready_handle},
    {"GET", "/metrics", ON_PUBLIC | ON_ADMIN, KEY_PUBLIC, BODY_NONE, metrics_handle},
    {"GET", "/version", ON_PUBLIC | ON_ADMIN, KEY_PUBLIC, BODY_NONE, version_handle},
    {"POST", "/admin/deltas", ON_ADMIN, KEY_ALWAYS, BODY_SMALL, admin_put},
    {"GET", "/admin/deltas", ON_ADMIN, KEY_ALWAYS, BODY_NONE, admin_list},
    {"GET", "/admin/deltas/", ON_ADMIN, KEY_ALWAYS, BODY_NONE, admin_one},
    {"DELETE", "/admin/deltas/", ON_ADMIN, KEY_ALWAYS, BODY_NONE, admin_delete},
};
const int n_routes = sizeof routes / sizeof *routes;
_Static_assert(sizeof routes / sizeof *routes < METRICS_MAX_ROUTES, "one more for unknown ones");

static bool path_matches(const struct route *r, const char *path) {
    size_t n = strlen(r->path);
    if (r->path[n - 1] == '/')
        return strncmp(path, r->path, n) == 0 && path[n];
    return strcmp(path, r->path) == 0;
}

/* The route of the path and method; *allow lists the methods of the path. */
static const struct route *find(const struct exchange *x, char *allow, size_t cap) {
    const struct route *found = NULL;
    const char *method = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method;
    size_t n = 0;
    allow[0] = 0;
    for (int i = 0; i < n_routes; i++) {
        const struct route *r = &routes[i];
        if (!(r->where & (x->admin ? ON_ADMIN : ON_PUBLIC)) || !path_matches(r, x->path))
            continue;
        if (strcmp(r->method, method) == 0)
            found = r;
        int added = snprintf(allow + n, cap - n, "%s%s", n ? ", " : "", r->method);
        n += added > 0 ? (size_t)added : 0;
    }
    return found;
}

void route_head(void *cls, struct exchange *x) {
    struct server *s = cls;
    const struct auth *keys = x->admin ? &s->admin_keys : &s->public_keys;
    char allow[sizeof x->allow];
    const struct route *r = find(x, allow, sizeof allow);
    bool open = r && (r->key == KEY_NEVER || (r->key == KEY_PUBLIC && x->admin));
    if (!open && !auth_allows(keys, x->head.authorization)) {
        s->metrics.rejected_auth++;
        http_reply_error(x, E_UNAUTHORIZED, NULL, NULL);
    } else if (!r && allow[0]) {
        memcpy(x->allow, allow, sizeof allow);
        http_reply_error(x, E_METHOD, NULL, NULL);
    } else if (!r) {
        http_reply_error(x, E_NO_ROUTE, NULL, NULL);
    } else {
        x->route = r;
        x->max_body_bytes = r->body == BODY_NONE    ? 0
                            : r->body == BODY_SMALL ? (size_t)SMALL_BODY_BYTES
                                                    : s->options->max_body;
    }
}

void route_request(void *cls, struct exchange *x) {
    x->route->handle(cls, x);
}

const char *route_rest(const struct exchange *x) {
    return x->path + strlen(x->route->path);
}
