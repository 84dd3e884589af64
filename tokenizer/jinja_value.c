/* Memory, strings with their provenance, lists and dicts of a rendering; see jinja_value.h. */
#include "tokenizer/jinja_value.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"

enum { BLOCK_BYTES = 16384, MAX_DEPTH = 500 };

struct block {
    struct block *next;
    size_t cap;
    _Alignas(16) char bytes[];
};

struct value fail(struct run *r, err_t e, const char *format, ...) {
    if (!r->error) {
        char text[400];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        r->error = e;
        why_set(&r->why, e, "The chat template, line %d: %s", r->line, text);
    }
    return v_undefined();
}

bool step(struct run *r, size_t n) {
    r->steps += n + 1;
    if (r->steps > r->limits->max_steps)
        fail(r, E_CONTEXT, "it takes more than %llu steps.",
             (unsigned long long)r->limits->max_steps);
    return r->error == E_OK;
}

bool deeper(struct run *r) {
    if (++r->depth > MAX_DEPTH)
        fail(r, E_UNSUPPORTED, "it goes deeper than %d levels.", MAX_DEPTH);
    return r->error == E_OK;
}

void *take(struct run *r, size_t n) {
    n = (n + 15) & ~(size_t)15;
    if (!r->blocks || n > r->blocks->cap - r->used) {
        size_t cap = n > BLOCK_BYTES ? n : BLOCK_BYTES;
        struct block *b = cap > r->limits->max_memory - r->memory ? NULL : malloc(sizeof *b + cap);
        if (!b) {
            fail(r, E_NOMEM, "it needs more than %zu bytes of memory.", r->limits->max_memory);
            return NULL;
        }
        *b = (struct block){.next = r->blocks, .cap = cap};
        r->blocks = b;
        r->used = 0;
        r->memory += cap;
    }
    void *at = r->blocks->bytes + r->used;
    r->used += n;
    return at;
}

void arena_free(struct run *r) {
    while (r->blocks) {
        struct block *next = r->blocks->next;
        free(r->blocks);
        r->blocks = next;
    }
}

struct value v_string(struct run *r, const char *text, size_t n, bool trusted) {
    struct string *s = take(r, sizeof *s);
    if (!s)
        return v_undefined();
    *s = (struct string){.text = text, .n = n, .trusted = trusted};
    return (struct value){.kind = V_STRING, .s = s};
}

struct value v_text(struct run *r, const char *text) {
    return v_string(r, text, strlen(text), true);
}

struct value v_part(struct run *r, const struct string *s, size_t from, size_t to) {
    struct value v = v_string(r, s->text + from, to - from, s->trusted);
    if (v.kind == V_STRING && s->trust)
        v.s->trust = s->trust + from;
    return v;
}

struct value v_seq(struct run *r, enum seq_kind kind, size_t cap) {
    struct seq *s = take(r, sizeof *s);
    struct value *items = s && cap ? take(r, cap * sizeof *items) : NULL;
    if (!s || (cap && !items))
        return v_undefined();
    *s = (struct seq){.kind = kind, .items = items, .cap = cap};
    return (struct value){.kind = V_SEQ, .seq = s};
}

void seq_add(struct run *r, struct seq *s, struct value v) {
    if (!s || r->error)
        return;
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 8;
        struct value *grown = take(r, cap * sizeof *grown);
        if (!grown)
            return;
        if (s->n)
            memcpy(grown, s->items, s->n * sizeof *grown);
        s->items = grown;
        s->cap = cap;
    }
    s->items[s->n++] = v;
}

struct value v_dict(struct run *r) {
    struct dict *d = take(r, sizeof *d);
    if (!d)
        return v_undefined();
    *d = (struct dict){0};
    return (struct value){.kind = V_DICT, .dict = d};
}

static struct entry *dict_find(struct run *r, const struct dict *d, const struct value *key) {
    for (size_t i = 0; i < d->n && step(r, 0); i++)
        if (equal(r, &d->entries[i].key, key))
            return &d->entries[i];
    return NULL;
}

/* Room for one entry more, without looking whether the key is there. */
static void dict_push(struct run *r, struct dict *d, struct value key, struct value v) {
    if (!d || r->error)
        return;
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 8;
        struct entry *grown = take(r, cap * sizeof *grown);
        if (!grown)
            return;
        if (d->n)
            memcpy(grown, d->entries, d->n * sizeof *grown);
        d->entries = grown;
        d->cap = cap;
    }
    d->entries[d->n++] = (struct entry){key, v};
}

