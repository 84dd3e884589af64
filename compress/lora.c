/* Finding an adapter's tensors and checking that they fit its base. */
#include "compress/lora.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/file.h"

enum { MAX_CONFIG = 4 << 20, MAX_HEADER = 16 << 20 };

/* ---- modules and their tensors --------------------------------------------------------------- */

static bool exists(const char *dir, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

bool lora_is_adapter(const char *dir) {
    return exists(dir, "adapter_config.json") && !exists(dir, "model.safetensors") &&
           !exists(dir, "model.safetensors.index.json");
}

static err_t make_modules(struct lora *l, struct why *why) {
    const struct model_shape *s = &l->base->config.shape;
    int32_t linears = s->n_layers * N_PARTS, norms = 2 * s->n_layers + 1;
    l->n_modules = linears + 2 + norms;
    l->module = calloc((size_t)l->n_modules, sizeof *l->module);
    if (!l->module)
        return why_set(why, E_NOMEM, "%s: not enough memory to read it", l->dir);
    for (int32_t i = 0; i < l->n_modules; i++) {
        struct lora_module *m = &l->module[i];
        enum part p = (enum part)(i % N_PARTS);
        m->n = i < linears ? part_rows(s, p) : i < linears + 2 ? s->vocab : 1;
        m->k = i < linears ? part_cols(s, p) : s->dim;
        if (i < linears) {
            part_name(m->name, sizeof m->name, i / N_PARTS, p);
        } else if (i < linears + 2) {
            snprintf(m->name, sizeof m->name, "%s", i > linears ? "lm_head" : "model.embed_tokens");
        } else {
            norm_name(m->name, sizeof m->name, s, i - linears - 2);
            *strstr(m->name, ".weight") = 0;
        }
    }
    return E_OK;
}

struct lora_module *lora_find(const struct lora *l, const char *name, size_t n) {
    for (int32_t i = 0; i < l->n_modules; i++)
        if (strlen(l->module[i].name) == n && strncmp(l->module[i].name, name, n) == 0)
            return &l->module[i];
    return NULL;
}

/* Where a tensor's name ends its module's, and what it then is. */
static const struct {
    const char *end;
    size_t field; /* of struct lora_module */
    bool of_embedding;
} roles[] = {
    {".lora_A.weight", offsetof(struct lora_module, a), false},
    {".lora_B.weight", offsetof(struct lora_module, b), false},
    {".lora_embedding_A", offsetof(struct lora_module, a), true},
    {".lora_embedding_B", offsetof(struct lora_module, b), true},
    {".lora_magnitude_vector", offsetof(struct lora_module, magnitude), false},
    {".lora_magnitude_vector.weight", offsetof(struct lora_module, magnitude), false},
    {".token_adapter.trainable_tokens_delta", offsetof(struct lora_module, tokens), false},
    {".modules_to_save.weight", offsetof(struct lora_module, whole), false},
    {".base_layer.weight", offsetof(struct lora_module, whole), false},
    {".weight", offsetof(struct lora_module, whole), false}, /* last: the others end so, too */
};

/* "base_model.model." is PEFT's, ".default" its first adapter's name, which older versions leave
 * in; a model saved without its head lacks a "model.". */
static void plain_name(const char *name, char *out, size_t n) {
    static const char prefix[] = "base_model.model.";
    if (strncmp(name, prefix, sizeof prefix - 1) == 0)
        name += sizeof prefix - 1;
    bool bare = strncmp(name, "layers.", 7) == 0 || strncmp(name, "embed_tokens.", 13) == 0 ||
                strncmp(name, "norm.", 5) == 0;
    snprintf(out, n, "%s%s", bare ? "model." : "", name);
    char *adapter = strstr(out, ".default");
    if (adapter && (adapter[8] == '.' || !adapter[8]))
        memmove(adapter, adapter + 8, strlen(adapter + 8) + 1);
}

static err_t place(struct lora *l, const struct st_tensor *t, struct why *why) {
    char name[256];
    plain_name(t->name, name, sizeof name);
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        size_t end = strlen(roles[i].end);
        struct lora_module *m = n > end && strcmp(name + n - end, roles[i].end) == 0
                                    ? lora_find(l, name, n - end)
                                    : NULL;
        if (!m)
            continue;
        const struct st_tensor **field =
            (const struct st_tensor **)(void *)((char *)m + roles[i].field);
        if (*field)
            return why_set(why, E_FORMAT, "%s: %s and %s are for the same thing", l->file.label,
                           (*field)->name, t->name);
        *field = t;
        m->of_embedding |= roles[i].of_embedding;
        return E_OK;
    }
    const char *dot = strrchr(name, '.');
    if (dot && strcmp(dot, ".bias") == 0)
        return why_set(why, E_UNSUPPORTED,
                       "%s: tensor %s is a bias, and the base's layers have none", l->file.label,
                       t->name);
    return why_set(why, E_UNSUPPORTED,
                   "%s: tensor %s is nothing that an adapter has for a module of the base",
                   l->file.label, t->name);
}

