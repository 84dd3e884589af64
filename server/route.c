#include "server/route.h"

#include <stdio.h>
#include <string.h>

#include "server/admin.h"
#include "server/alias.h"
#include "server/chat.h"
#include "server/completions.h"
#include "server/generation.h"
#include "server/health.h"
#include "server/models.h"
#include "server/openapi.h"
#include "server/playground.h"
#include "server/server.h"
#include "server/surface.h"
#include "server/tokenize.h"

enum { SMALL_BODY_BYTES = 65536 };

/* Here, so that a surface can be linked (and fuzzed) without the engine. */
static void completions_handle(struct server *s, struct exchange *x) {
    generation_start(s, x, &surface_completions);
}

const struct route routes[] = {
    {"GET", "/", ON_PUBLIC, KEY_NEVER, BODY_NONE, playground_handle, false},
    {"POST", "/v1/completions", ON_PUBLIC, KEY_ALWAYS, BODY_LARGE, completions_handle, true},
    {"POST", "/v1/chat/completions", ON_PUBLIC, KEY_ALWAYS, BODY_LARGE, chat_handle, true},
    {"GET", "/v1/models", ON_PUBLIC, KEY_ALWAYS, BODY_NONE, models_list, true},
    {"GET", "/v1/models/", ON_PUBLIC, KEY_ALWAYS, BODY_NONE, models_one, true},
    {"POST", "/tokenize", ON_PUBLIC, KEY_ALWAYS, BODY_LARGE, tokenize_handle, true},
    {"POST", "/detokenize", ON_PUBLIC, KEY_ALWAYS, BODY_LARGE, detokenize_handle, true},
    {"GET", "/tokenizer_info", ON_PUBLIC, KEY_ALWAYS, BODY_NONE, tokenizer_info_handle, true},
    {"GET", "/health", ON_PUBLIC | ON_ADMIN, KEY_NEVER, BODY_NONE, health_handle, true},
    {"GET", "/ready", ON_PUBLIC | ON_ADMIN, KEY_NEVER, BODY_NONE, ready_handle, false},
    {"GET", "/metrics", ON_PUBLIC | ON_ADMIN, KEY_PUBLIC, BODY_NONE, metrics_handle, false},
    {"GET", "/version", ON_PUBLIC | ON_ADMIN, KEY_PUBLIC, BODY_NONE, version_handle, false},
    {"GET", "/openapi.json", ON_PUBLIC | ON_ADMIN, KEY_PUBLIC, BODY_NONE, openapi_handle, false},
    {"POST", "/admin/deltas", ON_ADMIN, KEY_ALWAYS, BODY_SMALL, admin_put, false},
    {"GET", "/admin/deltas", ON_ADMIN, KEY_ALWAYS, BODY_NONE, admin_list, false},
    {"GET", "/admin/deltas/", ON_ADMIN, KEY_ALWAYS, BODY_NONE, admin_one, false},
    {"POST", "/admin/aliases", ON_ADMIN, KEY_ALWAYS, BODY_SMALL, alias_put, false},
    {"GET", "/admin/aliases", ON_ADMIN, KEY_ALWAYS, BODY_NONE, alias_list, false},
    {"DELETE", "/admin/aliases/", ON_ADMIN, KEY_ALWAYS, BODY_NONE, alias_delete, false},
    {"DELETE", "/admin/deltas/", ON_ADMIN, KEY_ALWAYS, BODY_NONE, admin_delete, false},
};
const int n_routes = sizeof routes / sizeof *routes;
_Static_assert(sizeof routes / sizeof *routes < METRICS_MAX_ROUTES, "one more for unknown ones");

static bool path_matches(const struct route *r, const char *path) {
    size_t n = strlen(r->path);
    if (n > 1 && r->path[n - 1] == '/')
        return strncmp(path, r->path, n) == 0 && path[n];
    return strcmp(path, r->path) == 0;
}

/* Takes "/t/NAME" off the path; false: there is no such thing in front. */
static bool take_scope(struct exchange *x) {
    if (strncmp(x->path, "/t/", 3) != 0)
        return false;
    const char *name = x->path + 3, *rest = strchr(name, '/');
    if (!rest || rest == name || (size_t)(rest - name) >= sizeof x->scope)
        return false;
    memcpy(x->scope, name, (size_t)(rest - name));
    memmove(x->path, rest, strlen(rest) + 1);
    return true;
}

/* The route of the path and method; *allow lists the methods of the path. */
static const struct route *find(const struct exchange *x, char *allow, size_t cap) {
    const struct route *found = NULL;
    const char *method = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method;
    size_t n = 0;
    allow[0] = 0;
    for (int i = 0; i < n_routes; i++) {
        const struct route *r = &routes[i];
        if (!(r->where & (x->admin ? ON_ADMIN : ON_PUBLIC)) || !path_matches(r, x->path) ||
            (x->scope[0] && !r->scoped))
            continue;
        if (strcmp(r->method, method) == 0)
            found = r;
        int added = snprintf(allow + n, cap - n, "%s%s", n ? ", " : "", r->method);
        n += added > 0 ? (size_t)added : 0;
    }
    return found;
}

/* The commonest mistake is a base URL without /v1. */
static void refuse_address(struct exchange *x) {
    struct why why;
    char path[sizeof x->path], allow[sizeof x->allow];
    memcpy(path, x->path, sizeof path);
    bool lacks = !x->admin &&
                 snprintf(x->path, sizeof x->path, "/v1%.*s", HTTP_MAX_PATH - 8, path) > 0 &&
                 (find(x, allow, sizeof allow) || allow[0]);
    memcpy(x->path, path, sizeof path);
    why_set(&why, E_NO_ROUTE, "There is nothing at %.200s%s%.200s%s.", path,
            lacks ? "; did you mean /v1" : "", lacks ? path : "", lacks ? "?" : "");
    http_reply_error(x, E_NO_ROUTE, NULL, &why);
}

void route_head(void *cls, struct exchange *x) {
    struct server *s = cls;
    const struct auth *keys = x->admin ? &s->admin_keys : &s->public_keys;
    char allow[sizeof x->allow];
    struct why why;
    bool scoped = !x->admin && take_scope(x);
    const struct route *r = find(x, allow, sizeof allow);
    /* Whether a model exists is not told without a key. */
    bool open = r && !scoped && (r->key == KEY_NEVER || (r->key == KEY_PUBLIC && x->admin));
    if (!open && !auth_allows(keys, x->head.authorization)) {
        s->metrics.rejected_auth++;
        http_reply_error(x, E_UNAUTHORIZED, NULL, NULL);
    } else if (!r && allow[0]) {
        memcpy(x->allow, allow, sizeof allow);
        why_set(&why, E_METHOD, "%s cannot be used on %.200s, which has %s.", x->method, x->path,
                allow);
        http_reply_error(x, E_METHOD, NULL, &why);
    } else if (!r) {
        refuse_address(x);
    } else if (scoped && !registry_find(&s->registry, x->scope)) {
        http_reply_error(x, E_NO_MODEL, "model", NULL);
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
