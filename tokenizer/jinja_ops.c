/* Operators, attributes, subscripts and slices as Python and Jinja have them; see jinja_ast.h. */
#include <math.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/jinja_ast.h"

static struct value cannot(struct run *r, const struct value *a, const struct value *b) {
    const struct value *bad = a->kind == V_UNDEFINED ? a : b;
    if (bad->kind == V_UNDEFINED)
        return fail(r, E_INVAL, "'%.60s' is undefined.", bad->name ? bad->name : "a value");
    return fail(r, E_UNSUPPORTED, "an operator between a %s and a %s.", kind_name(a), kind_name(b));
}

static struct value too_large(struct run *r) {
    return fail(r, E_UNSUPPORTED, "an integer of more than 64 bits.");
}

static int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

static struct value integer_power(struct run *r, int64_t base, int64_t exponent) {
    int64_t result = 1;
    if (exponent < 0)
        return v_float(pow((double)base, (double)exponent));
    for (int64_t i = 0; i < exponent && result != 0 && step(r, 0); i++) {
        if (base == 1 || base == -1)
            return v_int(base == 1 || exponent % 2 == 0 ? 1 : -1);
        if (__builtin_mul_overflow(result, base, &result))
            return too_large(r);
    }
    return v_int(result);
}

static struct value integers(struct run *r, enum op op, int64_t a, int64_t b) {
    int64_t out = 0;
    bool over = false;
    if ((op == O_DIV || op == O_FLOOR || op == O_MOD) && b == 0)
        return fail(r, E_INVAL, "a division by zero.");
    if (b == -1 && a == INT64_MIN)
        return too_large(r);
    switch (op) {
    case O_ADD:
        over = __builtin_add_overflow(a, b, &out);
        break;
    case O_SUB:
        over = __builtin_sub_overflow(a, b, &out);
        break;
    case O_MUL:
        over = __builtin_mul_overflow(a, b, &out);
        break;
    case O_DIV:
        return v_float((double)a / (double)b);
    case O_FLOOR:
        out = floor_div(a, b);
        break;
    case O_MOD:
        out = a - floor_div(a, b) * b;
        break;
    default:
        return integer_power(r, a, b);
    }
    return over ? too_large(r) : v_int(out);
}

static struct value doubles(struct run *r, enum op op, double a, double b) {
    if ((op == O_DIV || op == O_FLOOR || op == O_MOD) && b == 0)
        return fail(r, E_INVAL, "a division by zero.");
    switch (op) {
    case O_ADD:
        return v_float(a + b);
    case O_SUB:
        return v_float(a - b);
    case O_MUL:
        return v_float(a * b);
    case O_DIV:
        return v_float(a / b);
    case O_FLOOR:
        return v_float(floor(a / b));
    case O_MOD:
        return v_float(a - floor(a / b) * b);
    default:
        return v_float(pow(a, b));
    }
}

static struct value repeat(struct run *r, const struct value *of, int64_t times) {
    struct builder b = {0};
    if (of->kind == V_STRING) {
        for (int64_t i = 0; i < times && of->s->n && !r->error; i++)
            put_string(r, &b, of->s);
        return built(r, &b);
    }
    struct value list = v_seq(r, of->seq->kind, 0);
    for (int64_t i = 0; i < times && of->seq->n && !r->error; i++)
        for (size_t k = 0; k < of->seq->n && step(r, 0); k++)
            seq_add(r, list.seq, of->seq->items[k]);
    return list;
}

static struct value add_lists(struct run *r, const struct seq *a, const struct seq *b) {
    struct value list = v_seq(r, a->kind, a->n + b->n);
    for (size_t i = 0; i < a->n && step(r, 0); i++)
        seq_add(r, list.seq, a->items[i]);
    for (size_t i = 0; i < b->n && step(r, 0); i++)
        seq_add(r, list.seq, b->items[i]);
    return list;
}

static bool is_list(const struct value *v) {
    return v->kind == V_SEQ && v->seq->kind <= S_TUPLE;
}

