/* Methods of strings, dicts and loops; see jinja_ast.h. Every one that makes text carries the
 * provenance of each byte over to where it ends up. */
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/jinja_ast.h"
#include "tokenizer/unicode.h"

/* Searches count what they look at, here and below: a long text in a loop is work, too. */
bool text_has(struct run *r, const struct string *s, const struct string *part, size_t from,
              size_t *at) {
    if (from > s->n)
        return false;
    const char *found =
        part->n == 0 ? s->text + from : memmem(s->text + from, s->n - from, part->text, part->n);
    size_t end = found ? (size_t)(found - s->text) : s->n;
    if (found && at)
        *at = end;
    return step(r, (end - from) / 16) && found != NULL;
}

static bool in_set(struct run *r, const struct string *s, size_t at, size_t length,
                   const struct string *chars) {
    uint32_t c;
    if (!step(r, chars ? chars->n / 16 : 0))
        return false;
    if (!chars) {
        utf8_next(s->text + at, length, &c);
        return is_py_space(c);
    }
    return memmem(chars->text, chars->n, s->text + at, length) != NULL;
}

struct value text_strip(struct run *r, const struct string *s, const struct string *chars,
                        bool left, bool right) {
    size_t from = 0, to = s->n;
    uint32_t c;
    while (left && from < to) {
        size_t length = utf8_next(s->text + from, to - from, &c);
        if (!in_set(r, s, from, length, chars))
            break;
        from += length;
    }
    while (right && to > from) {
        size_t at = to - 1;
        while (at > from && ((unsigned char)s->text[at] & 0xc0) == 0x80)
            at--;
        if (!in_set(r, s, at, to - at, chars))
            break;
        to = at;
    }
    return v_part(r, s, from, to);
}

struct value text_replace(struct run *r, const struct string *s, const struct string *old,
                          const struct string *with, int64_t most) {
    struct builder b = {0};
    size_t from = 0, at;
    uint32_t c;
    struct value piece;
    if (old->n == 0) { /* before every character and at the end */
        for (; most != 0 && from <= s->n && !r->error; most--) {
            put_string(r, &b, with);
            if (from == s->n)
                return built(r, &b);
            size_t length = utf8_next(s->text + from, s->n - from, &c);
            piece = v_part(r, s, from, from + length);
            if (!r->error)
                put_string(r, &b, piece.s);
            from += length;
        }
    }
    while (old->n && most != 0 && text_has(r, s, old, from, &at)) {
        piece = v_part(r, s, from, at);
        if (r->error)
            break;
        put_string(r, &b, piece.s);
        put_string(r, &b, with);
        from = at + old->n;
        most--;
    }
    piece = v_part(r, s, from, s->n);
    if (!r->error)
        put_string(r, &b, piece.s);
    return built(r, &b);
}

static bool is_lower(char c) {
    return c >= 'a' && c <= 'z';
}

static bool is_upper(char c) {
    return c >= 'A' && c <= 'Z';
}

static char lower(char c) {
    return is_upper(c) ? (char)(c + 32) : c;
}

static char upper(char c) {
    return is_lower(c) ? (char)(c - 32) : c;
}

/* ASCII alone has its case changed here; letters with case beyond it are refused. */
struct value text_case(struct run *r, const struct string *s, enum text_case how) {
    struct builder b = {0};
    put_string(r, &b, s);
    bool start = true;
    uint32_t c;
    for (size_t at = 0, length; at < b.n && step(r, 0); at += length) {
        length = utf8_next(b.text + at, b.n - at, &c);
        enum unicode_class k = unicode_class(c);
        if (c >= 0x80 && ((k >= U_UPPER && k <= U_MODIFIER) || how == CASE_TITLE ||
                          (c >= 0x2160 && c < 0x2190) || (c >= 0x24b6 && c < 0x24ea) ||
                          (k == U_MARK && c == 0x345)))
            return fail(r, E_UNSUPPORTED,
                        "changing the case of text beyond ASCII (U+%04X) is not supported.", c);
        bool raise = how == CASE_UPPER || (start && how != CASE_LOWER);
        b.text[at] = raise ? upper(b.text[at]) : lower(b.text[at]);
        if (how == CASE_CAPITAL)
            start = false;
        else if (how == CASE_TITLE)
            start = !is_lower(lower(b.text[at]));
        else /* Jinja's filter: a word starts behind white space and -({[< */
            start = is_py_space(c) || (c < 0x80 && c && strchr("-({[<", (int)c));
    }
    return built(r, &b);
}

