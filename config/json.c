#include "config/json.h"

#include <stdbool.h>

/* Counts depth and values by the characters that begin or separate them outside strings; malformed
 * text is left to the parser, which can then waste no more than was counted. */
static err_t within_bounds(const char *text, size_t n, const char *label, int max_depth,
                           size_t max_values, struct why *why) {
    int depth = 0;
    size_t values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            values++;
            if (++depth > max_depth)
                return why_set(why, E_FORMAT, "%s: JSON is nested deeper than %d levels", label,
                               max_depth);
        } else if (c == ']' || c == '}') {
            depth--;
        } else if (c == ',') {
            values++;
        }
    }
    if (values > max_values)
        return why_set(why, E_FORMAT, "%s: JSON has more than %zu values", label, max_values);
    return E_OK;
}

err_t json_parse(json_t **out, const char *text, size_t n, const char *label, int max_depth,
                 size_t max_values, struct why *why) {
    return json_parse_flags(out, text, n, label, max_depth, max_values, 0, why);
}

err_t json_parse_flags(json_t **out, const char *text, size_t n, const char *label, int max_depth,
                       size_t max_values, size_t flags, struct why *why) {
    *out = NULL;
    err_t e = within_bounds(text, n, label, max_depth, max_values, why);
    if (e)
        return e;
    json_error_t error;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES | flags, &error);
    if (*out)
        return E_OK;
    if (json_error_code(&error) == json_error_out_of_memory)
        return why_set(why, E_NOMEM, "%s: not enough memory to parse its JSON", label);
    return why_set(why, E_FORMAT, "%s: not valid JSON at byte %d: %s", label, error.position,
                   error.text);
}
