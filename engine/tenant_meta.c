/* The metadata of a tenant file: strings of JSON in the container's __metadata__. Tensor data is
 * the business of tenant_file.c. Owns nothing but what it leaves in struct tenant_meta. Any thread.
 */
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "engine/tenant_file.h"

enum {
    MAX_DEPTH = 32,
    MAX_VALUES = 1 << 20,
};

static const char *const kinds[N_KINDS] = {"absent", "planes", "dense", "rows", "tied"};

const char *tenant_kind_name(enum tenant_kind k) {
    return kinds[k];
}

static enum tenant_kind kind_of(const json_t *v) {
    const char *name = json_string_value(v);
    for (int k = 0; name && k < N_KINDS; k++)
        if (strcmp(name, kinds[k]) == 0)
            return (enum tenant_kind)k;
    return N_KINDS;
}

static err_t want(const struct st_file *f, const char *key, const char *value, struct why *why) {
    const char *got = st_meta(f, key);
    if (!got)
        return why_set(why, E_FORMAT, "%s: not a bitdelta file: metadata \"%s\" is missing",
                       f->label, key);
    if (strcmp(got, value) != 0)
        return why_set(why, E_UNSUPPORTED, "%s: %s is \"%.64s\"; this version reads \"%s\"",
                       f->label, key, got, value);
    return E_OK;
}

static err_t get_digest(const struct st_file *f, const char *key, char out[SHA256_HEX],
                        struct why *why) {
    const char *text = st_meta(f, key);
    if (!text || strlen(text) != SHA256_HEX - 1 ||
        strspn(text, "0123456789abcdef") != SHA256_HEX - 1)
        return why_set(why, E_FORMAT, "%s: metadata \"%s\" is not a SHA-256 in hex", f->label, key);
    memcpy(out, text, SHA256_HEX);
    return E_OK;
}

/* A metadata string that must be a JSON object; copied as it stands. */
static err_t get_object(const struct st_file *f, const char *key, char **copy, struct why *why) {
    const char *text = st_meta(f, key);
    if (!text)
        return why_set(why, E_FORMAT, "%s: metadata \"%s\" is missing", f->label, key);
    json_t *root;
    err_t e = json_parse(&root, text, strlen(text), key, MAX_DEPTH, MAX_VALUES, why);
    if (!e && !json_is_object(root))
        e = why_set(why, E_FORMAT, "%s is not a JSON object", key);
    json_decref(root);
    if (e)
        return why_prefix(why, e, "%s", f->label);
    *copy = strdup(text);
    return *copy ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory", f->label);
}

/* A member of `tenant` that must be an object; dumped. */
static err_t dump_member(const struct st_file *f, const json_t *tenant, const char *key, char **out,
                         struct why *why) {
    const json_t *v = json_object_get(tenant, key);
    if (!json_is_object(v))
        return why_set(why, E_FORMAT, "%s: tenant.%s is missing or not an object", f->label, key);
    *out = json_dumps(v, JSON_COMPACT);
    return *out ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory", f->label);
}

static err_t read_config(struct tenant_meta *m, const struct st_file *f, const json_t *tenant,
                         struct why *why) {
    err_t e = dump_member(f, tenant, "config", &m->config_json, why);
    if (!e)
        e = dump_member(f, tenant, "tokenizer", &m->tokenizer_json, why);
    if (!e)
        e = dump_member(f, tenant, "generation", &m->generation_json, why);
    if (e)
        return e;
    e = model_config_from_json(&m->config, json_object_get(tenant, "config"), "tenant.config", why);
    if (!e)
        e = model_config_generation(&m->config, json_object_get(tenant, "generation"),
                                    "tenant.generation", why);
    if (e)
        return why_prefix(why, e, "%s", f->label);
    const json_t *vocab = json_object_get(tenant, "base_vocab");
    if (!json_is_integer(vocab) || json_integer_value(vocab) < 1 ||
        json_integer_value(vocab) > 1 << 24)
        return why_set(why, E_FORMAT, "%s: tenant.base_vocab must be a whole number in 1..%d",
                       f->label, 1 << 24);
    m->base_vocab = (int32_t)json_integer_value(vocab);
    return E_OK;
}

