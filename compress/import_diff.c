/* `bitdelta import-diff`: a diff.pt as the published BitDelta code writes it. It names neither its
 * base nor its config, so the operator does, and the embeddings it carries must look like that
 * base's.
 *
 * Masks are int32 [K/32, N]: bit k % 32 of word [k/32, n] is the sign of weight (n, k). Words move
 * into tiles whole. What training may have changed beside the linears is taken as it is. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/diff.h"
#include "compress/job.h"
#include "compress/planes.h"
#include "compress/torch_file.h"
#include "config/file.h"
#include "config/json.h"
#include "config/options.h"

enum { MAX_CONFIG = 4 << 20, SAMPLED_ROWS = 4096 };

struct import {
    struct job_base base;
    struct torch_file diff;
    struct report report;
    struct tenant_writer *w;
    struct diff_options options;
    int32_t n_used; /* tensors of the file that were taken */
    int32_t vocab;
};

static const struct pt_tensor *need(struct import *m, const char *name, struct why *why) {
    const struct pt_tensor *t = torch_file_find(&m->diff, name);
    if (t)
        m->n_used++;
    else
        why_set(why, E_FORMAT, "%s: %s is missing, so it is not the published diff.pt of this base",
                m->diff.label, name);
    return t;
}

/* ---- linears --------------------------------------------------------------------------------- */

static err_t read_mask(struct import *m, const char *part, struct planes *p, struct why *why) {
    char name[160];
    snprintf(name, sizeof name, "%s.mask", part);
    const struct pt_tensor *t = need(m, name, why);
    if (!t)
        return E_FORMAT;
    if (t->n_dims != 2 || p->k % 32 || t->dim[0] != p->k / 32 || t->dim[1] != p->n)
        return why_set(why, E_FORMAT, "%s: %s does not have the shape [%d, %d] that the base needs",
                       m->diff.label, name, p->k / 32, p->n);
    size_t n = (size_t)t->dim[0] * (size_t)t->dim[1];
    int32_t *mask = malloc(n * sizeof *mask); /* [K/32, N] */
    err_t e = mask ? torch_file_read_i32(&m->diff, t, mask, n, why)
                   : why_set(why, E_NOMEM, "not enough memory for %s", name);
    for (int32_t w = 0; !e && w < p->k / 32; w++)
        for (int32_t r = 0; r < p->n; r++)
            p->bits[0][plane_word(r, 32 * w, p->k)] =
                (uint32_t)mask[(size_t)w * (size_t)p->n + (size_t)r];
    free(mask);
    return e;
}

static err_t read_coeff(struct import *m, const char *part, float *out, struct why *why) {
    char name[160];
    snprintf(name, sizeof name, "%s.coeff", part);
    const struct pt_tensor *t = need(m, name, why);
    err_t e = t ? torch_file_read_f32(&m->diff, t, out, 1, why) : E_FORMAT;
    if (!e && !(fabsf(*out) < TENANT_MAX_SCALE))
        e = why_set(why, E_FORMAT, "%s: %s is %g, which is no scale of a weight difference",
                    m->diff.label, name, (double)*out);
    return e;
}

static err_t import_part(struct import *m, int32_t i, struct why *why) {
    const struct model_shape *s = &m->base.checkpoint.config.shape;
    enum part part = (enum part)(i % N_PARTS);
    struct report_row *report = &m->report.row[part];
    struct planes p;
    char name[128];
    uint64_t before = tenant_writer_bytes(m->w);
    part_name(name, sizeof name, i / N_PARTS, part);
    err_t e = planes_init(&p, part_rows(s, part), part_cols(s, part), 1, false, why);
    if (e)
        return e;
    e = read_mask(m, name, &p, why);
    if (!e)
        e = read_coeff(m, name, p.row[0], why);
    if (!e)
        e = diff_write_planes(m->w, name, &p, why);
    tenant_writer_kind(m->w, name, KIND_PLANES);
    report_kind(report, "planes");
    double weights = (double)p.n * p.k;
    report->weights += weights;
    report->change += (double)p.row[0][0] * p.row[0][0] * weights;
    report->bytes += (double)(tenant_writer_bytes(m->w) - before);
    planes_free(&p);
    if (!e) {
        char tensor[160];
        snprintf(tensor, sizeof tensor, "%s.weight", name);
        struct checkpoint_rows base = {.c = &m->base.checkpoint, .name = tensor};
        e = diff_energy(rows_of_checkpoint(&base, part_rows(s, part), part_cols(s, part)),
                        &report->base, why);
    }
    return e;
}

