/* Filters; see jinja_ast.h. Those that Jinja makes generators of are generators here, too: walked
 * once, and true whatever they hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/jinja_ast.h"

typedef struct value filter_fn(struct run *r, struct value v, const struct args *args);

static struct value usage(struct run *r, const char *name) {
    return fail(r, E_UNSUPPORTED, "'%s' with such arguments is not supported.", name);
}

/* The argument as an integer; `absent` if it was not given. */
static int64_t int_arg(struct run *r, const struct args *a, size_t i, const char *name,
                       int64_t absent) {
    const struct value *v = jinja_arg(a, i, name);
    if (!v || v->kind == V_NONE)
        return absent;
    if (v->kind != V_INT && v->kind != V_BOOL) {
        usage(r, name);
        return absent;
    }
    return as_int(v);
}

static bool bool_arg(const struct args *a, size_t i, const char *name, bool absent) {
    const struct value *v = jinja_arg(a, i, name);
    return v ? truth(v) : absent;
}

static struct value f_abs(struct run *r, struct value v, const struct args *a) {
    (void)a;
    if (v.kind == V_FLOAT)
        return v_float(fabs(v.d));
    if (!is_number(&v) || as_int(&v) == INT64_MIN)
        return usage(r, "abs");
    return v_int(as_int(&v) < 0 ? -as_int(&v) : as_int(&v));
}

static struct value f_case(struct run *r, struct value v, enum text_case how) {
    struct value s = to_str(r, &v);
    return r->error ? v_undefined() : text_case(r, s.s, how);
}

static struct value f_upper(struct run *r, struct value v, const struct args *a) {
    (void)a;
    return f_case(r, v, CASE_UPPER);
}

static struct value f_lower(struct run *r, struct value v, const struct args *a) {
    (void)a;
    return f_case(r, v, CASE_LOWER);
}

static struct value f_capitalize(struct run *r, struct value v, const struct args *a) {
    (void)a;
    return f_case(r, v, CASE_CAPITAL);
}

static struct value f_title(struct run *r, struct value v, const struct args *a) {
    (void)a;
    return f_case(r, v, CASE_FILTER_TITLE);
}

static struct value f_default(struct run *r, struct value v, const struct args *a) {
    const struct value *other = jinja_arg(a, 0, "default_value");
    if (v.kind != V_UNDEFINED && !(bool_arg(a, 1, "boolean", false) && !truth(&v)))
        return v;
    return other ? *other : v_string(r, "", 0, true);
}

static struct value f_first(struct run *r, struct value v, const struct args *a) {
    (void)a;
    struct value walked = v;
    struct seq *all = walk(r, &walked);
    if (!all || all->n == 0)
        return v_undefined();
    if (v.kind == V_SEQ && v.seq->kind == S_GENERATOR) { /* the rest may still be walked */
        v.seq->items = all->items + 1;
        v.seq->n = all->n - 1;
    }
    return all->items[0];
}

static struct value f_last(struct run *r, struct value v, const struct args *a) {
    (void)a;
    if (v.kind == V_SEQ && v.seq->kind == S_GENERATOR)
        return fail(r, E_UNSUPPORTED, "a generator has no last item; put '| list' before.");
    struct seq *all = walk(r, &v);
    return all && all->n ? all->items[all->n - 1] : v_undefined();
}

static struct value f_length(struct run *r, struct value v, const struct args *a) {
    (void)a;
    switch (v.kind) {
    case V_UNDEFINED:
        return v_int(0);
    case V_STRING:
        return step(r, v.s->n / 16) ? v_int((int64_t)count_chars(v.s->text, v.s->n)) : v;
    case V_SEQ:
        if (v.seq->kind == S_GENERATOR)
            break;
        return v_int((int64_t)v.seq->n);
    case V_DICT:
        return v_int((int64_t)v.dict->n);
    default:
        break;
    }
    return fail(r, E_INVAL, "a %s has no length.", v.kind == V_SEQ ? "generator" : kind_name(&v));
}

