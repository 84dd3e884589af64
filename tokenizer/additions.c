/* Hugging Face tokenizer settings as one JSON object; see additions.h. Owns nothing after return.
 *
 * Two generations of files: since transformers 4.34 `added_tokens_decoder` in tokenizer_config.json
 * says all; before, added_tokens.json gave ids alone and special_tokens_map.json said which are
 * special. As there, the older files count only where the newer table is missing. */
#include "tokenizer/additions.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/json.h"
#include "config/sha256.h"

enum {
    MAX_JSON_BYTES = 32 << 20,
    MAX_TEMPLATE_BYTES = 1 << 20,
};

err_t additions_read_file(const char *dir, const char *name, size_t max, char **data, size_t *n,
                          struct why *why) {
    err_t e = file_read_in(dir, name, max, data, n, why);
    return e == E_IO && (errno == ENOENT || errno == ENOTDIR) ? E_OK : e;
}

/* *out: the object in dir/name; NULL if there is no such file. */
static err_t read_large_object(const char *dir, const char *name, size_t max_bytes,
                               size_t max_values, json_t **out, struct why *why) {
    char *text, label[256];
    size_t n;
    *out = NULL;
    err_t e = additions_read_file(dir, name, max_bytes, &text, &n, why);
    if (e || !text)
        return e;
    snprintf(label, sizeof label, "%.180s/%s", dir, name);
    e = json_parse(out, text, n, label, ADDITIONS_MAX_DEPTH, max_values, why);
    free(text);
    if (e)
        return e;
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return why_set(why, E_FORMAT, "%s/%s holds no JSON object", dir, name);
    }
    return E_OK;
}

static err_t read_object(const char *dir, const char *name, json_t **out, struct why *why) {
    return read_large_object(dir, name, MAX_JSON_BYTES, ADDITIONS_MAX_VALUES, out, why);
}

err_t additions_read_json(const char *dir, json_t **root, struct why *why) {
    char *model;
    size_t n;
    *root = NULL;
    err_t e =
        additions_read_file(dir, "tokenizer.model", ADDITIONS_MAX_MODEL_BYTES, &model, &n, why);
    /* A SentencePiece model starts with its first piece: field 1, length-delimited. Llama-3 folders
     * hold a list of another kind under the same name. */
    bool sentencepiece = model && (n == 0 || model[0] == 0x0a);
    free(model);
    if (e || sentencepiece)
        return e;
    return read_large_object(dir, "tokenizer.json", ADDITIONS_MAX_JSON_BYTES,
                             ADDITIONS_MAX_JSON_VALUES, root, why);
}

/* A special token stands as a string or as an object with "content". Borrowed; NULL: neither. */
static const char *content_of(const json_t *token) {
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

static bool names_token(const json_t *from, const char *content) {
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "pad_token",
                                       "sep_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const char *have = content_of(json_object_get(from, keys[i]));
        if (have && strcmp(have, content) == 0)
            return true;
    }
    size_t i;
    json_t *token;
    json_array_foreach(json_object_get(from, "additional_special_tokens"), i, token) {
        const char *have = content_of(token);
        if (have && strcmp(have, content) == 0)
            return true;
    }
    return false;
}

/* Appends one token; fields of `flags` (an object or NULL) that are absent are false. */
static err_t add_token(json_t *tokens, long long id, const char *content, bool special,
                       const json_t *flags) {
    static const char *const names[] = {"lstrip", "rstrip", "single_word", "normalized"};
    json_t *token = json_pack("{s:I, s:s, s:b}", "id", (json_int_t)id, "content", content,
                              "special", (int)special);
    for (size_t i = 0; token && i < sizeof names / sizeof names[0]; i++)
        if (json_object_set_new(token, names[i],
                                json_boolean(json_is_true(json_object_get(flags, names[i])))))
            return json_decref(token), E_NOMEM;
    return token && json_array_append_new(tokens, token) == 0 ? E_OK : E_NOMEM;
}

/* added_tokens_decoder: {"32000": {"content": "...", "special": true, ...}, ...} */
static err_t read_decoder(const json_t *config, json_t *tokens, const char *dir, struct why *why) {
    const char *key;
    json_t *entry;
    json_object_foreach((json_t *)json_object_get(config, "added_tokens_decoder"), key, entry) {
        char *end;
        long long id = strtoll(key, &end, 10);
        const char *content = json_string_value(json_object_get(entry, "content"));
        if (*key == 0 || *end != 0 || id < 0 || id > INT32_MAX || !content)
            return why_set(why, E_FORMAT,
                           "%s/tokenizer_config.json: added_tokens_decoder entry \"%.40s\" is not "
                           "an id with a content",
                           dir, key);
        bool special =
            json_is_true(json_object_get(entry, "special")) || names_token(config, content);
        if (add_token(tokens, id, content, special, entry))
            return why_set(why, E_NOMEM, "no memory for the added tokens");
    }
    return E_OK;
}

