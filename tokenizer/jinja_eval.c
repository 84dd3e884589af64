/* Renders: walks the tree, statements and expressions; see jinja.h. Scopes follow Jinja: a loop's
 * body, a macro and a block have one of their own, what is set inside does not leak. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/jinja_ast.h"

/* --- names ------------------------------------------------------------------------------------ */

static struct variable *find_here(struct run *r, struct env *env, int id) {
    for (size_t i = 0; i < env->n && step(r, 0); i++)
        if (env->v[i].id == id)
            return &env->v[i];
    return NULL;
}

static void set_variable(struct run *r, struct env *env, int id, struct value v) {
    struct variable *have = find_here(r, env, id);
    if (have) {
        have->value = v;
        return;
    }
    if (env->n == env->cap) {
        size_t cap = env->cap ? 2 * env->cap : 4;
        struct variable *grown = take(r, cap * sizeof *grown);
        if (!grown)
            return;
        if (env->n)
            memcpy(grown, env->v, env->n * sizeof *grown);
        env->v = grown;
        env->cap = cap;
    }
    env->v[env->n++] = (struct variable){id, v};
}

static struct value look_up(struct run *r, struct env *env, int id) {
    const char *name = r->jinja->names[id];
    for (;; env = env->outer) {
        struct variable *have = find_here(r, env, id);
        if (have)
            return have->value;
        if (!env->outer)
            break;
    }
    for (size_t i = 0; i < env->n_given; i++)
        if (strcmp(env->given[i].name, name) == 0) {
            struct value v = v_json(r, env->given[i].value, &env->given[i], env->given[i].trusted);
            if (!r->error)
                set_variable(r, env, id, v);
            return v;
        }
    if (jinja_is_function(name))
        return (struct value){.kind = V_FUNCTION, .name = name};
    return (struct value){.kind = V_UNDEFINED, .name = name};
}

static struct env *new_env(struct run *r, struct env *outer) {
    struct env *env = take(r, sizeof *env);
    if (env)
        *env = (struct env){.outer = outer};
    return env;
}

/* --- expressions ------------------------------------------------------------------------------ */

static bool eval_args(struct run *r, struct env *env, const struct node *n, struct args *args) {
    args->n = args->n_named = 0;
    for (size_t i = 0; i < n->n && !r->error; i++) {
        const struct node *one = n->list[i];
        if (one->kind == N_KEYWORD)
            args->named[args->n_named++] = (struct keyword){one->text, jinja_eval(r, env, one->a)};
        else
            args->v[args->n++] = jinja_eval(r, env, one);
    }
    return r->error == E_OK;
}

const struct value *jinja_arg(const struct args *a, size_t i, const char *name) {
    if (i < a->n)
        return &a->v[i];
    for (size_t k = 0; name && k < a->n_named; k++)
        if (strcmp(a->named[k].name, name) == 0)
            return &a->named[k].value;
    return NULL;
}

static struct value eval_list(struct run *r, struct env *env, const struct node *n) {
    struct value list = v_seq(r, n->kind == N_LIST ? S_LIST : S_TUPLE, n->n);
    for (size_t i = 0; i < n->n && !r->error; i++)
        seq_add(r, list.seq, jinja_eval(r, env, n->list[i]));
    return list;
}

static struct value eval_dict(struct run *r, struct env *env, const struct node *n) {
    struct value dict = v_dict(r);
    for (size_t i = 0; i + 1 < n->n && !r->error; i += 2) {
        struct value key = jinja_eval(r, env, n->list[i]);
        struct value v = jinja_eval(r, env, n->list[i + 1]);
        if (!r->error)
            dict_set(r, dict.dict, key, v);
    }
    return dict;
}

