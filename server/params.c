#include "server/params.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "server/json.h"

enum kind { INTEGER, NUMBER, BOOLEAN };

/* One row per plain field: where it goes and what it may be. An INTEGER is an int32_t, a NUMBER a
 * float, a BOOLEAN a bool. */
static const struct field {
    const char *name;
    enum kind kind;
    size_t at;
    double low, high;
} fields[] = {
/* at most 32: params.given */
#define AT(member) offsetof(struct params, member)
    {"max_tokens", INTEGER, AT(gen.max_tokens), 0, INT32_MAX},
    {"min_tokens", INTEGER, AT(gen.min_tokens), 0, INT32_MAX},
    {"top_k", INTEGER, AT(gen.top_k), -1, INT32_MAX},
    {"logprobs", INTEGER, AT(gen.n_top), 0, GEN_MAX_TOP},
    {"temperature", NUMBER, AT(gen.temperature), 0, 2},
    {"top_p", NUMBER, AT(gen.top_p), 0, 1},
    {"min_p", NUMBER, AT(gen.min_p), 0, 1},
    {"presence_penalty", NUMBER, AT(gen.presence), -2, 2},
    {"frequency_penalty", NUMBER, AT(gen.frequency), -2, 2},
    {"repetition_penalty", NUMBER, AT(gen.repetition), 0.01, 10},
    {"ignore_eos", BOOLEAN, AT(gen.ignore_eos), 0, 0},
    {"echo", BOOLEAN, AT(echo), 0, 0},
    {"stream", BOOLEAN, AT(stream), 0, 0},
    {"add_special_tokens", BOOLEAN, AT(add_special_tokens), 0, 0},
    {"include_stop_str_in_output", BOOLEAN, AT(include_stop), 0, 0},
    {"skip_special_tokens", BOOLEAN, AT(skip_special_tokens), 0, 0},
#undef AT
};

/* Fields that would change the output and are not implemented: refused unless they ask for nothing
 * (`allowed` says which value does; NULL: only null does). */
static const struct {
    const char *name, *allowed;
} refused[] = {
    {"suffix", "\"\""},
    {"n", "1"},
    {"best_of", "1"},
    {"use_beam_search", "false"},
    {"length_penalty", "1"},
    {"bad_words", "[]"},
    {"allowed_token_ids", NULL},
    {"prompt_logprobs", NULL},
    {"prompt_embeds", NULL},
    {"truncate_prompt_tokens", NULL},
    {"logits_processors", NULL},
    {"response_format", "{\"type\":\"text\"}"},
    {"structured_outputs", NULL},
    {"guided_json", NULL},
    {"guided_regex", NULL},
    {"guided_choice", NULL},
    {"guided_grammar", NULL},
    {"messages", NULL},
    {"tools", "[]"},
    {"return_token_ids", "false"},
    {"return_tokens_as_token_ids", "false"},
};

