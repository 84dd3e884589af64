/* What the two halves of the parser share: jinja_parse.c reads expressions, jinja_statement.c the
 * tags around them. The first error sticks; every function gives NULL from then on. */
#ifndef TOKENIZER_JINJA_PARSE_H
#define TOKENIZER_JINJA_PARSE_H

#include <string.h>

#include "tokenizer/jinja_ast.h"

enum {
    MAX_TREE_DEPTH = 100, /* brackets, tags, calls in one another */
    MAX_CHAIN = 300,      /* a + b + c ..., a.b.c ...: as deep in the tree */
    MAX_NODES = 1 << 18,
};

struct parser {
    struct jinja *j;
    size_t at;
    int depth, n_nodes;
    err_t error;
    struct why *why;
};

static inline const struct token *peek(const struct parser *p) {
    size_t last = p->j->tokens.n - 1; /* T_END; an error may have walked past it */
    return &p->j->tokens.v[p->at < last ? p->at : last];
}

static inline bool is(const struct token *t, enum token_kind kind, const char *text) {
    return t->kind == kind && strlen(text) == t->n && memcmp(t->text, text, t->n) == 0;
}

static inline bool is_op(const struct parser *p, const char *text) {
    return is(peek(p), T_OPERATOR, text);
}

static inline bool is_name(const struct parser *p, const char *text) {
    return is(peek(p), T_NAME, text);
}

static inline bool skip_op(struct parser *p, const char *text) {
    bool found = is_op(p, text);
    p->at += found;
    return found;
}

static inline bool skip_name(struct parser *p, const char *text) {
    bool found = is_name(p, text);
    p->at += found;
    return found;
}

void *parser_refuse(struct parser *p, err_t e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void parser_expect(struct parser *p, const char *op);
/* One level deeper; false: too deep, or an error before. Leave with p->depth--. */
bool parser_enter(struct parser *p);
/* A copy of the token's text with a NUL, in the template's memory. */
const char *parser_keep(struct parser *p, const struct token *t);
int parser_name(struct parser *p, const struct token *t); /* the id of a name */
struct node *parser_node(struct parser *p, enum node_kind kind);
struct node *parser_with(struct parser *p, enum node_kind kind, struct node *a, struct node *b);
void parser_append(struct parser *p, struct node *n, struct node *item);

struct node *parse_expression(struct parser *p);
struct node *parse_or(struct parser *p); /* without `a if b else c` */
/* One expression, or several with commas between: a tuple. condition: `a if b` may stand in it.
 * brackets: it may be empty. */
struct node *parse_tuple(struct parser *p, bool condition, bool brackets);
struct node *parse_primary(struct parser *p);
struct node *parse_postfix(struct parser *p, struct node *n);
struct node *parse_filter(struct parser *p, struct node *of); /* behind '|' */

#endif