static struct value f_list(struct run *r, struct value v, const struct args *a) {
    (void)a;
    struct seq *all = walk(r, &v);
    return all ? (struct value){.kind = V_SEQ, .seq = all} : v_undefined();
}

static struct value f_string(struct run *r, struct value v, const struct args *a) {
    (void)a;
    return to_str(r, &v);
}

static struct value f_safe(struct run *r, struct value v, const struct args *a) {
    (void)a;
    struct value s = to_str(r, &v);
    struct value copy = r->error ? s : v_part(r, s.s, 0, s.s->n);
    if (!r->error)
        copy.s->safe = true;
    return copy;
}

static struct value f_trim(struct run *r, struct value v, const struct args *a) {
    const struct value *chars = jinja_arg(a, 0, "chars");
    struct value s = to_str(r, &v);
    if (r->error || (chars && chars->kind != V_STRING && chars->kind != V_NONE))
        return usage(r, "trim");
    return text_strip(r, s.s, chars && chars->kind == V_STRING ? chars->s : NULL, true, true);
}

static struct value f_replace(struct run *r, struct value v, const struct args *a) {
    const struct value *old = jinja_arg(a, 0, "old"), *with = jinja_arg(a, 1, "new");
    struct value s = to_str(r, &v);
    if (r->error || !old || !with || old->kind != V_STRING || with->kind != V_STRING)
        return usage(r, "replace");
    return text_replace(r, s.s, old->s, with->s, int_arg(r, a, 2, "count", -1));
}

/* A step of a path: a name, or an index where it is all digits. */
static struct value path_step(struct run *r, const struct string *s, size_t from, size_t end) {
    int64_t index = 0;
    size_t at = from;
    for (; at < end && at - from < 10 && s->text[at] >= '0' && s->text[at] <= '9'; at++)
        index = 10 * index + (s->text[at] - '0');
    return at == end && end > from ? v_int(index) : v_part(r, s, from, end);
}

/* An item's attribute, perhaps of an attribute ("a.b"), as map, join and the like name it. */
static struct value attribute_path(struct run *r, struct value v, const struct value *path) {
    if (path->kind == V_INT)
        return jinja_item(r, &v, path);
    if (path->kind != V_STRING)
        return usage(r, "attribute");
    const struct string *s = path->s;
    for (size_t from = 0; from <= s->n && !r->error;) {
        const char *dot = s->n > from ? memchr(s->text + from, '.', s->n - from) : NULL;
        size_t end = dot ? (size_t)(dot - s->text) : s->n;
        struct value part = path_step(r, s, from, end);
        if (r->error)
            break;
        /* Jinja's make_attrgetter asks an undefined value, which fails. */
        if (v.kind == V_UNDEFINED)
            return fail(r, E_INVAL, "an item has no '%.*s'.", (int)s->n, s->text);
        v = jinja_item(r, &v, &part);
        from = end + 1;
    }
    return v;
}

static struct value f_join(struct run *r, struct value v, const struct args *a) {
    const struct value *by = jinja_arg(a, 0, "d"), *attribute = jinja_arg(a, 1, "attribute");
    struct builder b = {0};
    struct seq *all = walk(r, &v);
    for (size_t i = 0; all && i < all->n && !r->error; i++) {
        struct value item = all->items[i];
        if (attribute)
            item = attribute_path(r, item, attribute);
        if (item.kind == V_STRING && item.s->safe)
            return usage(r, "join");
        if (i && by && !r->error)
            put_str(r, &b, by);
        if (!r->error)
            put_str(r, &b, &item);
    }
    return built(r, &b);
}

static struct value f_items(struct run *r, struct value v, const struct args *a) {
    (void)a;
    struct value list = v_seq(r, S_GENERATOR, 0);
    if (v.kind == V_UNDEFINED)
        return list;
    if (v.kind != V_DICT)
        return fail(r, E_INVAL, "items of a %s.", kind_name(&v));
    for (size_t i = 0; i < v.dict->n && step(r, 0); i++) {
        struct value pair = v_seq(r, S_TUPLE, 2);
        seq_add(r, pair.seq, v.dict->entries[i].key);
        seq_add(r, pair.seq, v.dict->entries[i].value);
        seq_add(r, list.seq, pair);
    }
    return list;
}

