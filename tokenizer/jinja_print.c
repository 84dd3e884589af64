/* Values as text, as Python writes them: str, repr and json.dumps. See jinja_value.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/jinja_value.h"
#include "tokenizer/unicode.h"

enum { MAX_DEPTH = 64 };

/* The fewest digits that read back as the same number, in Python's notation. */
static void put_double(struct run *r, struct builder *b, double d) {
    char text[40], out[64];
    int digits = 1;
    if (isnan(d) || isinf(d)) {
        put_text(r, b, isnan(d) ? "nan" : d < 0 ? "-inf" : "inf");
        return;
    }
    do
        snprintf(text, sizeof text, "%.*e", digits - 1, d);
    while (strtod(text, NULL) != d && ++digits <= 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        *strchr(text, 'e') = 0;
        snprintf(out, sizeof out, "%se%c%02d", text, exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        int after = digits - 1 - exponent;
        snprintf(out, sizeof out, "%.*f", after > 0 ? after : 1, d);
    }
    put_text(r, b, out);
}

/* Whether repr shows the character as it is. Python asks categories that are not known here of what
 * is no letter, mark or number: -1. */
static int is_printable(uint32_t c) {
    if (c < 0x7f)
        return c >= 0x20;
    if (c < 0xa1 || c == 0xad)
        return 0;
    if (c < 0x100)
        return 1;
    enum unicode_class k = unicode_class(c);
    return k == U_SPACE ? 0 : k == U_OTHER || k == U_DIGIT_ONLY ? -1 : 1;
}

/* A character as `text` spells it (empty: as it is); whoever wrote the one wrote the other. */
static void put_char_as(struct run *r, struct builder *b, const struct string *s, size_t at,
                        size_t length, const char *text) {
    bool trusted = s->trust ? s->trust[at] : s->trusted;
    if (*text)
        put_bytes(r, b, text, NULL, strlen(text), trusted);
    else
        put_bytes(r, b, s->text + at, NULL, length, trusted);
}

static void put_repr_string(struct run *r, struct builder *b, const struct string *s) {
    bool single = s->n && memchr(s->text, '\'', s->n), two = s->n && memchr(s->text, '"', s->n);
    const char *quote = single && !two ? "\"" : "'";
    uint32_t c;
    put_text(r, b, quote);
    for (size_t at = 0, length; at < s->n && step(r, 0); at += length) {
        char text[16] = "";
        length = utf8_next(s->text + at, s->n - at, &c);
        int printable = is_printable(c);
        if (c == '\\' || c == (unsigned char)*quote)
            snprintf(text, sizeof text, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(text, sizeof text, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (printable < 0)
            fail(r, E_UNSUPPORTED, "a list or dict that holds U+%04X cannot be printed.", c);
        else if (!printable)
            snprintf(text, sizeof text,
                     c < 0x100     ? "\\x%02x"
                     : c < 0x10000 ? "\\u%04x"
                                   : "\\U%08x",
                     c);
        put_char_as(r, b, s, at, length, text);
    }
    put_text(r, b, quote);
}

static void put_repr(struct run *r, struct builder *b, const struct value *v, int depth);

static void put_repr_seq(struct run *r, struct builder *b, const struct seq *s, int depth) {
    if (s->kind > S_TUPLE) {
        fail(r, E_UNSUPPORTED,
             "a generator, range or view cannot be printed; put '| list' behind.");
        return;
    }
    put_text(r, b, s->kind == S_LIST ? "[" : "(");
    for (size_t i = 0; i < s->n && !r->error; i++) {
        put_text(r, b, i ? ", " : "");
        put_repr(r, b, &s->items[i], depth + 1);
    }
    put_text(r, b, s->kind == S_LIST ? "]" : s->n == 1 ? ",)" : ")");
}

static void put_repr(struct run *r, struct builder *b, const struct value *v, int depth) {
    char number[32];
    if (depth > MAX_DEPTH)
        fail(r, E_UNSUPPORTED, "a value nested deeper than %d levels cannot be printed.",
             MAX_DEPTH);
    if (!step(r, 0))
        return;
    switch (v->kind) {
    case V_UNDEFINED:
        put_text(r, b, depth ? "Undefined" : "");
        break;
    case V_NONE:
        put_text(r, b, "None");
        break;
    case V_BOOL:
        put_text(r, b, v->b ? "True" : "False");
        break;
    case V_INT:
        snprintf(number, sizeof number, "%lld", (long long)v->i);
        put_text(r, b, number);
        break;
    case V_FLOAT:
        put_double(r, b, v->d);
        break;
    case V_STRING:
        put_repr_string(r, b, v->s);
        break;
    case V_SEQ:
        put_repr_seq(r, b, v->seq, depth);
        break;
    case V_DICT:
        put_text(r, b, "{");
        for (size_t i = 0; i < v->dict->n && !r->error; i++) {
            put_text(r, b, i ? ", " : "");
            put_repr(r, b, &v->dict->entries[i].key, depth + 1);
            put_text(r, b, ": ");
            put_repr(r, b, &v->dict->entries[i].value, depth + 1);
        }
        put_text(r, b, "}");
        break;
    default:
        fail(r, E_UNSUPPORTED, "a %s cannot be printed.", kind_name(v));
    }
}

void put_str(struct run *r, struct builder *b, const struct value *v) {
    if (v->kind == V_STRING)
        put_string(r, b, v->s);
    else
        put_repr(r, b, v, 0);
}

struct value to_str(struct run *r, const struct value *v) {
    struct builder b = {0};
    if (v->kind == V_STRING)
        return *v;
    put_str(r, &b, v);
    return built(r, &b);
}

/* --- json.dumps ----------------------------------------------------------------------------- */

static void put_json_string(struct run *r, struct builder *b, const struct string *s, bool ascii) {
    static const char escapes[] = "\"\\\n\r\t\b\f", names[] = "\"\\nrtbf";
    uint32_t c;
    put_text(r, b, "\"");
    for (size_t at = 0, length; at < s->n && step(r, 0); at += length) {
        char text[16] = "";
        length = utf8_next(s->text + at, s->n - at, &c);
        const char *escape = c && c < 0x80 ? strchr(escapes, (int)c) : NULL;
        if (escape) {
            snprintf(text, sizeof text, "\\%c", names[escape - escapes]);
        } else if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000 && c != 0x7f)) {
            snprintf(text, sizeof text, "\\u%04x", c);
        } else if (ascii && c >= 0x10000) {
            snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                     0xdc00 + ((c - 0x10000) & 0x3ff));
        }
        put_char_as(r, b, s, at, length, text);
    }
    put_text(r, b, "\"");
}