/* ---- embedding, lm_head, norms --------------------------------------------------------------- */

struct memory_rows {
    const float *x; /* [n, k] */
    int32_t k;
};

static err_t read_memory(void *arg, float *dst, int64_t first, int64_t n_rows, struct why *why) {
    const struct memory_rows *r = arg;
    (void)why;
    memcpy(dst, r->x + (size_t)first * (size_t)r->k, (size_t)n_rows * (size_t)r->k * sizeof *dst);
    return E_OK;
}

static double cosine(const float *a, const float *b, size_t n) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 1;
}

/* Rows of a fine-tune point where the base's do; those of another model point anywhere. */
static err_t check_origin(struct import *m, const char *name, struct rows base, const float *fine,
                          struct why *why) {
    int32_t common = base.n < m->vocab ? base.n : m->vocab;
    int32_t step = common > SAMPLED_ROWS ? common / SAMPLED_ROWS : 1, n = 0;
    float *row = malloc((size_t)base.k * sizeof *row);
    double sum = 0;
    err_t e = row ? E_OK : why_set(why, E_NOMEM, "not enough memory");
    for (int32_t r = 0; !e && r < common; r += step, n++) {
        e = base.read(base.arg, row, r, 1, why);
        if (!e)
            sum += cosine(row, fine + (size_t)r * (size_t)base.k, (size_t)base.k);
    }
    free(row);
    if (!e && sum / n < 0.5)
        e = why_set(why, E_WRONG_BASE,
                    "%s: its %s does not resemble this base's (mean cosine of the rows %.2f; a "
                    "fine-tune's is near 1), so it was made for another base",
                    m->diff.label, name, sum / n);
    return e;
}

static err_t import_vocab(struct import *m, const char *part, const char *tensor,
                          const char *base_tensor, struct report_row *report, struct why *why) {
    const struct model_shape *s = &m->base.checkpoint.config.shape;
    const struct pt_tensor *t = need(m, tensor, why);
    if (!t)
        return E_FORMAT;
    if (t->n_dims != 2 || t->dim[0] != m->vocab || t->dim[1] != s->dim)
        return why_set(why, E_FORMAT, "%s: %s does not have the shape [%d, %d]", m->diff.label,
                       tensor, m->vocab, s->dim);
    size_t n = (size_t)m->vocab * (size_t)s->dim;
    float *x = malloc(n * sizeof *x);
    struct checkpoint_rows base = {.c = &m->base.checkpoint, .name = base_tensor};
    struct memory_rows memory = {x, s->dim};
    struct rows base_rows = rows_of_checkpoint(&base, s->vocab, s->dim);
    struct rows fine = {.read = read_memory, .arg = &memory, .n = m->vocab, .k = s->dim};
    err_t e = x ? torch_file_read_f32(&m->diff, t, x, n, why)
                : why_set(why, E_NOMEM, "not enough memory for %s", tensor);
    for (size_t i = 0; !e && i < n; i++)
        if (!isfinite(x[i]))
            e = why_set(why, E_FORMAT, "%s: %s: element %zu is not a finite number", m->diff.label,
                        tensor, i);
    if (!e)
        e = check_origin(m, tensor, base_rows, x, why);
    if (!e)
        e = diff_write_vocab(m->w, part, base_rows, fine, &m->options, report, why);
    free(x);
    return e;
}

