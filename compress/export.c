/* `bitdelta export`: base + tenant as a plain FP16 checkpoint folder, so that any other engine can
 * be asked the same question; or a low-rank tenant as the adapter that it is. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compress/export.h"
#include "config/file.h"
#include "config/json.h"

enum { MAX_TEXT = 256 << 20 };

/* ---- texts ----------------------------------------------------------------------------------- */

static err_t write_text(const char *dir, const char *name, const char *text, size_t n,
                        struct why *why) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    bool ok = f && fwrite(text, 1, n, f) == n;
    if (f && fclose(f) != 0)
        ok = false;
    return ok ? E_OK : why_set(why, E_IO, "%s: cannot write: %s", path, strerror(errno));
}

err_t export_json(const char *dir, const char *name, const json_t *value, struct why *why) {
    char *text = json_dumps(value, JSON_INDENT(2));
    if (!text)
        return why_set(why, E_NOMEM, "%s: not enough memory", name);
    err_t e = write_text(dir, name, text, strlen(text), why);
    free(text);
    return e;
}

/* Reads a base's file; *text NULL when there is none. */
static err_t read_optional(const char *dir, const char *name, char **text, size_t *n,
                           struct why *why) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    err_t e = file_read(path, MAX_TEXT, text, n, why);
    return e == E_IO && errno == ENOENT ? E_OK : e;
}

/* The base's tokenizer.json with the tenant's added tokens. */
static err_t write_tokenizer_json(const struct export_job *j, const json_t *additions,
                                  const char *text, size_t n, struct why *why) {
    json_t *root, *added = json_object_get(additions, "added_tokens");
    err_t e = json_parse(&root, text, n, "tokenizer.json", 32, 8 << 20, why);
    if (e)
        return e;
    if (added)
        json_object_set(root, "added_tokens", added);
    e = export_json(j->dir, "tokenizer.json", root, why);
    json_decref(root);
    return e;
}

/* The settings of the additions as tokenizer_config.json has them. What stands around a text is
 * said by the two flags, whichever way it was given. */
static void copy_settings(const json_t *additions, json_t *config) {
    static const char *const skipped[] = {"added_tokens", "model_hash", "pieces_hash", "prefix_ids",
                                          "suffix_ids"};
    const json_t *prefix = json_object_get(additions, "prefix_ids");
    const json_t *suffix = json_object_get(additions, "suffix_ids");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)additions, key, value) {
        bool skip = false;
        for (size_t i = 0; i < sizeof skipped / sizeof skipped[0]; i++)
            skip |= strcmp(key, skipped[i]) == 0;
        if (!skip)
            json_object_set(config, key, value);
    }
    if (prefix)
        json_object_set_new(config, "add_bos_token", json_boolean(json_array_size(prefix) > 0));
    if (suffix)
        json_object_set_new(config, "add_eos_token", json_boolean(json_array_size(suffix) > 0));
}

/* The base's tokenizer_config.json with the tenant's settings over it; added tokens in the form
 * that transformers reads since 4.34. */
static err_t write_tokenizer(const struct export_job *j, const json_t *additions, struct why *why) {
    char *model, *tree = NULL, *text;
    size_t n_model, n_tree = 0, n_text;
    json_t *config = NULL;
    err_t e = read_optional(j->base->checkpoint.dir, "tokenizer.model", &model, &n_model, why);
    if (!e && !model)
        e = read_optional(j->base->checkpoint.dir, "tokenizer.json", &tree, &n_tree, why);
    if (e || (!model && !tree))
        return e; /* nothing to add to */
    e = model ? write_text(j->dir, "tokenizer.model", model, n_model, why)
              : write_tokenizer_json(j, additions, tree, n_tree, why);
    free(model);
    free(tree);
    if (!e)
        e = read_optional(j->base->checkpoint.dir, "tokenizer_config.json", &text, &n_text, why);
    if (e)
        return e;
    if (text)
        e = json_parse(&config, text, n_text, "tokenizer_config.json", 32, 1 << 20, why);
    else
        config = json_pack("{s:s}", "tokenizer_class",
                           n_tree ? "PreTrainedTokenizerFast" : "LlamaTokenizer");
    free(text);
    if (e)
        return e;
    json_t *token;
    size_t i;
    copy_settings(additions, config);
    json_t *decoder = json_object(), *added = json_object();
    json_array_foreach(json_object_get(additions, "added_tokens"), i, token) {
        json_t *copy = json_copy(token), *id = json_object_get(token, "id");
        char number[24];
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(id));
        json_object_set(added, json_string_value(json_object_get(token, "content")), id);
        json_object_del(copy, "id");
        json_object_set_new(decoder, number, copy);
    }
    if (json_object_size(decoder)) {
        json_object_set(config, "added_tokens_decoder", decoder);
        e = export_json(j->dir, "added_tokens.json", added, why);
    }
    if (!e)
        e = export_json(j->dir, "tokenizer_config.json", config, why);
    json_decref(added);
    json_decref(decoder);
    json_decref(config);
    return e;
}

