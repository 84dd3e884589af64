#include "compress/lora_config.h"

#include <ctype.h>
#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"

enum { MAX_DEPTH = 16, MAX_VALUES = 100000, MAX_RANK = 4096, MAX_GROUPS = 3 };

/* null, false, 0, "", [] and {} all mean: not used. */
static bool is_set(const json_t *v) {
    if (json_is_array(v))
        return json_array_size(v) > 0;
    if (json_is_object(v))
        return json_object_size(v) > 0;
    if (json_is_string(v))
        return json_string_length(v) > 0;
    return v && !json_is_null(v) && !json_is_false(v) &&
           !(json_is_number(v) && json_number_value(v) == 0);
}

/* PEFT starts some adapters from a base that it changes first; their pairs say nothing about the
 * base as it was. */
static err_t refuse_changed_base(const json_t *root, struct why *why) {
    static const char *const harmless[] = {"gaussian", "eva", "orthogonal"};
    const char *name = json_string_value(json_object_get(root, "init_lora_weights"));
    for (size_t i = 0; name && i < sizeof harmless / sizeof *harmless; i++)
        if (strcmp(name, harmless[i]) == 0)
            return E_OK;
    if (!name)
        return E_OK;
    return why_set(why, E_UNSUPPORTED,
                   "adapter_config.json: init_lora_weights is \"%.32s\", so the pairs belong to a "
                   "base that PEFT changed first; save the adapter with "
                   "path_initial_model_for_weight_conversion, which makes it one of the plain base",
                   name);
}

static err_t refuse_extras(const json_t *root, struct why *why) {
    static const char *const extras[] = {
        "lora_bias",    "fan_in_fan_out", "layer_replication", "target_parameters",
        "use_qalora",   "use_bdlora",     "kasa_config",       "alora_invocation_tokens",
        "arrow_config",
    };
    for (size_t i = 0; i < sizeof extras / sizeof *extras; i++)
        if (is_set(json_object_get(root, extras[i])))
            return why_set(why, E_UNSUPPORTED,
                           "adapter_config.json: %s is set, which is not supported; merge the "
                           "adapter with PEFT and compress the result",
                           extras[i]);
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    if (!type || strcmp(type, "LORA") != 0)
        return why_set(why, E_UNSUPPORTED,
                       "adapter_config.json: peft_type is \"%.32s\"; LORA is supported",
                       type ? type : "(missing)");
    return refuse_changed_base(root, why);
}

/* Keys of patterns are Python expressions; of their syntax this is what module names need, as an
 * extended POSIX expression over the whole name: PEFT lets a key be the end of a name after a dot.
 * False: it says something else, or nests deeper than a name asks for (the C library copies what
 * stands under a +, so depth costs exponentially). */
static bool expression_of(const char *key, char *out, size_t n) {
    size_t at = (size_t)snprintf(out, n, "^(.*[.])?(");
    int depth = 0;
    for (const char *p = key; *p; p++) {
        char self[2] = {*p, 0};
        const char *put = NULL;
        if (p[0] == '\\' && p[1] == 'd')
            put = "[0-9]", p++;
        else if (p[0] == '\\' && p[1] == '.')
            put = "[.]", p++;
        else if (p[0] == '(' && p[1] == '?' && p[2] == ':')
            put = "(", p += 2;
        else if (isalnum((unsigned char)*p) || strchr("._-|()*+?^$[]", *p))
            put = self;
        depth += !put ? 0 : *put == '(' ? 1 : *put == ')' ? -1 : 0;
        size_t length = put ? strlen(put) : 0;
        if (!put || at + length + 3 > n || depth > MAX_GROUPS)
            return false;
        memcpy(out + at, put, length);
        at += length;
    }
    memcpy(out + at, ")$", 3);
    return true;
}

/* NULL: not an expression that is understood. Free with release. */
static regex_t *compile(const char *key) {
    char text[512];
    regex_t *x = malloc(sizeof *x);
    if (x && expression_of(key, text, sizeof text) &&
        regcomp(x, text, REG_EXTENDED | REG_NOSUB) == 0)
        return x;
    free(x);
    return NULL;
}

static void release(regex_t *x) {
    if (x)
        regfree(x);
    free(x);
}

