#include "server/openapi.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/chat.h"
#include "server/completions.h"
#include "server/route.h"
#include "server/server.h"
#include "server/surface.h"

__asm__(".pushsection .rodata\n"
        "openapi_text: .incbin \"server/openapi.json\"\n"
        "openapi_text_end: .byte 0\n"
        ".popsection\n");
#define HIDDEN __attribute__((visibility("hidden")))
extern const char openapi_text[] HIDDEN, openapi_text_end[] HIDDEN;

/* Schemas that are made from field tables. */
static const struct {
    const char *name;
    const struct surface *surface;
    const char *required;
} requests[] = {{"CompletionRequest", &surface_completions, "prompt"},
                {"ChatCompletionRequest", &surface_chat, "messages"}};

/* --- fields to schemas ---------------------------------------------------------------------- */

static json_t *number(enum field_kind kind, double x) {
    return kind == FIELD_INTEGER ? json_integer((json_int_t)x) : json_real(x);
}

/* What a field takes, null always among it. */
static json_t *field_schema(const struct field *f) {
    json_t *schema;
    if (f->kind == FIELD_SPECIAL) {
        schema = json_pack("{s:[o,{s:s}]}", "anyOf", json_loads(f->json, 0, NULL), "type", "null");
    } else if (f->kind == FIELD_REFUSED && !f->json) {
        schema = json_pack("{s:s}", "type", "null");
    } else if (f->kind == FIELD_REFUSED) {
        schema = json_pack("{s:[o,n]}", "enum", json_loads(f->json, JSON_DECODE_ANY, NULL));
    } else if (f->kind == FIELD_BOOLEAN) {
        schema = json_pack("{s:[s,s],s:b}", "type", "boolean", "null", "default", f->start != 0);
    } else {
        schema = json_pack("{s:[s,s],s:o,s:o}", "type",
                           f->kind == FIELD_INTEGER ? "integer" : "number", "null", "minimum",
                           number(f->kind, f->low), "maximum", number(f->kind, f->high));
        json_object_set_new(schema, "default",
                            f->start < f->low ? json_null() : number(f->kind, f->start));
    }
    json_object_set_new(schema, "description", json_string(f->help));
    return schema;
}

static void add_fields(json_t *properties, const struct field *list, int n) {
    for (int i = 0; i < n; i++)
        json_object_set_new(properties, list[i].name, field_schema(&list[i]));
}

/* required: the surface's own field that nothing can do without. */
static json_t *request_schema(const struct surface *surface, const char *required, bool scoped) {
    json_t *properties = json_object();
    add_fields(properties, fields_common, n_fields_common);
    add_fields(properties, surface->fields, surface->n_fields);
    const char *must[] = {"model", required};
    json_t *list = json_array();
    for (int i = scoped ? 1 : 0; i < 2; i++) { /* these two may not be null */
        const json_t *any = json_object_get(json_object_get(properties, must[i]), "anyOf");
        json_array_append_new(list, json_string(must[i]));
        json_object_set(properties, must[i], json_array_get(any, 0));
    }
    return json_pack("{s:s,s:o,s:o}", "type", "object", "required", list, "properties", properties);
}

/* --- operations ----------------------------------------------------------------------------- */

/* The route that serves an address of the document ("/v1/models/{name}" is "/v1/models/"). */
static const struct route *route_of(const char *path, const char *method, bool admin) {
    char plain[128], upper[16] = "";
    snprintf(plain, sizeof plain, "%.*s", (int)strcspn(path, "{"), path);
    for (size_t i = 0; method[i] && i + 1 < sizeof upper; i++)
        upper[i] = (char)toupper((unsigned char)method[i]);
    for (int i = 0; i < n_routes; i++)
        if (strcmp(routes[i].path, plain) == 0 && strcmp(routes[i].method, upper) == 0 &&
            routes[i].where & (admin ? ON_ADMIN : ON_PUBLIC))
            return &routes[i];
    return NULL;
}