void dict_set(struct run *r, struct dict *d, struct value key, struct value v) {
    struct entry *have = r->error ? NULL : dict_find(r, d, &key);
    if (key.kind == V_SEQ || key.kind == V_DICT)
        fail(r, E_UNSUPPORTED, "a %s cannot be a key.", kind_name(&key));
    else if (have)
        have->value = v;
    else
        dict_push(r, d, key, v);
}

const struct value *dict_get(struct run *r, const struct dict *d, const struct value *key) {
    struct entry *e = dict_find(r, d, key);
    return e ? &e->value : NULL;
}

const struct value *dict_get_text(struct run *r, const struct dict *d, const char *key) {
    struct string s = {.text = key, .n = strlen(key)};
    struct value v = {.kind = V_STRING, .s = &s};
    return dict_get(r, d, &v);
}

struct value v_json(struct run *r, const json_t *j, const struct jinja_variable *from,
                    bool trusted) {
    const char *key;
    json_t *item;
    size_t i;
    struct value v = v_undefined();
    if (!step(r, 0))
        return v;
    switch (json_typeof(j)) {
    case JSON_NULL:
        return v_none();
    case JSON_TRUE:
    case JSON_FALSE:
        return v_bool(json_is_true(j));
    case JSON_INTEGER:
        return v_int(json_integer_value(j));
    case JSON_REAL:
        return v_float(json_real_value(j));
    case JSON_STRING:
        return v_string(r, json_string_value(j), json_string_length(j), trusted);
    case JSON_ARRAY:
        v = v_seq(r, S_LIST, json_array_size(j));
        json_array_foreach(j, i, item) {
            if (r->error)
                break;
            seq_add(r, v.seq, v_json(r, item, from, trusted));
        }
        return v;
    case JSON_OBJECT:
        v = v_dict(r);
        json_object_foreach((json_t *)j, key, item) {
            if (r->error)
                break;
            bool own = trusted || (from->trusted_key && strcmp(key, from->trusted_key) == 0);
            /* Keys are distinct in JSON: no search. */
            struct value name = v_string(r, key, strlen(key), trusted);
            struct value inner = v_json(r, item, from, own);
            dict_push(r, v.dict, name, inner);
        }
        return v;
    }
    return v;
}

void put_bytes(struct run *r, struct builder *b, const char *text, const unsigned char *trust,
               size_t n, bool trusted) {
    if (!step(r, n / 16))
        return;
    if (n > r->limits->max_output || b->n > r->limits->max_output - n) {
        fail(r, E_CONTEXT, "it gives more than %zu bytes.", r->limits->max_output);
        return;
    }
    if (n > b->cap - b->n) {
        size_t cap = b->n ? 2 * (b->n + n) : n + 64; /* most are filled once */
        char *grown = take(r, 2 * cap);
        if (!grown)
            return;
        if (b->n) {
            memcpy(grown, b->text, b->n);
            memcpy(grown + cap, b->trust, b->n);
        }
        b->text = grown;
        b->trust = (unsigned char *)grown + cap;
        b->cap = cap;
    }
    if (n == 0)
        return;
    memcpy(b->text + b->n, text, n);
    if (trust)
        memcpy(b->trust + b->n, trust, n);
    else
        memset(b->trust + b->n, trusted, n);
    b->n += n;
}

void put_string(struct run *r, struct builder *b, const struct string *s) {
    put_bytes(r, b, s->text, s->trust, s->n, s->trusted);
}

void put_text(struct run *r, struct builder *b, const char *text) {
    put_bytes(r, b, text, NULL, strlen(text), true);
}

struct value built(struct run *r, const struct builder *b) {
    struct value v = v_string(r, b->n ? b->text : "", b->n, true);
    if (v.kind == V_STRING && b->n)
        v.s->trust = b->trust;
    return v;
}

bool is_number(const struct value *v) {
    return v->kind == V_BOOL || v->kind == V_INT || v->kind == V_FLOAT;
}

int64_t as_int(const struct value *v) {
    return v->kind == V_BOOL ? v->b : v->i;
}

double as_double(const struct value *v) {
    return v->kind == V_FLOAT ? v->d : (double)as_int(v);
}

bool is_text(const struct value *v, const char *text) {
    return v->kind == V_STRING && strlen(text) == v->s->n && memcmp(text, v->s->text, v->s->n) == 0;
}