static struct value f_tojson(struct run *r, struct value v, const struct args *a) {
    struct json_style style = {.indent = (int)int_arg(r, a, 1, "indent", -1),
                               .ascii = bool_arg(a, 0, "ensure_ascii", false),
                               .sort = bool_arg(a, 3, "sort_keys", false)};
    const struct value *separators = jinja_arg(a, 2, "separators");
    if (separators && separators->kind == V_SEQ && separators->seq->n == 2 &&
        separators->seq->items[0].kind == V_STRING && separators->seq->items[1].kind == V_STRING) {
        style.item_separator = separators->seq->items[0].s;
        style.key_separator = separators->seq->items[1].s;
    } else if (separators && separators->kind != V_NONE) {
        return usage(r, "tojson");
    }
    if (style.indent > 64)
        return usage(r, "tojson");
    struct builder b = {0};
    put_json(r, &b, &v, &style, 0);
    return built(r, &b);
}

static struct value f_int(struct run *r, struct value v, const struct args *a) {
    int64_t other = int_arg(r, a, 0, "default", 0);
    char text[64], *end;
    if (int_arg(r, a, 1, "base", 10) != 10)
        return usage(r, "int");
    if (is_number(&v) && v.kind != V_FLOAT)
        return v_int(as_int(&v));
    if (v.kind == V_FLOAT)
        return fabs(v.d) < 9e18 ? v_int((int64_t)v.d) : v_int(other);
    struct value s = v.kind == V_STRING ? text_strip(r, v.s, NULL, true, true) : v;
    if (v.kind != V_STRING || r->error || s.s->n == 0 || s.s->n > 18)
        return v_int(other);
    memcpy(text, s.s->text, s.s->n);
    text[s.s->n] = 0;
    if (strspn(text, "+-0123456789.eE") != s.s->n)
        return v_int(other);
    long long whole = strtoll(text, &end, 10);
    if (*end == 0)
        return v_int(whole);
    double d = strtod(text, &end);
    return *end == 0 && fabs(d) < 9e18 ? v_int((int64_t)d) : v_int(other);
}

static struct value f_float(struct run *r, struct value v, const struct args *a) {
    const struct value *other = jinja_arg(a, 0, "default");
    char text[64], *end;
    struct value absent = other ? *other : v_float(0);
    if (is_number(&v))
        return v_float(as_double(&v));
    struct value s = v.kind == V_STRING ? text_strip(r, v.s, NULL, true, true) : v;
    if (v.kind != V_STRING || r->error || s.s->n == 0 || s.s->n >= sizeof text)
        return absent;
    memcpy(text, s.s->text, s.s->n);
    text[s.s->n] = 0;
    if (strspn(text, "+-0123456789.eE") != s.s->n)
        return absent;
    double d = strtod(text, &end);
    return *end == 0 ? v_float(d) : absent;
}

static struct value f_round(struct run *r, struct value v, const struct args *a) {
    if (a->n || a->n_named || !is_number(&v))
        return usage(r, "round");
    return v_float(v.kind == V_FLOAT ? nearbyint(v.d) : as_double(&v));
}

/* Lines after the first (and the first, on demand) start further right. */
static struct value f_indent(struct run *r, struct value v, const struct args *a) {
    const struct value *width = jinja_arg(a, 0, "width");
    struct value s = to_str(r, &v), tab = v_string(r, "    ", 4, true);
    bool first = bool_arg(a, 1, "first", false), blank = bool_arg(a, 2, "blank", false);
    if (width && width->kind == V_STRING) {
        tab = *width;
    } else if (width && width->kind == V_INT && width->i >= 0 && width->i <= 64) {
        static const char spaces[] =
            "                                                                ";
        tab = v_string(r, spaces, (size_t)width->i, true);
    } else if (width) {
        return usage(r, "indent");
    }
    struct builder b = {0};
    for (size_t from = 0; !r->error && from <= s.s->n;) {
        const char *end = s.s->n > from ? memchr(s.s->text + from, '\n', s.s->n - from) : NULL;
        size_t stop = end ? (size_t)(end - s.s->text) + 1 : s.s->n;
        bool is_blank = stop - from == (end != NULL);
        if (from ? !is_blank || blank : first)
            put_string(r, &b, tab.s);
        struct value line = v_part(r, s.s, from, stop);
        if (!r->error)
            put_string(r, &b, line.s);
        if (!end)
            break;
        from = stop;
    }
    return built(r, &b);
}

