/* Values of a rendering, its memory and its one sticky error. A rendering allocates from an arena
 * that dies with it; nothing is freed alone. Functions that can fail set r->error once and give
 * undefined; callers look when they loop. */
#ifndef TOKENIZER_JINJA_VALUE_H
#define TOKENIZER_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tokenizer/jinja.h"

enum kind {
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_FLOAT,
    V_STRING,
    V_SEQ,
    V_DICT,
    V_NAMESPACE,
    V_MACRO,
    V_METHOD,   /* bound to its object */
    V_FUNCTION, /* a global */
    V_LOOP,
};

/* UTF-8. trust: one byte for each of text; NULL: all of it is as `trusted` says. */
struct string {
    const char *text;
    const unsigned char *trust;
    size_t n;
    bool trusted;
    bool safe; /* '| safe': joined with other text, Jinja would escape that: refused here */
};

struct value {
    enum kind kind;
    union {
        bool b;
        int64_t i;
        double d;
        struct string *s;
        struct seq *seq;
        struct dict *dict; /* V_DICT, V_NAMESPACE */
        struct macro *macro;
        struct method *method;
        struct loop *loop;
        const char *name; /* V_FUNCTION; V_UNDEFINED: what was looked for, or NULL */
    };
};

/* A generator can be walked once and is true whatever it holds; a view is a dict's keys, values or
 * items. Both look like lists to a loop. */
enum seq_kind { S_LIST, S_TUPLE, S_RANGE, S_VIEW, S_GENERATOR };

struct seq {
    enum seq_kind kind;
    struct value *items; /* [n] */
    size_t n, cap;
};

struct entry {
    struct value key, value;
};

struct dict {
    struct entry *entries; /* [n], in the order they were put */
    size_t n, cap;
};

struct method {
    struct value self;
    const char *name;
};

struct builder {
    char *text;
    unsigned char *trust;
    size_t n, cap;
};

struct block;

struct run {
    struct block *blocks; /* the arena */
    size_t used;          /* of the newest block */
    size_t memory;        /* of all blocks */
    const struct jinja *jinja;
    const struct jinja_limits *limits;
    uint64_t steps;
    int depth, line;
    struct builder *out; /* where statements print */
    err_t error;
    struct why why;
    struct env *globals;
    bool breaking, continuing; /* on the way to the loop's end */
};

/* Sets the error, with the line, unless there is one; gives undefined. */
struct value fail(struct run *r, err_t e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Counts work; false (and an error) when it is too much. */
bool step(struct run *r, size_t n);
/* One call, or one value within a value, deeper; false (and an error) when it is too deep for the
 * stack. Leave with r->depth-- in either case. */
bool deeper(struct run *r);
void *take(struct run *r, size_t n); /* NULL and an error if the memory is spent */
void arena_free(struct run *r);

/* Strings. Bytes are borrowed: they must live as long as the rendering. */
struct value v_string(struct run *r, const char *text, size_t n, bool trusted);
struct value v_text(struct run *r, const char *text); /* trusted, NUL-terminated */
struct value v_part(struct run *r, const struct string *s, size_t from, size_t to);
static inline struct value v_undefined(void) {
    return (struct value){.kind = V_UNDEFINED};
}
static inline struct value v_none(void) {
    return (struct value){.kind = V_NONE};
}
static inline struct value v_bool(bool b) {
    return (struct value){.kind = V_BOOL, .b = b};
}
static inline struct value v_int(int64_t i) {
    return (struct value){.kind = V_INT, .i = i};
}
static inline struct value v_float(double d) {
    return (struct value){.kind = V_FLOAT, .d = d};
}
struct value v_seq(struct run *r, enum seq_kind kind, size_t cap);
void seq_add(struct run *r, struct seq *s, struct value v);
struct value v_dict(struct run *r);
void dict_set(struct run *r, struct dict *d, struct value key, struct value v);
const struct value *dict_get(struct run *r, const struct dict *d, const struct value *key);
const struct value *dict_get_text(struct run *r, const struct dict *d, const char *key);
/* A JSON tree as data; see struct jinja_variable. */
struct value v_json(struct run *r, const json_t *j, const struct jinja_variable *from,
                    bool trusted);

/* Building text. */
void put_bytes(struct run *r, struct builder *b, const char *text, const unsigned char *trust,
               size_t n, bool trusted);
void put_string(struct run *r, struct builder *b, const struct string *s);
void put_text(struct run *r, struct builder *b, const char *text); /* trusted */
struct value built(struct run *r, const struct builder *b);

/* Python's rules. */
bool truth(const struct value *v);
bool equal(struct run *r, const struct value *a, const struct value *b);
/* <0, 0, >0; an error for what Python cannot order. */
int order(struct run *r, const struct value *a, const struct value *b);
const char *kind_name(const struct value *v);
bool is_number(const struct value *v); /* bool too, as in Python */
double as_double(const struct value *v);
int64_t as_int(const struct value *v); /* of V_BOOL and V_INT */
bool is_text(const struct value *v, const char *text);
bool is_py_space(uint32_t c);
size_t count_chars(const char *text, size_t n);
/* Byte offset of character number `chars`; n if there are fewer. */
size_t at_char(const char *text, size_t n, size_t chars);
/* What a loop walks over, as a list; undefined is empty. Consumes a generator. */
struct seq *walk(struct run *r, struct value *v);

/* str(v), repr(v), json.dumps(v). */
void put_str(struct run *r, struct builder *b, const struct value *v);
struct json_style {
    int indent; /* -1: on one line */
    bool ascii, sort;
    const struct string *item_separator, *key_separator; /* NULL: json.dumps' own */
};
void put_json(struct run *r, struct builder *b, const struct value *v,
              const struct json_style *style, int depth);
struct value to_str(struct run *r, const struct value *v);

#endif
