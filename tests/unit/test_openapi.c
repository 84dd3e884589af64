/* The OpenAPI document says of every route, and of nothing else, what there is. */
#include <ctype.h>

#include "server/openapi.h"
#include "server/route.h"
#include "server/surface.h"
#include "tests/check.h"

/* The document's address of a route: what follows a '/' at the end is a parameter. */
static json_t *operation_of(json_t *document, const struct route *r, const char *front) {
    char path[160], method[16] = "";
    size_t n = strlen(r->path);
    bool below = n > 1 && r->path[n - 1] == '/';
    snprintf(path, sizeof path, "%s%s%s", front, r->path, below ? "{name}" : "");
    for (size_t i = 0; r->method[i]; i++)
        method[i] = (char)tolower((unsigned char)r->method[i]);
    return json_object_get(json_object_get(json_object_get(document, "paths"), path), method);
}

static size_t count_operations(json_t *document) {
    size_t n = 0;
    const char *path;
    json_t *methods;
    json_object_foreach(json_object_get(document, "paths"), path, methods) n +=
        json_object_size(methods);
    return n;
}

TEST(openapi_has_every_route_of_its_listener_and_no_other) {
    for (int admin = 0; admin < 2; admin++) {
        json_t *document = openapi_document(admin, true);
        size_t n = 0;
        CHECK_STR(json_string_value(json_object_get(document, "openapi")), "3.1.0");
        for (int i = 0; i < n_routes; i++) {
            if (!(routes[i].where & (admin ? ON_ADMIN : ON_PUBLIC)))
                continue;
            bool scoped = routes[i].scoped && !admin;
            if (!operation_of(document, &routes[i], "") ||
                (scoped && !operation_of(document, &routes[i], "/t/{model}")))
                test_fail(__FILE__, __LINE__, "%s %s is missing", routes[i].method, routes[i].path);
            n += 1 + scoped;
        }
        CHECK_EQ(count_operations(document), n);
        json_decref(document);
    }
}

static void check_refs(json_t *root, json_t *v) {
    const char *key;
    json_t *x;
    size_t i;
    json_array_foreach(v, i, x) check_refs(root, x);
    json_object_foreach(v, key, x) {
        check_refs(root, x);
        if (strcmp(key, "$ref") != 0)
            continue;
        char path[160], *rest = NULL;
        json_t *at = root;
        snprintf(path, sizeof path, "%s", json_string_value(x) + 2);
        for (char *part = strtok_r(path, "/", &rest); part; part = strtok_r(NULL, "/", &rest))
            at = json_object_get(at, part);
        if (!at)
            test_fail(__FILE__, __LINE__, "%s leads nowhere", json_string_value(x));
    }
}

TEST(openapi_references_lead_somewhere) {
    for (int admin = 0; admin < 2; admin++) {
        json_t *document = openapi_document(admin, false), *paths;
        /* Schemas of addresses that are not served may refer to what is not there. */
        paths = json_object_get(document, "paths");
        check_refs(document, paths);
        check_refs(document, json_object_get(json_object_get(document, "components"), "schemas"));
        CHECK(!json_object_get(json_object_get(document, "components"), "securitySchemes"));
        json_decref(document);
    }
}

TEST(openapi_ranges_are_those_of_the_parser) {
    json_t *document = openapi_document(false, false);
    json_t *schemas = json_object_get(json_object_get(document, "components"), "schemas");
    json_t *properties =
        json_object_get(json_object_get(schemas, "CompletionRequest"), "properties");
    for (int i = 0; i < n_fields_common; i++) {
        const struct field *f = &fields_common[i];
        json_t *p = json_object_get(properties, f->name);
        CHECK(json_is_object(p));
        if (f->kind != FIELD_INTEGER && f->kind != FIELD_NUMBER)
            continue;
        CHECK(json_number_value(json_object_get(p, "minimum")) == f->low);
        CHECK(json_number_value(json_object_get(p, "maximum")) == f->high);
    }
    CHECK_EQ(
        json_integer_value(json_object_get(json_object_get(properties, "max_tokens"), "default")),
        16);
    CHECK(json_object_get(properties, "prompt"));
    json_decref(document);
}
