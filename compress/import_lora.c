/* `bitdelta import-lora`: a PEFT LoRA adapter becomes a tenant of low-rank pairs, with whole
 * matrices where the adapter has them. What it computes is what PEFT computes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/diff.h"
#include "compress/job.h"
#include "compress/lora.h"
#include "config/options.h"

struct import {
    struct job_base base;
    struct lora adapter;
    struct checkpoint merged; /* what is not low rank */
    struct report report;
    struct tenant_writer *w;
};

/* |B A|^2 = sum over i, j of (A A')_ij (B' B)_ij: the energy of the product without making it. */
static double product_energy(const struct lora_pair *p) {
    const float *a = p->a, *b = p->b;
    int32_t rank = p->rank, n = p->n, k = p->k;
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

/* A [rank, K] and B [N, rank]. */
static err_t write_pair(struct import *m, const char *part, const struct lora_module *module,
                        struct report_row *report, struct why *why) {
    struct lora_pair p;
    uint16_t *half = NULL;
    err_t e = lora_pair_read(&m->adapter, module, &p, why);
    size_t n_a = (size_t)p.rank * (size_t)p.k, n_b = (size_t)p.n * (size_t)p.rank;
    if (!e && !(half = malloc((n_a > n_b ? n_a : n_b) * sizeof *half)))
        e = why_set(why, E_NOMEM, "not enough memory for %s", part);
    if (!e)
        e = diff_to_half(half, p.a, n_a, module->a->name, why);
    if (!e)
        e = tenant_writer_tensor(m->w, part, ".lora_a", ST_F16, 2, (int64_t[]){p.rank, p.k}, half,
                                 why);
    if (!e)
        e = diff_to_half(half, p.b, n_b, module->b->name, why);
    if (!e)
        e = tenant_writer_tensor(m->w, part, ".lora_b", ST_F16, 2, (int64_t[]){p.n, p.rank}, half,
                                 why);
    if (!e)
        report->change += product_energy(&p);
    lora_pair_free(&p);
    free(half);
    return e;
}

static err_t check_rank(const struct import *m, const struct lora_module *module, struct why *why) {
    if (module->magnitude)
        return why_set(why, E_UNSUPPORTED,
                       "%s: %s has a magnitude per row (DoRA), which no low-rank pair can express; "
                       "bitdelta compress --finetuned %s takes the adapter",
                       m->adapter.dir, module->name, m->adapter.dir);
    if (module->a && module->a->dim[0] > tenant_max_rank(module->n, module->k))
        return why_set(why, E_UNSUPPORTED,
                       "%s: %s: rank %d is more than half of the matrix's, so the pair is no "
                       "smaller; bitdelta compress --finetuned %s takes the adapter",
                       m->adapter.dir, module->name, (int)module->a->dim[0], m->adapter.dir);
    return E_OK;
}

static err_t import_part(struct import *m, int32_t i, struct why *why) {
    const struct lora_module *module = &m->adapter.module[i];
    struct report_row *report = &m->report.row[i % N_PARTS];
    const char *part = module->name;
    char tensor[160];
    snprintf(tensor, sizeof tensor, "%s.weight", part);
    struct checkpoint_rows base = {.c = &m->base.checkpoint, .name = tensor},
                           whole = {.c = &m->merged, .name = tensor};
    uint64_t before = tenant_writer_bytes(m->w);
    enum tenant_kind kind = lora_is_absent(module)     ? KIND_ABSENT
                            : lora_is_low_rank(module) ? KIND_PLANES
                                                       : KIND_DENSE;
    tenant_writer_kind(m->w, part, kind);
    report_kind(report, kind == KIND_PLANES ? "low rank" : tenant_kind_name(kind));
    report->weights += (double)module->n * module->k;
    struct rows old = rows_of_checkpoint(&base, module->n, module->k),
                new = rows_of_checkpoint(&whole, module->n, module->k);
    err_t e = E_OK;
    if (kind == KIND_PLANES) {
        e = write_pair(m, part, module, report, why);
        e = e ? e : diff_energy(old, &report->base, why);
    } else if (kind == KIND_DENSE) {
        e = diff_write_dense(m->w, part, new, why);
        e = e ? e : diff_measure(old, new, report, why);
    }
    report->bytes += (double)(tenant_writer_bytes(m->w) - before);
    return e;
}

/* embed or head: a pair as it is, else what the merged matrix needs to be exact. */
static err_t import_vocab(struct import *m, const char *part, int32_t i, struct report_row *report,
                          struct why *why) {
    const struct lora_module *module = &m->adapter.module[i];
    const struct model_shape *s = &m->base.checkpoint.config.shape;
    bool head = i == lora_head(&m->adapter);
    if (head && m->adapter.tied) {
        tenant_writer_kind(m->w, part, KIND_TIED);
        report_kind(report, "tied");
        return E_OK;
    }
    if (lora_is_low_rank(module)) {
        uint64_t before = tenant_writer_bytes(m->w);
        err_t e = write_pair(m, part, module, report, why);
        tenant_writer_kind(m->w, part, KIND_PLANES);
        report_kind(report, "low rank");
        report->weights += (double)module->n * module->k;
        report->bytes += (double)(tenant_writer_bytes(m->w) - before);
        return e;
    }
    char tensor[160];
    snprintf(tensor, sizeof tensor, "%s.weight", module->name);
    struct checkpoint_rows base = {.c = &m->base.checkpoint,
                                   .name = head ? head_tensor(&m->base.checkpoint.config) : tensor},
                           fine = {.c = &m->merged, .name = tensor};
    struct diff_options exact = {.embed_dense = true};
    return diff_write_vocab(m->w, part, rows_of_checkpoint(&base, s->vocab, s->dim),
                            rows_of_checkpoint(&fine, module->n, s->dim), &exact, report, why);
}

static err_t import_all(struct import *m, struct why *why) {
    const struct lora *l = &m->adapter;
    float *base = NULL, *fine = NULL;
    err_t e = E_OK;
    for (int32_t i = 0; !e && i < l->n_modules; i++)
        e = check_rank(m, &l->module[i], why);
    for (int32_t i = 0; !e && i < lora_embed(l); i++)
        e = import_part(m, i, why);
    e = e ? e : import_vocab(m, "embed", lora_embed(l), &m->report.row[REPORT_EMBED], why);
    e = e ? e : import_vocab(m, "head", lora_head(l), &m->report.row[REPORT_HEAD], why);
    e = e ? e : job_norms(&m->base.checkpoint, &base, why);
    e = e ? e : job_norms(&m->merged, &fine, why);
    if (!e)
        e = diff_write_norms(m->w, &m->base.checkpoint.config.shape, base, fine,
                             &m->report.row[REPORT_NORM], why);
    free(base);
    free(fine);
    return e;
}

static err_t run(const struct args *a, struct why *why) {
    struct import m = {.adapter = {.fd = -1}};
    struct job_texts texts = {0};
    const char *dir = a->operand[0], *path = arg(a, "--output");
    err_t e = checkpoint_open(&m.base.checkpoint, arg(a, "--base"), why);
    if (!e)
        e = lora_open(&m.adapter, dir, &m.base.checkpoint, why);
    if (!e)
        e = lora_checkpoint(&m.adapter, &m.merged, why);
    if (!e)
        e = job_base_hash(&m.base, why);
    if (!e)
        e = job_texts_read(&texts, &m.base, dir, m.merged.config_json, m.merged.generation_json,
                           why);
    if (!e)
        e = tenant_writer_open(&m.w, path, why);
    if (!e)
        e = import_all(&m, why);
    if (!e) {
        json_t *made = json_pack("{s:s, s:s, s:s, s:s}", "tool", "bitdelta import-lora", "version",
                                 options_version(), "method", "lora", "source", job_name_of(dir));
        e = job_finish(&m.base, m.w, path, &texts, made, NULL, &m.report, arg(a, "--json"), why);
        m.w = NULL;
        json_decref(made);
    }
    tenant_writer_abort(m.w);
    job_texts_free(&texts);
    checkpoint_close(&m.merged);
    lora_close(&m.adapter);
    job_base_close(&m.base);
    return e;
}

const struct command command_import_lora = {
    .name = "import-lora",
    .summary = "make a tenant file from a PEFT LoRA adapter",
    .operand = "FOLDER",
    .about =
        "Reads adapter_config.json and adapter_model.safetensors. Pairs stay pairs, exactly; rank\n"
        "and alpha patterns and rsLoRA are honoured, and the scaling is folded into B. Modules\n"
        "that were trained whole (modules_to_save), resized embeddings and trained tokens are "
        "kept\n"
        "whole. Adapters of the embedding and of lm_head are pairs, too.\n\n"
        "Not low rank, and so refused here: DoRA, and ranks beyond half of a matrix.\n"
        "`bitdelta compress --finetuned FOLDER` merges any adapter on the way and keeps 1-bit\n"
        "differences. Refused by both, with the reason: biases, layer_replication, and adapters\n"
        "of a base that PEFT changed first (PiSSA, LoftQ, ...).\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--output", "FILE", true, "the tenant file to write"},
               {"--json", NULL, false, "print the report as JSON"}},
    .examples = "  bitdelta import-lora --base llama-7b -o sql.bitdelta sql-lora/\n",
    .run = run,
};