/* Every status that an error of ours has; which of them an address can meet depends on little of
 * the address. */
static void add_errors(json_t *operation) {
    json_t *responses = json_object_get(operation, "responses");
    for (int e = 1; e < ERR_INDEX_END; e++) {
        char status[8];
        snprintf(status, sizeof status, "%d", err_http_status(-e));
        if (!json_object_get(responses, status))
            json_object_set_new(responses, status,
                                json_pack("{s:s}", "$ref", "#/components/responses/Error"));
    }
}

static void finish_operation(json_t *operation, const struct route *r, bool keyed, bool scoped) {
    bool open = !scoped && (r->key == KEY_NEVER || (r->key == KEY_PUBLIC && r->where == ON_ADMIN));
    add_errors(operation);
    if (keyed && !open)
        json_object_set_new(operation, "security", json_pack("[{s:[]}]", "key"));
}

/* A request whose model is named by the address. */
static void scope_operation(json_t *operation) {
    json_t *parameters = json_object_get(operation, "parameters");
    if (!parameters) {
        parameters = json_array();
        json_object_set_new(operation, "parameters", parameters);
    }
    json_array_append_new(parameters, json_pack("{s:s}", "$ref", "#/components/parameters/model"));
    json_t *json = json_object_get(
        json_object_get(json_object_get(operation, "requestBody"), "content"), "application/json");
    const char *ref = json_string_value(json_object_get(json_object_get(json, "schema"), "$ref"));
    for (size_t i = 0; ref && i < sizeof requests / sizeof *requests; i++)
        if (strcmp(strrchr(ref, '/') + 1, requests[i].name) == 0) {
            json_object_set_new(json, "schema",
                                request_schema(requests[i].surface, requests[i].required, true));
            break; /* ref was part of what has been replaced */
        }
}

/* Moves the operations of one address that the listener serves into `out`. */
static void take_path(json_t *out, const char *path, json_t *methods, bool admin, bool keyed) {
    json_t *here = json_object(), *below = json_object();
    const char *method;
    json_t *operation;
    json_object_foreach(methods, method, operation) {
        const struct route *r = route_of(path, method, admin);
        if (!r)
            continue;
        if (r->scoped && !admin) {
            json_t *copy = json_deep_copy(operation);
            scope_operation(copy);
            finish_operation(copy, r, keyed, true);
            json_object_set_new(below, method, copy);
        }
        finish_operation(operation, r, keyed, admin && r->where == ON_ADMIN);
        json_object_set(here, method, operation);
    }
    char scoped[160];
    snprintf(scoped, sizeof scoped, "/t/{model}%s", path);
    if (json_object_size(here))
        json_object_set(out, path, here);
    if (json_object_size(below))
        json_object_set(out, scoped, below);
    json_decref(here);
    json_decref(below);
}

json_t *openapi_document(bool admin, bool keyed) {
    json_t *document = json_loadb(openapi_text, (size_t)(openapi_text_end - openapi_text), 0, NULL);
    json_t *paths = json_object(), *methods;
    json_t *components = json_object_get(document, "components");
    const char *path;
    json_object_set_new(json_object_get(document, "info"), "version",
                        json_string(options_version()));
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        json_object_set_new(json_object_get(components, "schemas"), requests[i].name,
                            request_schema(requests[i].surface, requests[i].required, false));
    json_object_foreach(json_object_get(document, "paths"), path, methods)
        take_path(paths, path, methods, admin, keyed);
    json_object_set_new(document, "paths", paths);
    if (keyed)
        json_object_set_new(components, "securitySchemes",
                            json_pack("{s:{s:s,s:s}}", "key", "type", "http", "scheme", "bearer"));
    return document;
}

void openapi_handle(struct server *s, struct exchange *x) {
    const struct auth *keys = x->admin ? &s->admin_keys : &s->public_keys;
    http_reply_json(x, 200, openapi_document(x->admin, keys->n_keys > 0));
}
