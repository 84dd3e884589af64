#include "tests/bench/gpu/big.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compress/tenant_write.h"

const struct big_shape big_shapes[] = {
    {"llama-7b", 32, 4096, 32, 32, 11008, 32000, 4096},
    {"mistral-7b", 32, 4096, 32, 8, 14336, 32000, 32768},
    {0},
};

enum { NOISE_BYTES = 256 << 20 };

static void check(err_t e, const struct why *why) {
    if (e) {
        fprintf(stderr, "%s\n", why->text);
        exit(1);
    }
}

/* Random 64-bit words, read from anywhere: as FP16 through `mask` and `set`, values of magnitude
 * 1/64 to 1/32 of either sign. */
static unsigned char *noise(uint64_t mask, uint64_t set) {
    uint64_t x = 88172645463325252u, *p = malloc(NOISE_BYTES);
    for (size_t i = 0; p && i < NOISE_BYTES / 8; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        p[i] = (x & mask) | set;
    }
    if (!p) {
        fprintf(stderr, "no memory for random weights\n");
        exit(1);
    }
    return (unsigned char *)p;
}

static void write_config(const char *dir, const struct big_shape *s) {
    char path[512];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    if (!f ||
        fprintf(f,
                "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\","
                "\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
                "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"vocab_size\":%d,"
                "\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\","
                "\"bos_token_id\":1,\"eos_token_id\":2,\"rope_theta\":10000.0,"
                "\"tie_word_embeddings\":false,\"torch_dtype\":\"float16\"}",
                s->dim, s->ffn, s->layers, s->heads, s->kv_heads, s->vocab, s->context) < 0 ||
        fclose(f)) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
}

/* ---- the base -------------------------------------------------------------------------------- */

struct tensor {
    char name[96];
    int64_t rows, cols; /* cols 0: a vector */
};

static size_t list_tensors(const struct big_shape *s, struct tensor *t) {
    const struct model_shape m = {.n_layers = s->layers,
                                  .dim = s->dim,
                                  .n_heads = s->heads,
                                  .n_kv_heads = s->kv_heads,
                                  .head_dim = s->dim / s->heads,
                                  .ffn_dim = s->ffn,
                                  .vocab = s->vocab};
    size_t n = 0;
    t[n++] = (struct tensor){"model.embed_tokens.weight", s->vocab, s->dim};
    t[n++] = (struct tensor){"lm_head.weight", s->vocab, s->dim};
    for (int32_t i = 0; i < s->layers * N_PARTS; i++) {
        char part[80];
        part_name(part, sizeof part, i / N_PARTS, (enum part)(i % N_PARTS));
        snprintf(t[n].name, sizeof t[n].name, "%s.weight", part);
        t[n].rows = part_rows(&m, (enum part)(i % N_PARTS));
        t[n++].cols = part_cols(&m, (enum part)(i % N_PARTS));
    }
    for (int32_t i = 0; i < 2 * s->layers + 1; i++) {
        norm_name(t[n].name, sizeof t[n].name, &m, i);
        t[n].rows = s->dim;
        t[n++].cols = 0;
    }
    return n;
}

static void write_base(const char *dir, const struct big_shape *s) {
    struct tensor *t = calloc((size_t)(s->layers * 10 + 8), sizeof *t);
    unsigned char *x = noise(0x83ff83ff83ff83ffu, 0x2400240024002400u);
    size_t n = t ? list_tensors(s, t) : 0;
    char path[512];
    struct st_writer *w;
    struct why why;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    check(st_writer_open(&w, path, &why), &why);
    for (size_t i = 0; i < n; i++) {
        int64_t dim[2] = {t[i].rows, t[i].cols};
        st_writer_tensor(w, t[i].name, ST_F16, t[i].cols ? 2 : 1, dim);
    }
    check(st_writer_header(w, 4096, &why), &why);
    uint16_t *one = malloc((size_t)s->dim * 2);
    for (int i = 0; one && i < s->dim; i++)
        one[i] = 0x3c00;
    for (size_t i = 0; i < n; i++) {
        size_t bytes = (size_t)t[i].rows * (size_t)(t[i].cols ? t[i].cols : 1) * 2;
        for (size_t at = 0; at < bytes;) {
            size_t from = t[i].cols ? (at + i * 8 * 4099) % (NOISE_BYTES / 2) : 0;
            size_t part = NOISE_BYTES / 2 < bytes - at ? NOISE_BYTES / 2 : bytes - at;
            check(st_writer_data(w, t[i].cols ? x + from : (unsigned char *)one, part, &why), &why);
            at += part;
        }
    }
    check(st_writer_end(w, &why), &why);
    free(one);
    free(x);
    free(t);
}