static struct value eval_item(struct run *r, struct env *env, const struct node *n) {
    struct value of = jinja_eval(r, env, n->a);
    if (r->error)
        return v_undefined();
    if (n->b->kind != N_SLICE) {
        struct value key = jinja_eval(r, env, n->b);
        return r->error ? v_undefined() : jinja_item(r, &of, &key);
    }
    const struct node *parts[3] = {n->b->a, n->b->b, n->b->c};
    struct value bounds[3];
    for (int i = 0; i < 3; i++)
        bounds[i] = parts[i] && !r->error ? jinja_eval(r, env, parts[i]) : v_none();
    return r->error ? v_undefined() : jinja_slice(r, &of, bounds);
}

static struct value eval_filter(struct run *r, struct env *env, const struct node *n,
                                struct value v) {
    struct args args;
    if (r->error || !eval_args(r, env, n, &args))
        return v_undefined();
    r->line = n->line;
    return jinja_filter(r, n->text, v, &args);
}

static struct value eval_test(struct run *r, struct env *env, const struct node *n) {
    struct value v = jinja_eval(r, env, n->a);
    struct args args;
    if (r->error || !eval_args(r, env, n, &args))
        return v_undefined();
    return v_bool(jinja_test(r, n->text, v, &args) != n->negated);
}

static struct value eval_unary(struct run *r, struct env *env, const struct node *n) {
    struct value v = jinja_eval(r, env, n->a);
    if (n->op == O_NOT)
        return v_bool(!truth(&v));
    if (v.kind == V_FLOAT)
        return v_float(n->op == O_SUB ? -v.d : v.d);
    if (!is_number(&v) || (n->op == O_SUB && as_int(&v) == INT64_MIN))
        return fail(r, E_UNSUPPORTED, "a %s has no sign.", kind_name(&v));
    return v_int(n->op == O_SUB ? -as_int(&v) : as_int(&v));
}

static bool compare(struct run *r, enum op op, struct value *a, struct value *b) {
    switch (op) {
    case O_EQ:
        return equal(r, a, b);
    case O_NE:
        return !equal(r, a, b);
    case O_IN:
        return jinja_contains(r, b, a);
    case O_NOT_IN:
        return !jinja_contains(r, b, a);
    case O_LT:
        return order(r, a, b) < 0;
    case O_LE:
        return order(r, a, b) <= 0;
    case O_GT:
        return order(r, a, b) > 0;
    default:
        return order(r, a, b) >= 0;
    }
}

static struct value eval_compare(struct run *r, struct env *env, const struct node *n) {
    struct value left = jinja_eval(r, env, n->a);
    for (size_t i = 0; i < n->n && !r->error; i++) {
        struct value right = jinja_eval(r, env, n->list[i]->b);
        if (r->error || !compare(r, n->list[i]->op, &left, &right))
            return v_bool(false);
        left = right;
    }
    return v_bool(true);
}

static struct value eval_concat(struct run *r, struct env *env, const struct node *n) {
    struct builder b = {0};
    for (size_t i = 0; i < n->n && !r->error; i++) {
        struct value v = jinja_eval(r, env, n->list[i]);
        if (v.kind == V_STRING && v.s->safe)
            fail(r, E_UNSUPPORTED, "what 'safe' gave can only be printed.");
        if (!r->error)
            put_str(r, &b, &v);
    }
    return built(r, &b);
}

static struct value eval_call(struct run *r, struct env *env, const struct node *n) {
    struct value callee = jinja_eval(r, env, n->a);
    struct args args;
    if (r->error || !eval_args(r, env, n, &args))
        return v_undefined();
    r->line = n->line;
    return jinja_call(r, &callee, &args);
}

static struct value eval_logic(struct run *r, struct env *env, const struct node *n) {
    struct value v = jinja_eval(r, env, n->a);
    if (r->error || truth(&v) == (n->kind == N_OR))
        return v;
    return jinja_eval(r, env, n->b);
}