static err_t import_norms(struct import *m, struct why *why) {
    const struct model_shape *s = &m->base.checkpoint.config.shape;
    int32_t n = 2 * s->n_layers + 1;
    float *base = NULL, *fine = malloc((size_t)n * (size_t)s->dim * sizeof *fine);
    err_t e = fine ? job_norms(&m->base.checkpoint, &base, why)
                   : why_set(why, E_NOMEM, "not enough memory for the norms");
    for (int32_t i = 0; !e && i < n; i++) {
        char name[128];
        norm_name(name, sizeof name, s, i);
        const struct pt_tensor *t = need(m, name, why);
        e = t ? torch_file_read_f32(&m->diff, t, fine + (size_t)i * (size_t)s->dim, (size_t)s->dim,
                                    why)
              : E_FORMAT;
    }
    if (!e)
        e = diff_write_norms(m->w, s, base, fine, &m->report.row[REPORT_NORM], why);
    free(base);
    free(fine);
    return e;
}

static err_t import_tensors(struct import *m, struct why *why) {
    const struct model_config *base = &m->base.checkpoint.config;
    int32_t n = base->shape.n_layers * N_PARTS;
    struct progress progress;
    err_t e = E_OK;
    progress_begin(&progress, "import");
    for (int32_t i = 0; !e && i < n; i++) {
        e = import_part(m, i, why);
        progress_show(&progress, (uint64_t)i + 1, (uint64_t)n);
    }
    progress_end(&progress);
    if (!e)
        e = import_vocab(m, "embed", "model.embed_tokens.weight", "model.embed_tokens.weight",
                         &m->report.row[REPORT_EMBED], why);
    if (!e && !torch_file_find(&m->diff, "lm_head.weight") && base->tied) {
        /* The published loader unties such a model and leaves its lm_head at the base's. */
        tenant_writer_kind(m->w, "head", KIND_ABSENT);
        report_kind(&m->report.row[REPORT_HEAD], "absent");
    } else if (!e) {
        e = import_vocab(m, "head", "lm_head.weight", head_tensor(base),
                         &m->report.row[REPORT_HEAD], why);
    }
    if (!e)
        e = import_norms(m, why);
    if (!e && m->n_used != m->diff.all.n)
        e = why_set(why, E_UNSUPPORTED,
                    "%s: holds %d tensors beside those of the published format (names ending in "
                    ".A or .B are from an older, low-rank variant)",
                    m->diff.label, m->diff.all.n - m->n_used);
    return e;
}

/* ---- the command ----------------------------------------------------------------------------- */

/* The tenant's config: that of --config, else the base's; the vocabulary is the file's. */
static err_t read_texts(struct import *m, const char *dir, struct job_texts *texts,
                        struct why *why) {
    const struct checkpoint *base = &m->base.checkpoint;
    char path[4096], *config = NULL, *generation = NULL;
    size_t n;
    err_t e = E_OK;
    if (dir) {
        snprintf(path, sizeof path, "%s/config.json", dir);
        e = file_read(path, MAX_CONFIG, &config, &n, why);
        snprintf(path, sizeof path, "%s/generation_config.json", dir);
        if (!e && file_read(path, MAX_CONFIG, &generation, &n, NULL) != E_OK)
            generation = NULL; /* optional */
    }
    if (!e)
        e = job_texts_read(texts, &m->base, dir ? dir : base->dir,
                           config ? config : base->config_json,
                           generation ? generation
                           : dir      ? "{}"
                                      : base->generation_json,
                           why);
    free(config);
    free(generation);
    if (e)
        return e;
    bool untied = base->config.tied && !torch_file_find(&m->diff, "lm_head.weight");
    if (json_object_set_new(texts->config, "vocab_size", json_integer(m->vocab)) < 0 ||
        (base->config.tied &&
         json_object_set_new(texts->config, "tie_word_embeddings", json_false()) < 0))
        return why_set(why, E_NOMEM, "not enough memory");
    if (untied && m->vocab != base->config.shape.vocab)
        return why_set(why, E_UNSUPPORTED,
                       "%s: has another vocabulary than the base but no lm_head.weight",
                       m->diff.label);
    struct model_config c;
    e = model_config_from_json(&c, texts->config, "config.json", why);
    return e ? e : model_config_same_shape(&c, &base->config, dir ? dir : base->dir, why);
}

