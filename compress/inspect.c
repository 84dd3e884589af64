/* `bitdelta inspect`: what a tenant file says about itself, without its base. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "compress/job.h"

/* How a matrix is stored, in a few words: "planes 1, scale row". */
static void describe(char *out, size_t n, enum tenant_kind kind, const struct delta *d,
                     int32_t n_rows) {
    snprintf(out, n, "%s", tenant_kind_name(kind));
    if (kind == KIND_PLANES && d->n_planes)
        snprintf(out + strlen(out), n - strlen(out), " %d%s", d->n_planes,
                 d->plane[0].col ? " with column scales" : "");
    if (d->rank)
        snprintf(out + strlen(out), n - strlen(out), ", low rank %d", d->rank);
    if (n_rows)
        snprintf(out + strlen(out), n - strlen(out), ", %d exact rows", n_rows);
}

/* One line per kind of linear: how many layers are stored in which way. */
static json_t *linears_json(const struct tenant_file *t) {
    static const char *const names[N_PARTS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                               "gate_proj", "up_proj", "down_proj"};
    json_t *out = json_object();
    for (int p = 0; p < N_PARTS; p++) {
        json_t *ways = json_object();
        for (int32_t l = 0; l < t->meta.config.shape.n_layers; l++) {
            int32_t i = l * N_PARTS + p;
            char way[96];
            describe(way, sizeof way, (enum tenant_kind)t->meta.part_kind[i], &t->delta[i], 0);
            json_int_t before = json_integer_value(json_object_get(ways, way));
            json_object_set_new(ways, way, json_integer(before + 1));
        }
        json_object_set_new(out, names[p], ways);
    }
    return out;
}

static json_t *load(const char *text) {
    return json_loads(text, 0, NULL);
}

static json_t *to_json(const char *path, const struct tenant_file *t) {
    const struct tenant_meta *m = &t->meta;
    char embed[96], head[96];
    describe(embed, sizeof embed, m->embed, &t->embed.delta, t->embed.n_rows);
    describe(head, sizeof head, m->head, &t->head.delta, t->head.n_rows);
    return json_pack("{s:s, s:I, s:s, s:s, s:f, s:i, s:i, s:i, s:o, s:s, s:s, s:o, s:o, s:o, s:o, "
                     "s:o}",
                     "file", path, "bytes", (json_int_t)t->file_bytes, "content_hash", m->hash,
                     "base_fingerprint", m->base_fingerprint, "bits_per_weight", t->bits_per_weight,
                     "vocab", m->config.shape.vocab, "base_vocab", m->base_vocab, "context",
                     m->config.context, "linears", linears_json(t), "embed", embed, "head", head,
                     "made", load(m->made_json), "quality", load(m->quality_json), "tokenizer",
                     load(m->tokenizer_json), "generation", load(m->generation_json), "config",
                     load(m->config_json));
}

static void print_text(const char *path, const struct tenant_file *t, const json_t *j) {
    const struct tenant_meta *m = &t->meta;
    const struct model_shape *s = &m->config.shape;
    printf("%s: tenant file, format 1, %zu bytes, all hashes good\n", path, t->file_bytes);
    printf("  content hash  %s\n  for base      %s\n", m->hash, m->base_fingerprint);
    printf("  model         %d layers, dim %d, %d heads (%d kv) x %d, ffn %d\n", s->n_layers,
           s->dim, s->n_heads, s->n_kv_heads, s->head_dim, s->ffn_dim);
    printf("  vocabulary    %d (base %d), context %d\n", s->vocab, m->base_vocab,
           m->config.context);
    printf("  linears       %.3f bits per weight, scales included\n", t->bits_per_weight);
    const char *name, *way;
    json_t *ways, *count;
    json_object_foreach(json_object_get(j, "linears"), name, ways) {
        printf("    %-10s", name);
        json_object_foreach(ways, way, count)
            printf("  %s (%lld layers)", way, (long long)json_integer_value(count));
        putchar('\n');
    }
    printf("  embedding     %s\n  lm_head       %s\n",
           json_string_value(json_object_get(j, "embed")),
           json_string_value(json_object_get(j, "head")));
    const json_t *tokenizer = json_object_get(j, "tokenizer");
    printf("  added tokens  %zu, chat template %s\n",
           json_array_size(json_object_get(tokenizer, "added_tokens")),
           json_is_string(json_object_get(tokenizer, "chat_template")) ? "its own" : "none");
    printf("  made          %s\n", m->made_json);
    printf("  quality       %s\n",
           strcmp(m->quality_json, "{}") ? m->quality_json : "not measured");
}

static err_t run(const struct args *a, struct why *why) {
    const char *path = a->operand[0];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno));
    struct tenant_file t;
    err_t e = tenant_file_read(&t, fd, path, NULL, NULL, why);
    close(fd);
    if (!e) {
        json_t *j = to_json(path, &t);
        if (!j) {
            e = why_set(why, E_NOMEM, "%s: not enough memory to describe it", path);
        } else if (arg(a, "--json")) {
            json_dumpf(j, stdout, JSON_INDENT(2));
            putchar('\n');
        } else {
            print_text(path, &t, j);
        }
        json_decref(j);
    }
    tenant_file_free(&t);
    return e;
}

const struct command command_inspect = {
    .name = "inspect",
    .summary = "show what a tenant file holds",
    .operand = "FILE",
    .about =
        "Works without the base; the file's own hashes are checked. Whether it fits a base is\n"
        "the question of `bitdelta verify`.\n",
    .option = {{"--json", NULL, false, "print everything as JSON, config and template included"}},
    .examples = "  bitdelta inspect chat.bitdelta\n"
                "  bitdelta inspect --json chat.bitdelta | jq .tokenizer.chat_template\n",
    .run = run,
};
