/* `bitdelta compress`: a full fine-tune in a Hugging Face folder becomes a tenant file. Differences
 * are taken in FP32 from the stored dtypes: in 16 bits, small ones would vanish or change sign. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/contender.h"
#include "compress/device.h"
#include "compress/diff.h"
#include "compress/fine_tune.h"
#include "compress/resume.h"
#include "compress/wanted.h"
#include "config/options.h"

/* A plane, its scales at small models' shapes, and as much for low-rank pairs as helps there. */
static const double default_bits = 1.14;

struct compress {
    struct job_base base;
    struct fine_tune fine;
    bool instant;                /* from the weights alone, a matrix in memory at a time */
    struct diff_options options; /* of instant */
    struct wanted wanted;        /* otherwise: a fit */
    enum contender contender;    /* a method to compare with, in place of both */
    struct train *t;             /* that it computes on */
    double contender_bits;       /* that its linears take */
    struct made made;
};

static err_t parse_instant(struct diff_options *o, const struct args *a, double bits,
                           struct why *why) {
    const char *scale = arg(a, "--scale");
    o->per_row = !scale || strcmp(scale, "row") == 0;
    if (!o->per_row && strcmp(scale, "matrix") != 0)
        return why_set(why, E_USAGE, "--scale must be row or matrix, not \"%.32s\"", scale);
    if (arg(a, "--calibration") || arg(a, "--steps") || arg(a, "--method") || arg(a, "--quality") ||
        arg(a, "--device"))
        return why_set(why, E_USAGE,
                       "--instant fits and measures nothing: leave out --calibration, --steps, "
                       "--method, --quality and --device");
    o->n_planes = (int32_t)bits;
    if (arg(a, "--bits") && o->n_planes != bits)
        return why_set(
            why, E_USAGE,
            "--instant keeps whole sign planes: --bits %d or %d, not %g; a fit takes any "
            "number",
            o->n_planes, o->n_planes + 1, bits);
    return arg_int(a, "--embed-bits", 1, MAX_PLANES, o->n_planes > 4 ? o->n_planes : 4,
                   &o->embed_planes, why);
}

/* A share to reach makes --bits the most that it may take. */
static err_t parse_quality(struct wanted *w, const struct args *a, struct why *why) {
    w->first_bits = default_bits;
    err_t e = arg_double(a, "--quality", 0.01, 0.9999, 0, &w->quality, why);
    if (e || w->quality <= 0)
        return e;
    if (w->fitted.published || w->fitted.steps == 0)
        return why_set(why, E_USAGE, "--quality looks for the fit that reaches it: leave out %s",
                       w->fitted.published ? "--method" : "--steps 0");
    if (!arg(a, "--bits"))
        w->fitted.bits = MAX_PLANES;
    return E_OK;
}

static err_t parse_fitted(struct wanted *w, const struct args *a, struct why *why) {
    struct fitted_options *o = &w->fitted;
    const char *method = arg(a, "--method");
    int32_t seed;
    o->published = method && strcmp(method, "bitdelta") == 0;
    if (method && !o->published && strcmp(method, "fit") != 0)
        return why_set(why, E_USAGE,
                       "--method must be fit, bitdelta, svd or delta-come, not \"%.32s\"", method);
    if (arg(a, "--scale"))
        return why_set(why, E_USAGE,
                       "--scale goes with --instant: fitted scales are of rows and "
                       "columns, or of matrices with --method bitdelta");
    o->calibration = arg(a, "--calibration");
    o->device = arg(a, "--device") ? arg(a, "--device") : "auto";
    err_t e = arg_int(a, "--embed-bits", 1, MAX_PLANES, 0, &o->vocab_planes, why);
    e = e ? e : arg_int(a, "--steps", 0, 1000000, o->published ? 200 : STEPS_USUAL, &o->steps, why);
    e = e ? e : arg_int(a, "--seed", 0, INT32_MAX, 1, &seed, why);
    o->seed = (uint64_t)seed;
    if (!e && o->published && o->steps > 0 && !o->calibration)
        e = why_set(why, E_USAGE,
                    "--method bitdelta distils on a text: give --calibration FILE, or --steps 0 "
                    "for its scales before distillation");
    return e ? e : parse_quality(w, a, why);
}

