/* Tags to statements; see jinja_parse.h. */
#include <stdlib.h>

#include "config/utf8.h"
#include "tokenizer/jinja_parse.h"

enum { MAX_LOAD_MEMORY = 64 << 20 };

/* Statements up to a tag with one of the names (NULL-terminated), which is left unread. */
static struct node *parse_body(struct parser *p, const char *const *ends);

static void expect_block_end(struct parser *p) {
    if (!p->error && peek(p)->kind != T_BLOCK_END)
        parser_refuse(p, E_FORMAT, "'%.*s' is out of place in a tag.", (int)peek(p)->n,
                      peek(p)->text);
    p->at++;
}

/* The body of a tag and its end tag. */
static struct node *parse_until(struct parser *p, const char *end) {
    const char *const ends[] = {end, NULL};
    expect_block_end(p);
    struct node *body = parse_body(p, ends);
    p->at++;
    expect_block_end(p);
    return body;
}

static struct node *parse_if(struct parser *p) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    struct node *n = parser_node(p, N_IF);
    do {
        parser_append(p, n, parse_tuple(p, false, false));
        expect_block_end(p);
        parser_append(p, n, parse_body(p, ends));
    } while (!p->error && skip_name(p, "elif"));
    if (skip_name(p, "else")) {
        expect_block_end(p);
        struct node *other = parse_body(p, last);
        if (n)
            n->a = other;
    }
    p->at++;
    expect_block_end(p);
    return n;
}

/* Names, or names in brackets, with commas between; or namespace.name where `attribute`. */
static struct node *parse_target(struct parser *p, bool attribute) {
    struct node *first = NULL, *tuple = NULL;
    if (!parser_enter(p))
        return NULL;
    while (!p->error) {
        struct node *one;
        if (skip_op(p, "(")) {
            one = parse_target(p, false);
            parser_expect(p, ")");
        } else if (peek(p)->kind != T_NAME || is_name(p, "in")) {
            break;
        } else {
            one = parse_primary(p);
            if (one && one->kind != N_NAME)
                parser_refuse(p, E_FORMAT, "a constant cannot be set.");
            if (attribute && is_op(p, "."))
                one = parse_postfix(p, one);
        }
        if (first && !tuple) {
            tuple = parser_with(p, N_TUPLE, NULL, NULL);
            parser_append(p, tuple, first);
        }
        if (!first)
            first = one;
        else
            parser_append(p, tuple, one);
        if (!skip_op(p, ","))
            break;
    }
    p->depth--;
    if (!first)
        return parser_refuse(p, E_FORMAT, "a name to set is missing.");
    return tuple ? tuple : first;
}

static struct node *parse_for(struct parser *p) {
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    struct node *n = parser_node(p, N_FOR), *target = parse_target(p, false), *other = NULL;
    if (!p->error && !skip_name(p, "in"))
        return parser_refuse(p, E_FORMAT, "'in' is missing in a for.");
    struct node *walked = parse_tuple(p, false, false), *condition = NULL;
    if (skip_name(p, "if"))
        condition = parse_expression(p);
    if (is_name(p, "recursive"))
        return parser_refuse(p, E_UNSUPPORTED, "recursive loops are not supported.");
    expect_block_end(p);
    struct node *body = parse_body(p, ends);
    if (skip_name(p, "else")) {
        expect_block_end(p);
        other = parse_body(p, last);
    }
    p->at++;
    expect_block_end(p);
    if (n) {
        n->a = target;
        n->b = walked;
        n->c = condition;
        parser_append(p, n, body);
        parser_append(p, n, other);
    }
    return n;
}

static struct node *parse_set(struct parser *p) {
    struct node *target = parse_target(p, true);
    if (skip_op(p, "=")) {
        struct node *n = parser_with(p, N_SET, target, parse_tuple(p, true, false));
        expect_block_end(p);
        return n;
    }
    struct node *filter = NULL;
    while (!p->error && skip_op(p, "|"))
        filter = parse_filter(p, filter);
    struct node *n = parser_with(p, N_SET_BLOCK, target, parse_until(p, "endset"));
    if (n)
        n->c = filter;
    return n;
}