static err_t parse_own(json_t **out, const char *text, const char *label, struct why *why) {
    return json_parse(out, text, strlen(text), label, 32, 1 << 20, why);
}

static err_t write_texts(const struct export_job *j, struct why *why) {
    const struct tenant_meta *m = &j->t->meta;
    json_t *config = NULL, *generation = NULL, *tokenizer = NULL;
    err_t e = parse_own(&config, m->config_json, "config", why);
    if (!e)
        e = parse_own(&generation, m->generation_json, "generation", why);
    if (!e)
        e = parse_own(&tokenizer, m->tokenizer_json, "tokenizer", why);
    if (!e) {
        const char *key = json_object_get(config, "torch_dtype") ? "torch_dtype" : "dtype";
        json_object_set_new(config, key, json_string("float16"));
        e = export_json(j->dir, "config.json", config, why);
    }
    if (!e && json_object_size(generation))
        e = export_json(j->dir, "generation_config.json", generation, why);
    if (!e)
        e = write_tokenizer(j, tokenizer, why);
    json_decref(config);
    json_decref(generation);
    json_decref(tokenizer);
    return e;
}

/* ---- the command ----------------------------------------------------------------------------- */

static err_t write_checkpoint(const struct export_job *j, struct why *why) {
    err_t e = write_texts(j, why);
    e = e ? e : export_weights(j, why);
    if (!e)
        printf("%s: a checkpoint of its own, in FP16\n", j->dir);
    return e;
}

/* Of the tokenizer only what is the tenant's own: the base's is the base's. */
static err_t write_adapter(const struct export_job *j, struct why *why) {
    json_t *additions = NULL;
    err_t e = export_peft(j, why);
    e = e ? e : parse_own(&additions, j->t->meta.tokenizer_json, "tokenizer", why);
    if (!e && json_object_size(additions))
        e = write_tokenizer(j, additions, why);
    json_decref(additions);
    if (!e)
        printf("%s: a PEFT adapter\n", j->dir);
    return e;
}

static err_t run(const struct args *a, struct why *why) {
    const char *path = arg(a, "--tenant");
    struct job_base base;
    struct tenant_file t = {0};
    err_t e = job_base_open(&base, arg(a, "--base"), why);
    if (e)
        return e;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        e = why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno));
    else
        e = tenant_file_read(&t, fd, path, &base.checkpoint.config, base.fingerprint, why);
    struct export_job j = {.base = &base, .t = &t, .dir = arg(a, "--output")};
    if (!e && mkdir(j.dir, 0777) < 0 && errno != EEXIST)
        e = why_set(why, E_IO, "%s: cannot make the folder: %s", j.dir, strerror(errno));
    if (!e)
        e = arg(a, "--peft") ? write_adapter(&j, why) : write_checkpoint(&j, why);
    tenant_file_free(&t);
    if (fd >= 0)
        close(fd);
    job_base_close(&base);
    return e;
}

const struct command command_export = {
    .name = "export",
    .summary = "write base + tenant as a plain FP16 checkpoint, or as a PEFT adapter",
    .about =
        "Merges the tenant into the base and writes a Hugging Face folder (config.json,\n"
        "generation_config.json, tokenizer files, model.safetensors in FP16) that other\n"
        "engines load. What it computes differs from bitdeltad by FP16 rounding only.\n\n"
        "--peft: a tenant of low-rank pairs alone (as import-lora makes them; what is whole in it\n"
        "becomes modules_to_save) as a folder that PEFT loads on top of the base. Importing that\n"
        "again gives the same tenant.\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--tenant", "FILE", true, "the tenant file"},
               {"--output", "DIR", true, "the folder to write; made if it is not there"},
               {"--peft", NULL, false, "write a PEFT adapter"}},
    .examples = "  bitdelta export --base llama-7b --tenant chat.bitdelta -o chat-merged\n"
                "  bitdelta export --peft --base llama-7b --tenant sql.bitdelta -o sql-lora\n",
    .run = run,
};