struct value jinja_binary(struct run *r, enum op op, const struct value *a, const struct value *b) {
    if (is_number(a) && is_number(b))
        return a->kind == V_FLOAT || b->kind == V_FLOAT ? doubles(r, op, as_double(a), as_double(b))
                                                        : integers(r, op, as_int(a), as_int(b));
    if ((a->kind == V_STRING && a->s->safe) || (b->kind == V_STRING && b->s->safe))
        return fail(r, E_UNSUPPORTED, "what 'safe' gave can only be printed.");
    if (op == O_ADD && a->kind == V_STRING && b->kind == V_STRING) {
        size_t n = a->s->n + b->s->n; /* exactly: templates add up texts in loops */
        struct builder text = {.cap = n, .text = n ? take(r, 2 * n) : NULL};
        text.trust = (unsigned char *)text.text + n;
        if (r->error || n == 0)
            return r->error ? v_undefined() : *a;
        put_string(r, &text, a->s);
        put_string(r, &text, b->s);
        return built(r, &text);
    }
    if (op == O_ADD && is_list(a) && is_list(b) && a->seq->kind == b->seq->kind)
        return add_lists(r, a->seq, b->seq);
    if (op == O_MUL && (a->kind == V_STRING || is_list(a)) && is_number(b) && b->kind != V_FLOAT)
        return repeat(r, a, as_int(b));
    if (op == O_MUL && (b->kind == V_STRING || is_list(b)) && is_number(a) && a->kind != V_FLOAT)
        return repeat(r, b, as_int(a));
    if (op == O_MOD && a->kind == V_STRING)
        return fail(r, E_UNSUPPORTED, "formatting with %% is not supported.");
    return cannot(r, a, b);
}

bool jinja_contains(struct run *r, struct value *v, const struct value *item) {
    if (v->kind == V_STRING && item->kind == V_STRING)
        return text_has(r, v->s, item->s, 0, NULL);
    if (v->kind == V_DICT)
        return dict_get(r, v->dict, item) != NULL;
    if (v->kind == V_UNDEFINED)
        return false;
    if (v->kind != V_SEQ) {
        fail(r, E_UNSUPPORTED, "'in' of a %s and a %s.", kind_name(item), kind_name(v));
        return false;
    }
    struct seq *all = walk(r, v);
    for (size_t i = 0; all && i < all->n && step(r, 0); i++)
        if (equal(r, &all->items[i], item))
            return true;
    return false;
}

/* --- attributes ------------------------------------------------------------------------------- */

static struct value bind(struct run *r, const struct value *v, const char *name) {
    struct method *m = take(r, sizeof *m);
    if (!m)
        return v_undefined();
    *m = (struct method){*v, name};
    return (struct value){.kind = V_METHOD, .method = m};
}

static struct value missing(const char *name) {
    return (struct value){.kind = V_UNDEFINED, .name = name};
}

static struct value loop_attribute(struct run *r, const struct value *v, const char *name) {
    const struct loop *l = v->loop;
    int64_t at = (int64_t)l->at, n = (int64_t)l->items->n;
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"index", at + 1}, {"index0", at}, {"revindex", n - at},
                   {"length", n},     {"depth", 1},   {"revindex0", n - at - 1},
                   {"depth0", 0}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (strcmp(name, numbers[i].name) == 0)
            return v_int(numbers[i].value);
    if (strcmp(name, "first") == 0)
        return v_bool(at == 0);
    if (strcmp(name, "last") == 0)
        return v_bool(at == n - 1);
    if (strcmp(name, "previtem") == 0)
        return at > 0 ? l->items->items[at - 1] : missing(name);
    if (strcmp(name, "nextitem") == 0)
        return at + 1 < n ? l->items->items[at + 1] : missing(name);
    return jinja_has_method(v, name) ? bind(r, v, name) : missing(name);
}

/* obj.name: what Python's getattr gives, then the item of that name. */
struct value jinja_attribute(struct run *r, const struct value *v, const char *name) {
    if (v->kind == V_UNDEFINED)
        return fail(r, E_INVAL, "'%.60s' is undefined, so it has no '%.60s'.",
                    v->name ? v->name : "a value", name);
    if (v->kind == V_STRING && v->s->safe)
        return fail(r, E_UNSUPPORTED, "what 'safe' gave can only be printed.");
    if (v->kind == V_LOOP)
        return loop_attribute(r, v, name);
    if (v->kind != V_NAMESPACE && jinja_has_method(v, name))
        return bind(r, v, name);
    if (v->kind == V_DICT || v->kind == V_NAMESPACE) {
        const struct value *have = dict_get_text(r, v->dict, name);
        if (have)
            return *have;
    }
    return missing(name);
}

