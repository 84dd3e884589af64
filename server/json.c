#include "server/json.h"

#include <stdio.h>
#include <string.h>

#include "config/json.h"
#include "config/utf8.h"

err_t json_read_object(const char *data, size_t n, json_t **out, struct why *why) {
    if (n == 0)
        return why_set(why, E_JSON, "The body is empty; a JSON object belongs there.");
    err_t e = json_parse_flags(out, data, n, "The body", JSON_MAX_DEPTH, JSON_MAX_VALUES,
                               JSON_ALLOW_NUL, why);
    if (e)
        return e == E_FORMAT ? E_JSON : e;
    if (json_is_object(*out))
        return E_OK;
    json_decref(*out);
    *out = NULL;
    return why_set(why, E_JSON, "%s", err_sentence(E_JSON));
}

/* What stands for a byte inside a JSON string; NULL: the byte itself. */
static const char *escape(unsigned char c, char hex[8]) {
    switch (c) {
    case '"':
        return "\\\"";
    case '\\':
        return "\\\\";
    case '\b':
        return "\\b";
    case '\f':
        return "\\f";
    case '\n':
        return "\\n";
    case '\r':
        return "\\r";
    case '\t':
        return "\\t";
    default:
        if (c >= 0x20)
            return NULL;
        snprintf(hex, 8, "\\u%04x", c);
        return hex;
    }
}

/* By hand, not through jansson: this runs for every token that is streamed. */
err_t json_put_string(struct buf *out, const char *text, size_t n) {
    char hex[8];
    size_t from = 0;
    if (utf8_valid_prefix(text, n) < n)
        return E_INVAL;
    buf_add(out, "\"", 1);
    for (size_t i = 0; i < n; i++) {
        const char *instead = escape((unsigned char)text[i], hex);
        if (!instead)
            continue;
        buf_add(out, text + from, i - from);
        buf_text(out, instead);
        from = i + 1;
    }
    buf_add(out, text + from, n - from);
    return buf_add(out, "\"", 1);
}

char *json_finish(json_t *tree, size_t *n) {
    char *text = json_dumps(tree, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(tree);
    if (n)
        *n = text ? strlen(text) : 0;
    return text;
}
