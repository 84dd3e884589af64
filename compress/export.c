/* `bitdelta export`: base + tenant as a plain FP16 checkpoint folder, so that any other engine can
 * be asked the same question. Weights are FP16(base) + delta in FP32, rounded once. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compress/diff.h"
#include "compress/job.h"
#include "compress/merge.h"
#include "config/file.h"
#include "config/json.h"
#include "kernels/f16.h"

enum { BLOCK_ELEMENTS = 1 << 24, MAX_TEXT = 256 << 20 };

struct export_job {
    const struct checkpoint *base;
    const struct tenant_file *t;
    const char *dir;
    struct st_writer *w;
    struct progress progress;
};

/* ---- weights ----------------------------------------------------------------------------------
 */

/* Matrix number i of a checkpoint in file order: the linears, then embedding and lm_head. */
struct matrix {
    char part[128], base_name[160], name[160];
    int32_t n, k, base_n;      /* rows here and in the base */
    const struct delta *delta; /* linears */
    const struct vocab_matrix *vocab;
};

static bool matrix_at(const struct export_job *j, int32_t i, struct matrix *m) {
    const struct model_shape *s = &j->base->config.shape;
    const struct model_config *c = &j->t->meta.config;
    memset(m, 0, sizeof *m);
    if (i < s->n_layers * N_PARTS) {
        enum part p = (enum part)(i % N_PARTS);
        part_name(m->part, sizeof m->part, i / N_PARTS, p);
        snprintf(m->name, sizeof m->name, "%s.weight", m->part);
        snprintf(m->base_name, sizeof m->base_name, "%s", m->name);
        m->n = m->base_n = part_rows(s, p);
        m->k = part_cols(s, p);
        m->delta = &j->t->delta[i];
        return true;
    }
    i -= s->n_layers * N_PARTS;
    if (i > (c->tied ? 0 : 1))
        return false;
    snprintf(m->name, sizeof m->name, "%s", i ? "lm_head.weight" : "model.embed_tokens.weight");
    snprintf(m->base_name, sizeof m->base_name, "%s", i ? head_tensor(&j->base->config) : m->name);
    m->n = c->shape.vocab;
    m->base_n = s->vocab;
    m->k = s->dim;
    m->vocab = i ? &j->t->head : &j->t->embed;
    return true;
}

/* Rows [at, at + rows) merged, in w. */
static err_t merge_block(const struct export_job *j, const struct matrix *m, int32_t at,
                         int32_t rows, float *w, uint16_t *half, struct why *why) {
    int32_t common = m->base_n - at < rows ? m->base_n - at : rows;
    size_t n = (size_t)rows * (size_t)m->k;
    memset(w, 0, n * sizeof *w);
    err_t e = common <= 0 ? E_OK
                          : checkpoint_read_f32_rows(j->base, m->base_name, w,
                                                     (uint64_t)at * (uint64_t)m->k,
                                                     (size_t)common * (size_t)m->k, why);
    if (e)
        return e;
    for (size_t i = 0; i < n; i++) /* the base that the server computes with is FP16 */
        w[i] = half_to_float(half_from_float(w[i]));
    if (m->delta)
        merge_rows(w, m->delta, at, rows, m->k);
    else
        merge_vocab_rows(w, m->vocab, at, rows, m->base_n, m->k);
    return diff_to_half(half, w, n, m->name, why);
}

static err_t write_matrix(struct export_job *j, const struct matrix *m, struct why *why) {
    int32_t block = BLOCK_ELEMENTS / m->k + 1;
    if (block > m->n)
        block = m->n;
    size_t elements = (size_t)block * (size_t)m->k;
    float *w = malloc(elements * sizeof *w);
    uint16_t *half = malloc(elements * sizeof *half);
    err_t e = w && half ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory", m->name);
    for (int32_t at = 0; !e && at < m->n; at += block) {
        int32_t rows = m->n - at < block ? m->n - at : block;
        e = merge_block(j, m, at, rows, w, half, why);
        if (!e)
            e = st_writer_data(j->w, half, (size_t)rows * (size_t)m->k * sizeof *half, why);
    }
    free(w);
    free(half);
    return e;
}