static struct value index_of(struct run *r, const struct value *v, int64_t i) {
    if (v->kind == V_STRING) {
        if (!step(r, v->s->n / 16))
            return v_undefined();
        int64_t n = (int64_t)count_chars(v->s->text, v->s->n);
        i += i < 0 ? n : 0;
        if (i < 0 || i >= n)
            return missing("an item");
        size_t at = at_char(v->s->text, v->s->n, (size_t)i);
        uint32_t c;
        return v_part(r, v->s, at, at + utf8_next(v->s->text + at, v->s->n - at, &c));
    }
    int64_t n = (int64_t)v->seq->n;
    i += i < 0 ? n : 0;
    return i < 0 || i >= n || v->seq->kind > S_RANGE ? missing("an item") : v->seq->items[i];
}

/* obj[key]: the item, then the attribute of that name. */
struct value jinja_item(struct run *r, const struct value *v, const struct value *key) {
    if (v->kind == V_UNDEFINED)
        return fail(r, E_INVAL, "'%.60s' is undefined, so it has no items.",
                    v->name ? v->name : "a value");
    if (v->kind == V_DICT) {
        const struct value *have = dict_get(r, v->dict, key);
        if (have)
            return *have;
    }
    if ((v->kind == V_STRING || v->kind == V_SEQ) && (key->kind == V_INT || key->kind == V_BOOL))
        return index_of(r, v, as_int(key));
    if (key->kind == V_STRING) {
        char *name = take(r, key->s->n + 1);
        if (!name)
            return v_undefined();
        memcpy(name, key->s->text, key->s->n);
        name[key->s->n] = 0;
        return strlen(name) == key->s->n ? jinja_attribute(r, v, name) : missing("an item");
    }
    return missing("an item");
}

/* --- slices ----------------------------------------------------------------------------------- */

/* A bound of a slice within 0..n, or -1..n-1 when walking backwards. */
static int64_t bound(const struct value *v, int64_t n, int64_t absent, bool back) {
    if (v->kind == V_NONE)
        return absent;
    int64_t i = as_int(v);
    if (i < 0)
        i = i < -n ? -1 : i + n;
    if (i < 0)
        return back ? -1 : 0;
    return i > n - back ? n - back : i;
}

static struct value slice_string(struct run *r, const struct string *s, int64_t from, int64_t to,
                                 int64_t by, int64_t count) {
    if (by == 1) {
        size_t start = at_char(s->text, s->n, (size_t)from);
        size_t end = from < to ? at_char(s->text, s->n, (size_t)to) : start;
        return v_part(r, s, start, end);
    }
    struct builder b = {0};
    struct value all = {.kind = V_STRING, .s = (struct string *)s};
    struct seq *chars = walk(r, &all);
    for (int64_t k = 0, i = from; chars && k < count && !r->error; k++, i += by)
        put_string(r, &b, chars->items[i].s);
    return built(r, &b);
}

struct value jinja_slice(struct run *r, const struct value *v, const struct value bounds[3]) {
    for (int i = 0; i < 3; i++)
        if (bounds[i].kind != V_NONE && bounds[i].kind != V_INT && bounds[i].kind != V_BOOL)
            return v_undefined(); /* as Jinja: a subscript that fails is undefined */
    if (v->kind == V_UNDEFINED)
        return fail(r, E_INVAL, "'%.60s' is undefined, so it has no items.",
                    v->name ? v->name : "a value");
    if (v->kind != V_STRING && !(v->kind == V_SEQ && v->seq->kind <= S_RANGE))
        return v_undefined();
    int64_t by = bounds[2].kind == V_NONE ? 1 : as_int(&bounds[2]);
    if (by == 0 || (v->kind == V_STRING && !step(r, v->s->n / 16)))
        return v_undefined();
    int64_t n = (int64_t)(v->kind == V_STRING ? count_chars(v->s->text, v->s->n) : v->seq->n);
    if (by > n + 1 || by < -n - 1)
        by = by > 0 ? n + 1 : -n - 1;
    int64_t from = bound(&bounds[0], n, by > 0 ? 0 : n - 1, by < 0);
    int64_t to = bound(&bounds[1], n, by > 0 ? n : -1, by < 0);
    int64_t count = by > 0 ? (to - from + by - 1) / by : (from - to - by - 1) / -by;
    if (v->kind == V_STRING)
        return slice_string(r, v->s, from, to, by, count);
    struct value list = v_seq(r, v->seq->kind, count > 0 ? (size_t)count : 0);
    for (int64_t k = 0, i = from; k < count && step(r, 0); k++, i += by)
        seq_add(r, list.seq, v->seq->items[i]);
    return list;
}
