#include "server/json.h"

#include <string.h>

#include "config/json.h"

err_t json_read_object(const char *data, size_t n, json_t **out, struct why *why) {
    err_t e = json_parse(out, data, n, "The body", JSON_MAX_DEPTH, JSON_MAX_VALUES, why);
    if (e)
        return e == E_FORMAT ? E_JSON : e;
    if (json_is_object(*out))
        return E_OK;
    json_decref(*out);
    *out = NULL;
    return why_set(why, E_JSON, "%s", err_sentence(E_JSON));
}

static int put(const char *text, size_t n, void *out) {
    return buf_add(out, text, n);
}

err_t json_put_string(struct buf *out, const char *text, size_t n) {
    json_t *string = json_stringn(n ? text : "", n);
    if (!string)
        return E_INVAL;
    size_t before = out->n;
    int failed = json_dump_callback(string, put, out, JSON_ENCODE_ANY);
    json_decref(string);
    if (!failed)
        return E_OK;
    out->n = before;
    return E_NOMEM;
}

char *json_finish(json_t *tree, size_t *n) {
    char *text = json_dumps(tree, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(tree);
    if (n)
        *n = text ? strlen(text) : 0;
    return text;
}