static err_t write_norms(struct export_job *j, struct why *why) {
    const struct model_shape *s = &j->base->config.shape;
    uint16_t *half = malloc((size_t)s->dim * sizeof *half);
    err_t e = half ? E_OK : why_set(why, E_NOMEM, "not enough memory for the norms");
    for (int32_t i = 0; !e && i < 2 * s->n_layers + 1; i++) {
        e = diff_to_half(half, j->t->norm + (size_t)i * (size_t)s->dim, (size_t)s->dim, "norm",
                         why);
        if (!e)
            e = st_writer_data(j->w, half, (size_t)s->dim * sizeof *half, why);
    }
    free(half);
    return e;
}

static void declare(struct export_job *j) {
    const struct model_shape *s = &j->base->config.shape;
    struct matrix m;
    st_writer_meta(j->w, "format", "pt");
    for (int32_t i = 0; matrix_at(j, i, &m); i++)
        st_writer_tensor(j->w, m.name, ST_F16, 2, (int64_t[]){m.n, m.k});
    for (int32_t i = 0; i < 2 * s->n_layers + 1; i++) {
        char name[128];
        norm_name(name, sizeof name, s, i);
        st_writer_tensor(j->w, name, ST_F16, 1, (int64_t[]){s->dim});
    }
}

static err_t write_weights(struct export_job *j, struct why *why) {
    char path[4096];
    struct matrix m;
    snprintf(path, sizeof path, "%s/model.safetensors", j->dir);
    err_t e = st_writer_open(&j->w, path, why);
    if (e)
        return e;
    declare(j);
    e = st_writer_header(j->w, 8, why);
    progress_begin(&j->progress, "export");
    for (int32_t i = 0; !e && matrix_at(j, i, &m); i++) {
        e = write_matrix(j, &m, why);
        progress_show(&j->progress, (uint64_t)i,
                      (uint64_t)j->base->config.shape.n_layers * N_PARTS + 2);
    }
    progress_end(&j->progress);
    if (!e)
        e = write_norms(j, why);
    if (!e)
        return st_writer_end(j->w, why);
    st_writer_abort(j->w);
    return e;
}

/* ---- texts ------------------------------------------------------------------------------------
 */

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

static err_t write_json(const char *dir, const char *name, const json_t *value, struct why *why) {
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
    e = write_json(j->dir, "tokenizer.json", root, why);
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
    err_t e = read_optional(j->base->dir, "tokenizer.model", &model, &n_model, why);
    if (!e && !model)
        e = read_optional(j->base->dir, "tokenizer.json", &tree, &n_tree, why);
    if (e || (!model && !tree))
        return e; /* nothing to add to */
    e = model ? write_text(j->dir, "tokenizer.model", model, n_model, why)
              : write_tokenizer_json(j, additions, tree, n_tree, why);
    free(model);
    free(tree);
    if (!e)
        e = read_optional(j->base->dir, "tokenizer_config.json", &text, &n_text, why);
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
        e = write_json(j->dir, "added_tokens.json", added, why);
    }
    if (!e)
        e = write_json(j->dir, "tokenizer_config.json", config, why);
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
        e = write_json(j->dir, "config.json", config, why);
    }
    if (!e && json_object_size(generation))
        e = write_json(j->dir, "generation_config.json", generation, why);
    if (!e)
        e = write_tokenizer(j, tokenizer, why);
    json_decref(config);
    json_decref(generation);
    json_decref(tokenizer);
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
    struct export_job j = {.base = &base.checkpoint, .t = &t, .dir = arg(a, "--output")};
    if (!e && mkdir(j.dir, 0777) < 0 && errno != EEXIST)
        e = why_set(why, E_IO, "%s: cannot make the folder: %s", j.dir, strerror(errno));
    if (!e)
        e = write_texts(&j, why);
    if (!e)
        e = write_weights(&j, why);
    if (!e)
        printf("%s: a checkpoint of its own, in FP16\n", j.dir);
    tenant_file_free(&t);
    if (fd >= 0)
        close(fd);
    job_base_close(&base);
    return e;
}

const struct command command_export = {
    .name = "export",
    .summary = "write base + tenant as a plain FP16 checkpoint",
    .about = "Merges the tenant into the base and writes a Hugging Face folder (config.json,\n"
             "generation_config.json, tokenizer files, model.safetensors in FP16) that other\n"
             "engines load. What it computes differs from bitdeltad by FP16 rounding only.\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--tenant", "FILE", true, "the tenant file"},
               {"--output", "DIR", true, "the folder to write; made if it is not there"}},
    .examples = "  bitdelta export --base llama-7b --tenant chat.bitdelta -o chat-merged\n",
    .run = run,
};
