#include "server/models.h"

#include "server/json.h"
#include "server/route.h"
#include "server/server.h"

/* `id`: the model's name or an alias of it. */
static json_t *describe(const struct server *s, const struct served *m, const char *id) {
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:s?,s:i,s:s}", "id", id, "object", "model", "created",
                     (json_int_t)m->info->loaded_unix_s, "owned_by", "bitdeltad", "root",
                     m != s->registry.base ? s->registry.base->name : m->name, "parent",
                     m != s->registry.base ? s->registry.base->name : NULL, "max_model_len",
                     (int)m->info->context, "system_fingerprint", m->fingerprint);
}

void models_list(struct server *s, struct exchange *x) {
    json_t *data = json_array();
    const struct registry *r = &s->registry;
    const struct served *scoped = x->scope[0] ? registry_find(r, x->scope) : NULL;
    if (scoped) { /* the first one of the list is what many clients go on with */
        json_array_append_new(data, describe(s, scoped, x->scope));
    } else {
        json_array_append_new(data, describe(s, r->base, r->base->name));
        for (int i = 0; i < r->n; i++)
            json_array_append_new(data, describe(s, r->tenants[i], r->tenants[i]->name));
        for (int i = 0; i < r->n_aliases; i++) {
            const struct served *m = registry_find(r, r->aliases[i].target);
            if (m)
                json_array_append_new(data, describe(s, m, r->aliases[i].name));
        }
    }
    http_reply_json(x, 200, json_pack("{s:s,s:o}", "object", "list", "data", data));
}

void models_one(struct server *s, struct exchange *x) {
    struct served *m = registry_find(&s->registry, route_rest(x));
    if (m)
        http_reply_json(x, 200, describe(s, m, route_rest(x)));
    else
        http_reply_error(x, E_NO_MODEL, "model", NULL);
}
