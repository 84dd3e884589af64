/* Tokens to a tree, by Jinja's grammar (its precedences, its tuples); see jinja_ast.h. Names of
 * filters, tests and statements are checked here, so that a template with one that is missing is
 * refused when it is loaded, not when a request meets it. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/jinja_parse.h"

void *parser_refuse(struct parser *p, err_t e, const char *format, ...) {
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!p->error)
        p->error = why_set(p->why, e, "The chat template, line %d: %s", peek(p)->line, text);
    return NULL;
}

void parser_expect(struct parser *p, const char *text) {
    if (!p->error && !skip_op(p, text))
        parser_refuse(p, E_FORMAT, "'%s' is missing before '%.*s'.", text, (int)peek(p)->n,
                      peek(p)->text);
}

/* A copy with a NUL, in the template's memory. */
const char *parser_keep(struct parser *p, const struct token *t) {
    char *copy = take(&p->j->memory, t->n + 1);
    if (!copy)
        return parser_refuse(p, E_NOMEM, "no memory.");
    memcpy(copy, t->text, t->n);
    copy[t->n] = 0;
    return copy;
}

int parser_name(struct parser *p, const struct token *t) {
    struct jinja *j = p->j;
    for (size_t i = 0; i < j->n_names; i++)
        if (strlen(j->names[i]) == t->n && memcmp(j->names[i], t->text, t->n) == 0)
            return (int)i;
    if (t->n > JINJA_MAX_NAME)
        parser_refuse(p, E_FORMAT, "a name has more than %d bytes.", JINJA_MAX_NAME);
    if (j->n_names == MAX_NAMES)
        parser_refuse(p, E_FORMAT, "there are more than %d names.", MAX_NAMES);
    if (p->error)
        return 0;
    if (j->n_names == j->cap_names) {
        size_t cap = j->cap_names ? 2 * j->cap_names : 32;
        const char **grown = take(&j->memory, cap * sizeof *grown);
        if (!grown) {
            parser_refuse(p, E_NOMEM, "no memory.");
            return 0;
        }
        if (j->n_names)
            memcpy(grown, j->names, j->n_names * sizeof *grown);
        j->names = grown;
        j->cap_names = cap;
    }
    const char *name = parser_keep(p, t);
    if (name)
        j->names[j->n_names++] = name;
    return (int)j->n_names - 1;
}

static struct node *node_at(struct parser *p, enum node_kind kind, int line) {
    struct node *n = p->error ? NULL : take(&p->j->memory, sizeof *n);
    if (!n || ++p->n_nodes > MAX_NODES)
        return parser_refuse(p, E_NOMEM, "it is too large.");
    *n = (struct node){.kind = kind, .line = line};
    return n;
}

struct node *parser_node(struct parser *p, enum node_kind kind) {
    return node_at(p, kind, peek(p)->line);
}

struct node *parser_with(struct parser *p, enum node_kind kind, struct node *a, struct node *b) {
    struct node *n = parser_node(p, kind);
    if (n) {
        n->a = a;
        n->b = b;
        if (a)
            n->line = a->line;
        n->chain = a ? a->chain + 1 : 0;
        if (n->chain > MAX_CHAIN)
            return parser_refuse(p, E_FORMAT, "a chain of operators has more than %d links.",
                                 MAX_CHAIN);
    }
    return n;
}

void parser_append(struct parser *p, struct node *n, struct node *item) {
    if (!n || !item || p->error)
        return;
    if (n->n == n->cap) {
        size_t cap = n->cap ? 2 * n->cap : 4;
        struct node **grown = take(&p->j->memory, cap * sizeof *grown);
        if (!grown) {
            parser_refuse(p, E_NOMEM, "no memory.");
            return;
        }
        if (n->n)
            memcpy(grown, n->list, n->n * sizeof *grown);
        n->list = grown;
        n->cap = cap;
    }
    n->list[n->n++] = item;
}

static struct node *constant(struct parser *p, struct value v) {
    struct node *n = parser_node(p, N_CONST);
    if (n)
        n->value = v;
    return n;
}

/* --- expressions ------------------------------------------------------------------------------ */

static struct node *parse_unary(struct parser *p, bool with_filter);

bool parser_enter(struct parser *p) {
    if (++p->depth > MAX_TREE_DEPTH)
        parser_refuse(p, E_FORMAT, "it is nested deeper than %d levels.", MAX_TREE_DEPTH);
    return !p->error;
}

