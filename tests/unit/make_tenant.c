#include "tests/unit/make_tenant.h"

#include <math.h>

#include "compress/tenant_write.h"
#include "kernels/f16.h"
#include "tests/check.h"

enum { EXTRA = 2, RANK = 3 };

struct forge {
    struct tenant_writer *w;
    const struct model_shape *s;
    enum tenant_fault fault;
    unsigned seed;
};

static void put(struct forge *f, const char *part, const char *suffix, enum st_dtype dtype,
                int32_t n_dims, const int64_t *dim, const void *data) {
    struct why why;
    CHECK_OK(tenant_writer_tensor(f->w, part, suffix, dtype, n_dims, dim, data, &why), why);
}

static void put_floats(struct forge *f, const char *part, const char *suffix, int64_t n,
                       float scale, int spoil_at, float spoil) {
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = scale * (1 + 0.1f * test_gauss(&f->seed));
    if (spoil_at >= 0)
        x[spoil_at] = spoil;
    put(f, part, suffix, ST_F32, 1, &n, x);
    free(x);
}

static void put_halves(struct forge *f, const char *part, const char *suffix, int64_t rows,
                       int64_t cols, bool infinite) {
    size_t n = (size_t)rows * (size_t)cols;
    int64_t dim[2] = {rows, cols};
    uint16_t *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = half_from_float(0.02f * test_gauss(&f->seed));
    if (infinite)
        x[n - 1] = 0xfc00;
    put(f, part, suffix, ST_F16, 2, dim, x);
    free(x);
}

static void put_bits(struct forge *f, const char *part, const char *suffix, int32_t n, int32_t k) {
    uint32_t *bits = calloc(plane_bytes(n, k), 1);
    for (int32_t r = 0; r < n; r++)
        for (int32_t c = 0; c < k; c++)
            bits[plane_word(r, c, k)] |= (test_random(&f->seed) & 1) << c % 32;
    if (f->fault == FAULT_PADDING_COLUMN)
        bits[plane_word(1, k, k)] |= 1u << k % 32;
    if (f->fault == FAULT_PADDING_ROW && n % 16)
        bits[plane_word(n, 0, k)] |= 1;
    int64_t tiles[3] = {tiles_of(n, 16), tiles_of(k, 256) + (f->fault == FAULT_WRONG_SHAPE), 512};
    if (f->fault == FAULT_WRONG_SHAPE) {
        free(bits);
        bits = calloc((size_t)(tiles[0] * tiles[1]), 512);
    }
    put(f, part, suffix, ST_U8, 3, tiles, bits);
    free(bits);
}

/* Part i gets one of six forms, so every form is there in two layers. */
static void put_part(struct forge *f, int32_t i) {
    enum part p = (enum part)(i % N_PARTS);
    int32_t n = part_rows(f->s, p), k = part_cols(f->s, p), form = i % 6;
    bool first = i == 0; /* faults go to the first part of their form */
    char part[128];
    part_name(part, sizeof part, i / N_PARTS, p);
    if (!(f->fault == FAULT_KIND_MISSING && first))
        tenant_writer_kind(f->w, part,
                           form == 4   ? KIND_ABSENT
                           : form == 5 ? KIND_DENSE
                                       : KIND_PLANES);
    if (form <= 2 && !(f->fault == FAULT_KIND_WITHOUT_TENSORS && first)) {
        put_bits(f, part, ".plane0.bits", n, k);
        if (!(f->fault == FAULT_NO_ROW_SCALE && first))
            put_floats(f, part, ".plane0.row", form == 0 ? 1 : n, 0.01f, first ? 0 : -1,
                       f->fault == FAULT_NAN_SCALE    ? NAN
                       : f->fault == FAULT_HUGE_SCALE ? 2e4f
                                                      : 0.01f);
    }
    if (form == 1) {
        put_bits(f, part, f->fault == FAULT_PLANE_GAP ? ".plane2.bits" : ".plane1.bits", n, k);
        put_floats(f, part, f->fault == FAULT_PLANE_GAP ? ".plane2.row" : ".plane1.row", n, 0.003f,
                   -1, 0);
        put_floats(f, part, ".plane0.col", k, 1, 0, f->fault == FAULT_NAN_COLUMN ? NAN : 1);
    }
    if (form == 2 || form == 3) {
        put_halves(f, part, ".lora_a", RANK, k, f->fault == FAULT_INFINITE_LORA);
        if (f->fault != FAULT_LORA_A_ALONE)
            put_halves(f, part, ".lora_b", n, RANK, false);
    }
    if (form == 5)
        put_halves(f, part, ".dense", n, k, f->fault == FAULT_INFINITE_DENSE);
}