static struct value eval_kind(struct run *r, struct env *env, const struct node *n) {
    struct value a, b;
    switch (n->kind) {
    case N_CONST:
        return n->value;
    case N_NAME:
        return look_up(r, env, n->id);
    case N_LIST:
    case N_TUPLE:
        return eval_list(r, env, n);
    case N_DICT:
        return eval_dict(r, env, n);
    case N_ATTR:
        a = jinja_eval(r, env, n->a);
        r->line = n->line;
        return r->error ? v_undefined() : jinja_attribute(r, &a, n->text);
    case N_ITEM:
        return eval_item(r, env, n);
    case N_CALL:
        return eval_call(r, env, n);
    case N_FILTER:
        return eval_filter(r, env, n, jinja_eval(r, env, n->a));
    case N_TEST:
        return eval_test(r, env, n);
    case N_UNARY:
        return eval_unary(r, env, n);
    case N_BINARY:
        a = jinja_eval(r, env, n->a);
        b = jinja_eval(r, env, n->b);
        r->line = n->line;
        return r->error ? v_undefined() : jinja_binary(r, n->op, &a, &b);
    case N_AND:
    case N_OR:
        return eval_logic(r, env, n);
    case N_CONCAT:
        return eval_concat(r, env, n);
    case N_COMPARE:
        return eval_compare(r, env, n);
    case N_COND:
        a = jinja_eval(r, env, n->a);
        if (truth(&a))
            return jinja_eval(r, env, n->b);
        return n->c ? jinja_eval(r, env, n->c) : v_undefined();
    default:
        return fail(r, E_INTERNAL, "a node that is no expression.");
    }
}

struct value jinja_eval(struct run *r, struct env *env, const struct node *n) {
    if (!step(r, 0))
        return v_undefined();
    r->line = n->line;
    struct value v = deeper(r) ? eval_kind(r, env, n) : v_undefined();
    r->depth--;
    return r->error ? v_undefined() : v;
}

/* --- statements ------------------------------------------------------------------------------- */

static void exec(struct run *r, struct env *env, const struct node *n);

static void assign(struct run *r, struct env *env, const struct node *target, struct value v) {
    if (r->error)
        return;
    if (target->kind == N_NAME) {
        set_variable(r, env, target->id, v);
    } else if (target->kind == N_ATTR) {
        struct value object = jinja_eval(r, env, target->a);
        if (!r->error && (object.kind != V_NAMESPACE || target->text[0] == '_'))
            fail(r, E_UNSUPPORTED, "only a namespace's attributes can be set.");
        if (!r->error)
            dict_set(r, object.dict, v_text(r, target->text), v);
    } else if (target->kind == N_TUPLE) {
        struct seq *items = walk(r, &v);
        if (items && items->n != target->n)
            fail(r, E_INVAL, "%zu values for %zu names.", items->n, target->n);
        for (size_t i = 0; !r->error && i < target->n; i++)
            assign(r, env, target->list[i], items->items[i]);
    } else {
        fail(r, E_UNSUPPORTED, "only names can be set.");
    }
}

/* What the statement prints, as a string. */
static struct value capture(struct run *r, struct env *env, const struct node *body) {
    struct builder b = {0}, *outer = r->out;
    r->out = &b;
    exec(r, env, body);
    r->out = outer;
    return built(r, &b);
}

/* A chain of filters over the text of a block: the innermost has no operand. */
static struct value filter_block(struct run *r, struct env *env, const struct node *filter,
                                 struct value text) {
    if (!filter || r->error)
        return text;
    return eval_filter(r, env, filter, filter_block(r, env, filter->a, text));
}

/* The items of a loop that pass its condition. */
static struct seq *select_items(struct run *r, struct env *env, const struct node *n,
                                struct seq *all) {
    struct value passed = v_seq(r, S_LIST, 0);
    for (size_t i = 0; i < all->n && !r->error; i++) {
        struct env *inner = new_env(r, env);
        if (!inner)
            return NULL;
        assign(r, inner, n->a, all->items[i]);
        struct value v = r->error ? v_undefined() : jinja_eval(r, inner, n->c);
        if (!r->error && truth(&v))
            seq_add(r, passed.seq, all->items[i]);
    }
    return r->error ? NULL : passed.seq;
}