static void new_line(struct run *r, struct builder *b, int indent, int depth) {
    if (indent < 0)
        return;
    put_text(r, b, "\n");
    for (int i = 0; i < indent * depth && step(r, 0); i++)
        put_text(r, b, " ");
}

static void put_separator(struct run *r, struct builder *b, const struct string *given,
                          const char *usual) {
    if (given)
        put_string(r, b, given);
    else
        put_text(r, b, usual);
}

/* Keys that are no strings are written as ones. */
static void put_json_key(struct run *r, struct builder *b, const struct value *key,
                         const struct json_style *style) {
    if (key->kind == V_STRING) {
        put_json_string(r, b, key->s, style->ascii);
        return;
    }
    put_text(r, b, "\"");
    put_json(r, b, key, style, MAX_DEPTH);
    put_text(r, b, "\"");
}

static int compare_keys(const void *left, const void *right, void *run) {
    const struct entry *a = left, *b = right;
    return order(run, &a->key, &b->key);
}

static void put_json_dict(struct run *r, struct builder *b, const struct dict *d,
                          const struct json_style *style, int depth) {
    const struct entry *entries = d->entries;
    if (style->sort && d->n > 1) {
        struct entry *sorted = take(r, d->n * sizeof *sorted);
        if (!sorted)
            return;
        memcpy(sorted, d->entries, d->n * sizeof *sorted);
        qsort_r(sorted, d->n, sizeof *sorted, compare_keys, r);
        entries = sorted;
    }
    put_text(r, b, "{");
    for (size_t i = 0; i < d->n && !r->error; i++) {
        if (i)
            put_separator(r, b, style->item_separator, style->indent < 0 ? ", " : ",");
        new_line(r, b, style->indent, depth + 1);
        put_json_key(r, b, &entries[i].key, style);
        put_separator(r, b, style->key_separator, ": ");
        put_json(r, b, &entries[i].value, style, depth + 1);
    }
    if (d->n)
        new_line(r, b, style->indent, depth);
    put_text(r, b, "}");
}

void put_json(struct run *r, struct builder *b, const struct value *v,
              const struct json_style *style, int depth) {
    if (depth > MAX_DEPTH || !step(r, 0)) {
        fail(r, E_UNSUPPORTED, "JSON nested deeper than %d levels.", MAX_DEPTH);
        return;
    }
    switch (v->kind) {
    case V_NONE:
        put_text(r, b, "null");
        break;
    case V_BOOL:
        put_text(r, b, v->b ? "true" : "false");
        break;
    case V_INT:
        put_repr(r, b, v, 0);
        break;
    case V_FLOAT:
        if (isnan(v->d) || isinf(v->d))
            put_text(r, b, isnan(v->d) ? "NaN" : v->d < 0 ? "-Infinity" : "Infinity");
        else
            put_double(r, b, v->d);
        break;
    case V_STRING:
        put_json_string(r, b, v->s, style->ascii);
        break;
    case V_SEQ:
        if (v->seq->kind > S_TUPLE) {
            fail(r, E_UNSUPPORTED, "tojson of a generator, range or view; put '| list' before.");
            break;
        }
        put_text(r, b, "[");
        for (size_t i = 0; i < v->seq->n && !r->error; i++) {
            if (i)
                put_separator(r, b, style->item_separator, style->indent < 0 ? ", " : ",");
            new_line(r, b, style->indent, depth + 1);
            put_json(r, b, &v->seq->items[i], style, depth + 1);
        }
        if (v->seq->n)
            new_line(r, b, style->indent, depth);
        put_text(r, b, "]");
        break;
    case V_DICT:
        put_json_dict(r, b, v->dict, style, depth);
        break;
    default:
        fail(r, E_UNSUPPORTED, "tojson of a %s.", kind_name(v));
    }
}
