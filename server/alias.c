#include "server/alias.h"

#include <string.h>

#include "config/log.h"
#include "server/json.h"
#include "server/route.h"
#include "server/server.h"

/* A text without NUL bytes; NULL: something else. */
static const char *plain_text(json_t *v) {
    const char *text = json_string_value(v);
    return text && strlen(text) == json_string_length(v) ? text : NULL;
}

static err_t set(struct server *s, const json_t *body, bool *replaced, const char **field,
                 struct why *why) {
    const char *name = plain_text(json_object_get(body, "name"));
    const char *target = plain_text(json_object_get(body, "target"));
    *field = name ? "target" : "name";
    if (!name || !target)
        return why_set(why, E_INVAL, "'%s' must be a name.", *field);
    struct served *m = registry_find(&s->registry, target);
    if (!m || strcmp(m->name, target) != 0)
        return why_set(why, E_NO_MODEL, "'target' names no model that is served.");
    *field = "name";
    err_t e = registry_alias(&s->registry, name, target, replaced, why);
    if (e)
        return e;
    log_info("tenant", "op=alias name=%s target=%s", name, target);
    kept_set(&s->kept, KEPT_ALIASES, name, target);
    return E_OK;
}

void alias_put(struct server *s, struct exchange *x) {
    json_t *body = NULL;
    struct why why = {""};
    const char *field = NULL;
    bool replaced = false;
    err_t e = json_read_object(x->body.data ? x->body.data : "", x->body.n, &body, &why);
    if (!e)
        e = set(s, body, &replaced, &field, &why);
    if (e)
        http_reply_error(x, e, field, &why);
    else
        kept_reply(s, x, replaced ? 200 : 201,
                   json_pack("{s:O,s:O}", "name", json_object_get(body, "name"), "target",
                             json_object_get(body, "target")));
    json_decref(body);
}

void alias_list(struct server *s, struct exchange *x) {
    json_t *data = json_array();
    for (int i = 0; i < s->registry.n_aliases; i++)
        json_array_append_new(data, json_pack("{s:s,s:s}", "name", s->registry.aliases[i].name,
                                              "target", s->registry.aliases[i].target));
    http_reply_json(x, 200, json_pack("{s:s,s:o}", "object", "list", "data", data));
}

void alias_delete(struct server *s, struct exchange *x) {
    const char *name = route_rest(x);
    if (!registry_unalias(&s->registry, name)) {
        http_reply_error(x, E_NO_MODEL, "name", NULL);
        return;
    }
    log_info("tenant", "op=unalias name=%s", name);
    kept_set(&s->kept, KEPT_ALIASES, name, NULL);
    kept_reply(s, x, 200, json_pack("{s:s,s:b}", "name", name, "deleted", 1));
}
