/* Tests (`is defined`) and global functions; see jinja_ast.h. */
#include <string.h>
#include <time.h>

#include "tokenizer/jinja_ast.h"

enum { MAX_RANGE = 100000 }; /* as Jinja's sandbox */

static const char *const names[] = {
    "boolean", "callable", "defined",  "divisibleby", "eq",      "equalto",   "==",      "even",
    "false",   "float",    "ge",       "greaterthan", "gt",      "in",        "integer", "iterable",
    "le",      "lessthan", "lower",    "lt",          "mapping", "ne",        "none",    "number",
    "odd",     "sameas",   "sequence", "string",      "true",    "undefined", "upper",   ">",
    ">=",      "<",        "<=",       "!="};

bool jinja_is_test(const char *name) {
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

static bool is_one(const char *name, const char *a, const char *b, const char *c) {
    return strcmp(name, a) == 0 || strcmp(name, b) == 0 || (c && strcmp(name, c) == 0);
}

/* Tests of two values; -1: no such test. */
static int compare_test(struct run *r, const char *name, struct value *v, struct value *other) {
    if (is_one(name, "eq", "equalto", "=="))
        return equal(r, v, other);
    if (is_one(name, "ne", "!=", NULL))
        return !equal(r, v, other);
    if (is_one(name, "gt", "greaterthan", ">"))
        return order(r, v, other) > 0;
    if (is_one(name, "lt", "lessthan", "<"))
        return order(r, v, other) < 0;
    if (is_one(name, "ge", ">=", NULL))
        return order(r, v, other) >= 0;
    if (is_one(name, "le", "<=", NULL))
        return order(r, v, other) <= 0;
    if (strcmp(name, "in") == 0)
        return jinja_contains(r, other, v);
    if (strcmp(name, "sameas") == 0) {
        bool simple = v->kind == V_NONE || v->kind == V_BOOL;
        if (!simple && other->kind != V_NONE && other->kind != V_BOOL)
            fail(r, E_UNSUPPORTED, "'sameas' of other values than true, false and none.");
        return v->kind == other->kind && equal(r, v, other);
    }
    if (strcmp(name, "divisibleby") != 0)
        return -1;
    struct value rest = jinja_binary(r, O_MOD, v, other);
    return !r->error && !truth(&rest);
}

static bool is_case(struct run *r, const struct value *v, bool upper) {
    struct value s = to_str(r, v);
    struct method m = {s, upper ? "isupper" : "islower"};
    struct args none = {0};
    struct value result = r->error ? v_bool(false) : jinja_method(r, &m, &none);
    return truth(&result);
}

static bool is_whole(struct run *r, const struct value *v, int64_t rest) {
    if (!is_number(v) || v->kind == V_FLOAT) {
        fail(r, E_UNSUPPORTED, "'odd' or 'even' of a %s.", kind_name(v));
        return false;
    }
    return ((as_int(v) % 2) + 2) % 2 == rest;
}

bool jinja_test(struct run *r, const char *name, struct value v, const struct args *args) {
    if (args->n > 0) {
        struct value other = args->v[0];
        int yes = compare_test(r, name, &v, &other);
        if (yes >= 0)
            return yes;
        fail(r, E_UNSUPPORTED, "the test '%s' takes no argument.", name);
    }
    enum kind k = v.kind;
    if (strcmp(name, "defined") == 0)
        return k != V_UNDEFINED;
    if (strcmp(name, "undefined") == 0)
        return k == V_UNDEFINED;
    if (strcmp(name, "none") == 0)
        return k == V_NONE;
    if (strcmp(name, "boolean") == 0)
        return k == V_BOOL;
    if (strcmp(name, "true") == 0 || strcmp(name, "false") == 0)
        return k == V_BOOL && v.b == (*name == 't');
    if (strcmp(name, "integer") == 0)
        return k == V_INT;
    if (strcmp(name, "float") == 0)
        return k == V_FLOAT;
    if (strcmp(name, "number") == 0)
        return is_number(&v);
    if (strcmp(name, "string") == 0)
        return k == V_STRING;
    if (strcmp(name, "mapping") == 0)
        return k == V_DICT;
    if (strcmp(name, "iterable") == 0)
        return k == V_STRING || k == V_SEQ || k == V_DICT || k == V_UNDEFINED || k == V_LOOP;
    if (strcmp(name, "sequence") == 0)
        return k == V_STRING || k == V_DICT || k == V_UNDEFINED ||
               (k == V_SEQ && v.seq->kind <= S_RANGE);
    if (strcmp(name, "callable") == 0)
        return k == V_MACRO || k == V_METHOD || k == V_FUNCTION || k == V_UNDEFINED;
    if (strcmp(name, "odd") == 0 || strcmp(name, "even") == 0)
        return is_whole(r, &v, *name == 'o');
    if (strcmp(name, "upper") == 0 || strcmp(name, "lower") == 0)
        return is_case(r, &v, *name == 'u');
    fail(r, E_INVAL, "the test '%s' needs an argument.", name);
    return false;
}

/* --- global functions ------------------------------------------------------------------------- */

static struct value make_range(struct run *r, const struct args *a) {
    int64_t v[3] = {0, 0, 1};
    for (size_t i = 0; i < a->n; i++)
        if (!is_number(&a->v[i]) || a->v[i].kind == V_FLOAT || i == 3)
            return fail(r, E_INVAL, "range needs one to three integers.");
        else
            v[a->n == 1 ? 1 : i] = as_int(&a->v[i]);
    if (a->n == 0 || a->n_named || v[2] == 0)
        return fail(r, E_INVAL, "range needs one to three integers, the third not zero.");
    struct value list = v_seq(r, S_RANGE, 0);
    for (int64_t i = v[0]; (v[2] > 0 ? i < v[1] : i > v[1]) && step(r, 0);) {
        if (list.seq->n == MAX_RANGE)
            return fail(r, E_INVAL, "a range of more than %d numbers.", MAX_RANGE);
        seq_add(r, list.seq, v_int(i));
        if (__builtin_add_overflow(i, v[2], &i))
            break;
    }
    return list;
}

/* namespace(a=1), dict(a=1): perhaps over a dict. */
static struct value make_dict(struct run *r, const struct args *a, bool is_namespace) {
    struct value d = v_dict(r);
    if (a->n > 1 || (a->n == 1 && a->v[0].kind != V_DICT))
        return fail(r, E_UNSUPPORTED, "namespace and dict take one dict and named values.");
    for (size_t i = 0; a->n && i < a->v[0].dict->n && !r->error; i++)
        dict_set(r, d.dict, a->v[0].dict->entries[i].key, a->v[0].dict->entries[i].value);
    for (size_t i = 0; i < a->n_named && !r->error; i++)
        dict_set(r, d.dict, v_text(r, a->named[i].name), a->named[i].value);
    if (is_namespace && !r->error)
        d.kind = V_NAMESPACE;
    return d;
}

static struct value strftime_now(struct run *r, const struct args *a) {
    char format[128], text[512];
    struct tm when;
    time_t now = (time_t)r->limits->now_unix_s;
    const struct value *v = jinja_arg(a, 0, "format");
    if (!v || v->kind != V_STRING || v->s->n >= sizeof format - 1 || memchr(v->s->text, 0, v->s->n))
        return fail(r, E_UNSUPPORTED, "strftime_now needs a short format.");
    memcpy(format, v->s->text, v->s->n);
    format[v->s->n] = 'x'; /* so that an empty result differs from none */
    format[v->s->n + 1] = 0;
    localtime_r(&now, &when);
    size_t n = strftime(text, sizeof text, format, &when);
    char *kept = n ? take(r, n) : NULL;
    if (!kept)
        return fail(r, E_UNSUPPORTED, "strftime_now gives too much.");
    memcpy(kept, text, n - 1);
    return v_string(r, kept, n - 1, true);
}

static const char *const functions[] = {"range", "namespace", "dict", "raise_exception",
                                        "strftime_now"};

bool jinja_is_function(const char *name) {
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
        if (strcmp(functions[i], name) == 0)
            return true;
    return false;
}

struct value jinja_function(struct run *r, const char *name, const struct args *args) {
    if (strcmp(name, "range") == 0)
        return make_range(r, args);
    if (strcmp(name, "namespace") == 0)
        return make_dict(r, args, true);
    if (strcmp(name, "dict") == 0)
        return make_dict(r, args, false);
    if (strcmp(name, "strftime_now") == 0)
        return strftime_now(r, args);
    struct value said = args->n == 1 ? to_str(r, &args->v[0]) : v_text(r, "raise_exception");
    if (r->error)
        return v_undefined();
    return fail(r, E_INVAL, "%.*s", said.s->n < 300 ? (int)said.s->n : 300, said.s->text);
}