/* Arguments up to the closing bracket, the opening one being passed. */
static void parse_args(struct parser *p, struct node *call) {
    while (!p->error && !is_op(p, ")")) {
        const struct token *t = peek(p);
        if (is_op(p, "*") || is_op(p, "**")) {
            parser_refuse(p, E_UNSUPPORTED, "*args and **kwargs in calls are not supported.");
        } else if (t->kind == T_NAME && is(t + 1, T_OPERATOR, "=")) {
            struct node *keyword = parser_node(p, N_KEYWORD);
            if (keyword)
                keyword->text = parser_keep(p, t);
            p->at += 2;
            struct node *value = parse_expression(p);
            if (keyword)
                keyword->a = value;
            parser_append(p, call, keyword);
        } else {
            parser_append(p, call, parse_expression(p));
        }
        if (!skip_op(p, ","))
            break;
    }
    parser_expect(p, ")");
    if (call && call->n > MAX_ARGS)
        parser_refuse(p, E_UNSUPPORTED, "a call has more than %d arguments.", MAX_ARGS);
}

static struct node *parse_call(struct parser *p, struct node *callee) {
    struct node *call = parser_with(p, N_CALL, callee, NULL);
    p->at++;
    parse_args(p, call);
    return call;
}

static bool ends_tuple(const struct parser *p) {
    enum token_kind k = peek(p)->kind;
    return k == T_PRINT_END || k == T_BLOCK_END || is_op(p, ")") || is_name(p, "in") ||
           is_name(p, "recursive");
}

/* One expression, or several with commas between: a tuple. condition: `a if b` may stand in it. */
struct node *parse_tuple(struct parser *p, bool condition, bool brackets) {
    struct node *first = NULL, *tuple = NULL;
    bool comma = false;
    while (!p->error) {
        if (ends_tuple(p))
            break;
        struct node *item = condition ? parse_expression(p) : parse_or(p);
        if (first && !tuple) {
            tuple = parser_with(p, N_TUPLE, NULL, NULL);
            parser_append(p, tuple, first);
        }
        if (!first)
            first = item;
        else
            parser_append(p, tuple, item);
        comma = skip_op(p, ",");
        if (!comma)
            break;
    }
    if (!first && !brackets)
        return parser_refuse(p, E_FORMAT, "an expression is missing.");
    if (!tuple && (comma || !first)) {
        tuple = parser_node(p, N_TUPLE);
        parser_append(p, tuple, first);
    }
    return tuple ? tuple : first;
}

static struct node *parse_list(struct parser *p) {
    struct node *list = parser_node(p, N_LIST);
    p->at++;
    while (!p->error && !is_op(p, "]")) {
        parser_append(p, list, parse_expression(p));
        if (!skip_op(p, ","))
            break;
    }
    parser_expect(p, "]");
    return list;
}

static struct node *parse_dict(struct parser *p) {
    struct node *dict = parser_node(p, N_DICT);
    p->at++;
    while (!p->error && !is_op(p, "}")) {
        parser_append(p, dict, parse_expression(p));
        parser_expect(p, ":");
        parser_append(p, dict, parse_expression(p));
        if (!skip_op(p, ","))
            break;
    }
    parser_expect(p, "}");
    return dict;
}

/* Strings side by side are one. */
static struct node *parse_string(struct parser *p) {
    struct run *memory = &p->j->memory;
    struct builder b = {0};
    const struct token *t = peek(p);
    struct value v = v_string(memory, t->text, t->n, true);
    p->at++;
    if (peek(p)->kind == T_STRING) {
        put_bytes(memory, &b, t->text, NULL, t->n, true);
        while (peek(p)->kind == T_STRING) {
            put_bytes(memory, &b, peek(p)->text, NULL, peek(p)->n, true);
            p->at++;
        }
        v = v_string(memory, b.text, b.n, true);
    }
    if (memory->error)
        return parser_refuse(p, E_NOMEM, "no memory.");
    return constant(p, v);
}

static struct node *parse_name(struct parser *p) {
    static const struct {
        const char *name;
        struct value value;
    } constants[] = {{"true", {.kind = V_BOOL, .b = true}},
                     {"True", {.kind = V_BOOL, .b = true}},
                     {"false", {.kind = V_BOOL, .b = false}},
                     {"False", {.kind = V_BOOL, .b = false}},
                     {"none", {.kind = V_NONE}},
                     {"None", {.kind = V_NONE}}};
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++)
        if (skip_name(p, constants[i].name))
            return constant(p, constants[i].value);
    struct node *n = parser_node(p, N_NAME);
    if (n) {
        n->id = parser_name(p, peek(p));
        n->text = p->error ? "" : p->j->names[n->id];
    }
    p->at++;
    return n;
}

