#include "compress/lora_config.h"

#include <math.h>
#include <string.h>

#include "config/json.h"

enum { MAX_DEPTH = 16, MAX_VALUES = 100000, MAX_RANK = 4096 };

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

static err_t refuse_extras(const json_t *root, struct why *why) {
    static const char *const extras[] = {
        "use_dora",          "lora_bias",
        "fan_in_fan_out",    "layer_replication",
        "modules_to_save",   "trainable_token_indices",
        "target_parameters", "alora_invocation_tokens",
        "use_qalora",        "use_bdlora",
    };
    for (size_t i = 0; i < sizeof extras / sizeof *extras; i++)
        if (is_set(json_object_get(root, extras[i])))
            return why_set(why, E_UNSUPPORTED,
                           "adapter_config.json: %s is set, which a low-rank pair alone cannot "
                           "express; merge the adapter and compress the result",
                           extras[i]);
    const char *bias = json_string_value(json_object_get(root, "bias"));
    if (bias && strcmp(bias, "none") != 0)
        return why_set(why, E_UNSUPPORTED,
                       "adapter_config.json: bias is \"%.32s\"; only \"none\" is supported", bias);
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    if (!type || strcmp(type, "LORA") != 0)
        return why_set(why, E_UNSUPPORTED,
                       "adapter_config.json: peft_type is \"%.32s\"; LORA is supported",
                       type ? type : "(missing)");
    return E_OK;
}

/* Keys are regular expressions in PEFT; plain names, which is what people write, are supported. */
static err_t take_pattern(const json_t *root, const char *name, json_t **out, struct why *why) {
    json_t *pattern = json_object_get(root, name), *value;
    const char *key;
    if (!is_set(pattern))
        return E_OK;
    if (!json_is_object(pattern))
        return why_set(why, E_FORMAT, "adapter_config.json: %s must be an object", name);
    json_object_foreach(pattern, key, value) {
        const char *allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._";
        double x = json_number_value(value);
        if (strspn(key, allowed) != strlen(key))
            return why_set(why, E_UNSUPPORTED,
                           "adapter_config.json: the key \"%.64s\" of %s is a regular expression; "
                           "plain module names are supported",
                           key, name);
        if (!json_is_number(value) || !(x > 0 && x < 1e6))
            return why_set(why, E_FORMAT,
                           "adapter_config.json: %s of %.64s must be a positive number", name, key);
    }
    *out = json_incref(pattern);
    return E_OK;
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
    e = take_pattern(root, "rank_pattern", &c->rank_pattern, why);
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
    memset(c, 0, sizeof *c);
}

/* The first key that is the name or its end after a dot, as PEFT matches them. */
static double match(const json_t *pattern, const char *part, double absent) {
    const char *key;
    json_t *value;
    size_t n = strlen(part);
    json_object_foreach((json_t *)pattern, key, value) {
        size_t m = strlen(key);
        if (m <= n && strcmp(part + n - m, key) == 0 && (m == n || part[n - m - 1] == '.'))
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