/* ---- shapes ---------------------------------------------------------------------------------- */

static bool is_shape(const struct st_tensor *t, int64_t rows, int64_t cols) {
    return rows ? t->n_dims == 2 && t->dim[0] == rows && t->dim[1] == cols
                : t->n_dims == 1 && t->dim[0] == cols;
}

static err_t check_pair(const struct lora *l, const struct lora_module *m, struct why *why) {
    if (!m->a != !m->b)
        return why_set(why, E_FORMAT, "%s: %s has only one of lora_A and lora_B", l->file.label,
                       m->name);
    if (!m->a)
        return m->magnitude ? why_set(why, E_FORMAT, "%s: %s has a magnitude but no pair",
                                      l->file.label, m->name)
                            : E_OK;
    bool vocab = m == &l->module[lora_embed(l)];
    if (m->of_embedding != vocab || m->n == 1)
        return why_set(why, E_UNSUPPORTED, "%s: %s cannot have the pair %s", l->file.label, m->name,
                       m->a->name);
    int64_t rank = m->a->dim[0], cols = vocab ? l->vocab : m->k, rows = vocab ? m->k : m->n;
    if (!vocab && m == &l->module[lora_head(l)])
        rows = l->vocab;
    if (rank < 1 || !is_shape(m->a, rank, cols) || !is_shape(m->b, rows, rank))
        return why_set(why, E_WRONG_BASE,
                       "%s: %s: lora_A and lora_B do not have the shapes [r, %lld] and [%lld, r] "
                       "that the base needs",
                       l->file.label, m->name, (long long)cols, (long long)rows);
    if (m->magnitude && (vocab || !l->config.dora))
        return why_set(why, E_UNSUPPORTED, "%s: %s: a magnitude %s is not supported", l->file.label,
                       m->name, vocab ? "of the embedding" : "without use_dora");
    if (m->magnitude && !is_shape(m->magnitude, 0, rows))
        return why_set(why, E_FORMAT, "%s: %s does not have the shape [%lld]", l->file.label,
                       m->magnitude->name, (long long)rows);
    if (!m->magnitude && l->config.dora && !vocab)
        return why_set(why, E_FORMAT, "%s: use_dora is set, but %s has no magnitude", l->file.label,
                       m->name);
    return E_OK;
}

static err_t check_tokens(const struct lora *l, const struct lora_module *m, struct why *why) {
    const char *short_name = strrchr(m->name, '.') ? strrchr(m->name, '.') + 1 : m->name;
    const json_t *ids = lora_token_ids(&l->config, short_name), *id;
    size_t i;
    if (!m->tokens)
        return E_OK;
    if (m->n == 1 || !ids || !is_shape(m->tokens, (int64_t)json_array_size(ids), m->k))
        return why_set(why, E_FORMAT,
                       "%s: %s does not have a row for each of the trainable_token_indices",
                       l->file.label, m->tokens->name);
    json_array_foreach((json_t *)ids, i, id) if (json_integer_value(id) >= l->vocab) return why_set(
        why, E_FORMAT, "%s: token %lld is beyond its %d rows", l->file.label,
        (long long)json_integer_value(id), l->vocab);
    return E_OK;
}