struct node *parse_primary(struct parser *p) {
    const struct token *t = peek(p);
    struct node *n = NULL;
    if (!parser_enter(p))
        return NULL;
    if (t->kind == T_NAME) {
        n = parse_name(p);
    } else if (t->kind == T_STRING) {
        n = parse_string(p);
    } else if (t->kind == T_INT || t->kind == T_FLOAT) {
        p->at++;
        n = constant(p, t->kind == T_INT ? v_int(t->i) : v_float(t->d));
    } else if (skip_op(p, "(")) {
        n = parse_tuple(p, true, true);
        parser_expect(p, ")");
    } else if (is_op(p, "[")) {
        n = parse_list(p);
    } else if (is_op(p, "{")) {
        n = parse_dict(p);
    } else {
        parser_refuse(p, E_FORMAT,
                      t->kind == T_OPERATOR ? "'%.*s' is out of place."
                                            : "an expression is missing%.*s.",
                      (int)t->n, t->text);
    }
    p->depth--;
    return n;
}

/* a[i] or a[from:to:step], the bracket being passed. */
static struct node *parse_subscript(struct parser *p, struct node *of) {
    struct node *parts[3] = {NULL, NULL, NULL};
    int colons = 0;
    while (!p->error && !is_op(p, "]")) {
        if (skip_op(p, ":")) {
            if (++colons > 2)
                parser_refuse(p, E_FORMAT, "a slice has more than three parts.");
        } else if (parts[colons]) {
            parser_refuse(p, E_UNSUPPORTED, "several subscripts in one bracket are not supported.");
        } else {
            parts[colons] = parse_expression(p);
        }
    }
    parser_expect(p, "]");
    if (colons == 0) {
        if (!parts[0])
            return parser_refuse(p, E_FORMAT, "a subscript is missing.");
        return parser_with(p, N_ITEM, of, parts[0]);
    }
    struct node *slice = parser_with(p, N_SLICE, parts[0], parts[1]);
    if (slice)
        slice->c = parts[2];
    return parser_with(p, N_ITEM, of, slice);
}

struct node *parse_postfix(struct parser *p, struct node *n) {
    while (!p->error) {
        if (skip_op(p, ".")) {
            const struct token *t = peek(p);
            p->at++;
            if (t->kind == T_INT) {
                n = parser_with(p, N_ITEM, n, constant(p, v_int(t->i)));
            } else if (t->kind == T_NAME) {
                struct node *attribute = parser_with(p, N_ATTR, n, NULL);
                if (attribute)
                    attribute->text = parser_keep(p, t);
                n = attribute;
            } else {
                p->at--;
                parser_refuse(p, E_FORMAT, "a name is missing behind '.'.");
            }
        } else if (skip_op(p, "[")) {
            n = parse_subscript(p, n);
        } else if (is_op(p, "(")) {
            n = parse_call(p, n);
        } else {
            break;
        }
    }
    return n;
}

/* The name behind '|' or 'is', and its arguments. */
struct node *parse_filter(struct parser *p, struct node *of) {
    struct node *n = parser_with(p, N_FILTER, of, NULL);
    const struct token *t = peek(p);
    if (t->kind != T_NAME)
        return parser_refuse(p, E_FORMAT, "a filter's name is missing.");
    const char *name = parser_keep(p, t);
    if (name && !jinja_is_filter(name))
        return parser_refuse(p, E_UNSUPPORTED, "the filter '%.40s' is not supported.", name);
    p->at++;
    if (n)
        n->text = name;
    if (skip_op(p, "("))
        parse_args(p, n);
    return n;
}

static struct node *parse_test(struct parser *p, struct node *of) {
    struct node *n = parser_with(p, N_TEST, of, NULL);
    bool negated = skip_name(p, "not");
    const struct token *t = peek(p);
    if (t->kind != T_NAME)
        return parser_refuse(p, E_FORMAT, "a test's name is missing.");
    const char *name = parser_keep(p, t);
    if (name && !jinja_is_test(name))
        return parser_refuse(p, E_UNSUPPORTED, "the test '%.40s' is not supported.", name);
    p->at++;
    if (n) {
        n->text = name;
        n->negated = negated;
    }
    t = peek(p);
    if (skip_op(p, "(")) {
        parse_args(p, n);
    } else if (t->kind == T_STRING || t->kind == T_INT || t->kind == T_FLOAT || is_op(p, "[") ||
               is_op(p, "{") ||
               (t->kind == T_NAME && !is_name(p, "else") && !is_name(p, "or") &&
                !is_name(p, "and"))) {
        if (is_name(p, "is"))
            return parser_refuse(p, E_FORMAT, "tests cannot be chained.");
        parser_append(p, n, parse_postfix(p, parse_primary(p)));
    }
    return n;
}