bool truth(const struct value *v) {
    switch (v->kind) {
    case V_UNDEFINED:
    case V_NONE:
        return false;
    case V_BOOL:
    case V_INT:
        return as_int(v) != 0;
    case V_FLOAT:
        return v->d != 0;
    case V_STRING:
        return v->s->n > 0;
    case V_SEQ:
        return v->seq->kind == S_GENERATOR || v->seq->n > 0;
    case V_DICT:
        return v->dict->n > 0;
    default:
        return true;
    }
}

static bool equal_dicts(struct run *r, const struct dict *a, const struct dict *b) {
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n && step(r, 0); i++) {
        const struct value *other = dict_get(r, b, &a->entries[i].key);
        if (!other || !equal(r, &a->entries[i].value, other))
            return false;
    }
    return true;
}

static bool equal_seqs(struct run *r, const struct seq *a, const struct seq *b) {
    if (a == b)
        return true;
    if (a->kind != b->kind || a->n != b->n || a->kind > S_RANGE)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!equal(r, &a->items[i], &b->items[i]))
            return false;
    return true;
}

bool equal(struct run *r, const struct value *a, const struct value *b) {
    bool same;
    if (is_number(a) && is_number(b))
        return a->kind == V_FLOAT || b->kind == V_FLOAT ? as_double(a) == as_double(b)
                                                        : as_int(a) == as_int(b);
    if (a->kind != b->kind || !step(r, 0))
        return false;
    switch (a->kind) {
    case V_UNDEFINED:
    case V_NONE:
        return true;
    case V_STRING:
        return a->s->n == b->s->n && step(r, a->s->n / 64) &&
               memcmp(a->s->text, b->s->text, a->s->n) == 0;
    case V_SEQ:
    case V_DICT:
        same = deeper(r) && (a->kind == V_SEQ ? equal_seqs(r, a->seq, b->seq)
                                              : equal_dicts(r, a->dict, b->dict));
        r->depth--;
        return same;
    default:
        return a->dict == b->dict;
    }
}

int order(struct run *r, const struct value *a, const struct value *b) {
    if (is_number(a) && is_number(b)) {
        if (a->kind != V_FLOAT && b->kind != V_FLOAT)
            return (as_int(a) > as_int(b)) - (as_int(a) < as_int(b));
        return (as_double(a) > as_double(b)) - (as_double(a) < as_double(b));
    }
    if (a->kind == V_STRING && b->kind == V_STRING) {
        size_t n = a->s->n < b->s->n ? a->s->n : b->s->n;
        int c = n && step(r, n / 64) ? memcmp(a->s->text, b->s->text, n) : 0;
        return c ? c : (a->s->n > b->s->n) - (a->s->n < b->s->n);
    }
    fail(r, E_UNSUPPORTED, "a %s and a %s cannot be ordered.", kind_name(a), kind_name(b));
    return 0;
}

const char *kind_name(const struct value *v) {
    static const char *const names[] = {"undefined value", "None",     "bool", "int",       "float",
                                        "string",          "list",     "dict", "namespace", "macro",
                                        "method",          "function", "loop"};
    return names[v->kind];
}

bool is_py_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t count_chars(const char *text, size_t n) {
    size_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)text[i] & 0xc0) != 0x80;
    return chars;
}

size_t at_char(const char *text, size_t n, size_t chars) {
    size_t i = 0;
    for (; i < n; i++)
        if (((unsigned char)text[i] & 0xc0) != 0x80 && chars-- == 0)
            break;
    return i;
}

struct seq *walk(struct run *r, struct value *v) {
    struct value list = v_seq(r, S_LIST, 0);
    if (r->error)
        return NULL;
    switch (v->kind) {
    case V_UNDEFINED:
        break;
    case V_STRING: {
        const struct string *s = v->s;
        uint32_t c;
        for (size_t at = 0, length; at < s->n && step(r, 0); at += length) {
            length = utf8_next(s->text + at, s->n - at, &c);
            seq_add(r, list.seq, v_part(r, s, at, at + length));
        }
        break;
    }
    case V_DICT:
        for (size_t i = 0; i < v->dict->n && step(r, 0); i++)
            seq_add(r, list.seq, v->dict->entries[i].key);
        break;
    case V_SEQ:
        *list.seq = *v->seq;
        list.seq->kind = S_LIST;
        list.seq->cap = list.seq->n; /* adding copies: the items are shared */
        if (v->seq->kind == S_GENERATOR)
            v->seq->n = 0;
        break;
    default:
        fail(r, E_UNSUPPORTED, "a %s cannot be looped over.", kind_name(v));
    }
    return r->error ? NULL : list.seq;
}