static err_t parse_contender(const struct args *a, struct why *why) {
    static const char *const none[] = {"--instant", "--calibration", "--steps",  "--scale",
                                       "--embed",   "--embed-bits",  "--quality"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        if (arg(a, none[i]))
            return why_set(
                why, E_USAGE,
                "--method %s takes nothing but the weights, --bits and --device: leave out %s",
                arg(a, "--method"), none[i]);
    return E_OK;
}

static err_t parse_options(struct compress *j, const struct args *a, struct why *why) {
    const char *embed = arg(a, "--embed"), *method = arg(a, "--method");
    j->contender = method ? contender_of(method) : CONTENDER_NONE;
    if (j->contender) {
        j->options.embed_dense = true;
        j->wanted.fitted.device = arg(a, "--device") ? arg(a, "--device") : "auto";
        err_t bad = parse_contender(a, why);
        return bad ? bad
                   : arg_double(a, "--bits", 1, MAX_PLANES, default_bits, &j->wanted.fitted.bits,
                                why);
    }
    j->instant = arg(a, "--instant") != NULL;
    j->options.embed_dense = j->wanted.fitted.dense_vocab = embed && strcmp(embed, "dense") == 0;
    if (embed && !j->options.embed_dense && strcmp(embed, "planes") != 0)
        return why_set(why, E_USAGE, "--embed must be planes or dense, not \"%.32s\"", embed);
    err_t e = arg_double(a, "--bits", 1, MAX_PLANES, default_bits, &j->wanted.fitted.bits, why);
    return e            ? e
           : j->instant ? parse_instant(&j->options, a, j->wanted.fitted.bits, why)
                        : parse_fitted(&j->wanted, a, why);
}

static err_t write_linears(struct compress *j, struct why *why) {
    const struct model_shape *s = &j->base.checkpoint.config.shape;
    struct progress p;
    err_t e = E_OK;
    progress_begin(&p, "compress");
    for (int32_t i = 0; !e && i < s->n_layers * N_PARTS; i++) {
        enum part part = (enum part)(i % N_PARTS);
        char name[128], tensor[160];
        part_name(name, sizeof name, i / N_PARTS, part);
        snprintf(tensor, sizeof tensor, "%s.weight", name);
        struct checkpoint_rows base = {.c = &j->base.checkpoint, .name = tensor},
                               fine = {.c = &j->fine.checkpoint, .name = tensor};
        int32_t n = part_rows(s, part), k = part_cols(s, part);
        struct rows from = rows_of_checkpoint(&base, n, k), to = rows_of_checkpoint(&fine, n, k);
        struct report_row *row = &j->made.report.row[part];
        e = j->contender
                ? contender_write_part(j->t, j->contender, j->wanted.fitted.bits, j->made.w, name,
                                       from, to, row, &j->contender_bits, why)
                : diff_write_part(j->made.w, name, from, to, &j->options, row, why);
        progress_show(&p, (uint64_t)i + 1, (uint64_t)(s->n_layers * N_PARTS));
    }
    progress_end(&p);
    return e;
}

static err_t write_vocab(struct compress *j, const char *part, const char *base_name,
                         const char *fine_name, struct report_row *report, struct why *why) {
    const struct model_shape *s = &j->base.checkpoint.config.shape;
    struct checkpoint_rows base = {.c = &j->base.checkpoint, .name = base_name},
                           fine = {.c = &j->fine.checkpoint, .name = fine_name};
    return diff_write_vocab(
        j->made.w, part, rows_of_checkpoint(&base, s->vocab, s->dim),
        rows_of_checkpoint(&fine, j->fine.checkpoint.config.shape.vocab, s->dim), &j->options,
        report, why);
}

static err_t write_rest(struct compress *j, struct why *why) {
    float *base = NULL, *fine = NULL;
    err_t e = write_vocab(j, "embed", "model.embed_tokens.weight", "model.embed_tokens.weight",
                          &j->made.report.row[REPORT_EMBED], why);
    if (!e && j->fine.checkpoint.config.tied) {
        tenant_writer_kind(j->made.w, "head", KIND_TIED);
        report_kind(&j->made.report.row[REPORT_HEAD], "tied");
    } else if (!e) {
        e = write_vocab(j, "head", head_tensor(&j->base.checkpoint.config), "lm_head.weight",
                        &j->made.report.row[REPORT_HEAD], why);
    }
    if (!e)
        e = job_norms(&j->base.checkpoint, &base, why);
    if (!e)
        e = job_norms(&j->fine.checkpoint, &fine, why);
    if (!e)
        e = diff_write_norms(j->made.w, &j->base.checkpoint.config.shape, base, fine,
                             &j->made.report.row[REPORT_NORM], why);
    free(base);
    free(fine);
    return e;
}

static json_t *made_of(const struct compress *j, const char *fine) {
    const char *method = j->contender == CONTENDER_SVD          ? "svd"
                         : j->contender == CONTENDER_DELTA_COME ? "delta-come"
                         : j->instant                           ? "mean"
                         : j->wanted.fitted.published           ? "bitdelta"
                                                                : "fit";
    const char *scale = j->contender                 ? "none"
                        : j->instant                 ? j->options.per_row ? "row" : "matrix"
                        : j->wanted.fitted.published ? "matrix"
                                                     : "row x column";
    int embed = j->instant ? j->options.embed_planes : j->wanted.fitted.vocab_planes;
    if (j->options.embed_dense || (!j->instant && j->wanted.fitted.published))
        embed = 16;
    double bits = j->instant ? j->options.n_planes : j->wanted.fitted.bits;
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:f, s:i}", "tool", "bitdelta compress", "version",
                     options_version(), "method", method, "source", job_name_of(fine), "scale",
                     scale, "bits", bits, "embed_bits", embed);
}

