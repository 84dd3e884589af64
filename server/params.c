#include "server/params.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/json.h"
#include "server/surface.h"

bool params_integer(const json_t *v, double low, double high, int64_t *out) {
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
    } else if (json_is_real(v)) {
        double x = json_real_value(v);
        if (!(fabs(x) < 9e15) || x != floor(x))
            return false;
        *out = (int64_t)x;
    } else {
        return false;
    }
    return (double)*out >= low && (double)*out <= high;
}

err_t params_add_prompts(struct params *p, size_t n, struct why *why) {
    p->prompt = calloc(n, sizeof *p->prompt);
    if (!p->prompt)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    p->n_prompts = (int)n;
    return E_OK;
}

/* --- one field ------------------------------------------------------------------------------ */

static err_t read_plain(struct params *p, const struct field *f, const json_t *v, struct why *why) {
    char *to = (char *)p + f->at;
    if (f->kind == FIELD_BOOLEAN) {
        if (!json_is_boolean(v))
            return why_set(why, E_INVAL, "'%s' must be true or false.", f->name);
        *(bool *)to = json_is_true(v);
    } else if (f->kind == FIELD_INTEGER) {
        int64_t i = 0;
        if (!params_integer(v, f->low, f->high, &i))
            return why_set(why, E_INVAL, "'%s' must be an integer from %.0f to %.0f.", f->name,
                           f->low, f->high);
        *(int32_t *)to = (int32_t)i;
    } else {
        double x = json_number_value(v);
        if (!json_is_number(v) || !(x >= f->low && x <= f->high))
            return why_set(why, E_INVAL, "'%s' must be a number from %g to %g.", f->name, f->low,
                           f->high);
        *(float *)to = (float)x;
    }
    return E_OK;
}

/* Whether the value asks for nothing, as the text `allowed` says it. */
static bool asks_nothing(const json_t *v, const char *allowed) {
    if (!allowed)
        return false;
    if (json_is_number(v))
        return json_number_value(v) == strtod(allowed, NULL);
    json_t *want = json_loads(allowed, JSON_DECODE_ANY, NULL);
    bool equal = json_equal(v, want);
    json_decref(want);
    return equal;
}

static err_t read_field(struct params *p, const struct field *f, json_t *v, struct why *why) {
    if (f->kind == FIELD_SPECIAL)
        return f->read(p, v, why);
    if (f->kind != FIELD_REFUSED)
        return read_plain(p, f, v, why);
    if (asks_nothing(v, f->json))
        return E_OK;
    if (f->json)
        return why_set(why, E_UNSUPPORTED, "'%s' is not supported here; only %s is accepted.",
                       f->name, f->json);
    return why_set(why, E_UNSUPPORTED, "'%s' is n%s", f->name,
                   f->help + 1); /* "Not supported..." */
}

static const struct field *find_field(const struct field *list, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (strcmp(name, list[i].name) == 0)
            return &list[i];
    return NULL;
}

void params_note_ignored(char ignored[PARAMS_IGNORED_BYTES], const char *key) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t n = strlen(key), at = strlen(ignored);
    if (n == 0 || strspn(key, plain) != n || at + n + 3 > PARAMS_IGNORED_BYTES)
        return;
    if (at) {
        memcpy(ignored + at, ", ", 2);
        at += 2;
    }
    memcpy(ignored + at, key, n + 1);
}

static err_t read_one(struct params *p, const struct surface *surface, const char *key, json_t *v,
                      const char **field, struct why *why) {
    const struct field *f = find_field(surface->fields, surface->n_fields, key);
    if (!f) {
        f = find_field(fields_common, n_fields_common, key);
        if (f)
            p->given |= (uint64_t)1 << (f - fields_common);
    }
    if (!f) {
        p->n_unknown++;
        params_note_ignored(p->ignored, key);
        return E_OK;
    }
    *field = f->name;
    return read_field(p, f, v, why);
}