/* The parameters of a macro up to the closing bracket, the opening one being passed. */
static void parse_parameters(struct parser *p, struct node *macro) {
    while (!p->error && !is_op(p, ")")) {
        struct node *parameter = parser_node(p, N_KEYWORD);
        const struct token *t = peek(p);
        if (t->kind != T_NAME) {
            parser_refuse(p, E_FORMAT, "a parameter's name is missing.");
            return;
        }
        p->at++;
        if (parameter)
            parameter->id = parser_name(p, t);
        if (parameter && !p->error)
            parameter->text = p->j->names[parameter->id];
        if (skip_op(p, "=")) {
            struct node *value = parse_expression(p);
            if (parameter)
                parameter->a = value;
        }
        parser_append(p, macro, parameter);
        if (!skip_op(p, ","))
            break;
    }
    parser_expect(p, ")");
    if (macro && macro->n > MAX_ARGS)
        parser_refuse(p, E_UNSUPPORTED, "a macro has more than %d parameters.", MAX_ARGS);
}

static struct node *parse_macro(struct parser *p) {
    struct node *n = parser_node(p, N_MACRO);
    const struct token *t = peek(p);
    if (t->kind != T_NAME)
        return parser_refuse(p, E_FORMAT, "a macro's name is missing.");
    p->at++;
    if (n)
        n->id = parser_name(p, t);
    parser_expect(p, "(");
    if (!p->error)
        parse_parameters(p, n);
    struct node *body = parse_until(p, "endmacro");
    if (n)
        n->b = body;
    return n;
}

/* {% call(a, b) name(...) %}: the body is a macro that the called one knows as `caller`. */
static struct node *parse_call_block(struct parser *p) {
    struct node *body = parser_node(p, N_MACRO);
    if (body)
        body->id = NAME_CALLER;
    if (skip_op(p, "("))
        parse_parameters(p, body);
    struct node *call = parse_expression(p);
    if (call && call->kind != N_CALL)
        return parser_refuse(p, E_FORMAT, "'call' needs a call.");
    struct node *inner = parse_until(p, "endcall");
    if (body)
        body->b = inner;
    return parser_with(p, N_CALL_BLOCK, call, body);
}

static struct node *parse_filter_block(struct parser *p) {
    struct node *filter = parse_filter(p, NULL);
    while (!p->error && skip_op(p, "|"))
        filter = parse_filter(p, filter);
    return parser_with(p, N_FILTER_BLOCK, filter, parse_until(p, "endfilter"));
}

/* {% with a = 1, b = 2 %}, and {% generation %}, which is a scope and no more. */
static struct node *parse_scope(struct parser *p, bool with, const char *end) {
    struct node *n = parser_node(p, N_SCOPE);
    while (with && !p->error && peek(p)->kind != T_BLOCK_END) {
        const struct token *t = peek(p);
        if (t->kind != T_NAME || !is(t + 1, T_OPERATOR, "="))
            return parser_refuse(p, E_FORMAT, "'with' needs NAME = VALUE.");
        struct node *target = parse_primary(p);
        p->at++;
        parser_append(p, n, parser_with(p, N_SET, target, parse_expression(p)));
        if (!skip_op(p, ","))
            break;
    }
    struct node *body = parse_until(p, end);
    if (n)
        n->b = body;
    return n;
}

static struct node *parse_statement(struct parser *p) {
    const struct token *t = peek(p);
    struct node *n;
    if (t->kind != T_NAME)
        return parser_refuse(p, E_FORMAT, "a tag has no name.");
    p->at++;
    if (is(t, T_NAME, "if"))
        return parse_if(p);
    if (is(t, T_NAME, "for"))
        return parse_for(p);
    if (is(t, T_NAME, "set"))
        return parse_set(p);
    if (is(t, T_NAME, "macro"))
        return parse_macro(p);
    if (is(t, T_NAME, "call"))
        return parse_call_block(p);
    if (is(t, T_NAME, "filter"))
        return parse_filter_block(p);
    if (is(t, T_NAME, "with"))
        return parse_scope(p, true, "endwith");
    if (is(t, T_NAME, "generation"))
        return parse_scope(p, false, "endgeneration");
    if (is(t, T_NAME, "break") || is(t, T_NAME, "continue")) {
        n = parser_node(p, is(t, T_NAME, "break") ? N_BREAK : N_CONTINUE);
        expect_block_end(p);
        return n;
    }
    p->at--;
    return parser_refuse(p, E_UNSUPPORTED, "the tag '%.*s' is not supported here.",
                         t->n < 40 ? (int)t->n : 40, t->text);
}