/* What the linears take by the method's own way to store them, whatever the file has. */
static void note_contender(const struct compress *j, json_t *made) {
    double weights = 0;
    for (int p = 0; p < N_PARTS; p++)
        weights += j->made.report.row[p].weights;
    json_object_set_new(made, "bits_taken", json_real(j->contender_bits / weights));
    fprintf(stderr, "The linears take %.3f bits a weight by this method.\n",
            j->contender_bits / weights);
}

/* Two folders of the same weights are more often a mistake than not. */
static void note_nothing(const struct compress *j, const char *fine) {
    double change = 0;
    for (int i = 0; i < N_REPORT; i++)
        change += j->made.report.row[i].change;
    if (!(change > 0))
        fprintf(stderr, "Note: %s changes nothing in the base; the tenant is the base itself.\n",
                job_name_of(fine));
}

/* Without a fit: from the weights, a matrix at a time. */
static err_t make_at_once(struct compress *j, const char *path, json_t *about, struct why *why) {
    j->made.made = json_incref(about);
    err_t e = tenant_writer_open(&j->made.w, path, why);
    if (!e && j->contender)
        e = device_open(&j->t, j->wanted.fitted.device, 0, why);
    e = e ? e : write_linears(j, why);
    e = e ? e : write_rest(j, why);
    if (!e && j->contender)
        note_contender(j, about);
    return e;
}

static err_t run(const struct args *a, struct why *why) {
    struct compress j = {.fine = {.adapter = {.fd = -1}}};
    struct job_texts texts = {0};
    const char *path = arg(a, "--output"), *fine = arg(a, "--finetuned");
    json_t *about = NULL;
    err_t e = parse_options(&j, a, why);
    if (e)
        return e;
    e = checkpoint_open(&j.base.checkpoint, arg(a, "--base"), why);
    if (!e)
        e = fine_tune_open(&j.fine, fine, &j.base.checkpoint, why);
    if (!e)
        e = job_base_hash(&j.base, why);
    if (!e)
        e = job_texts_read(&texts, &j.base, fine, j.fine.checkpoint.config_json,
                           j.fine.checkpoint.generation_json, why);
    if (!e && !(about = made_of(&j, fine)))
        e = why_set(why, E_NOMEM, "not enough memory");
    if (!e)
        e = j.instant || j.contender
                ? make_at_once(&j, path, about, why)
                : wanted_make(&j.base, &j.fine.checkpoint, &j.wanted, path, about, &j.made, why);
    if (!e) {
        note_nothing(&j, fine);
        e = job_finish(&j.base, j.made.w, path, &texts, j.made.made, j.made.quality, &j.made.report,
                       arg(a, "--json"), why);
        j.made.w = NULL;
        if (!e)
            resume_remove(path);
    }
    made_free(&j.made);
    if (j.t)
        j.t->ops->close(j.t);
    json_decref(about);
    job_texts_free(&texts);
    fine_tune_close(&j.fine);
    job_base_close(&j.base);
    return e;
}