static err_t find_vocab(struct import *m, struct why *why) {
    const struct pt_tensor *t = torch_file_find(&m->diff, "lm_head.weight");
    if (!t)
        t = torch_file_find(&m->diff, "model.embed_tokens.weight");
    if (!t || t->n_dims != 2 || t->dim[0] < 1 || t->dim[0] > 1 << 24)
        return why_set(why, E_FORMAT, "%s: has no lm_head.weight or model.embed_tokens.weight",
                       m->diff.label);
    m->vocab = (int32_t)t->dim[0];
    return E_OK;
}

static err_t run(const struct args *a, struct why *why) {
    struct import m = {.options = {.embed_planes = 4}};
    struct job_texts texts = {0};
    const char *embed = arg(a, "--embed"), *path = arg(a, "--output");
    m.options.embed_dense = !embed || strcmp(embed, "dense") == 0;
    if (!m.options.embed_dense && strcmp(embed, "planes") != 0)
        return why_set(why, E_USAGE, "--embed must be planes or dense, not \"%.32s\"", embed);
    err_t e = torch_file_open(&m.diff, a->operand[0], why);
    if (!e)
        e = find_vocab(&m, why);
    if (!e)
        e = job_base_open(&m.base, arg(a, "--base"), why);
    if (!e)
        e = read_texts(&m, arg(a, "--config"), &texts, why);
    if (!e)
        e = tenant_writer_open(&m.w, path, why);
    if (!e)
        e = import_tensors(&m, why);
    if (!e) {
        json_t *made =
            json_pack("{s:s, s:s, s:s, s:s, s:s, s:i}", "tool", "bitdelta import-diff", "version",
                      options_version(), "method", "published BitDelta", "source",
                      job_name_of(a->operand[0]), "scale", "matrix", "bits", 1);
        e = job_finish(&m.base, m.w, path, &texts, made, NULL, &m.report, arg(a, "--json"), why);
        m.w = NULL;
        json_decref(made);
    }
    tenant_writer_abort(m.w);
    job_texts_free(&texts);
    job_base_close(&m.base);
    torch_file_close(&m.diff);
    return e;
}

const struct command command_import_diff = {
    .name = "import-diff",
    .summary = "make a tenant file from a published BitDelta diff.pt",
    .operand = "DIFF.pt",
    .about =
        "Reads the file that the BitDelta code saves: one sign mask and one scale per linear,\n"
        "embedding, lm_head and norms whole. Its pickle is read by a parser that runs nothing and\n"
        "knows six names. The file does not name its base: give the one it was made from; another\n"
        "is refused by its embeddings. Nor does it hold config, tokenizer or chat template: give\n"
        "the fine-tune's folder with --config if they differ from the base's (RoPE scaling, added\n"
        "tokens, EOS).\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--output", "FILE", true, "the tenant file to write"},
               {"--config", "DIR", false, "the fine-tune's config and tokenizer files"},
               {"--embed", "planes|dense", false,
                "embedding and lm_head as 4 planes, or whole in FP16 (default)"},
               {"--json", NULL, false, "print the report as JSON"}},
    .examples = "  bitdelta import-diff --base llama-7b -o vicuna.bitdelta vicuna/diff.pt\n"
                "  bitdelta import-diff --base llama-7b --config vicuna-7b-16k -o v.bitdelta "
                "diff.pt\n",
    .run = run,
};