static struct value f_reverse(struct run *r, struct value v, const struct args *a) {
    (void)a;
    bool text = v.kind == V_STRING;
    struct seq *all = walk(r, &v);
    struct value list = v_seq(r, S_GENERATOR, all ? all->n : 0);
    for (size_t i = all ? all->n : 0; i > 0 && step(r, 0); i--)
        seq_add(r, list.seq, all->items[i - 1]);
    if (!text || r->error)
        return list;
    struct builder b = {0};
    for (size_t i = 0; i < list.seq->n; i++)
        put_string(r, &b, list.seq->items[i].s);
    return built(r, &b);
}

/* --- choosing --------------------------------------------------------------------------------- */

/* select, reject, selectattr, rejectattr. */
static struct value choose(struct run *r, struct value v, const struct args *a, bool attribute,
                           bool keep) {
    struct value list = v_seq(r, S_GENERATOR, 0);
    struct seq *all = truth(&v) ? walk(r, &v) : NULL; /* none gives nothing, as in Jinja */
    struct args rest = {0};
    char name[32] = "";
    if (attribute && a->n == 0)
        return usage(r, "selectattr");
    if (a->n > attribute) {
        const struct value *test = &a->v[attribute];
        if (test->kind != V_STRING || test->s->n >= sizeof name)
            return usage(r, "select");
        memcpy(name, test->s->text, test->s->n);
        name[test->s->n] = 0;
        if (!jinja_is_test(name))
            return fail(r, E_UNSUPPORTED, "the test '%s' is not supported.", name);
        for (size_t i = (size_t)attribute + 1; i < a->n; i++)
            rest.v[rest.n++] = a->v[i];
    }
    for (size_t i = 0; all && i < all->n && step(r, 0); i++) {
        struct value item = attribute ? attribute_path(r, all->items[i], &a->v[0]) : all->items[i];
        bool yes = !r->error && (*name ? jinja_test(r, name, item, &rest) : truth(&item));
        if (!r->error && yes == keep)
            seq_add(r, list.seq, all->items[i]);
    }
    return list;
}

static struct value f_select(struct run *r, struct value v, const struct args *a) {
    return choose(r, v, a, false, true);
}

static struct value f_reject(struct run *r, struct value v, const struct args *a) {
    return choose(r, v, a, false, false);
}

static struct value f_selectattr(struct run *r, struct value v, const struct args *a) {
    return choose(r, v, a, true, true);
}

static struct value f_rejectattr(struct run *r, struct value v, const struct args *a) {
    return choose(r, v, a, true, false);
}

static struct value f_map(struct run *r, struct value v, const struct args *a) {
    const struct value *attribute = jinja_arg(a, SIZE_MAX, "attribute");
    const struct value *other = jinja_arg(a, SIZE_MAX, "default");
    struct value list = v_seq(r, S_GENERATOR, 0);
    struct seq *all = truth(&v) ? walk(r, &v) : NULL; /* none gives nothing, as in Jinja */
    struct args rest = {0};
    char name[32] = "";
    if (!attribute) {
        if (a->n == 0 || a->v[0].kind != V_STRING || a->v[0].s->n >= sizeof name)
            return usage(r, "map");
        memcpy(name, a->v[0].s->text, a->v[0].s->n);
        name[a->v[0].s->n] = 0;
        if (!jinja_is_filter(name))
            return fail(r, E_UNSUPPORTED, "the filter '%s' is not supported.", name);
        rest = *a;
        memmove(rest.v, rest.v + 1, (rest.n - 1) * sizeof rest.v[0]);
        rest.n--;
    }
    for (size_t i = 0; all && i < all->n && step(r, 0); i++) {
        struct value item = attribute ? attribute_path(r, all->items[i], attribute)
                                      : jinja_filter(r, name, all->items[i], &rest);
        if (item.kind == V_UNDEFINED && other)
            item = *other;
        seq_add(r, list.seq, item);
    }
    return list;
}