/* An integer, also when written as 5.0 (some clients' JSON has only doubles). */
static bool read_integer(const json_t *v, double low, double high, int64_t *out) {
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

static err_t read_field(struct params *p, const struct field *f, const json_t *v, struct why *why) {
    char *to = (char *)p + f->at;
    if (f->kind == BOOLEAN) {
        if (!json_is_boolean(v))
            return why_set(why, E_INVAL, "'%s' must be true or false.", f->name);
        *(bool *)to = json_is_true(v);
    } else if (f->kind == INTEGER) {
        int64_t i = 0;
        if (!read_integer(v, f->low, f->high, &i))
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

static err_t read_model(struct params *p, json_t *v, struct why *why) {
    const char *s = json_string_value(v);
    size_t n = s ? json_string_length(v) : 0;
    if (n == 0 || n >= sizeof p->model || strlen(s) != n)
        return why_set(why, E_INVAL, "'model' must be a name of 1 to %d bytes.",
                       PARAMS_MAX_MODEL - 1);
    memcpy(p->model, s, n + 1);
    return E_OK;
}

static err_t read_ids(struct params *p, const json_t *list, struct why *why) {
    size_t n = json_array_size(list);
    if (n > INT32_MAX)
        return why_set(why, E_INVAL, "'prompt' has too many token ids.");
    p->gen.ids = malloc(n * sizeof *p->gen.ids);
    if (!p->gen.ids)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    for (size_t i = 0; i < n; i++) {
        int64_t id = -1;
        if (!read_integer(json_array_get(list, i), 0, INT32_MAX, &id))
            return why_set(why, E_INVAL, "'prompt' element %zu is not a token id.", i);
        p->gen.ids[i] = (int32_t)id;
    }
    p->gen.n_ids = (int32_t)n;
    return E_OK;
}

static err_t read_text(struct params *p, const json_t *v, struct why *why) {
    p->n_text = json_string_length(v);
    p->text = malloc(p->n_text + 1);
    if (!p->text)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    memcpy(p->text, json_string_value(v), p->n_text + 1);
    return E_OK;
}

/* "text", [ids], ["text"] or [[ids]]: many clients wrap the one prompt they have. */
static err_t read_prompt(struct params *p, json_t *v, struct why *why) {
    json_t *first = json_array_get(v, 0);
    if (json_is_string(first) || json_is_array(first)) {
        if (json_array_size(v) != 1)
            return why_set(why, E_UNSUPPORTED,
                           "'prompt' holds %zu prompts; send one request per prompt.",
                           json_array_size(v));
        v = first;
    }
    if (json_is_string(v))
        return read_text(p, v, why);
    if (json_array_size(v) > 0)
        return read_ids(p, v, why);
    return why_set(why, E_INVAL, "'prompt' must be a string or a non-empty array of token ids.");
}

static err_t add_stop(struct params *p, const json_t *v, size_t *total, struct why *why) {
    size_t n = json_string_length(v);
    if (!json_is_string(v) || n == 0)
        return why_set(why, E_INVAL, "'stop' must hold non-empty strings.");
    *total += n;
    if (p->n_stops == PARAMS_MAX_STOPS || *total > PARAMS_MAX_STOP_BYTES)
        return why_set(why, E_INVAL, "'stop' may hold %d strings of %d bytes together.",
                       PARAMS_MAX_STOPS, PARAMS_MAX_STOP_BYTES);
    char *text = malloc(n);
    if (!text)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    memcpy(text, json_string_value(v), n);
    p->stop[p->n_stops++] = (struct stop_text){text, n};
    return E_OK;
}

static err_t read_stop(struct params *p, json_t *v, struct why *why) {
    size_t total = 0;
    err_t e = E_OK;
    if (!json_is_array(v))
        return add_stop(p, v, &total, why);
    for (size_t i = 0; !e && i < json_array_size(v); i++)
        e = add_stop(p, json_array_get(v, i), &total, why);
    return e;
}

static err_t read_stop_ids(struct params *p, json_t *v, struct why *why) {
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n > GEN_MAX_STOP_IDS)
        return why_set(why, E_INVAL, "'stop_token_ids' must be an array of at most %d token ids.",
                       GEN_MAX_STOP_IDS);
    for (size_t i = 0; i < n; i++) {
        int64_t id = -1;
        if (!read_integer(json_array_get(v, i), 0, INT32_MAX, &id))
            return why_set(why, E_INVAL, "'stop_token_ids' element %zu is not a token id.", i);
        p->gen.stop_id[i] = (int32_t)id;
    }
    p->gen.n_stop_ids = (int32_t)n;
    return E_OK;
}

static err_t read_bias(struct params *p, json_t *v, struct why *why) {
    if (!json_is_object(v) || json_object_size(v) > GEN_MAX_BIAS)
        return why_set(why, E_INVAL, "'logit_bias' must be an object of at most %d token ids.",
                       GEN_MAX_BIAS);
    if (json_object_size(v) == 0)
        return E_OK;
    p->gen.bias = malloc(json_object_size(v) * sizeof *p->gen.bias);
    if (!p->gen.bias)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x) {
        size_t n = strlen(key);
        double bias = json_number_value(x);
        if (n == 0 || n > 9 || strspn(key, "0123456789") != n)
            return why_set(why, E_INVAL, "'logit_bias' keys must be token ids.");
        if (!json_is_number(x) || !(bias >= -100 && bias <= 100))
            return why_set(why, E_INVAL, "'logit_bias' values must be numbers from -100 to 100.");
        p->gen.bias[p->gen.n_bias++] =
            (struct gen_bias){(int32_t)strtol(key, NULL, 10), (float)bias};
    }
    return E_OK;
}

static err_t read_seed(struct params *p, json_t *v, struct why *why) {
    int64_t seed = 0;
    if (!read_integer(v, -9.3e18, 9.3e18, &seed))
        return why_set(why, E_INVAL, "'seed' must be an integer.");
    p->gen.seed = (uint64_t)seed;
    p->seeded = true;
    return E_OK;
}

static err_t read_stream_options(struct params *p, json_t *v, struct why *why) {
    if (!json_is_object(v))
        return why_set(why, E_INVAL, "'stream_options' must be an object.");
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x) {
        bool *to = strcmp(key, "include_usage") == 0            ? &p->include_usage
                   : strcmp(key, "continuous_usage_stats") == 0 ? &p->continuous_usage
                                                                : NULL;
        if (!to)
            p->n_unknown++;
        else if (json_is_boolean(x))
            *to = json_is_true(x);
        else if (!json_is_null(x))
            return why_set(why, E_INVAL, "'stream_options.%s' must be true or false.", key);
    }
    return E_OK;
}

