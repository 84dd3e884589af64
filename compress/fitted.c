#include "compress/fitted.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "compress/evaluate.h"
#include "compress/fit.h"
#include "compress/student_write.h"

enum {
    ROWS = 768,       /* tokens of a step */
    MAX_LENGTH = 256, /* of a sequence: what fitting and judging see of a context */
    JUDGE_ROWS = 6144,
    SAMPLE_AT_ONCE = 384,
};
/* Of the rows, those that the fine-tune did not write: the base's own text, or the given one. They
 * keep the tenant like its fine-tune also off the fine-tune's beaten track. */
static const float other_share = 0.25f;
/* Each sampled token is seen this often: sampling costs about as much as two steps of learning. */
static const double passes = 1.25;

/* Rates by trial on the demo's fine-tunes (docs/quality.md). The published method learns its scales
 * themselves at 1e-4 from the logits' squared error. */
static const struct fit_options fit_defaults = {
    .rows = ROWS,
    .max_length = MAX_LENGTH,
    .other_share = other_share,
    .kl_weight = 1,
    .mse_weight = 0.02f,
    .rates = {.scale = 0.015f, .bit = 0.02f, .low_rank = 0.005f, .norm = 0.001f},
};
static const struct fit_options published_defaults = {
    .rows = 512,
    .max_length = 128,
    .other_share = 1,
    .mse_weight = 1,
    .rates = {.scale = 1e-4f, .scale_itself = true},
};

struct fitting {
    const struct fitted_options *o;
    struct gemm gemm;
    struct llama base, teacher;
    struct student student;
    struct corpus own, other, judge;
    struct progress progress;
    json_t *quality;
};

/* ---- before anything costs time -------------------------------------------------------------- */

static err_t check_memory(const struct checkpoint *fine, struct why *why) {
    const struct model_shape *s = &fine->config.shape;
    double weights = 2.0 * s->vocab * s->dim;
    for (int p = 0; p < N_PARTS; p++)
        weights += (double)s->n_layers * part_rows(s, (enum part)p) * part_cols(s, (enum part)p);
    /* Base, fine-tune and student; signs with their two means; the gradient of a matrix. */
    double need = weights * 4 * 6.2,
           have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (need <= have)
        return E_OK;
    return why_set(why, E_NOMEM,
                   "Fitting this model takes %.1f GB of memory and this machine has %.1f GB; "
                   "--instant makes the file from the weights alone.",
                   need / 1e9, have / 1e9);
}

/* A model that was not trained from this base differs by about sqrt(2) of its weights' size. */
static err_t check_distance(const struct fitting *f, const char *base, const char *fine,
                            struct why *why) {
    double change = 0, size = 0;
    for (int32_t i = 0; i < llama_embed(&f->base); i++) {
        const struct llama_matrix *b = &f->base.matrix[i], *t = &f->teacher.matrix[i];
        for (size_t l = 0; l < (size_t)b->n * (size_t)b->k; l++) {
            double d = (double)t->w[l] - (double)b->w[l];
            change += d * d, size += (double)b->w[l] * (double)b->w[l];
        }
    }
    double distance = size > 0 ? sqrt(change / size) : 0;
    if (distance <= 1)
        return E_OK;
    return why_set(why, E_WRONG_BASE,
                   "%s is not a fine-tune of %s: its weights differ by %.2f times the size of the "
                   "base's (a fine-tune: well below 1; unrelated models: about 1.4)",
                   fine, base, distance);
}

/* ---- text -------------------------------------------------------------------------------------
 */

/* Documents that the model writes from its beginning, until there are n ids. */
static err_t write_text(struct fitting *f, const struct llama *m, double n, uint64_t seed,
                        int32_t max_length, struct corpus *out, struct why *why) {
    struct sample_options o = {.temperature = 1, .seed = seed};
    o.stop = m->config.eos_id, o.n_stop = m->config.n_eos;
    err_t e = E_OK;
    while (!e && (double)out->n_ids < n) {
        e = sample_documents(m, &f->gemm, SAMPLE_AT_ONCE, max_length, &o, out);
        o.seed += 1000003;
        progress_show(&f->progress, (uint64_t)(f->own.n_ids + f->other.n_ids),
                      (uint64_t)((double)f->o->steps * ROWS / passes));
    }
    return e ? why_set(why, e, "There is not enough memory for the calibration text.") : E_OK;
}

static err_t read_text(struct fitting *f, const struct job_base *base, int32_t max_length,
                       struct why *why) {
    struct tokenizer *t = NULL;
    char *text = NULL;
    size_t n = 0;
    err_t e = tokenizer_open(&t, base->checkpoint.dir, why);
    e = e ? e : corpus_read_file(f->o->calibration, &text, &n, why);
    e = e ? e : corpus_add_text(&f->other, t, text, n, max_length, why);
    if (!e && !f->other.n_seqs)
        e = why_set(why, E_INVAL, "%s holds no text.", f->o->calibration);
    free(text);
    tokenizer_close(t);
    return e;
}

