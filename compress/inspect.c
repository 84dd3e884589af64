/* `bitdelta inspect`: what a tenant file says about itself, without its base. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compress/job.h"

struct inspect {
    const char *path;
    struct tenant_file t;
    struct st_file container; /* the same file's table of tensors */
};

static const char *const part_names[N_PARTS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                "gate_proj", "up_proj", "down_proj"};

/* ---- one matrix ------------------------------------------------------------------------------ */

/* How a matrix is stored, in a few words: "planes 1 with column scales, low rank 2". */
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

/* Bytes of the tensors "PART.anything". */
static double bytes_of(const struct inspect *x, const char *part) {
    size_t n = strlen(part);
    double sum = 0;
    for (int32_t i = 0; i < x->container.n_tensors; i++) {
        const struct st_tensor *t = &x->container.tensor[i];
        if (strncmp(t->name, part, n) == 0 && t->name[n] == '.')
            sum += (double)t->bytes;
    }
    return sum;
}

static double bytes_of_part(const struct inspect *x, int32_t layer, enum part p) {
    char name[128];
    part_name(name, sizeof name, layer, p);
    return bytes_of(x, name);
}

/* ---- parts over all layers ------------------------------------------------------------------- */

struct summary {
    int32_t planes[2], rank[2]; /* least and most */
    int32_t n_kind[N_KINDS];    /* layers */
    double bytes, weights;
};

static struct summary summary_of(const struct inspect *x, enum part p) {
    const struct model_shape *s = &x->t.meta.config.shape;
    struct summary out = {.planes = {MAX_PLANES, 0}, .rank = {INT32_MAX, 0}};
    for (int32_t l = 0; l < s->n_layers; l++) {
        const struct delta *d = &x->t.delta[l * N_PARTS + (int32_t)p];
        out.planes[0] = d->n_planes < out.planes[0] ? d->n_planes : out.planes[0];
        out.planes[1] = d->n_planes > out.planes[1] ? d->n_planes : out.planes[1];
        out.rank[0] = d->rank < out.rank[0] ? d->rank : out.rank[0];
        out.rank[1] = d->rank > out.rank[1] ? d->rank : out.rank[1];
        out.n_kind[x->t.meta.part_kind[l * N_PARTS + (int32_t)p]]++;
        out.bytes += bytes_of_part(x, l, p);
        out.weights += (double)part_rows(s, p) * part_cols(s, p);
    }
    return out;
}

static void range(char *out, size_t n, const int32_t span[2]) {
    if (span[0] == span[1])
        snprintf(out, n, "%d", span[0]);
    else
        snprintf(out, n, "%d-%d", span[0], span[1]);
}

/* How many layers are stored in which way. */
static json_t *ways_of(const struct inspect *x, enum part p) {
    json_t *ways = json_object();
    for (int32_t l = 0; l < x->t.meta.config.shape.n_layers; l++) {
        int32_t i = l * N_PARTS + (int32_t)p;
        char way[96];
        describe(way, sizeof way, (enum tenant_kind)x->t.meta.part_kind[i], &x->t.delta[i], 0);
        json_int_t before = json_integer_value(json_object_get(ways, way));
        json_object_set_new(ways, way, json_integer(before + 1));
    }
    return ways;
}

static json_t *linears_json(const struct inspect *x) {
    json_t *out = json_object();
    for (int p = 0; p < N_PARTS; p++)
        json_object_set_new(out, part_names[p], ways_of(x, (enum part)p));
    return out;
}