/* --- ordering --------------------------------------------------------------------------------- */

/* What a sort compares: the item or its attribute; text without case unless asked. */
static struct value sort_key(struct run *r, struct value v, const struct value *attribute,
                             bool with_case) {
    if (attribute && attribute->kind != V_NONE)
        v = attribute_path(r, v, attribute);
    return v.kind == V_STRING && !with_case && !r->error ? text_case(r, v.s, CASE_LOWER) : v;
}

struct keyed {
    struct value key, item;
};

/* Stable, as Python's: merging runs of doubling length. */
static void sort_keyed(struct run *r, struct keyed *v, struct keyed *spare, size_t n, bool back) {
    for (size_t width = 1; width < n && !r->error; width *= 2) {
        for (size_t from = 0; from < n; from += 2 * width) {
            size_t middle = from + width < n ? from + width : n;
            size_t end = middle + width < n ? middle + width : n, a = from, b = middle;
            for (size_t k = from; k < end && step(r, 0); k++) {
                bool right =
                    b < end && (a == middle || (back ? order(r, &v[b].key, &v[a].key) > 0
                                                     : order(r, &v[b].key, &v[a].key) < 0));
                spare[k] = right ? v[b++] : v[a++];
            }
        }
        memcpy(v, spare, n * sizeof *v);
    }
}

static struct value sorted(struct run *r, struct seq *all, const struct value *attribute,
                           bool with_case, bool back) {
    size_t n = all ? all->n : 0;
    struct value list = v_seq(r, S_LIST, n);
    struct keyed *v = take(r, (n + 1) * sizeof *v), *spare = take(r, (n + 1) * sizeof *spare);
    for (size_t i = 0; i < n && !r->error; i++)
        v[i] = (struct keyed){sort_key(r, all->items[i], attribute, with_case), all->items[i]};
    if (!r->error)
        sort_keyed(r, v, spare, n, back);
    for (size_t i = 0; i < n && !r->error; i++)
        seq_add(r, list.seq, v[i].item);
    return list;
}

static struct value f_sort(struct run *r, struct value v, const struct args *a) {
    return sorted(r, walk(r, &v), jinja_arg(a, 2, "attribute"),
                  bool_arg(a, 1, "case_sensitive", false), bool_arg(a, 0, "reverse", false));
}

static struct value f_dictsort(struct run *r, struct value v, const struct args *a) {
    const struct value *by = jinja_arg(a, 1, "by");
    struct value pairs = v.kind == V_DICT ? f_items(r, v, NULL) : usage(r, "dictsort");
    struct value at = v_int(by && is_text(by, "value"));
    if (r->error || (by && !at.i && !is_text(by, "key")))
        return usage(r, "dictsort");
    return sorted(r, pairs.seq, &at, bool_arg(a, 0, "case_sensitive", false),
                  bool_arg(a, 2, "reverse", false));
}

static struct value extreme(struct run *r, struct value v, const struct args *a, int sign) {
    const struct value *attribute = jinja_arg(a, 1, "attribute");
    bool with_case = bool_arg(a, 0, "case_sensitive", false);
    struct seq *all = walk(r, &v);
    if (!all || all->n == 0)
        return v_undefined();
    struct value best = all->items[0], best_key = sort_key(r, best, attribute, with_case);
    for (size_t i = 1; i < all->n && !r->error; i++) {
        struct value key = sort_key(r, all->items[i], attribute, with_case);
        if (!r->error && sign * order(r, &key, &best_key) > 0) {
            best = all->items[i];
            best_key = key;
        }
    }
    return best;
}