static void exec_for(struct run *r, struct env *env, const struct node *n) {
    struct value walked = jinja_eval(r, env, n->b);
    struct seq *items = r->error ? NULL : walk(r, &walked);
    if (items && n->c)
        items = select_items(r, env, n, items);
    struct loop *loop = items ? take(r, sizeof *loop) : NULL;
    if (!loop)
        return;
    *loop = (struct loop){.items = items};
    for (; loop->at < items->n && !r->error; loop->at++) {
        struct env *inner = new_env(r, env);
        if (!inner)
            return;
        assign(r, inner, n->a, items->items[loop->at]);
        set_variable(r, inner, NAME_LOOP, (struct value){.kind = V_LOOP, .loop = loop});
        exec(r, inner, n->list[0]);
        r->continuing = false;
        if (r->breaking)
            break;
    }
    r->breaking = false;
    if (items->n == 0 && n->n > 1) {
        struct env *inner = new_env(r, env);
        if (inner)
            exec(r, inner, n->list[1]);
    }
}

static void exec_if(struct run *r, struct env *env, const struct node *n) {
    for (size_t i = 0; i + 1 < n->n && !r->error; i += 2) {
        struct value v = jinja_eval(r, env, n->list[i]);
        if (r->error)
            return;
        if (truth(&v)) {
            exec(r, env, n->list[i + 1]);
            return;
        }
    }
    if (n->a && !r->error)
        exec(r, env, n->a);
}

static struct value macro_of(struct run *r, struct env *env, const struct node *n) {
    struct macro *m = take(r, sizeof *m);
    if (!m)
        return v_undefined();
    *m = (struct macro){n, env};
    return (struct value){.kind = V_MACRO, .macro = m};
}

static void exec_call_block(struct run *r, struct env *env, const struct node *n) {
    struct value callee = jinja_eval(r, env, n->a->a), result;
    struct args args;
    if (r->error || !eval_args(r, env, n->a, &args))
        return;
    if (callee.kind != V_MACRO || args.n_named == MAX_ARGS) {
        fail(r, E_UNSUPPORTED, "'call' of a %s.", kind_name(&callee));
        return;
    }
    args.named[args.n_named++] = (struct keyword){"caller", macro_of(r, env, n->b)};
    result = jinja_call(r, &callee, &args);
    if (!r->error)
        put_str(r, r->out, &result);
}

static void exec_scope(struct run *r, struct env *env, const struct node *n) {
    struct env *inner = new_env(r, env);
    for (size_t i = 0; inner && i < n->n && !r->error; i++) /* values see what is around alone */
        assign(r, inner, n->list[i]->a, jinja_eval(r, env, n->list[i]->b));
    if (inner && !r->error)
        exec(r, inner, n->b);
}

static void exec_set_block(struct run *r, struct env *env, const struct node *n) {
    struct env *inner = new_env(r, env);
    if (!inner)
        return;
    struct value text = capture(r, inner, n->b);
    assign(r, env, n->a, filter_block(r, env, n->c, text));
}

static void exec_filter_block(struct run *r, struct env *env, const struct node *n) {
    struct env *inner = new_env(r, env);
    if (!inner)
        return;
    struct value v = filter_block(r, env, n->a, capture(r, inner, n->b));
    if (!r->error)
        put_str(r, r->out, &v);
}

static void exec_kind(struct run *r, struct env *env, const struct node *n) {
    struct value v;
    switch (n->kind) {
    case N_BODY:
        for (size_t i = 0; i < n->n && !r->error && !r->breaking && !r->continuing; i++)
            exec(r, env, n->list[i]);
        break;
    case N_TEXT:
        put_string(r, r->out, n->value.s);
        break;
    case N_PRINT:
        v = jinja_eval(r, env, n->a);
        if (!r->error)
            put_str(r, r->out, &v);
        break;
    case N_IF:
        exec_if(r, env, n);
        break;
    case N_FOR:
        exec_for(r, env, n);
        break;
    case N_SET:
        v = jinja_eval(r, env, n->b);
        assign(r, env, n->a, v);
        break;
    case N_SET_BLOCK:
        exec_set_block(r, env, n);
        break;
    case N_MACRO:
        set_variable(r, env, n->id, macro_of(r, env, n));
        break;
    case N_CALL_BLOCK:
        exec_call_block(r, env, n);
        break;
    case N_FILTER_BLOCK:
        exec_filter_block(r, env, n);
        break;
    case N_SCOPE:
        exec_scope(r, env, n);
        break;
    case N_BREAK:
        r->breaking = true;
        break;
    case N_CONTINUE:
        r->continuing = true;
        break;
    default:
        fail(r, E_INTERNAL, "a node that is no statement.");
    }
}

