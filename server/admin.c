#include "server/admin.h"

#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "server/json.h"
#include "server/load.h"
#include "server/route.h"
#include "server/server.h"

static json_t *parse_or_empty(const char *text) {
    json_t *object = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    return object ? object : json_object();
}

static json_t *describe(const struct served *m) {
    const struct tenant_info *i = m->info;
    return json_pack("{s:s,s:s,s:I,s:s,s:b,s:I,s:I,s:f,s:i,s:i,s:I,s:o,s:o}", "name", m->name,
                     "hash", i->hash, "generation", (json_int_t)i->generation, "fingerprint",
                     m->fingerprint, "resident", !m->away, "bytes", (json_int_t)i->bytes,
                     "file_bytes", (json_int_t)i->file_bytes, "bits_per_weight", i->bits_per_weight,
                     "max_model_len", (int)i->context, "vocab", (int)i->vocab, "loaded",
                     (json_int_t)i->loaded_unix_s, "made", parse_or_empty(i->made_json), "quality",
                     parse_or_empty(i->quality_json));
}

/* --- adding and replacing ------------------------------------------------------------------- */

static void answer_load(struct load *l, struct served *m, bool replaced) {
    struct server *s = l->server;
    struct exchange *x = l->x;
    if (x)
        x->on_gone = NULL;
    if (!l->error)
        kept_set(&s->kept, KEPT_DELTAS, l->name, l->path);
    if (!l->error)
        kept_reply(s, x, replaced ? 200 : 201, describe(m));
    else if (x)
        http_reply_error(x, l->error, l->error == E_INVAL ? "name" : "path", &l->why);
}

static void on_gone(struct exchange *x) {
    struct load *l = x->work;
    l->x = NULL;
}

/* The two strings of the body; *name and *path are borrowed from it. */
static err_t read_fields(const struct server *s, const json_t *body, const char **name,
                         const char **path, const char **field, struct why *why) {
    json_t *path_value = json_object_get(body, "path");
    size_t n = json_string_length(path_value);
    *name = json_string_value(json_object_get(body, "name"));
    *path = json_string_value(path_value);
    *field = "name";
    if (!*name || !registry_name_ok(*name))
        return why_set(why, E_INVAL,
                       "'name' must be 1 to 64 of A-Z a-z 0-9 . _ : - and start "
                       "with a letter or digit.");
    if (strcmp(*name, s->registry.base->name) == 0)
        return why_set(why, E_INVAL, "That name is the base model's.");
    *field = "path";
    if (!*path || n == 0 || n >= LOAD_PATH_BYTES || strlen(*path) != n)
        return why_set(why, E_INVAL,
                       "'path' must be a path of 1 to %d bytes, relative to the "
                       "deltas directory.",
                       LOAD_PATH_BYTES - 1);
    return E_OK;
}

void admin_put(struct server *s, struct exchange *x) {
    json_t *body = NULL;
    const char *name, *path, *field = NULL;
    struct why why = {""};
    struct load *l = NULL;
    err_t e = s->draining ? E_DRAINING : E_OK;
    if (!e)
        e = json_read_object(x->body.data ? x->body.data : "", x->body.n, &body, &why);
    if (!e)
        e = read_fields(s, body, &name, &path, &field, &why);
    if (!e && !(l = load_new(s, name, path)))
        e = E_NOMEM;
    json_decref(body);
    if (e) {
        http_reply_error(x, e, field, &why);
        return;
    }
    l->x = x;
    l->done = answer_load;
    x->work = l;
    x->on_gone = on_gone;
    load_start(l);
}

/* --- the rest ------------------------------------------------------------------------------- */

void admin_list(struct server *s, struct exchange *x) {
    json_t *data = json_array();
    for (int i = 0; i < s->registry.n; i++)
        json_array_append_new(data, describe(s->registry.tenants[i]));
    http_reply_json(x, 200, json_pack("{s:s,s:o}", "object", "list", "data", data));
}

void admin_one(struct server *s, struct exchange *x) {
    struct served *m = registry_find(&s->registry, route_rest(x));
    if (m && m != s->registry.base)
        http_reply_json(x, 200, describe(m));
    else
        http_reply_error(x, E_NO_MODEL, "name", NULL);
}

void admin_delete(struct server *s, struct exchange *x) {
    const char *name = route_rest(x);
    bool served = registry_remove(&s->registry, name);
    /* One that is kept but did not load at the start can be taken back, too. */
    if (!served && !kept_get(&s->kept, KEPT_DELTAS, name)) {
        http_reply_error(x, E_NO_MODEL, "name", NULL);
        return;
    }
    log_info("tenant", "op=remove name=%s", name);
    kept_set(&s->kept, KEPT_DELTAS, name, NULL);
    kept_reply(s, x, 200, json_pack("{s:s,s:b}", "name", name, "deleted", 1));
}