static err_t read_user(struct params *p, json_t *v, struct why *why) {
    (void)p;
    return json_is_string(v) ? E_OK : why_set(why, E_INVAL, "'user' must be a string.");
}

/* The fields that are more than one value with a range. */
static const struct {
    const char *name;
    err_t (*read)(struct params *p, json_t *v, struct why *why);
} special[] = {
    {"model", read_model},
    {"prompt", read_prompt},
    {"stop", read_stop},
    {"stop_token_ids", read_stop_ids},
    {"logit_bias", read_bias},
    {"seed", read_seed},
    {"stream_options", read_stream_options},
    {"user", read_user},
};

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

static err_t read_one(struct params *p, const char *key, json_t *v, const char **field,
                      struct why *why) {
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strcmp(key, fields[i].name) == 0) {
            *field = fields[i].name;
            p->given |= 1u << i;
            return read_field(p, &fields[i], v, why);
        }
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        if (strcmp(key, special[i].name) == 0) {
            *field = special[i].name;
            return special[i].read(p, v, why);
        }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (strcmp(key, refused[i].name) == 0 && !asks_nothing(v, refused[i].allowed)) {
            *field = refused[i].name;
            return why_set(why, E_UNSUPPORTED, "'%s' is not supported with that value.", key);
        } else if (strcmp(key, refused[i].name) == 0) {
            return E_OK;
        }
    p->n_unknown++;
    return E_OK;
}

/* What needs two fields. */
static err_t check_whole(struct params *p, bool stream_options, const char **field,
                         struct why *why) {
    if (!p->model[0]) {
        *field = "model";
        return why_set(why, E_INVAL, "'model' is required.");
    }
    if (!p->text && !p->gen.ids) {
        *field = "prompt";
        return why_set(why, E_INVAL, "'prompt' is required.");
    }
    if (stream_options && !p->stream) {
        *field = "stream_options";
        return why_set(why, E_INVAL, "'stream_options' needs 'stream': true.");
    }
    if (p->gen.min_tokens > p->gen.max_tokens) {
        *field = "min_tokens";
        return why_set(why, E_INVAL, "'min_tokens' is larger than 'max_tokens'.");
    }
    p->gen.prompt_logprobs = p->echo && p->gen.n_top >= 0;
    return E_OK;
}

err_t params_read(struct params *p, const char *body, size_t n, const char **field,
                  struct why *why) {
    *p = (struct params){.add_special_tokens = true, .skip_special_tokens = true};
    p->gen.max_tokens = 16;
    p->gen.temperature = 1;
    p->gen.top_p = 1;
    p->gen.repetition = 1;
    p->gen.n_top = -1;
    *field = NULL;
    json_t *tree = NULL;
    err_t e = json_read_object(body, n, &tree, why);
    const char *key;
    json_t *v;
    bool stream_options = false;
    json_object_foreach(tree, key, v) {
        *field = NULL;
        if (e || json_is_null(v)) /* an explicit null is an absent field */
            continue;
        stream_options |= strcmp(key, "stream_options") == 0;
        e = read_one(p, key, v, field, why);
        if (e)
            break;
    }
    json_decref(tree);
    if (!e)
        e = check_whole(p, stream_options, field, why);
    if (e)
        params_free(p);
    return e;
}

void params_apply_defaults(struct params *p, const json_t *generation) {
    static const char *const names[] = {"temperature", "top_p", "top_k", "min_p",
                                        "repetition_penalty"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            const json_t *v = json_object_get(generation, names[k]);
            if (v && strcmp(fields[i].name, names[k]) == 0 && !(p->given & 1u << i))
                (void)read_field(p, &fields[i], v, NULL);
        }
}

void params_free(struct params *p) {
    for (int i = 0; i < p->n_stops; i++)
        free(p->stop[i].text);
    p->n_stops = 0;
    free(p->text);
    free(p->gen.ids);
    free(p->gen.bias);
    p->text = NULL;
    p->gen.ids = NULL;
    p->gen.bias = NULL;
}