static void exec(struct run *r, struct env *env, const struct node *n) {
    if (!step(r, 0))
        return;
    r->line = n->line;
    if (deeper(r))
        exec_kind(r, env, n);
    r->depth--;
}

/* --- calls ------------------------------------------------------------------------------------ */

static struct value call_macro(struct run *r, const struct macro *m, const struct args *args) {
    const struct node *n = m->node;
    struct env *env = new_env(r, m->env);
    size_t used = 0;
    if (!env)
        return v_undefined();
    if (args->n > n->n)
        return fail(r, E_INVAL, "the macro '%s' takes %zu arguments.", r->jinja->names[n->id],
                    n->n);
    for (size_t i = 0; i < n->n && !r->error; i++) {
        const struct node *parameter = n->list[i];
        const struct value *given = jinja_arg(args, i, parameter->text);
        used += given && i >= args->n;
        struct value v = given ? *given
                         : parameter->a
                             ? jinja_eval(r, env, parameter->a)
                             : (struct value){.kind = V_UNDEFINED, .name = parameter->text};
        set_variable(r, env, parameter->id, v);
    }
    for (size_t i = 0; i < args->n_named; i++) {
        if (strcmp(args->named[i].name, "caller") == 0) {
            set_variable(r, env, NAME_CALLER, args->named[i].value);
            used++;
        }
    }
    if (used < args->n_named)
        return fail(r, E_INVAL, "the macro '%s' has no such parameter.", r->jinja->names[n->id]);
    bool breaking = r->breaking, continuing = r->continuing;
    struct value text = r->error ? v_undefined() : capture(r, env, n->b);
    r->breaking = breaking;
    r->continuing = continuing;
    return text;
}

struct value jinja_call(struct run *r, const struct value *callee, const struct args *args) {
    switch (callee->kind) {
    case V_MACRO:
        return call_macro(r, callee->macro, args);
    case V_METHOD:
        return jinja_method(r, callee->method, args);
    case V_FUNCTION:
        return jinja_function(r, callee->name, args);
    case V_UNDEFINED:
        return fail(r, E_INVAL, "'%.60s' is undefined.", callee->name ? callee->name : "it");
    default:
        return fail(r, E_UNSUPPORTED, "a %s cannot be called.", kind_name(callee));
    }
}

err_t jinja_render(const struct jinja *j, const struct jinja_variable *variables,
                   size_t n_variables, const struct jinja_limits *limits, struct jinja_text *out,
                   struct why *why) {
    struct builder b = {0};
    struct run r = {.jinja = j, .limits = limits, .out = &b, .line = 1};
    struct env globals = {.given = variables, .n_given = n_variables};
    struct env top = {.outer = &globals};
    *out = (struct jinja_text){0};
    exec(&r, &top, j->root);
    if (!r.error) {
        out->text = malloc(b.n + 1);
        out->trusted = malloc(b.n + 1);
        if (!out->text || !out->trusted) {
            jinja_text_free(out);
            fail(&r, E_NOMEM, "no memory for its output.");
        } else {
            if (b.n) {
                memcpy(out->text, b.text, b.n);
                memcpy(out->trusted, b.trust, b.n);
            }
            out->text[b.n] = 0;
            out->n = b.n;
        }
    }
    arena_free(&r);
    return r.error ? why_set(why, r.error, "%s", r.why.text) : E_OK;
}

void jinja_text_free(struct jinja_text *t) {
    free(t->text);
    free(t->trusted);
    *t = (struct jinja_text){0};
}