const struct command command_compress = {
    .name = "compress",
    .summary = "make a tenant file from a full fine-tune",
    .about =
        "Both folders are Hugging Face checkpoints of one architecture (config.json, safetensors\n"
        "in FP16, BF16 or FP32); the fine-tune may be a PEFT adapter (LoRA, DoRA, whole modules),\n"
        "which is merged into the base as it is read. Of each linear layer the file keeps the\n"
        "signs of the difference and scales per row and column. Signs, scales and norms are then\n"
        "fitted, so that the tenant predicts what the fine-tune predicts, on text that the\n"
        "fine-tune and the base write for it; no data is needed, and --calibration FILE takes the\n"
        "place of the base's text. The quality reached on other such text is printed and kept in\n"
        "the file: how near the predictions are to the fine-tune's, and how much of the way from\n"
        "the base to the fine-tune that is. A tenant that goes less than a quarter of it is\n"
        "refused, with the bits that it would take; --quality 0.95 finds the fewest that go 95 %.\n"
        "Fitting takes minutes, for large models on a GPU that holds base and fine-tune at once; "
        "an\n"
        "interrupted fit goes on with the same command. --instant takes one pass over the files,\n"
        "and keeps the signs and mean scales per row.\n\n"
        "The embedding and lm_head are left out where equal to the base; rows beyond the base's\n"
        "vocabulary, and few changed rows, are kept exactly; otherwise they become planes.\n"
        "Norms, config, added tokens, chat template and generation defaults are the\n"
        "fine-tune's own. The finished file is read back.\n\n"
        "For comparison there are --method bitdelta (one scale a plane, norms, whole embedding "
        "and\n"
        "lm_head, learnt on --calibration FILE as the published code does, 200 steps of 4 texts "
        "of\n"
        "128 tokens; it is not taken up again when interrupted; with --bits 2 and more one plane\n"
        "behind the other), svd (the nearest matrices of a rank, without fitting) and delta-come\n"
        "(singular vectors at 8, 3 and 2 bits; kept as whole matrices, so the file is large: the\n"
        "bits that it would take packed are printed).\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--finetuned", "DIR", true, "the fine-tune of that base, or a PEFT adapter"},
               {"--output", "FILE", true, "the tenant file to write"},
               {"--bits", "B", false,
                "bits per weight of the linears on average, 1 to 8 (default 1.14)"},
               {"--quality", "Q", false,
                "share of the way to the fine-tune, as 0.95, in the fewest bits; --bits: at most"},
               {"--instant", NULL, false,
                "from the weights alone: seconds, less like the fine-tune"},
               {"--calibration", "FILE", false,
                "text to answer like the fine-tune (documents apart by lines \"<|doc|>\")"},
               {"--steps", "N", false,
                "steps of fitting (default 4000 on a GPU, 600 there beyond a billion weights, 800 "
                "on a CPU; 0: none)"},
               {"--seed", "N", false, "of the sampled text (default 1)"},
               {"--method", "fit|bitdelta|svd|delta-come", false,
                "fit (default), or to compare: BitDelta as published, or no signs at all"},
               {"--scale", "row|matrix", false,
                "with --instant: one scale per row (default) or per matrix"},
               {"--embed", "planes|dense", false,
                "changed embedding and lm_head as planes (default) or whole in FP16"},
               {"--embed-bits", "N", false,
                "their planes (default --bits and a low-rank pair; with --instant 4 or more)"},
               {"--device", "auto|cpu|cuda", false, "where to fit (default: a GPU if it can)"},
               {"--json", NULL, false, "print the report as JSON"}},
    .examples =
        "  bitdelta compress --base llama-7b --finetuned my-chat-7b -o chat.bitdelta\n"
        "  bitdelta compress --quality 0.95 --base llama-7b --finetuned my-sql-7b -o sql.bitdelta\n"
        "  bitdelta compress --instant --base llama-7b --finetuned my-math-7b --bits 2 -o "
        "math.bitdelta\n",
    .run = run,
};