static err_t take_pattern(const json_t *root, const char *name, json_t **out, struct why *why) {
    json_t *pattern = json_object_get(root, name), *value;
    const char *key;
    if (!is_set(pattern))
        return E_OK;
    if (!json_is_object(pattern))
        return why_set(why, E_FORMAT, "adapter_config.json: %s must be an object", name);
    json_object_foreach(pattern, key, value) {
        regex_t *expression = compile(key);
        double x = json_number_value(value);
        release(expression);
        if (!expression)
            return why_set(why, E_UNSUPPORTED,
                           "adapter_config.json: the key \"%.64s\" of %s is a regular expression "
                           "beyond names, dots, digits, sets, groups, | * + and ?",
                           key, name);
        if (!json_is_number(value) || !(x > 0 && x < 1e6))
            return why_set(why, E_FORMAT,
                           "adapter_config.json: %s of %.64s must be a positive number", name, key);
    }
    *out = json_incref(pattern);
    return E_OK;
}

static bool is_ids(const json_t *list) {
    const json_t *id;
    size_t i;
    json_array_foreach((json_t *)list, i, id) if (!json_is_integer(id) ||
                                                  json_integer_value(id) < 0 ||
                                                  json_integer_value(id) > INT32_MAX) return false;
    return json_is_array(list);
}

/* A list of ids is the embedding's; an object names modules. */
static err_t take_tokens(const json_t *root, json_t **out, struct why *why) {
    json_t *tokens = json_object_get(root, "trainable_token_indices"), *ids;
    const char *module;
    if (!is_set(tokens))
        return E_OK;
    bool good = json_is_object(tokens) || is_ids(tokens);
    json_object_foreach(tokens, module, ids) good = good && is_ids(ids);
    if (!good)
        return why_set(why, E_FORMAT,
                       "adapter_config.json: trainable_token_indices must hold lists of ids");
    *out = json_incref(tokens);
    return E_OK;
}

const json_t *lora_token_ids(const struct lora_config *c, const char *module) {
    if (json_is_array(c->tokens))
        return strcmp(module, "embed_tokens") == 0 ? c->tokens : NULL;
    return json_object_get(c->tokens, module);
}

static err_t take_all(struct lora_config *c, const json_t *root, struct why *why) {
    const json_t *rank = json_object_get(root, "r"), *alpha = json_object_get(root, "lora_alpha");
    err_t e = refuse_extras(root, why);
    if (e)
        return e;
    if (!json_is_integer(rank) || json_integer_value(rank) < 1 ||
        json_integer_value(rank) > MAX_RANK)
        return why_set(why, E_FORMAT, "adapter_config.json: r must be a whole number in 1..%d",
                       MAX_RANK);
    double x = json_number_value(alpha);
    if (!json_is_number(alpha) || !(x > 0 && x < 1e6))
        return why_set(why, E_FORMAT, "adapter_config.json: lora_alpha must be a positive number");
    c->rank = (int32_t)json_integer_value(rank);
    c->alpha = x;
    c->rank_stabilised = json_is_true(json_object_get(root, "use_rslora"));
    c->keeps_tying = json_is_true(json_object_get(root, "ensure_weight_tying"));
    c->dora = json_is_true(json_object_get(root, "use_dora"));
    e = take_tokens(root, &c->tokens, why);
    e = e ? e : take_pattern(root, "rank_pattern", &c->rank_pattern, why);
    return e ? e : take_pattern(root, "alpha_pattern", &c->alpha_pattern, why);
}

err_t lora_config_parse(struct lora_config *c, const char *text, size_t n, struct why *why) {
    memset(c, 0, sizeof *c);
    json_t *root;
    err_t e = json_parse(&root, text, n, "adapter_config.json", MAX_DEPTH, MAX_VALUES, why);
    if (!e && !json_is_object(root))
        e = why_set(why, E_FORMAT, "adapter_config.json: not a JSON object");
    if (!e)
        e = take_all(c, root, why);
    json_decref(root);
    return e;
}

void lora_config_free(struct lora_config *c) {
    json_decref(c->rank_pattern);
    json_decref(c->alpha_pattern);
    json_decref(c->tokens);
    memset(c, 0, sizeof *c);
}

/* The value of the first key that matches the name, as in PEFT. */
static double match(const json_t *pattern, const char *part, double absent) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)pattern, key, value) {
        regex_t *x = compile(key);
        bool is = x && regexec(x, part, 0, NULL, 0) == 0;
        release(x);
        if (is)
            return json_number_value(value);
    }
    return absent;
}

err_t lora_scale(const struct lora_config *c, const char *part, int32_t rank, float *out,
                 struct why *why) {
    double r = match(c->rank_pattern, part, c->rank),
           alpha = match(c->alpha_pattern, part, c->alpha);
    if (r != rank)
        return why_set(why, E_FORMAT,
                       "%s: lora_A has rank %d, but adapter_config.json says %g for it", part, rank,
                       r);
    *out = (float)(alpha / (c->rank_stabilised ? sqrt(r) : r));
    return E_OK;
}