/* --- splitting and joining -------------------------------------------------------------------- */

static struct value split_white(struct run *r, const struct string *s, int64_t most) {
    struct value list = v_seq(r, S_LIST, 0);
    size_t at = 0, length;
    uint32_t c;
    while (!r->error) {
        while (at < s->n && (length = utf8_next(s->text + at, s->n - at, &c)) && is_py_space(c) &&
               step(r, 0))
            at += length;
        if (at >= s->n)
            break;
        size_t from = at;
        while (at < s->n && (length = utf8_next(s->text + at, s->n - at, &c)) && !is_py_space(c) &&
               step(r, 0))
            at += length;
        if (most-- == 0) { /* the rest, without the white space behind it */
            struct value rest = v_part(r, s, from, s->n);
            if (!r->error)
                seq_add(r, list.seq, text_strip(r, rest.s, NULL, false, true));
            break;
        }
        seq_add(r, list.seq, v_part(r, s, from, at));
    }
    return list;
}

static struct value split_by(struct run *r, const struct string *s, const struct string *by,
                             int64_t most) {
    struct value list = v_seq(r, S_LIST, 0);
    size_t from = 0, at;
    if (by->n == 0)
        return fail(r, E_INVAL, "split by an empty string.");
    while (most-- != 0 && text_has(r, s, by, from, &at)) {
        seq_add(r, list.seq, v_part(r, s, from, at));
        from = at + by->n;
    }
    seq_add(r, list.seq, v_part(r, s, from, s->n));
    return list;
}

/* From the right: at most `most` cuts. */
static struct value rsplit_by(struct run *r, const struct string *s, const struct string *by,
                              int64_t most) {
    struct value pieces = split_by(r, s, by, -1);
    if (r->error || most < 0 || pieces.seq->n <= (size_t)most + 1)
        return pieces;
    struct value list = v_seq(r, S_LIST, 0);
    size_t first = pieces.seq->n - (size_t)most;
    const struct string *last = pieces.seq->items[first - 1].s;
    seq_add(r, list.seq, v_part(r, s, 0, (size_t)(last->text - s->text) + last->n));
    for (size_t i = first; i < pieces.seq->n && !r->error; i++)
        seq_add(r, list.seq, pieces.seq->items[i]);
    return list;
}

