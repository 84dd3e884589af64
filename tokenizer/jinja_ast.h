/* The tree of a compiled template and the tokens it is made of. Everything lives in the template's
 * own blocks and is read-only after jinja_compile. */
#ifndef TOKENIZER_JINJA_AST_H
#define TOKENIZER_JINJA_AST_H

#include "tokenizer/jinja_value.h"

enum token_kind {
    T_END,
    T_DATA,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_PRINT_BEGIN,
    T_PRINT_END,
    T_NAME,
    T_STRING,
    T_INT,
    T_FLOAT,
    T_OPERATOR,
};

struct token {
    enum token_kind kind;
    int line;
    const char *text; /* data, names, strings decoded, operators */
    size_t n;
    int64_t i;
    double d;
};

struct tokens {
    struct token *v; /* owned */
    size_t n, cap;
    char *text; /* owned: what decoded strings point to */
    size_t used;
};

/* Line ends in `source` are changed in place; it must live as long as the tokens. Errors: E_FORMAT,
 * E_NOMEM. */
err_t jinja_lex(struct tokens *t, char *source, size_t n, struct why *why);

enum node_kind {
    /* expressions */
    N_CONST,   /* value */
    N_NAME,    /* id */
    N_LIST,    /* list */
    N_TUPLE,   /* list */
    N_DICT,    /* list: key, value, key, value .. */
    N_ATTR,    /* a . text */
    N_ITEM,    /* a [ b ] */
    N_SLICE,   /* a : b : c, each may be NULL */
    N_CALL,    /* a ( list ) */
    N_FILTER,  /* a | text ( list ); a NULL: the body of a block */
    N_TEST,    /* a is text ( list ) */
    N_KEYWORD, /* text = a, in a call's list */
    N_UNARY,   /* op a: - + not */
    N_BINARY,  /* a op b */
    N_AND,
    N_OR,
    N_CONCAT,  /* list joined by ~ */
    N_COMPARE, /* a, then list of N_BINARY (b is the right side) */
    N_COND,    /* b if a else c; c may be NULL */
    /* statements */
    N_BODY,       /* list */
    N_TEXT,       /* value */
    N_PRINT,      /* a */
    N_IF,         /* list: condition, body, ..; a: else, may be NULL */
    N_FOR,        /* a: target, b: what is walked, c: condition or NULL, list: body, else or NULL */
    N_SET,        /* a: target, b: value */
    N_SET_BLOCK,  /* a: target, b: body, c: filter or NULL */
    N_MACRO,      /* id, list: parameters (N_KEYWORD with id; a: default or NULL), b: body */
    N_CALL_BLOCK, /* a: call, b: N_MACRO of the body */
    N_FILTER_BLOCK, /* a: filter, b: body */
    N_SCOPE,        /* list: N_SET, b: body in a scope of its own */
    N_BREAK,
    N_CONTINUE,
};

/* op of N_UNARY, N_BINARY and N_COMPARE's sides. */
enum op {
    O_ADD,
    O_SUB,
    O_MUL,
    O_DIV,
    O_FLOOR,
    O_MOD,
    O_POW,
    O_NOT,
    O_EQ,
    O_NE,
    O_LT,
    O_LE,
    O_GT,
    O_GE,
    O_IN,
    O_NOT_IN
};

struct node {
    enum node_kind kind;
    enum op op;
    int line, id;
    int chain;    /* levels of left operands below */
    bool negated; /* N_TEST: is not */
    const char *text;
    struct value value; /* N_CONST, N_TEXT */
    struct node *a, *b, *c;
    struct node **list;
    size_t n, cap;
};

struct jinja {
    char *source;         /* owned */
    struct tokens tokens; /* strings of the tree point there */
    struct node *root;
    const char **names; /* by id; [n_names] */
    size_t n_names, cap_names;
    struct run memory; /* whose arena holds tree and constants */
    struct jinja_limits limits;
};

/* Names are looked for one by one. Every template knows the first two, whether it has them or not.
 */
enum { NAME_LOOP, NAME_CALLER, MAX_NAMES = 1024 };

/* --- rendering ------------------------------------------------------------------------------- */

struct variable {
    int id;
    struct value value;
};

/* Names of one scope. Lexical: a macro's scope stands in the one it was written in. */
struct env {
    struct env *outer;
    struct variable *v; /* [n] */
    size_t n, cap;
    const struct jinja_variable *given; /* of the outermost: turned into values when first asked */
    size_t n_given;
};

struct macro {
    const struct node *node;
    struct env *env;
};

struct loop {
    struct seq *items;
    size_t at;
    int depth;
    struct value changed; /* what loop.changed saw last; undefined: nothing */
    bool has_changed;
};

struct keyword {
    const char *name;
    struct value value;
};

enum { MAX_ARGS = 32 };

/* Evaluated arguments. */
struct args {
    struct value v[MAX_ARGS];
    struct keyword named[MAX_ARGS];
    size_t n, n_named;
};

struct value jinja_eval(struct run *r, struct env *env, const struct node *n);
struct value jinja_call(struct run *r, const struct value *callee, const struct args *args);
/* The global functions: is there one, and what it gives. */
bool jinja_is_function(const char *name);
struct value jinja_function(struct run *r, const char *name, const struct args *args);
struct value jinja_filter(struct run *r, const char *name, struct value v, const struct args *args);
bool jinja_is_filter(const char *name);
bool jinja_test(struct run *r, const char *name, struct value v, const struct args *args);
bool jinja_is_test(const char *name);
/* obj.name and obj[key] as Jinja looks them up. */
struct value jinja_attribute(struct run *r, const struct value *v, const char *name);
struct value jinja_item(struct run *r, const struct value *v, const struct value *key);
struct value jinja_method(struct run *r, const struct method *m, const struct args *args);
bool jinja_has_method(const struct value *v, const char *name);
struct value jinja_binary(struct run *r, enum op op, const struct value *a, const struct value *b);
bool jinja_contains(struct run *r, struct value *v, const struct value *item);
struct value jinja_slice(struct run *r, const struct value *v, const struct value bounds[3]);
/* Argument number i, or by name; NULL: not given. */
const struct value *jinja_arg(const struct args *a, size_t i, const char *name);

/* str methods that filters share. */
struct value text_strip(struct run *r, const struct string *s, const struct string *chars,
                        bool left, bool right);
struct value text_replace(struct run *r, const struct string *s, const struct string *old,
                          const struct string *with, int64_t most);
enum text_case { CASE_UPPER, CASE_LOWER, CASE_CAPITAL, CASE_TITLE, CASE_FILTER_TITLE };
struct value text_case(struct run *r, const struct string *s, enum text_case how);
bool text_has(struct run *r, const struct string *s, const struct string *part, size_t from,
              size_t *at);

#endif