static struct value f_max(struct run *r, struct value v, const struct args *a) {
    return extreme(r, v, a, 1);
}

static struct value f_min(struct run *r, struct value v, const struct args *a) {
    return extreme(r, v, a, -1);
}

static struct value f_sum(struct run *r, struct value v, const struct args *a) {
    const struct value *attribute = jinja_arg(a, 0, "attribute"), *start = jinja_arg(a, 1, "start");
    struct value total = start ? *start : v_int(0);
    struct seq *all = walk(r, &v);
    for (size_t i = 0; all && i < all->n && !r->error; i++) {
        struct value item = attribute && attribute->kind != V_NONE
                                ? attribute_path(r, all->items[i], attribute)
                                : all->items[i];
        if (!r->error)
            total = jinja_binary(r, O_ADD, &total, &item);
    }
    return total;
}

static struct value f_unique(struct run *r, struct value v, const struct args *a) {
    const struct value *attribute = jinja_arg(a, 1, "attribute");
    bool with_case = bool_arg(a, 0, "case_sensitive", false);
    struct value list = v_seq(r, S_GENERATOR, 0), keys = v_seq(r, S_LIST, 0);
    struct seq *all = walk(r, &v);
    for (size_t i = 0; all && i < all->n && step(r, 0); i++) {
        struct value key = sort_key(r, all->items[i], attribute, with_case);
        if (r->error || jinja_contains(r, &keys, &key))
            continue;
        seq_add(r, keys.seq, key);
        seq_add(r, list.seq, all->items[i]);
    }
    return list;
}

static struct value f_wordcount(struct run *r, struct value v, const struct args *a) {
    (void)a;
    struct value s = to_str(r, &v);
    int64_t words = 0;
    bool inside = false;
    for (size_t i = 0; !r->error && i < s.s->n && step(r, 0); i++) {
        char c = s.s->text[i];
        bool word = c == '_' || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
        if ((unsigned char)c >= 0x80)
            return fail(r, E_UNSUPPORTED, "wordcount beyond ASCII is not supported.");
        words += word && !inside;
        inside = word;
    }
    return v_int(words);
}

static const struct {
    const char *name;
    filter_fn *run;
} filters[] = {{"abs", f_abs},
               {"capitalize", f_capitalize},
               {"count", f_length},
               {"d", f_default},
               {"default", f_default},
               {"dictsort", f_dictsort},
               {"first", f_first},
               {"float", f_float},
               {"indent", f_indent},
               {"int", f_int},
               {"items", f_items},
               {"join", f_join},
               {"last", f_last},
               {"length", f_length},
               {"list", f_list},
               {"lower", f_lower},
               {"map", f_map},
               {"max", f_max},
               {"min", f_min},
               {"reject", f_reject},
               {"rejectattr", f_rejectattr},
               {"replace", f_replace},
               {"reverse", f_reverse},
               {"round", f_round},
               {"safe", f_safe},
               {"select", f_select},
               {"selectattr", f_selectattr},
               {"sort", f_sort},
               {"string", f_string},
               {"sum", f_sum},
               {"title", f_title},
               {"tojson", f_tojson},
               {"trim", f_trim},
               {"unique", f_unique},
               {"upper", f_upper},
               {"wordcount", f_wordcount}};

static filter_fn *find_filter(const char *name) {
    for (size_t i = 0; i < sizeof filters / sizeof filters[0]; i++)
        if (strcmp(filters[i].name, name) == 0)
            return filters[i].run;
    return NULL;
}

bool jinja_is_filter(const char *name) {
    return find_filter(name) != NULL;
}

struct value jinja_filter(struct run *r, const char *name, struct value v,
                          const struct args *args) {
    filter_fn *filter = find_filter(name);
    if (v.kind == V_STRING && v.s->safe && filter != f_safe && filter != f_string)
        return fail(r, E_UNSUPPORTED, "what 'safe' gave can only be printed.");
    struct value result = filter(r, v, args);
    return r->error ? v_undefined() : result;
}
