/* What a tokenizer.json says beyond its model: added tokens and the ids its post-processor puts
 * around a text; see additions.h. Owns nothing after return. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "tokenizer/additions.h"

static const char *content_of(const json_t *token) {
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

/* The id of a content among the added tokens, else in the vocabulary; NULL: none. Borrowed. */
static json_t *find_id(const json_t *root, const char *content) {
    size_t i;
    json_t *token;
    json_array_foreach(json_object_get(root, "added_tokens"), i, token) {
        const char *have = content_of(token);
        if (have && strcmp(have, content) == 0)
            return json_object_get(token, "id");
    }
    return json_object_get(json_object_get(json_object_get(root, "model"), "vocab"), content);
}

/* One special token of a template: its ids, appended to `to`. */
static err_t add_special(const json_t *processor, const json_t *part, json_t *to, struct why *why) {
    const char *name = json_string_value(json_object_get(part, "id"));
    const json_t *special =
        name ? json_object_get(json_object_get(processor, "special_tokens"), name) : NULL;
    json_t *ids = json_object_get(special, "ids");
    if (!json_is_array(ids))
        return why_set(why, E_FORMAT,
                       "tokenizer.json: the post-processor names '%.60s' without giving its ids",
                       name ? name : "");
    return json_array_extend(to, ids) ? E_NOMEM : E_OK;
}

static err_t read_template(const json_t *processor, json_t *prefix, json_t *suffix,
                           struct why *why) {
    size_t i;
    json_t *part;
    int sequences = 0;
    json_array_foreach(json_object_get(processor, "single"), i, part) {
        const json_t *special = json_object_get(part, "SpecialToken");
        if (special) {
            err_t e = add_special(processor, special, sequences ? suffix : prefix, why);
            if (e)
                return e;
        } else {
            sequences++;
        }
    }
    return sequences == 1 ? E_OK
                          : why_set(why, E_UNSUPPORTED,
                                    "tokenizer.json: the post-processor's template holds the text "
                                    "%d times",
                                    sequences);
}

static err_t read_processor(const json_t *processor, json_t *prefix, json_t *suffix,
                            struct why *why) {
    const char *type = json_string_value(json_object_get(processor, "type"));
    size_t i;
    json_t *one;
    err_t e = E_OK;
    if (!type || strcmp(type, "ByteLevel") == 0) /* moves offsets, adds nothing */
        return E_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(processor, prefix, suffix, why);
    if (strcmp(type, "Sequence") != 0)
        return why_set(why, E_UNSUPPORTED,
                       "tokenizer.json: the post-processor '%.60s' is not supported", type);
    json_array_foreach(json_object_get(processor, "processors"), i, one) {
        const char *inner = json_string_value(json_object_get(one, "type"));
        if (inner && strcmp(inner, "Sequence") == 0)
            return why_set(why, E_UNSUPPORTED, "tokenizer.json: nested post-processors");
        e = read_processor(one, prefix, suffix, why);
        if (e)
            break;
    }
    return e;
}

/* add_bos_token and add_eos_token of the settings, where they are given, replace the template. */
static err_t follow_flags(const json_t *root, const json_t *config, json_t *prefix,
                          json_t *suffix) {
    const json_t *bos = json_object_get(config, "add_bos_token");
    const json_t *eos = json_object_get(config, "add_eos_token");
    const char *first = content_of(json_object_get(config, "bos_token"));
    const char *last = content_of(json_object_get(config, "eos_token"));
    if (!json_is_boolean(bos) && !json_is_boolean(eos))
        return E_OK;
    int bad = json_array_clear(prefix) | json_array_clear(suffix);
    if (json_is_true(bos) && first && find_id(root, first))
        bad |= json_array_append(prefix, find_id(root, first));
    if (json_is_true(eos) && last && find_id(root, last))
        bad |= json_array_append(suffix, find_id(root, last));
    return bad ? E_NOMEM : E_OK;
}

/* The tokens of the file, then those that the settings alone have. */
static err_t merge_tokens(const json_t *root, json_t *tokens) {
    json_t *all = json_array(), *token, *other;
    size_t i, k;
    int bad = !all;
    json_array_foreach(json_object_get(root, "added_tokens"), i, token) bad |=
        json_array_append(all, token);
    json_array_foreach(tokens, i, token) {
        bool known = false;
        json_array_foreach(all, k, other) {
            known = json_equal(json_object_get(token, "id"), json_object_get(other, "id"));
            if (known)
                break;
        }
        if (!known)
            bad |= json_array_append(all, token);
    }
    if (!bad)
        bad = json_array_clear(tokens) | json_array_extend(tokens, all);
    json_decref(all);
    return bad ? E_NOMEM : E_OK;
}

err_t additions_of_json(const json_t *root, const json_t *config, json_t *tokens, json_t *out,
                        struct why *why) {
    static const char *const named[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    json_t *prefix = json_array(), *suffix = json_array();
    err_t e = read_processor(json_object_get(root, "post_processor"), prefix, suffix, why);
    if (!e)
        e = follow_flags(root, config, prefix, suffix);
    if (!e)
        e = merge_tokens(root, tokens);
    int bad = json_object_set(out, "prefix_ids", prefix) |
              json_object_set(out, "suffix_ids", suffix) |
              json_object_set(out, "added_tokens", tokens);
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++) {
        const char *content = content_of(json_object_get(config, named[i]));
        bad |= json_object_set_new(out, named[i], content ? json_string(content) : json_null());
    }
    json_decref(prefix);
    json_decref(suffix);
    return e          ? e
           : bad == 0 ? E_OK
                      : why_set(why, E_NOMEM, "no memory for the tokenizer's settings");
}