static void put_vocab(struct forge *f) {
    int32_t vocab = f->s->vocab;
    int32_t id[3] = {5, vocab, vocab + 1};
    int64_t n = 3;
    if (f->fault == FAULT_IDS_DESCEND)
        id[0] = vocab + 1;
    if (f->fault == FAULT_ID_PAST_VOCAB)
        id[2] = vocab + EXTRA;
    if (f->fault == FAULT_ROW_BEYOND_BASE_MISSING)
        n = 2;
    if (f->fault == FAULT_ABSENT_EMBED_TOO_SMALL) {
        tenant_writer_kind(f->w, "embed", KIND_ABSENT);
    } else {
        tenant_writer_kind(f->w, "embed", KIND_PLANES);
        put_bits(f, "embed", ".plane0.bits", vocab, f->s->dim);
        put_floats(f, "embed", ".plane0.row", vocab, 0.01f, -1, 0);
        put(f, "embed", ".row_ids", ST_I32, 1, &n, id);
        put_halves(f, "embed", ".rows", n, f->s->dim, false);
    }
    tenant_writer_kind(f->w, "head", KIND_DENSE);
    put_halves(f, "head", ".dense", vocab + EXTRA, f->s->dim, false);
}

static void put_norm(struct forge *f) {
    int64_t dim[2] = {2 * f->s->n_layers + 1, f->s->dim};
    size_t n = (size_t)(dim[0] * dim[1]);
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = 1 + 0.1f * test_gauss(&f->seed);
    if (f->fault == FAULT_NAN_NORM)
        x[n / 2] = NAN;
    if (f->fault != FAULT_NO_NORM)
        put(f, "norm", "", ST_F32, 2, dim, x);
    free(x);
}

void make_tenant(const char *path, const struct checkpoint *base, const char *fingerprint,
                 enum tenant_fault fault) {
    struct why why;
    struct forge f = {.s = &base->config.shape, .fault = fault, .seed = 7};
    CHECK_OK(tenant_writer_open(&f.w, path, &why), why);
    for (int32_t i = 0; i < f.s->n_layers * N_PARTS; i++)
        put_part(&f, i);
    put_vocab(&f);
    put_norm(&f);
    if (fault == FAULT_UNKNOWN_TENSOR)
        put_floats(&f, "model.layers.9.mlp.up_proj", ".plane0.row", 4, 1, -1, 0);
    json_t *config = json_loads(base->config_json, 0, NULL);
    json_object_set_new(config, "vocab_size", json_integer(f.s->vocab + EXTRA));
    json_object_set_new(config, "max_position_embeddings", json_integer(128));
    if (fault == FAULT_OTHER_LAYERS)
        json_object_set_new(config, "num_hidden_layers", json_integer(f.s->n_layers + 1));
    json_t *tokenizer = json_pack("{s:[{s:i,s:s,s:b}]}", "added_tokens", "id", f.s->vocab,
                                  "content", "<|x|>", "special", 1);
    json_t *generation = json_pack("{s:i}", "eos_token_id", 4), *empty = json_object();
    struct tenant_header h = {.base_fingerprint = fingerprint,
                              .base_vocab = f.s->vocab,
                              .config = config,
                              .tokenizer = tokenizer,
                              .generation = generation,
                              .made = empty,
                              .quality = empty};
    CHECK_OK(tenant_writer_end(f.w, &h, NULL, &why), why);
    json_decref(config);
    json_decref(tokenizer);
    json_decref(generation);
    json_decref(empty);
}

void make_fingerprint(const struct checkpoint *c, char out[SHA256_HEX]) {
    unsigned char digest[SHA256_BYTES];
    struct why why;
    CHECK_OK(checkpoint_fingerprint(c, digest, NULL, NULL, &why), why);
    sha256_hex(digest, out);
}