static err_t gather_text(struct fitting *f, const struct job_base *base,
                         const struct fit_options *o, struct why *why) {
    int32_t context = f->teacher.config.context,
            length = context < o->max_length ? context : o->max_length;
    double ids = (double)f->o->steps * o->rows / passes, own = 1 - (double)o->other_share;
    progress_begin(&f->progress, "write text");
    err_t e = write_text(f, &f->teacher, JUDGE_ROWS, f->o->seed + 77, length, &f->judge, why);
    if (!e && own > 0)
        e = write_text(f, &f->teacher, ids * own, f->o->seed, length, &f->own, why);
    if (!e && f->o->calibration)
        e = read_text(f, base, length, why);
    else if (!e)
        e = write_text(f, &f->base, ids * (double)o->other_share, f->o->seed, length, &f->other,
                       why);
    progress_end(&f->progress);
    return e;
}

/* ---- fitting and judging ----------------------------------------------------------------------
 */

static void show(void *arg, int32_t done, int32_t total, double kl) {
    (void)kl;
    progress_show(arg, (uint64_t)done, (uint64_t)total);
}

static err_t judge(struct fitting *f, const char *when, struct why *why) {
    struct loss l = {0};
    err_t e = evaluate_text(&f->student.model, &f->teacher, &f->gemm, &f->judge, &l, why);
    if (e)
        return e;
    json_t *now =
        json_pack("{s:f, s:f, s:f, s:f, s:f}", "kl", l.kl / (double)l.n_rows, "top1",
                  (double)l.n_agree / (double)l.n_rows, "logit_mse", l.mse / (double)l.n_rows,
                  "perplexity", exp(l.nll / (double)l.n_targets), "fine_tune_perplexity",
                  exp(l.teacher_nll / (double)l.n_targets));
    json_object_set_new(f->quality, when, now);
    json_object_set_new(f->quality, "tokens", json_integer(l.n_rows));
    return E_OK;
}

static err_t fit(struct fitting *f, const struct job_base *base, json_t *made, struct why *why) {
    struct fit_options o = f->o->published ? published_defaults : fit_defaults;
    o.steps = f->o->steps;
    if (o.max_length > f->teacher.config.context)
        o.max_length = f->teacher.config.context;
    if (f->o->published && !f->o->calibration)
        return why_set(why, E_USAGE,
                       "The published method is distilled on a text: give --calibration FILE.");
    err_t e = gather_text(f, base, &o, why);
    f->quality =
        json_pack("{s:s}", "measured_on", "text sampled from the fine-tune, not used in fitting");
    e = e ? e : judge(f, "before_fitting", why);
    progress_begin(&f->progress, "fit");
    o.progress = show, o.arg = &f->progress;
    struct fit_report r;
    e = e ? e : fit_run(&f->student, &f->gemm, &f->own, &f->other, &o, &r, why);
    progress_end(&f->progress);
    if (e)
        return e;
    json_object_set_new(made, "steps", json_integer(o.steps));
    json_object_set_new(made, "tokens", json_integer(r.n_rows));
    json_object_set_new(made, "seed", json_integer((json_int_t)f->o->seed));
    json_object_set_new(made, "calibration",
                        json_string(f->o->calibration ? job_name_of(f->o->calibration)
                                                      : "text of the fine-tune and of the base"));
    student_round(&f->student, &f->gemm);
    return judge(f, "fitted", why);
}

/* What the budget leaves for low-rank pairs in the linears, per weight. */
static double pair_bits(const struct model_shape *s, double bits, int32_t planes) {
    double scales = 0, weights = 0;
    for (int p = 0; p < N_PARTS; p++) {
        double n = part_rows(s, (enum part)p), k = part_cols(s, (enum part)p);
        scales += 16 * (n + k);
        weights += n * k;
    }
    double left = bits - planes * (1 + scales / weights);
    return left > 0 ? left : 0;
}

err_t fitted_write(const struct job_base *base, const struct checkpoint *fine,
                   const struct fitted_options *o, struct tenant_writer *w, struct report *report,
                   json_t *made, json_t **quality, struct why *why) {
    struct fitting f = {.o = o};
    int32_t planes = (int32_t)o->bits;
    struct student_plan plan = {
        .planes = planes,
        .vocab_planes = o->vocab_planes,
        .vocab_rank = o->published ? 0 : 8,
        .pair_bits = o->published ? 0 : pair_bits(&fine->config.shape, o->bits, planes),
        .scalar = o->published,
        .dense_vocab = o->dense_vocab || o->published};
    err_t e = check_memory(fine, why);
    e = e ? e : gemm_open(&f.gemm, 0);
    e = e ? e : llama_load(&f.base, &base->checkpoint, why);
    e = e ? e : llama_load(&f.teacher, fine, why);
    e = e ? e : check_distance(&f, base->checkpoint.dir, fine->dir, why);
    e = e ? e : student_open(&f.student, &f.gemm, &f.base, &f.teacher, &plan, why);
    if (!e && o->steps > 0)
        e = fit(&f, base, made, why);
    else if (!e)
        student_round(&f.student, &f.gemm);
    e = e ? e : student_write(&f.student, w, report, why);
    if (!e)
        *quality = f.quality, f.quality = NULL;
    json_decref(f.quality);
    corpus_free(&f.own), corpus_free(&f.other), corpus_free(&f.judge);
    student_free(&f.student);
    llama_free(&f.teacher), llama_free(&f.base);
    gemm_close(&f.gemm);
    return e;
}