static struct node *parse_unary(struct parser *p, bool with_filter) {
    struct node *n;
    if (!parser_enter(p))
        return NULL;
    if (is_op(p, "-") || is_op(p, "+")) {
        enum op op = is_op(p, "-") ? O_SUB : O_ADD;
        p->at++;
        n = parser_with(p, N_UNARY, parse_unary(p, false), NULL);
        if (n)
            n->op = op;
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    while (with_filter && !p->error) {
        if (skip_op(p, "|"))
            n = parse_filter(p, n);
        else if (skip_name(p, "is"))
            n = parse_test(p, n);
        else if (is_op(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    p->depth--;
    return n;
}

struct operators {
    const char *text[4];
    enum op op[4];
};

/* The operator of the set that stands here, passed; -1: none. */
static int skip_operator(struct parser *p, const struct operators *set) {
    for (int i = 0; i < 4 && set->text[i]; i++)
        if (skip_op(p, set->text[i]))
            return (int)set->op[i];
    return -1;
}

static struct node *binary(struct parser *p, int op, struct node *a, struct node *b) {
    struct node *n = parser_with(p, N_BINARY, a, b);
    if (n)
        n->op = (enum op)op;
    return n;
}

static struct node *parse_power(struct parser *p) {
    struct node *n = parse_unary(p, true);
    while (!p->error && skip_op(p, "**"))
        n = binary(p, O_POW, n, parse_unary(p, true));
    return n;
}

static struct node *parse_product(struct parser *p) {
    static const struct operators set = {{"*", "/", "//", "%"}, {O_MUL, O_DIV, O_FLOOR, O_MOD}};
    struct node *n = parse_power(p);
    int op;
    while (!p->error && (op = skip_operator(p, &set)) >= 0)
        n = binary(p, op, n, parse_power(p));
    return n;
}

static struct node *parse_concat(struct parser *p) {
    struct node *first = parse_product(p), *n = NULL;
    while (!p->error && skip_op(p, "~")) {
        if (!n) {
            n = parser_with(p, N_CONCAT, NULL, NULL);
            parser_append(p, n, first);
        }
        parser_append(p, n, parse_product(p));
    }
    return n ? n : first;
}

static struct node *parse_sum(struct parser *p) {
    static const struct operators set = {{"+", "-"}, {O_ADD, O_SUB}};
    struct node *n = parse_concat(p);
    int op;
    while (!p->error && (op = skip_operator(p, &set)) >= 0)
        n = binary(p, op, n, parse_concat(p));
    return n;
}

static struct node *parse_compare(struct parser *p) {
    static const struct operators equality = {{"==", "!="}, {O_EQ, O_NE}},
                                  ordering = {{"<=", ">=", "<", ">"}, {O_LE, O_GE, O_LT, O_GT}};
    struct node *first = parse_sum(p), *n = NULL;
    while (!p->error) {
        int op = skip_operator(p, &equality);
        if (op < 0)
            op = skip_operator(p, &ordering);
        if (op < 0 && skip_name(p, "in"))
            op = O_IN;
        if (op < 0 && is_name(p, "not") && is(peek(p) + 1, T_NAME, "in")) {
            p->at += 2;
            op = O_NOT_IN;
        }
        if (op < 0)
            break;
        if (!n)
            n = parser_with(p, N_COMPARE, first, NULL);
        parser_append(p, n, binary(p, op, NULL, parse_sum(p)));
    }
    return n ? n : first;
}

static struct node *parse_not(struct parser *p) {
    if (!is_name(p, "not"))
        return parse_compare(p);
    if (!parser_enter(p))
        return NULL;
    struct node *n = parser_node(p, N_UNARY);
    p->at++;
    struct node *of = parse_not(p);
    if (n) {
        n->op = O_NOT;
        n->a = of;
    }
    p->depth--;
    return n;
}

static struct node *parse_and(struct parser *p) {
    struct node *n = parse_not(p);
    while (!p->error && skip_name(p, "and"))
        n = parser_with(p, N_AND, n, parse_not(p));
    return n;
}

struct node *parse_or(struct parser *p) {
    struct node *n = parse_and(p);
    while (!p->error && skip_name(p, "or"))
        n = parser_with(p, N_OR, n, parse_and(p));
    return n;
}

struct node *parse_expression(struct parser *p) {
    if (!parser_enter(p))
        return NULL;
    struct node *n = parse_or(p);
    while (!p->error && skip_name(p, "if")) {
        struct node *cond = parser_with(p, N_COND, parse_or(p), n);
        if (skip_name(p, "else")) {
            struct node *other = parse_expression(p);
            if (cond)
                cond->c = other;
        }
        n = cond;
    }
    p->depth--;
    return n;
}
