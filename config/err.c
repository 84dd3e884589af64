#include "config/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "config/utf8.h"

static const struct {
    int status;
    const char *type, *code, *sentence;
} table[] = {
    {200, "", "", "ok"},
#define ERR(name, status, type, code, sentence) {status, type, code, sentence},
#include "config/err.def"
#undef ERR
};

static size_t index_of(err_t e) {
    return e <= 0 && e > -ERR_INDEX_END ? (size_t)-e : ERR_INDEX_INTERNAL;
}

/* A sentence may quote outside bytes and be cut short; it goes into JSON and onto terminals. What
 * is no whole printable character becomes '?'. */
static void make_printable(char *text) {
    size_t n = strlen(text), length;
    uint32_t c;
    for (size_t at = 0; at < n; at += length) {
        length = utf8_next(text + at, n - at, &c);
        if (length == 0 || c < 0x20 || (c >= 0x7f && c < 0xa0)) {
            length = length ? length : 1;
            memset(text + at, '?', length);
        }
    }
}

err_t why_set(struct why *why, err_t e, const char *format, ...) {
    if (why) {
        va_list args;
        va_start(args, format);
        vsnprintf(why->text, sizeof why->text, format, args);
        va_end(args);
        make_printable(why->text);
    }
    return e;
}

err_t why_prefix(struct why *why, err_t e, const char *format, ...) {
    if (why) {
        struct why tail = *why;
        va_list args;
        va_start(args, format);
        int n = vsnprintf(why->text, sizeof why->text, format, args);
        va_end(args);
        if (n >= 0 && (size_t)n < sizeof why->text)
            snprintf(why->text + n, sizeof why->text - (size_t)n, ": %.*s",
                     (int)(sizeof why->text - (size_t)n - 3), tail.text);
        make_printable(why->text);
    }
    return e;
}

int err_http_status(err_t e) {
    return table[index_of(e)].status;
}

const char *err_type(err_t e) {
    return table[index_of(e)].type;
}

const char *err_code(err_t e) {
    return table[index_of(e)].code;
}

const char *err_sentence(err_t e) {
    return table[index_of(e)].sentence;
}
