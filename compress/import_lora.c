/* `bitdelta import-lora`: a PEFT LoRA adapter becomes a tenant of low-rank pairs. Scaling is folded
 * into B. What would make the result another model than PEFT's is refused by name. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compress/diff.h"
#include "compress/job.h"
#include "compress/lora_config.h"
#include "config/file.h"
#include "config/json.h"
#include "config/options.h"

enum { MAX_CONFIG = 4 << 20, MAX_HEADER = 16 << 20 };

struct import {
    struct job_base base;
    struct lora_config config;
    struct st_file file;
    int fd;
    struct report report;
    struct tenant_writer *w;
    int32_t n_used;
};

/* "base_model.model.PART.lora_A[.default].weight" */
static const struct st_tensor *find(const struct import *m, const char *part, char side) {
    static const char *const forms[] = {"base_model.model.%s.lora_%c.weight",
                                        "base_model.model.%s.lora_%c.default.weight"};
    for (int i = 0; i < 2; i++) {
        char name[256];
        snprintf(name, sizeof name, forms[i], part, side);
        const struct st_tensor *t = st_find(&m->file, name);
        if (t)
            return t;
    }
    return NULL;
}

static err_t read_floats(const struct import *m, const struct st_tensor *t, float **out,
                         struct why *why) {
    size_t n = (size_t)t->bytes / st_dtype_bytes(t->dtype);
    void *raw = malloc((size_t)t->bytes + 1);
    *out = malloc((n + 1) * sizeof **out);
    err_t e = raw && *out ? st_read(&m->file, t, raw, why)
                          : why_set(why, E_NOMEM, "not enough memory for %s", t->name);
    if (!e && st_to_f32(t->dtype, raw, *out, n) != E_OK)
        e = why_set(why, E_UNSUPPORTED, "%s: tensor %s has dtype %s; a float type is wanted",
                    m->file.label, t->name, st_dtype_name(t->dtype));
    for (size_t i = 0; !e && i < n; i++)
        if (!isfinite((*out)[i]))
            e = why_set(why, E_FORMAT, "%s: tensor %s: element %zu is not a finite number",
                        m->file.label, t->name, i);
    free(raw);
    return e;
}

/* |B A|^2 = sum over i, j of (A A')_ij (B' B)_ij: the energy of the product without making it. */
static double product_energy(const float *a, const float *b, int32_t rank, int32_t n, int32_t k) {
    double sum = 0;
    for (int32_t i = 0; i < rank; i++)
        for (int32_t j = 0; j < rank; j++) {
            double aa = 0, bb = 0;
            for (int32_t c = 0; c < k; c++)
                aa += (double)a[(size_t)i * (size_t)k + (size_t)c] *
                      a[(size_t)j * (size_t)k + (size_t)c];
            for (int32_t r = 0; r < n; r++)
                bb += (double)b[(size_t)r * (size_t)rank + (size_t)i] *
                      b[(size_t)r * (size_t)rank + (size_t)j];
            sum += aa * bb;
        }
    return sum;
}

/* Writes the pair of one part: A [rank, K], scale * B [N, rank]. */
static err_t write_pair(struct import *m, const char *part, const struct st_tensor *ta,
                        const struct st_tensor *tb, int32_t rows, int32_t cols,
                        struct report_row *report, struct why *why) {
    float *a = NULL, *b = NULL, scale;
    uint16_t *half = NULL;
    int32_t rank = (int32_t)ta->dim[0];
    err_t e = lora_scale(&m->config, part, rank, &scale, why);
    if (!e)
        e = read_floats(m, ta, &a, why);
    if (!e)
        e = read_floats(m, tb, &b, why);
    size_t n_a = (size_t)rank * (size_t)cols, n_b = (size_t)rows * (size_t)rank;
    if (!e && !(half = malloc((n_a > n_b ? n_a : n_b) * sizeof *half)))
        e = why_set(why, E_NOMEM, "not enough memory for %s", part);
    for (size_t i = 0; !e && i < n_b; i++)
        b[i] *= scale;
    if (!e)
        e = diff_to_half(half, a, n_a, ta->name, why);
    if (!e)
        e = tenant_writer_tensor(m->w, part, ".lora_a", ST_F16, 2, (int64_t[]){rank, cols}, half,
                                 why);
    if (!e)
        e = diff_to_half(half, b, n_b, tb->name, why);
    if (!e)
        e = tenant_writer_tensor(m->w, part, ".lora_b", ST_F16, 2, (int64_t[]){rows, rank}, half,
                                 why);
    if (!e)
        report->change += product_energy(a, b, rank, rows, cols);
    free(a);
    free(b);
    free(half);
    return e;
}

