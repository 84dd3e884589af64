/* The configuration file: lines of 'name = value', comments from # on; see options.h. Every fault
 * is told with file and line. */
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/option_row.h"

enum { MAX_FILE_BYTES = 1 << 20 };

/* text[*from .. *end) without the blanks around it. */
static void trim(const char *text, size_t *from, size_t *end) {
    while (*from < *end && strchr(" \t\r", text[*from]))
        ++*from;
    while (*end > *from && strchr(" \t\r", text[*end - 1]))
        --*end;
}

/* The value part of a line: quoted whole, or up to a # after a blank. `out` has room for it. */
static err_t read_value(const char *text, size_t from, size_t end, char *out, struct why *why) {
    trim(text, &from, &end);
    if (from < end && text[from] == '"') {
        const char *close = memchr(text + from + 1, '"', end - from - 1);
        size_t after = close ? (size_t)(close - text) + 1 : 0, rest = after;
        if (close)
            trim(text, &rest, &end);
        if (!close || (rest < end && text[rest] != '#'))
            return why_set(why, E_CONFIG, "a value that starts with \" ends with it");
        from++;
        end = after - 1;
    } else {
        for (size_t i = from; i < end; i++)
            if (text[i] == '#' && (i == from || text[i - 1] == ' ' || text[i - 1] == '\t')) {
                end = i;
                trim(text, &from, &end);
            }
    }
    memcpy(out, text + from, end - from);
    out[end - from] = 0;
    return E_OK;
}

/* One line that is neither empty nor a comment. */
static err_t parse_line(struct options *o, const char *text, size_t n, int line, struct why *why) {
    char value[OPTION_MAX_BYTES + 3], hint[96];
    if (n > OPTION_MAX_BYTES)
        return why_set(why, E_CONFIG, "the line has more than %d bytes", OPTION_MAX_BYTES);
    if (text[0] == '[')
        return why_set(why, E_CONFIG, "there are no sections: write 'name = value' alone");
    const char *equals = memchr(text, '=', n);
    if (!equals)
        return why_set(why, E_CONFIG, "not 'name = value'");
    size_t from = 0, end = (size_t)(equals - text);
    trim(text, &from, &end);
    const struct option_row *row = option_find(text + from, end - from);
    if (!row || (row->flags & OPTION_NOT_IN_FILE)) {
        bool known = row || (end - from > 3 && memcmp(text + from, "no-", 3) == 0 &&
                             option_find(text + from + 3, end - from - 3));
        option_suggest(text + from, end - from, hint);
        return why_set(why, E_CONFIG, "%s '%.*s'%s", known ? "a file cannot set" : "unknown option",
                       (int)(end - from > 60 ? 60 : end - from), text + from, known ? "" : hint);
    }
    if (o->source[row->index] == OPTION_FROM_FILE)
        return why_set(why, E_CONFIG, "'%s' stands in line %d already", row->name,
                       o->line[row->index]);
    err_t e = read_value(text, (size_t)(equals - text) + 1, n, value, why);
    if (!e)
        e = option_set_row(o, row, value, OPTION_FROM_FILE, line, why);
    return e ? why_prefix(why, e, "%s", row->name) : E_OK;
}

err_t options_parse_file(struct options *o, const char *path, const char *text, size_t n,
                         struct why *why) {
    static const char mark[] = "\xef\xbb\xbf"; /* some editors put it in front of UTF-8 */
    int line = 0;
    for (size_t at = n >= 3 && memcmp(text, mark, 3) == 0 ? 3 : 0; at < n;) {
        const char *newline = memchr(text + at, '\n', n - at);
        size_t from = at, end = newline ? (size_t)(newline - text) : n;
        at = end + 1;
        line++;
        for (size_t i = from; i < end; i++)
            if (((unsigned char)text[i] < ' ' && text[i] != '\t' && text[i] != '\r') ||
                text[i] == 0x7f)
                return why_set(why, E_CONFIG, "%.200s:%d: a control byte (0x%02x): not a text file",
                               path, line, (unsigned char)text[i]);
        trim(text, &from, &end);
        if (from == end || text[from] == '#')
            continue;
        err_t e = parse_line(o, text + from, end - from, line, why);
        if (e)
            return why_prefix(why, e, "%.200s:%d", path, line);
    }
    return E_OK;
}

err_t option_read_file(struct options *o, const char *path, struct why *why) {
    char *text;
    size_t n;
    err_t e = file_read(path, MAX_FILE_BYTES, &text, &n, why);
    if (e)
        return e == E_NOMEM ? e : E_CONFIG;
    e = options_parse_file(o, path, text, n, why);
    free(text);
    return e;
}