static err_t read_kinds(struct tenant_meta *m, const struct st_file *f, const json_t *tenant,
                        struct why *why) {
    int32_t n = m->config.shape.n_layers * N_PARTS;
    const json_t *parts = json_object_get(tenant, "parts");
    m->part_kind = malloc((size_t)n);
    if (!m->part_kind)
        return why_set(why, E_NOMEM, "%s: not enough memory", f->label);
    for (int32_t i = 0; i < n; i++) {
        char name[128];
        part_name(name, sizeof name, i / N_PARTS, (enum part)(i % N_PARTS));
        enum tenant_kind k = kind_of(json_object_get(parts, name));
        if (k > KIND_DENSE)
            return why_set(why, E_FORMAT,
                           "%s: tenant.parts does not say whether %s is absent, planes or dense",
                           f->label, name);
        m->part_kind[i] = (unsigned char)k;
    }
    if (json_object_size(parts) != (size_t)n)
        return why_set(why, E_FORMAT, "%s: tenant.parts has %zu parts; the model has %d", f->label,
                       json_object_size(parts), n);
    m->embed = kind_of(json_object_get(tenant, "embed"));
    m->head = kind_of(json_object_get(tenant, "head"));
    if (m->embed >= KIND_TIED)
        return why_set(why, E_FORMAT, "%s: tenant.embed must be absent, rows, planes or dense",
                       f->label);
    if (m->head == N_KINDS || (m->head == KIND_TIED) != m->config.tied)
        return why_set(why, E_FORMAT, "%s: tenant.head must be %s", f->label,
                       m->config.tied ? "tied, as tie_word_embeddings says"
                                      : "absent, rows, planes or dense");
    return E_OK;
}

err_t tenant_meta_read(struct tenant_meta *m, const struct st_file *f,
                       const struct model_config *base, const char *base_fingerprint,
                       struct why *why) {
    memset(m, 0, sizeof *m);
    json_t *tenant = NULL;
    err_t e = want(f, "format", "bitdelta", why);
    if (!e)
        e = want(f, "format_version", "1", why);
    if (!e)
        e = want(f, "layout", "m16k256", why);
    if (!e)
        e = get_digest(f, "base_fingerprint", m->base_fingerprint, why);
    if (!e && base_fingerprint && strcmp(base_fingerprint, m->base_fingerprint) != 0)
        e = why_set(why, E_WRONG_BASE, "%s: made for another base: %.8s..., wanted %.8s...",
                    f->label, m->base_fingerprint, base_fingerprint);
    if (!e)
        e = get_digest(f, "content_hash", m->hash, why);
    if (!e)
        e = get_object(f, "made", &m->made_json, why);
    if (!e)
        e = get_object(f, "quality", &m->quality_json, why);
    const char *text = st_meta(f, "tenant");
    if (!e && !text)
        e = why_set(why, E_FORMAT, "%s: metadata \"tenant\" is missing", f->label);
    if (!e && (e = json_parse(&tenant, text, strlen(text), "tenant", MAX_DEPTH, MAX_VALUES, why)))
        e = why_prefix(why, e, "%s", f->label);
    if (!e)
        e = read_config(m, f, tenant, why);
    if (!e && base)
        e = model_config_same_shape(&m->config, base, f->label, why);
    if (!e && base && m->base_vocab != base->shape.vocab)
        e = why_set(why, E_WRONG_BASE, "%s: made for a base of %d tokens; this one has %d",
                    f->label, m->base_vocab, base->shape.vocab);
    if (!e)
        e = read_kinds(m, f, tenant, why);
    json_decref(tenant);
    return e;
}

void tenant_meta_free(struct tenant_meta *m) {
    free(m->part_kind);
    free(m->config_json);
    free(m->tokenizer_json);
    free(m->generation_json);
    free(m->made_json);
    free(m->quality_json);
    memset(m, 0, sizeof *m);
}

err_t tenant_content_hash(struct hash_job *job, int32_t n, const char *base_fingerprint,
                          const char *tenant_json, char out[SHA256_HEX]) {
    struct sha256 sum;
    unsigned char digest[SHA256_BYTES];
    err_t e = sha256_init(&sum);
    if (e)
        return e;
    hash_lines(&sum, job, n);
    sha256_add(&sum, base_fingerprint, strlen(base_fingerprint));
    sha256_add(&sum, tenant_json, strlen(tenant_json));
    sha256_end(&sum, digest);
    sha256_hex(digest, out);
    return E_OK;
}