static err_t import_part(struct import *m, int32_t i, struct why *why) {
    const struct model_shape *s = &m->base.checkpoint.config.shape;
    enum part p = (enum part)(i % N_PARTS);
    struct report_row *report = &m->report.row[p];
    int32_t rows = part_rows(s, p), cols = part_cols(s, p);
    char part[128];
    part_name(part, sizeof part, i / N_PARTS, p);
    const struct st_tensor *a = find(m, part, 'A'), *b = find(m, part, 'B');
    report->weights += (double)rows * cols;
    tenant_writer_kind(m->w, part, a ? KIND_PLANES : KIND_ABSENT);
    report_kind(report, a ? "low rank" : "absent");
    if (!a && !b)
        return E_OK;
    if (!a || !b)
        return why_set(why, E_FORMAT, "%s: %s has only one of lora_A and lora_B", m->file.label,
                       part);
    if (a->n_dims != 2 || b->n_dims != 2 || a->dim[1] != cols || b->dim[0] != rows ||
        a->dim[0] != b->dim[1] || a->dim[0] < 1)
        return why_set(why, E_WRONG_BASE,
                       "%s: %s: lora_A and lora_B do not have the shapes [r, %d] and [%d, r] that "
                       "the base needs",
                       m->file.label, part, cols, rows);
    if (a->dim[0] > tenant_max_rank(rows, cols))
        return why_set(
            why, E_UNSUPPORTED,
            "%s: %s: rank %d is more than half of the matrix's: merge the adapter into the "
            "base and compress that",
            m->file.label, part, (int)a->dim[0]);
    m->n_used += 2;
    uint64_t before = tenant_writer_bytes(m->w);
    err_t e = write_pair(m, part, a, b, rows, cols, report, why);
    report->bytes += (double)(tenant_writer_bytes(m->w) - before);
    char tensor[160];
    snprintf(tensor, sizeof tensor, "%s.weight", part);
    struct checkpoint_rows base = {&m->base.checkpoint, tensor};
    return e ? e : diff_energy(rows_of_checkpoint(&base, rows, cols), &report->base, why);
}

static err_t import_rest(struct import *m, struct why *why) {
    const struct checkpoint *base = &m->base.checkpoint;
    float *norms = NULL;
    tenant_writer_kind(m->w, "embed", KIND_ABSENT);
    tenant_writer_kind(m->w, "head", base->config.tied ? KIND_TIED : KIND_ABSENT);
    report_kind(&m->report.row[REPORT_EMBED], "absent");
    report_kind(&m->report.row[REPORT_HEAD], base->config.tied ? "tied" : "absent");
    for (int32_t i = 0; m->n_used < m->file.n_tensors && i < m->file.n_tensors; i++) {
        const char *name = m->file.tensor[i].name;
        bool ours = false;
        for (int32_t j = 0; !ours && j < base->config.shape.n_layers * N_PARTS; j++) {
            char part[128];
            part_name(part, sizeof part, j / N_PARTS, (enum part)(j % N_PARTS));
            ours = &m->file.tensor[i] == find(m, part, 'A') ||
                   &m->file.tensor[i] == find(m, part, 'B');
        }
        if (!ours)
            return why_set(why, E_UNSUPPORTED,
                           "%s: tensor %s is not a lora_A or lora_B of one of the base's linears",
                           m->file.label, name);
    }
    err_t e = job_norms(base, &norms, why);
    if (!e)
        e = diff_write_norms(m->w, &base->config.shape, norms, norms, &m->report.row[REPORT_NORM],
                             why);
    free(norms);
    return e;
}

static err_t open_adapter(struct import *m, const char *dir, struct why *why) {
    char path[4096], *text;
    size_t n;
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    err_t e = file_read(path, MAX_CONFIG, &text, &n, why);
    if (e)
        return e;
    e = lora_config_parse(&m->config, text, n, why);
    free(text);
    if (e)
        return why_prefix(why, e, "%s", dir);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    m->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (m->fd < 0)
        return why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno));
    return st_open(&m->file, m->fd, path, MAX_HEADER, why);
}

static err_t run(const struct args *a, struct why *why) {
    struct import m = {.fd = -1};
    struct job_texts texts = {0};
    const char *dir = a->operand[0], *path = arg(a, "--output");
    err_t e = open_adapter(&m, dir, why);
    if (!e)
        e = job_base_open(&m.base, arg(a, "--base"), why);
    if (!e)
        e = job_texts_read(&texts, &m.base, dir, m.base.checkpoint.config_json,
                           m.base.checkpoint.generation_json, why);
    if (!e)
        e = tenant_writer_open(&m.w, path, why);
    for (int32_t i = 0; !e && i < m.base.checkpoint.config.shape.n_layers * N_PARTS; i++)
        e = import_part(&m, i, why);
    if (!e)
        e = import_rest(&m, why);
    if (!e && !m.n_used)
        e = why_set(why, E_FORMAT, "%s: adapts none of the base's linears", dir);
    if (!e) {
        json_t *made = json_pack("{s:s, s:s, s:s, s:s}", "tool", "bitdelta import-lora", "version",
                                 options_version(), "method", "lora", "source", job_name_of(dir));
        e = job_finish(&m.base, m.w, path, &texts, made, NULL, &m.report, arg(a, "--json"), why);
        m.w = NULL;
        json_decref(made);
    }
    tenant_writer_abort(m.w);
    job_texts_free(&texts);
    job_base_close(&m.base);
    lora_config_free(&m.config);
    st_close(&m.file);
    if (m.fd >= 0)
        close(m.fd);
    return e;
}

const struct command command_import_lora = {
    .name = "import-lora",
    .summary = "make a tenant file from a PEFT LoRA adapter",
    .operand = "FOLDER",
    .about =
        "Reads adapter_config.json and adapter_model.safetensors. Rank and alpha patterns and\n"
        "rsLoRA are honoured; the scaling is folded into B. Refused with the reason: DoRA, "
        "biases,\n"
        "fan_in_fan_out, layer_replication, modules_to_save, adapters of the embedding. (Merge\n"
        "such an adapter into its base and use `bitdelta compress`.)\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--output", "FILE", true, "the tenant file to write"},
               {"--json", NULL, false, "print the report as JSON"}},
    .examples = "  bitdelta import-lora --base llama-7b -o sql.bitdelta sql-lora/\n",
    .run = run,
};