/* --- the whole ------------------------------------------------------------------------------ */

static void set_starts(struct params *p, const struct field *list, int n) {
    for (int i = 0; i < n; i++) {
        char *to = (char *)p + list[i].at;
        if (list[i].kind == FIELD_INTEGER)
            *(int32_t *)to = (int32_t)list[i].start;
        else if (list[i].kind == FIELD_NUMBER)
            *(float *)to = (float)list[i].start;
        else if (list[i].kind == FIELD_BOOLEAN)
            *(bool *)to = list[i].start != 0;
    }
}

static int32_t larger(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* What needs two fields. */
static err_t check_common(struct params *p, bool stream_options, const char **field,
                          struct why *why) {
    if (stream_options && !p->stream) {
        *field = "stream_options";
        return why_set(why, E_INVAL, "'stream_options' needs 'stream': true.");
    }
    if (p->stream && p->prompt_logprobs >= 0) {
        *field = "prompt_logprobs";
        return why_set(why, E_UNSUPPORTED, "'prompt_logprobs' cannot be streamed.");
    }
    if (p->gen.max_tokens >= 0 && p->gen.min_tokens > p->gen.max_tokens) {
        *field = "min_tokens";
        return why_set(why, E_INVAL, "'min_tokens' is larger than 'max_tokens'.");
    }
    if (p->best_of < p->n) /* left open */
        p->best_of = p->n;
    p->gen.prompt_logprobs = p->prompt_logprobs >= 0 || (p->echo && p->n_logprobs >= 0);
    p->gen.n_top = larger(p->n_logprobs, p->prompt_logprobs);
    if (p->best_of > p->n) /* the best are found by their log-probabilities */
        p->gen.n_top = larger(p->gen.n_top, 0);
    return E_OK;
}

static err_t read_all(struct params *p, const struct surface *surface, json_t *tree,
                      const char **field, struct why *why) {
    const char *key;
    json_t *v;
    bool stream_options = false;
    json_object_foreach(tree, key, v) {
        *field = NULL;
        if (json_is_null(v)) /* an explicit null is an absent field */
            continue;
        stream_options |= strcmp(key, "stream_options") == 0;
        err_t e = read_one(p, surface, key, v, field, why);
        if (e)
            return e;
    }
    *field = NULL;
    err_t e = surface->check(p, field, why);
    return e ? e : check_common(p, stream_options, field, why);
}

err_t params_read(struct params *p, const struct surface *surface, const char *body, size_t n,
                  const char **field, struct why *why) {
    *p = (struct params){0};
    set_starts(p, fields_common, n_fields_common);
    set_starts(p, surface->fields, surface->n_fields);
    *field = NULL;
    json_t *tree = NULL;
    err_t e = json_read_object(body, n, &tree, why);
    if (!e)
        e = read_all(p, surface, tree, field, why);
    json_decref(tree);
    if (e)
        params_free(p);
    return e;
}

void params_apply_defaults(struct params *p, const json_t *generation) {
    static const char *const names[] = {"temperature", "top_p", "top_k", "min_p",
                                        "repetition_penalty"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        const struct field *f = find_field(fields_common, n_fields_common, names[k]);
        const json_t *v = json_object_get(generation, names[k]);
        if (v && f && !(p->given & (uint64_t)1 << (f - fields_common)))
            (void)read_plain(p, f, v, NULL);
    }
}

int64_t params_choices(const struct params *p) {
    return (int64_t)p->n_prompts * p->best_of;
}

void params_free(struct params *p) {
    for (int i = 0; i < p->n_stops; i++)
        free(p->stop[i].text);
    for (int i = 0; i < p->n_prompts; i++) {
        free(p->prompt[i].text);
        free(p->prompt[i].ids);
    }
    free(p->prompt);
    free(p->gen.bias);
    json_decref(p->messages);
    json_decref(p->template_kwargs);
    *p = (struct params){0};
}