/* added_tokens.json: {"<|im_start|>": 32000, ...} */
static err_t read_added_tokens(const char *dir, const json_t *config, json_t *tokens,
                               struct why *why) {
    json_t *added = NULL;
    const char *content;
    json_t *id;
    err_t e = read_object(dir, "added_tokens.json", &added, why);
    if (e || !added)
        return e;
    json_object_foreach(added, content, id) {
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value > INT32_MAX)
            e = why_set(why, E_FORMAT, "%s/added_tokens.json: \"%.40s\" has no valid id", dir,
                        content);
        else if (add_token(tokens, value, content, names_token(config, content), NULL))
            e = why_set(why, E_NOMEM, "no memory for the added tokens");
        if (e)
            break;
    }
    json_decref(added);
    return e;
}

/* The template is a string, a list of named ones (then "default"), or a file of its own. */
static err_t read_template(const char *dir, const json_t *config, json_t *out, struct why *why) {
    char *text = NULL;
    size_t n, i;
    json_t *named, *given = json_object_get(config, "chat_template");
    err_t e = additions_read_file(dir, "chat_template.jinja", MAX_TEMPLATE_BYTES, &text, &n, why);
    if (e)
        return e;
    if (text) {
        json_t *file = json_stringn(text, n);
        free(text);
        if (!file)
            return why_set(why, E_FORMAT, "%s/chat_template.jinja is not UTF-8 text", dir);
        return json_object_set_new(out, "chat_template", file) ? E_NOMEM : E_OK;
    }
    json_array_foreach(given, i, named) {
        const char *name = json_string_value(json_object_get(named, "name"));
        if (name && strcmp(name, "default") == 0)
            given = json_object_get(named, "template");
    }
    json_t *template = json_is_string(given) ? json_incref(given) : json_null();
    if (config && json_object_set_new(out, "chat_template", template))
        return why_set(why, E_NOMEM, "no memory for the chat template");
    return E_OK;
}

/* Every setting of a folder that has settings, with the defaults of LlamaTokenizer (4.x) written
 * out: what such a folder leaves open is not the base's. */
static err_t copy_settings(const json_t *config, json_t *out) {
    static const struct {
        const char *key;
        bool value;
    } flags[] = {{"add_bos_token", true},
                 {"add_eos_token", false},
                 {"legacy", true},
                 {"add_prefix_space", true}};
    static const char *const tokens[][2] = {
        {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}};
    int bad = 0;
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        const json_t *given = json_object_get(config, flags[i].key);
        bool value = json_is_boolean(given) ? json_is_true(given) : flags[i].value;
        bad |= json_object_set_new(out, flags[i].key, json_boolean(value));
    }
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        const json_t *given = json_object_get(config, tokens[i][0]);
        const char *content = given ? content_of(given) : tokens[i][1];
        bad |= json_object_set_new(out, tokens[i][0], content ? json_string(content) : json_null());
    }
    const char *pad = content_of(json_object_get(config, "pad_token"));
    bad |= pad && json_object_set_new(out, "pad_token", json_string(pad));
    return bad ? E_NOMEM : E_OK;
}

static err_t hash_model(const char *dir, json_t *out, struct why *why) {
    char *model, hex[SHA256_HEX];
    unsigned char digest[SHA256_BYTES];
    size_t n;
    err_t e =
        additions_read_file(dir, "tokenizer.model", ADDITIONS_MAX_MODEL_BYTES, &model, &n, why);
    if (e || !model)
        return e;
    sha256_of(model, n, digest);
    sha256_hex(digest, hex);
    free(model);
    return json_object_set_new(out, "model_hash", json_string(hex)) ? E_NOMEM : E_OK;
}

err_t additions_read_folder(const char *dir, const json_t *root, json_t **out, struct why *why) {
    json_t *config = NULL, *map = NULL, *tokens = json_array(), *all = json_object();
    err_t e = tokens && all ? E_OK : why_set(why, E_NOMEM, "no memory for %s", dir);
    if (!e && !root)
        e = hash_model(dir, all, why);
    if (!e)
        e = read_object(dir, "tokenizer_config.json", &config, why);
    bool newer = json_is_object(json_object_get(config, "added_tokens_decoder"));
    if (!e && !newer)
        e = read_object(dir, "special_tokens_map.json", &map, why);
    if (!e && map && !config && !(config = json_object()))
        e = why_set(why, E_NOMEM, "no memory for %s", dir);
    if (!e && map && json_object_update(config, map))
        e = why_set(why, E_NOMEM, "no memory for %s", dir);
    if (!e)
        e = newer ? read_decoder(config, tokens, dir, why)
                  : read_added_tokens(dir, config, tokens, why);
    /* A folder with settings says that it has no added tokens; one without says nothing. */
    if (!e && root)
        e = additions_of_json(root, config, tokens, all, why);
    else if (!e && (config || json_array_size(tokens) > 0) &&
             (json_object_set(all, "added_tokens", tokens) || copy_settings(config, all)))
        e = why_set(why, E_NOMEM, "no memory for %s", dir);
    if (!e)
        e = read_template(dir, config, all, why);
    json_decref(config);
    json_decref(map);
    json_decref(tokens);
    if (e) {
        json_decref(all);
        return e;
    }
    *out = all;
    return E_OK;
}