/* Whole embeddings may be of another vocabulary; then both must be there. */
static err_t find_vocab(struct lora *l, struct why *why) {
    const struct lora_module *embed = &l->module[lora_embed(l)], *head = &l->module[lora_head(l)];
    const struct st_tensor *e = embed->whole, *h = head->whole, *any = e ? e : h;
    bool tied = l->base->config.tied;
    l->vocab = l->base->config.shape.vocab;
    if (tied && (embed->a || head->a))
        return why_set(why, E_UNSUPPORTED,
                       "%s: the base's lm_head is its embedding, of which a pair changes one use "
                       "before it is merged and both after; merge it with PEFT and compress that",
                       l->file.label);
    l->tied = tied && !h && (!e || l->config.keeps_tying);
    if (!any)
        return E_OK;
    int64_t rows = any->n_dims == 2 ? any->dim[0] : 0, dim = embed->k;
    if (rows < 1 || rows > 1 << 24 || !is_shape(any, rows, dim) || (h && !is_shape(h, rows, dim)))
        return why_set(why, E_WRONG_BASE, "%s: %s does not have rows of the base's %lld columns",
                       l->file.label, any->name, (long long)dim);
    l->vocab = (int32_t)rows;
    if (l->vocab != l->base->config.shape.vocab && !l->tied && !(e && h))
        return why_set(why, E_FORMAT,
                       "%s: %s is of a vocabulary of %d, and the other of embedding and lm_head "
                       "is missing",
                       l->file.label, any->name, l->vocab);
    return E_OK;
}

static err_t check_modules(struct lora *l, struct why *why) {
    bool any = false;
    err_t e = find_vocab(l, why);
    for (int32_t i = 0; !e && i < l->n_modules; i++) {
        struct lora_module *m = &l->module[i];
        bool vocab = i == lora_embed(l) || i == lora_head(l);
        any |= !lora_is_absent(m);
        e = check_pair(l, m, why);
        e = e ? e : check_tokens(l, m, why);
        if (!e && m->whole && !vocab && !is_shape(m->whole, m->n > 1 ? m->n : 0, m->k))
            e = why_set(why, E_WRONG_BASE, "%s: %s does not have the shape of the base's",
                        l->file.label, m->whole->name);
    }
    if (!e && !any)
        e = why_set(why, E_FORMAT, "%s: adapts nothing of the base", l->file.label);
    for (int32_t i = lora_embed(l); i <= lora_head(l); i++)
        l->module[i].n = l->vocab;
    return e;
}

/* ---- opening --------------------------------------------------------------------------------- */

err_t lora_open(struct lora *l, const char *dir, const struct checkpoint *base, struct why *why) {
    *l = (struct lora){.dir = strdup(dir), .base = base, .fd = -1};
    char path[4096], *text;
    size_t n;
    if (!l->dir)
        return why_set(why, E_NOMEM, "%s: not enough memory", dir);
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    err_t e = file_read(path, MAX_CONFIG, &text, &n, why);
    if (e)
        return e;
    e = lora_config_parse(&l->config, text, n, why);
    free(text);
    if (e)
        return why_prefix(why, e, "%s", dir);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    l->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (l->fd < 0 && errno == ENOENT && exists(dir, "adapter_model.bin"))
        return why_set(why, E_UNSUPPORTED,
                       "%s: has adapter_model.bin, a pickle; save the adapter as safetensors, "
                       "PEFT's default since version 0.7",
                       dir);
    if (l->fd < 0)
        return why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno));
    e = st_open(&l->file, l->fd, path, MAX_HEADER, why);
    e = e ? e : make_modules(l, why);
    for (int32_t i = 0; !e && i < l->file.n_tensors; i++)
        e = place(l, &l->file.tensor[i], why);
    return e ? e : check_modules(l, why);
}

void lora_close(struct lora *l) {
    if (l->last)
        lora_pair_free(l->last);
    free(l->last);
    lora_config_free(&l->config);
    free(l->module);
    free(l->dir);
    if (l->fd >= 0) {
        st_close(&l->file);
        close(l->fd);
    }
    *l = (struct lora){.fd = -1};
}