/* ---- the tenant ------------------------------------------------------------------------------ */

static void write_parts(struct tenant_writer *w, const struct model_shape *m,
                        const unsigned char *x, const float *scale) {
    struct why why;
    for (int32_t i = 0; i < m->n_layers * N_PARTS; i++) {
        enum part p = (enum part)(i % N_PARTS);
        int32_t n = part_rows(m, p), k = part_cols(m, p);
        int64_t tiles[3] = {tiles_of(n, TILE_ROWS), tiles_of(k, TILE_COLS), TILE_BYTES}, rows = n;
        char part[128];
        part_name(part, sizeof part, i / N_PARTS, p);
        tenant_writer_kind(w, part, KIND_PLANES);
        check(tenant_writer_tensor(w, part, ".plane0.bits", ST_U8, 3, tiles,
                                   x + (size_t)i * 8 * 4099, &why),
              &why);
        check(tenant_writer_tensor(w, part, ".plane0.row", ST_F32, 1, &rows, scale, &why), &why);
    }
}

static void open_base(const char *dir, struct checkpoint *base, char fingerprint[SHA256_HEX]) {
    struct why why;
    unsigned char digest[SHA256_BYTES];
    check(checkpoint_open(base, dir, &why), &why);
    check(checkpoint_fingerprint(base, digest, NULL, NULL, &why), &why);
    sha256_hex(digest, fingerprint);
}

/* x: noise to take signs from. */
static void write_tenant(const struct checkpoint *base, const char *fingerprint,
                         const unsigned char *x, const char *path) {
    struct why why;
    const struct model_shape *m = &base->config.shape;
    size_t most = (size_t)(m->ffn_dim > m->dim ? m->ffn_dim : m->dim);
    size_t norms = (size_t)(2 * m->n_layers + 1) * (size_t)m->dim;
    float *scale = malloc(most * sizeof *scale), *norm = malloc(norms * sizeof *norm);
    for (size_t i = 0; scale && i < most; i++)
        scale[i] = 0.001f;
    for (size_t i = 0; norm && i < norms; i++)
        norm[i] = 1;
    struct tenant_writer *w;
    check(tenant_writer_open(&w, path, &why), &why);
    write_parts(w, m, x, scale);
    tenant_writer_kind(w, "embed", KIND_ABSENT);
    tenant_writer_kind(w, "head", KIND_ABSENT);
    int64_t dim[2] = {2 * m->n_layers + 1, m->dim};
    check(tenant_writer_tensor(w, "norm", "", ST_F32, 2, dim, norm, &why), &why);
    json_t *none = json_object(), *config = json_loads(base->config_json, 0, NULL);
    struct tenant_header h = {.base_fingerprint = fingerprint,
                              .base_vocab = m->vocab,
                              .config = config,
                              .tokenizer = none,
                              .generation = none,
                              .made = none,
                              .quality = none};
    check(tenant_writer_end(w, &h, NULL, &why), &why);
    json_decref(none);
    json_decref(config);
    free(scale);
    free(norm);
}

void big_make(const char *dir, const struct big_shape *s) {
    char path[512];
    mkdir(dir, 0755);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (access(path, R_OK) != 0) {
        write_config(dir, s);
        write_base(dir, s);
    }
    snprintf(path, sizeof path, "%s/tenant.bitdelta", dir);
    if (access(path, R_OK) == 0)
        return;
    struct checkpoint base;
    char fingerprint[SHA256_HEX];
    open_base(dir, &base, fingerprint);
    unsigned char *x = noise(~(uint64_t)0, 0);
    write_tenant(&base, fingerprint, x, path);
    free(x);
    checkpoint_close(&base);
}

void big_make_tenants(const char *dir, const char *base_dir, int n) {
    struct checkpoint base;
    char fingerprint[SHA256_HEX], path[512];
    open_base(base_dir, &base, fingerprint);
    unsigned char *x = noise(~(uint64_t)0, 0);
    mkdir(dir, 0755);
    for (int i = 1; i <= n; i++) {
        snprintf(path, sizeof path, "%s/t%d.bitdelta", dir, i);
        if (fork() == 0) { /* one process a tenant: hashing is what takes the time */
            write_tenant(&base, fingerprint, x + i * 8 * 65537, path);
            _exit(0);
        }
    }
    for (int status, failed = 0; wait(&status) > 0;)
        if ((failed |= status) != 0)
            exit(1);
    free(x);
    checkpoint_close(&base);
}
