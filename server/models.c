#include "server/models.h"

#include "server/json.h"
#include "server/route.h"
#include "server/server.h"

static json_t *describe(const struct server *s, const struct served *m) {
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:s?,s:i,s:s}", "id", m->name, "object", "model",
                     "created", (json_int_t)m->info->loaded_unix_s, "owned_by", "bitdeltad", "root",
                     m->tenant ? s->registry.base->name : m->name, "parent",
                     m->tenant ? s->registry.base->name : NULL, "max_model_len",
                     (int)m->info->context, "system_fingerprint", m->fingerprint);
}

void models_list(struct server *s, struct exchange *x) {
    json_t *data = json_array();
    json_array_append_new(data, describe(s, s->registry.base));
    for (int i = 0; i < s->registry.n; i++)
        json_array_append_new(data, describe(s, s->registry.tenants[i]));
    http_reply_json(x, 200, json_pack("{s:s,s:o}", "object", "list", "data", data));
}

void models_one(struct server *s, struct exchange *x) {
    struct served *m = registry_find(&s->registry, route_rest(x));
    if (m)
        http_reply_json(x, 200, describe(s, m));
    else
        http_reply_error(x, E_NO_MODEL, "model", NULL);
}
