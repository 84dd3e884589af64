#include "tests/unit/make_model.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/f16.h"
#include "tests/check.h"

void make_text(const char *dir, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f) != 0)
        test_fail(__FILE__, __LINE__, "cannot write %s", path);
}

void make_copy(const char *from, const char *to) {
    FILE *in = fopen(from, "r"), *out = fopen(to, "w");
    if (!in || !out)
        test_fail(__FILE__, __LINE__, "cannot copy %s to %s", from, to);
    static char block[1 << 16];
    for (size_t n; (n = fread(block, 1, sizeof block, in)) > 0;)
        CHECK_EQ(fwrite(block, 1, n, out), n);
    fclose(in);
    CHECK_EQ(fclose(out), 0);
}

/* Draws, changes and stores one tensor. */
static void emit(struct st_writer *w, const struct make_model *m, const char *name, size_t n,
                 unsigned *seed, bool is_norm) {
    float *x = malloc(n * sizeof *x);
    void *raw = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = is_norm ? 1 + 0.1f * test_gauss(seed) : m->scale * test_gauss(seed);
    if (m->change)
        m->change(name, x, n, m->arg);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        if (m->dtype == ST_F16)
            ((uint16_t *)raw)[i] = half_from_float(x[i]);
        else if (m->dtype == ST_BF16)
            ((uint16_t *)raw)[i] = (uint16_t)(bits >> 16);
        else
            ((float *)raw)[i] = x[i];
    }
    struct why why;
    CHECK_OK(st_writer_data(w, raw, n * st_dtype_bytes(m->dtype), &why), why);
    free(x);
    free(raw);
}

static void write_weights(const char *dir, const struct make_model *m,
                          const struct model_shape *s) {
    char path[512], name[128];
    struct why why;
    struct st_writer *w;
    snprintf(path, sizeof path, "%s/%s", dir, m->file ? m->file : "model.safetensors");
    CHECK_OK(st_writer_open(&w, path, &why), why);
    st_writer_meta(w, "format", "pt");
    for (int pass = 0; pass < 2; pass++) { /* declare, then write */
        unsigned seed = m->seed;
        int32_t parts = s->n_layers * N_PARTS, norms = 2 * s->n_layers + 1;
        for (int32_t i = 0; i < parts + norms + 2; i++) {
            int64_t dim[2] = {s->vocab, s->dim};
            int32_t n_dims = 2;
            if (i < parts) {
                enum part p = (enum part)(i % N_PARTS);
                part_name(name, sizeof name, i / N_PARTS, p);
                strcat(name, ".weight");
                dim[0] = part_rows(s, p);
                dim[1] = part_cols(s, p);
            } else if (i < parts + norms) {
                norm_name(name, sizeof name, s, i - parts);
                dim[0] = s->dim;
                n_dims = 1;
            } else {
                strcpy(name, i == parts + norms ? "model.embed_tokens.weight" : "lm_head.weight");
            }
            if ((m->tied && i > parts + norms) || (m->leave_out && !strcmp(name, m->leave_out)))
                continue;
            size_t n = (size_t)dim[0] * (n_dims == 2 ? (size_t)dim[1] : 1);
            if (pass == 0)
                st_writer_tensor(w, m->bare && !strncmp(name, "model.", 6) ? name + 6 : name,
                                 m->dtype, n_dims, dim);
            else
                emit(w, m, name, n, &seed, n_dims == 1);
        }
        int64_t few = 3;
        if (m->add && pass == 0)
            st_writer_tensor(w, m->add, m->dtype, 1, &few);
        else if (m->add)
            emit(w, m, m->add, (size_t)few, &seed, true);
        if (pass == 0)
            CHECK_OK(st_writer_header(w, 8, &why), why);
    }
    CHECK_OK(st_writer_end(w, &why), why);
}

void make_model(const char *dir, struct make_model m) {
    m.layers = m.layers ? m.layers : 2;
    m.dim = m.dim ? m.dim : 40;
    m.heads = m.heads ? m.heads : 4;
    m.kv_heads = m.kv_heads ? m.kv_heads : 2;
    m.ffn = m.ffn ? m.ffn : 72;
    m.vocab = m.vocab ? m.vocab : 48;
    m.context = m.context ? m.context : 64;
    m.scale = m.scale != 0 ? m.scale : 0.05f;
    if (m.dtype == ST_BOOL) /* 0: not chosen */
        m.dtype = ST_F16;
    mkdir(dir, 0700);
    char text[2048];
    snprintf(text, sizeof text,
             "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\","
             "\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
             "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"vocab_size\":%d,"
             "\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\","
             "\"tie_word_embeddings\":%s,\"bos_token_id\":1,\"eos_token_id\":2%s}",
             m.dim, m.ffn, m.layers, m.heads, m.kv_heads, m.vocab, m.context,
             m.tied ? "true" : "false", m.extra_config ? m.extra_config : "");
    make_text(dir, "config.json", text);
    make_text(dir, "generation_config.json", "{\"eos_token_id\":[2,3]}");
    struct model_config c;
    struct why why;
    CHECK_OK(model_config_parse(&c, text, strlen(text), &why), why);
    write_weights(dir, &m, &c.shape);
}

void make_shards(const char *dir) {
    struct why why;
    struct st_file f;
    char path[512], index[8192] = "{\"weight_map\":{";
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    int fd = open(path, O_RDONLY);
    CHECK_OK(st_open(&f, fd, path, 1 << 20, &why), why);
    for (int shard = 0; shard < 2; shard++) {
        struct st_writer *w;
        char name[64];
        snprintf(name, sizeof name, "model-0000%d-of-00002.safetensors", shard + 1);
        snprintf(path, sizeof path, "%s/%s", dir, name);
        CHECK_OK(st_writer_open(&w, path, &why), why);
        for (int32_t i = shard; i < f.n_tensors; i += 2) {
            const struct st_tensor *t = &f.tensor[i];
            size_t at = strlen(index);
            st_writer_tensor(w, t->name, t->dtype, t->n_dims, t->dim);
            snprintf(index + at, sizeof index - at, "%s\"%s\":\"%s\"", i ? "," : "", t->name, name);
        }
        CHECK_OK(st_writer_header(w, 8, &why), why);
        for (int32_t i = shard; i < f.n_tensors; i += 2) {
            void *data = malloc(f.tensor[i].bytes);
            CHECK_OK(st_read(&f, &f.tensor[i], data, &why), why);
            CHECK_OK(st_writer_data(w, data, f.tensor[i].bytes, &why), why);
            free(data);
        }
        CHECK_OK(st_writer_end(w, &why), why);
    }
    strcat(index, "}}");
    make_text(dir, "model.safetensors.index.json", index);
    st_close(&f), close(fd);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    CHECK_EQ(unlink(path), 0);
}