static json_t *layers_json(const struct inspect *x) {
    const struct model_shape *s = &x->t.meta.config.shape;
    json_t *out = json_array();
    for (int32_t i = 0; i < s->n_layers * N_PARTS; i++) {
        enum part p = (enum part)(i % N_PARTS);
        const struct delta *d = &x->t.delta[i];
        double bytes = bytes_of_part(x, i / N_PARTS, p),
               weights = (double)part_rows(s, p) * part_cols(s, p);
        json_array_append_new(out,
                              json_pack("{s:i, s:s, s:s, s:i, s:i, s:b, s:f, s:f}", "layer",
                                        i / N_PARTS, "part", part_names[p], "kind",
                                        tenant_kind_name((enum tenant_kind)x->t.meta.part_kind[i]),
                                        "planes", d->n_planes, "rank", d->rank, "column_scales",
                                        d->n_planes && d->plane[0].col, "bits_per_weight",
                                        8 * bytes / weights, "bytes", bytes));
    }
    return out;
}

static json_t *load(const char *text) {
    return json_loads(text, 0, NULL);
}

static json_t *to_json(const struct inspect *x, bool layers) {
    const struct tenant_meta *m = &x->t.meta;
    char embed[96], head[96];
    describe(embed, sizeof embed, m->embed, &x->t.embed.delta, x->t.embed.n_rows);
    describe(head, sizeof head, m->head, &x->t.head.delta, x->t.head.n_rows);
    json_t *out = json_pack(
        "{s:s, s:I, s:s, s:s, s:f, s:i, s:i, s:i, s:o, s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "file",
        x->path, "bytes", (json_int_t)x->t.file_bytes, "content_hash", m->hash, "base_fingerprint",
        m->base_fingerprint, "bits_per_weight", x->t.bits_per_weight, "vocab",
        m->config.shape.vocab, "base_vocab", m->base_vocab, "context", m->config.context, "linears",
        linears_json(x), "embed", embed, "head", head, "made", load(m->made_json), "quality",
        load(m->quality_json), "tokenizer", load(m->tokenizer_json), "generation",
        load(m->generation_json), "config", load(m->config_json));
    if (out && layers)
        json_object_set_new(out, "layers", layers_json(x));
    return out;
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_linears(const struct inspect *x) {
    printf("  linears       %.3f bits per weight, scales included\n", x->t.bits_per_weight);
    printf("    %-10s %7s %9s %8s %12s\n", "", "planes", "low rank", "bits/wt", "bytes");
    for (int p = 0; p < N_PARTS; p++) {
        struct summary s = summary_of(x, (enum part)p);
        char planes[24], rank[24];
        range(planes, sizeof planes, s.planes);
        range(rank, sizeof rank, s.rank);
        printf("    %-10s %7s %9s %8.3f %12.0f", part_names[p], planes, rank,
               8 * s.bytes / s.weights, s.bytes);
        for (int k = 0; k < N_KINDS; k++)
            if (k != KIND_PLANES && s.n_kind[k])
                printf("  %s in %d of %d layers", tenant_kind_name((enum tenant_kind)k),
                       s.n_kind[k], x->t.meta.config.shape.n_layers);
        putchar('\n');
    }
}

static void print_layers(const struct inspect *x) {
    const struct model_shape *s = &x->t.meta.config.shape;
    printf("\n  %5s %-10s %8s %12s   %s\n", "layer", "part", "bits/wt", "bytes", "stored as");
    for (int32_t i = 0; i < s->n_layers * N_PARTS; i++) {
        enum part p = (enum part)(i % N_PARTS);
        double bytes = bytes_of_part(x, i / N_PARTS, p),
               weights = (double)part_rows(s, p) * part_cols(s, p);
        char way[96];
        describe(way, sizeof way, (enum tenant_kind)x->t.meta.part_kind[i], &x->t.delta[i], 0);
        printf("  %5d %-10s %8.3f %12.0f   %s\n", i / N_PARTS, part_names[p], 8 * bytes / weights,
               bytes, way);
    }
}

static void print_vocab(const struct inspect *x, const char *name, const char *part,
                        const char *way) {
    double bytes = bytes_of(x, part);
    printf("  %-13s %s", name, way);
    if (bytes > 0)
        printf(", %.0f bytes", bytes);
    putchar('\n');
}

/* "method fit, source math, ...": whatever the maker wrote down. */
static void print_made(const json_t *made) {
    const char *key, *separator = "";
    json_t *value;
    printf("  made          ");
    json_object_foreach((json_t *)made, key, value) {
        char *text = json_is_string(value)
                         ? strdup(json_string_value(value))
                         : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        if (strcmp(key, "tool") == 0)
            printf("%s%s", separator, text ? text : "");
        else
            printf("%s%s %s", separator, key, text ? text : "");
        separator = ", ";
        free(text);
    }
    putchar('\n');
}

static void print_text(const struct inspect *x, const json_t *j) {
    const struct tenant_meta *m = &x->t.meta;
    const struct model_shape *s = &m->config.shape;
    printf("%s: tenant file, format 1, %zu bytes, all hashes good\n", x->path, x->t.file_bytes);
    printf("  content hash  %s\n  for base      %s\n", m->hash, m->base_fingerprint);
    printf("  model         %d layers, dim %d, %d heads (%d kv) x %d, ffn %d\n", s->n_layers,
           s->dim, s->n_heads, s->n_kv_heads, s->head_dim, s->ffn_dim);
    printf("  vocabulary    %d (base %d), context %d\n", s->vocab, m->base_vocab,
           m->config.context);
    print_linears(x);
    print_vocab(x, "embedding", "embed", json_string_value(json_object_get(j, "embed")));
    print_vocab(x, "lm_head", "head", json_string_value(json_object_get(j, "head")));
    const json_t *tokenizer = json_object_get(j, "tokenizer"),
                 *quality = json_object_get(j, "quality");
    printf("  added tokens  %zu, chat template %s\n",
           json_array_size(json_object_get(tokenizer, "added_tokens")),
           json_is_string(json_object_get(tokenizer, "chat_template")) ? "its own" : "none");
    print_made(json_object_get(j, "made"));
    printf("  quality       %s\n", json_object_size(quality) ? "as measured when it was made"
                                                             : "not measured: see bitdelta eval");
    report_quality(quality);
}

static err_t run(const struct args *a, struct why *why) {
    struct inspect x = {.path = a->operand[0]};
    int fd = open(x.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return why_set(why, E_IO, "%s: cannot open: %s", x.path, strerror(errno));
    err_t e = tenant_file_read(&x.t, fd, x.path, NULL, NULL, why);
    e = e ? e : st_open(&x.container, fd, x.path, TENANT_MAX_HEADER, why);
    if (!e) {
        json_t *j = to_json(&x, arg(a, "--layers") != NULL);
        if (!j) {
            e = why_set(why, E_NOMEM, "%s: not enough memory to describe it", x.path);
        } else if (arg(a, "--json")) {
            json_dumpf(j, stdout, JSON_INDENT(2));
            putchar('\n');
        } else {
            print_text(&x, j);
            if (arg(a, "--layers"))
                print_layers(&x);
        }
        json_decref(j);
    }
    st_close(&x.container);
    close(fd);
    tenant_file_free(&x.t);
    return e;
}

const struct command command_inspect = {
    .name = "inspect",
    .summary = "show what a tenant file holds",
    .operand = "FILE",
    .about = "Works without the base; the file's own hashes are checked. Shows how every kind of\n"
             "matrix is stored and what it costs, how the file was made, and the quality that was\n"
             "measured then. Whether it fits a base is the question of `bitdelta verify`.\n",
    .option = {{"--layers", NULL, false, "every matrix of every layer, too"},
               {"--json", NULL, false, "print everything as JSON, config and template included"}},
    .examples = "  bitdelta inspect chat.bitdelta\n"
                "  bitdelta inspect --layers chat.bitdelta\n"
                "  bitdelta inspect --json chat.bitdelta | jq .tokenizer.chat_template\n",
    .run = run,
};