static struct value splitlines(struct run *r, const struct string *s) {
    struct value list = v_seq(r, S_LIST, 0);
    size_t from = 0;
    uint32_t c;
    for (size_t at = 0, length; at < s->n && step(r, 0); at += length) {
        length = utf8_next(s->text + at, s->n - at, &c);
        if (!((c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
              c == 0x2029))
            continue;
        seq_add(r, list.seq, v_part(r, s, from, at));
        if (c == '\r' && at + 1 < s->n && s->text[at + 1] == '\n')
            length++;
        from = at + length;
    }
    if (from < s->n)
        seq_add(r, list.seq, v_part(r, s, from, s->n));
    return list;
}

static struct value join(struct run *r, const struct string *by, const struct value *items) {
    struct value v = *items;
    struct seq *all = walk(r, &v);
    struct builder b = {0};
    for (size_t i = 0; all && i < all->n && !r->error; i++) {
        if (all->items[i].kind != V_STRING)
            return fail(r, E_INVAL, "join of a %s.", kind_name(&all->items[i]));
        if (i)
            put_string(r, &b, by);
        put_string(r, &b, all->items[i].s);
    }
    return built(r, &b);
}

static struct value partition(struct run *r, const struct string *s, const struct string *by,
                              bool from_right) {
    struct value tuple = v_seq(r, S_TUPLE, 3);
    size_t at = 0, next;
    bool found = by->n && text_has(r, s, by, 0, &at);
    while (found && from_right && text_has(r, s, by, at + 1, &next))
        at = next;
    if (r->error)
        return tuple;
    size_t cut = found ? at : from_right ? 0 : s->n, behind = found ? at + by->n : cut;
    seq_add(r, tuple.seq, v_part(r, s, 0, cut));
    seq_add(r, tuple.seq, v_part(r, s, found ? at : 0, found ? behind : 0));
    seq_add(r, tuple.seq, v_part(r, s, behind, s->n));
    return tuple;
}

/* --- the methods ------------------------------------------------------------------------------ */

enum method_id {
    M_STRIP,
    M_LSTRIP,
    M_RSTRIP,
    M_STARTSWITH,
    M_ENDSWITH,
    M_SPLIT,
    M_RSPLIT,
    M_SPLITLINES,
    M_UPPER,
    M_LOWER,
    M_CAPITALIZE,
    M_TITLE,
    M_REPLACE,
    M_FIND,
    M_RFIND,
    M_COUNT,
    M_JOIN,
    M_PARTITION,
    M_RPARTITION,
    M_REMOVEPREFIX,
    M_REMOVESUFFIX,
    M_ISDIGIT,
    M_ISALPHA,
    M_ISALNUM,
    M_ISSPACE,
    M_ISUPPER,
    M_ISLOWER,
};

static const char *const string_methods[] = {
    "strip",      "lstrip",  "rstrip",  "startswith", "endswith",   "split",        "rsplit",
    "splitlines", "upper",   "lower",   "capitalize", "title",      "replace",      "find",
    "rfind",      "count",   "join",    "partition",  "rpartition", "removeprefix", "removesuffix",
    "isdigit",    "isalpha", "isalnum", "isspace",    "isupper",    "islower"};
static const char *const dict_methods[] = {"items", "keys", "values", "get"};
static const char *const loop_methods[] = {"cycle", "changed"};

static int find_in(const char *const *names, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return (int)i;
    return -1;
}

#define FIND(names, name) find_in(names, sizeof names / sizeof names[0], name)

bool jinja_has_method(const struct value *v, const char *name) {
    return (v->kind == V_STRING && FIND(string_methods, name) >= 0) ||
           (v->kind == V_DICT && FIND(dict_methods, name) >= 0) ||
           (v->kind == V_LOOP && FIND(loop_methods, name) >= 0);
}

/* Whether every character is in one of the classes, of at least one. */
static bool all_in(struct run *r, const struct string *s, unsigned classes) {
    uint32_t c;
    for (size_t at = 0, length; at < s->n && step(r, 0); at += length) {
        length = utf8_next(s->text + at, s->n - at, &c);
        bool in = classes >> unicode_class(c) & 1;
        if (classes == 1u << U_SPACE)
            in = is_py_space(c);
        else if (c >= 0x80 && unicode_class(c) == U_NUMBER)
            fail(r, E_UNSUPPORTED, "isdigit and isalnum of U+%04X are not supported.", c);
        if (!in)
            return false;
    }
    return s->n > 0;
}

static bool all_of_case(struct run *r, const struct string *s, bool want_upper) {
    bool seen = false;
    for (size_t i = 0; i < s->n && step(r, 0); i++) {
        char c = s->text[i];
        if ((unsigned char)c >= 0x80) {
            fail(r, E_UNSUPPORTED, "isupper and islower beyond ASCII are not supported.");
            return false;
        }
        if (want_upper ? is_lower(c) : is_upper(c))
            return false;
        seen |= want_upper ? is_upper(c) : is_lower(c);
    }
    return seen;
}

static bool has_end(struct run *r, const struct string *s, const struct value *end, bool at_start) {
    return end->kind == V_STRING && end->s->n <= s->n && step(r, end->s->n / 64) &&
           memcmp(s->text + (at_start ? 0 : s->n - end->s->n), end->s->text, end->s->n) == 0;
}

/* startswith and endswith take a string or a tuple of them. */
static struct value test_end(struct run *r, const struct string *s, const struct value *end,
                             bool at_start) {
    if (end->kind == V_STRING)
        return v_bool(has_end(r, s, end, at_start));
    if (end->kind != V_SEQ || end->seq->kind != S_TUPLE)
        return fail(r, E_INVAL, "startswith or endswith of a %s.", kind_name(end));
    for (size_t i = 0; i < end->seq->n && step(r, 0); i++)
        if (has_end(r, s, &end->seq->items[i], at_start))
            return v_bool(true);
    return v_bool(false);
}

static struct value find(struct run *r, const struct string *s, const struct string *part,
                         bool last) {
    size_t at = 0, next;
    if (!text_has(r, s, part, 0, &at))
        return v_int(-1);
    while (last && at < s->n && text_has(r, s, part, at + 1, &next))
        at = next;
    return v_int((int64_t)count_chars(s->text, at));
}

static struct value count(struct run *r, const struct string *s, const struct string *part) {
    int64_t found = 0;
    size_t at;
    if (part->n == 0)
        return step(r, s->n / 16) ? v_int((int64_t)count_chars(s->text, s->n) + 1) : v_none();
    for (size_t from = 0; text_has(r, s, part, from, &at); from = at + part->n)
        found++;
    return v_int(found);
}

/* Methods that need a string as their first argument. */
static struct value with_text(struct run *r, int id, const struct string *s,
                              const struct string *text, const struct args *args) {
    const struct value *most = jinja_arg(args, 1, "maxsplit");
    const struct value *with = jinja_arg(args, 1, NULL), *times = jinja_arg(args, 2, "count");
    int64_t cuts = most && is_number(most) ? as_int(most) : -1;
    struct value end = {.kind = V_STRING, .s = (struct string *)text};
    switch (id) {
    case M_SPLIT:
        return split_by(r, s, text, cuts);
    case M_RSPLIT:
        return rsplit_by(r, s, text, cuts);
    case M_REPLACE:
        if (!with || with->kind != V_STRING)
            return fail(r, E_INVAL, "replace needs two strings.");
        return text_replace(r, s, text, with->s, times && is_number(times) ? as_int(times) : -1);
    case M_FIND:
    case M_RFIND:
        if (with)
            return fail(r, E_UNSUPPORTED, "find from a place on is not supported.");
        return find(r, s, text, id == M_RFIND);
    case M_COUNT:
        return count(r, s, text);
    case M_PARTITION:
    case M_RPARTITION:
        return partition(r, s, text, id == M_RPARTITION);
    case M_REMOVEPREFIX:
        return v_part(r, s, has_end(r, s, &end, true) ? text->n : 0, s->n);
    default: /* M_REMOVESUFFIX */
        return v_part(r, s, 0, has_end(r, s, &end, false) ? s->n - text->n : s->n);
    }
}

static struct value string_method(struct run *r, int id, const struct value *self,
                                  const struct args *args) {
    enum { LETTERS = 1 << U_UPPER | 1 << U_LOWER | 1 << U_TITLE | 1 << U_MODIFIER | 1 << U_LETTER };
    const struct string *s = self->s;
    const struct value *first = jinja_arg(args, 0, id == M_SPLIT || id == M_RSPLIT ? "sep" : NULL);
    const struct value *most = jinja_arg(args, 1, "maxsplit");
    bool none = !first || first->kind == V_NONE, text = first && first->kind == V_STRING;
    switch (id) {
    case M_STRIP:
    case M_LSTRIP:
    case M_RSTRIP:
        if (!none && !text)
            break;
        return text_strip(r, s, none ? NULL : first->s, id != M_RSTRIP, id != M_LSTRIP);
    case M_UPPER:
        return text_case(r, s, CASE_UPPER);
    case M_LOWER:
        return text_case(r, s, CASE_LOWER);
    case M_CAPITALIZE:
        return text_case(r, s, CASE_CAPITAL);
    case M_TITLE:
        return text_case(r, s, CASE_TITLE);
    case M_SPLITLINES:
        return none ? splitlines(r, s) : fail(r, E_UNSUPPORTED, "splitlines with an argument.");
    case M_ISDIGIT:
        return v_bool(all_in(r, s, 1u << U_NUMBER));
    case M_ISALPHA:
        return v_bool(all_in(r, s, LETTERS));
    case M_ISALNUM:
        return v_bool(all_in(r, s, LETTERS | 1u << U_NUMBER));
    case M_ISSPACE:
        return v_bool(all_in(r, s, 1u << U_SPACE));
    case M_ISUPPER:
    case M_ISLOWER:
        return v_bool(all_of_case(r, s, id == M_ISUPPER));
    default:
        break;
    }
    if (id == M_SPLIT && none)
        return split_white(r, s, most && is_number(most) ? as_int(most) : -1);
    if (first && id == M_JOIN)
        return join(r, s, first);
    if (first && (id == M_STARTSWITH || id == M_ENDSWITH) && args->n == 1)
        return test_end(r, s, first, id == M_STARTSWITH);
    if (!text || id == M_STARTSWITH || id == M_ENDSWITH)
        return fail(r, E_UNSUPPORTED, "'%s' with such arguments is not supported.",
                    string_methods[id]);
    return with_text(r, id, s, first->s, args);
}

static struct value dict_method(struct run *r, const struct value *self, const char *name,
                                const struct args *args) {
    const struct dict *d = self->dict;
    if (strcmp(name, "get") == 0) {
        const struct value *key = jinja_arg(args, 0, NULL), *other = jinja_arg(args, 1, NULL);
        const struct value *have = key ? dict_get(r, d, key) : NULL;
        return have ? *have : other ? *other : v_none();
    }
    struct value list = v_seq(r, S_VIEW, d->n);
    for (size_t i = 0; i < d->n && step(r, 0); i++) {
        struct value item = *name == 'k' ? d->entries[i].key : d->entries[i].value;
        if (*name == 'i') {
            item = v_seq(r, S_TUPLE, 2);
            seq_add(r, item.seq, d->entries[i].key);
            seq_add(r, item.seq, d->entries[i].value);
        }
        seq_add(r, list.seq, item);
    }
    return list;
}

static struct value loop_method(struct run *r, struct loop *l, const char *name,
                                const struct args *args) {
    if (strcmp(name, "cycle") == 0)
        return args->n ? args->v[l->at % args->n] : fail(r, E_INVAL, "cycle of nothing.");
    struct value now = v_seq(r, S_TUPLE, args->n);
    for (size_t i = 0; i < args->n && !r->error; i++)
        seq_add(r, now.seq, args->v[i]);
    if (r->error)
        return v_undefined();
    bool changed = !l->has_changed || !equal(r, &l->changed, &now);
    l->changed = now;
    l->has_changed = true;
    return v_bool(changed);
}

struct value jinja_method(struct run *r, const struct method *m, const struct args *args) {
    struct value self = m->self;
    if (self.kind == V_STRING)
        return string_method(r, FIND(string_methods, m->name), &self, args);
    if (self.kind == V_DICT)
        return dict_method(r, &self, m->name, args);
    return loop_method(r, self.loop, m->name, args);
}