static struct node *parse_text(struct parser *p) {
    const struct token *t = peek(p);
    struct node *n = parser_node(p, N_TEXT);
    struct value v = v_string(&p->j->memory, t->text, t->n, true);
    if (p->j->memory.error)
        return parser_refuse(p, E_NOMEM, "it is too large.");
    if (n)
        n->value = v;
    p->at++;
    return n;
}

static struct node *parse_body(struct parser *p, const char *const *ends) {
    struct node *body = parser_node(p, N_BODY), *one;
    if (!parser_enter(p))
        return NULL;
    while (!p->error && peek(p)->kind != T_END) {
        if (peek(p)->kind == T_DATA) {
            parser_append(p, body, parse_text(p));
        } else if (peek(p)->kind == T_PRINT_BEGIN) {
            p->at++;
            one = parser_with(p, N_PRINT, parse_tuple(p, true, false), NULL);
            if (!p->error && peek(p)->kind != T_PRINT_END)
                parser_refuse(p, E_FORMAT, "'%.*s' is out of place.", (int)peek(p)->n,
                              peek(p)->text);
            p->at++;
            parser_append(p, body, one);
        } else {
            p->at++; /* T_BLOCK_BEGIN */
            for (size_t i = 0; ends && ends[i]; i++)
                if (is_name(p, ends[i])) {
                    p->depth--;
                    return body;
                }
            parser_append(p, body, parse_statement(p));
        }
    }
    p->depth--;
    if (ends && !p->error)
        return parser_refuse(p, E_FORMAT, "'%s' is missing.", ends[0]);
    return p->error ? NULL : body;
}

/* --- the template ----------------------------------------------------------------------------- */

err_t jinja_compile(struct jinja **out, const char *text, size_t n, struct why *why) {
    *out = NULL;
    if (n > JINJA_MAX_BYTES)
        return why_set(why, E_FORMAT, "The chat template has %zu bytes; at most %d are supported.",
                       n, JINJA_MAX_BYTES);
    if (utf8_valid_prefix(text, n) < n)
        return why_set(why, E_FORMAT, "The chat template is not UTF-8.");
    struct jinja *j = calloc(1, sizeof *j);
    char *source = malloc(n + 1);
    if (!j || !source) {
        free(j);
        free(source);
        return why_set(why, E_NOMEM, "no memory for the chat template");
    }
    memcpy(source, text, n);
    source[n] = 0;
    j->source = source;
    j->limits = (struct jinja_limits){
        .max_output = MAX_LOAD_MEMORY, .max_memory = MAX_LOAD_MEMORY, .max_steps = UINT64_MAX};
    j->memory.limits = &j->limits;
    struct parser p = {.j = j, .why = why};
    err_t e = jinja_lex(&j->tokens, source, n, why);
    if (!e) {
        (void)parser_name(&p, &(struct token){.text = "loop", .n = 4});   /* NAME_LOOP */
        (void)parser_name(&p, &(struct token){.text = "caller", .n = 6}); /* NAME_CALLER */
        j->root = parse_body(&p, NULL);
        e = p.error;
    }
    if (e) {
        jinja_free(j);
        return e;
    }
    *out = j;
    return E_OK;
}

void jinja_free(struct jinja *j) {
    if (!j)
        return;
    arena_free(&j->memory);
    free(j->tokens.v);
    free(j->tokens.text);
    free(j->source);
    free(j);
}

/* a.NAME, a['NAME'], or a variable that was set to one (`id`, -1: none). */
static bool is_called(const struct node *n, const char *name, int id) {
    if (n->kind == N_FILTER && n->a)
        return is_called(n->a, name, id);
    if (n->kind == N_ITEM)
        return n->b->kind == N_CONST && is_text(&n->b->value, name);
    return (n->kind == N_ATTR && strcmp(n->text, name) == 0) || (n->kind == N_NAME && n->id == id);
}

static bool loops_over(const struct node *n, const char *name, int *id) {
    if (!n)
        return false;
    if (n->kind == N_SET && n->a->kind == N_NAME && is_called(n->b, name, -1))
        *id = n->a->id;
    if (n->kind == N_FOR && is_called(n->b, name, *id))
        return true;
    bool found =
        loops_over(n->a, name, id) || loops_over(n->b, name, id) || loops_over(n->c, name, id);
    for (size_t i = 0; !found && i < n->n; i++)
        found = loops_over(n->list[i], name, id);
    return found;
}

bool jinja_loops_over(const struct jinja *j, const char *name) {
    int id = -1;
    return loops_over(j->root, name, &id);
}
