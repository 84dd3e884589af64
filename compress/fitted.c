#include "compress/fitted.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/base_loss.h"
#include "compress/device.h"
#include "compress/fit.h"
#include "compress/interrupt.h"
#include "compress/plan.h"
#include "compress/published.h"
#include "compress/refit.h"
#include "compress/resume.h"
#include "compress/student_write.h"
#include "config/clock.h"
#include "config/options.h"

enum {
    ROWS = 768, /* tokens of a step; on a card, where they cost a small model nothing, */
    CARD_ROWS = 1536,
    MAX_LENGTH = 256, /* of a sequence: what fitting and judging see of a context */
    JUDGE_ROWS = 6144,
    FIRST_DOCUMENTS = 192, /* before it is known how long a model's documents are */
    MOST_DOCUMENTS = 4096, /* at once */
    LEAST_ROWS = 9216,     /* of the fine-tune's text: to measure and to refit on */
    FEW_STEPS = 150,       /* up to here a fit is better off from refitted planes */
    /* Of a fit where nobody says: more are better (docs/quality.md), but it is to take minutes. */
    HOST_STEPS = 800,
    CARD_STEPS = 4000,
    LARGE_STEPS = 600, /* of a large model on a card */
};
/* Weights of a large model. */
static const double large = 1e9;
/* Of the rows, those that the fine-tune did not write: the base's own text, or the given one. They
 * keep the tenant like its fine-tune also off the fine-tune's beaten track. */
static const float other_share = 0.125f;
/* Each sampled token is seen this often: to write one costs about as much as to learn from two. */
static const double passes = 2;
/* Of the text that is wanted. */
static const double enough = 0.98;

/* Rates by trial on the demo's fine-tunes (docs/quality.md). The published method has its own
 * (compress/published.c), and learns from the logits' squared error alone. */
static const struct fit_options fit_defaults = {
    .rows = ROWS,
    .max_length = MAX_LENGTH,
    .other_share = other_share,
    .kl_weight = 1,
    .mse_weight = 0.3f,
    .final_weight = 10,
    .halved = 400,
    .rates = {.scale = 0.01f, .bit = 0.012f, .low_rank = 0.005f, .norm = 0.001f},
};
static const struct fit_options published_defaults = {
    .rows = PUBLISHED_BATCH * PUBLISHED_LENGTH,
    .max_length = PUBLISHED_LENGTH + 1, /* the last is what the others predict */
    .other_share = 1,
    .mse_weight = 1,
};

struct fitting {
    const struct fitted_options *o;
    const struct job_base *base_files;
    const struct checkpoint *fine;
    struct train *t;
    struct llama base, teacher; /* of the teacher lm_head alone stays for the fit */
    struct student student;
    struct lesson own, other, judge;
    struct resume kept;
    struct progress progress;
    bool text; /* there is some to measure and fit on: not for the published start */
    struct train_loss nothing_kept; /* of the base, on the text to judge by */
    struct cost *cost;
    json_t *quality;
};

/* A phase, with a bar. */
static void begin(struct fitting *f, const char *what) {
    progress_begin(&f->progress, what);
}
static void end(struct fitting *f) {
    progress_end(&f->progress);
    cost_add(f->cost, f->progress.what, mono_us() - f->progress.began_us);
    cost_look(f->cost, f->t);
}

/* ---- before anything costs time -------------------------------------------------------------- */

/* Refitted planes start nearer to the fine-tune, but a long fit ends further from it (measured:
 * docs/quality.md). */
static bool refits(const struct fitting *f) {
    return !f->o->published && f->o->steps <= FEW_STEPS;
}

/* What lies on the device at once: both models while they write text and are measured; then the
 * base, 2 bytes a weight for the signs of each plane, and what a step leaves for its way back (and
 * still the fine-tune, when planes are refitted to it). */
static err_t check_memory(const struct fitting *f, const struct fit_options *o, struct why *why) {
    const struct model_config *c = &f->fine->config;
    const char *name = f->t->ops->describe(f->t);
    size_t each = f->t->ops->weight_bytes;
    double model = llama_bytes(c, each), vocab = (double)c->shape.vocab,
           step = 2.0 * o->rows * vocab * sizeof(float) + llama_tape_bytes(c, o->rows, true),
           rows = vocab * c->shape.dim * (sizeof(float) + 2.0 * (double)each) +
                  (f->o->published ? published_bytes(c) : 0),
           planes = f->o->bits > f->o->vocab_planes ? f->o->bits : f->o->vocab_planes,
           measuring = 2 * model + step,
           fitting =
               model * (refits(f) ? 2 : 1) + 2 * floor(planes) * llama_bytes(c, 1) + step + rows,
           need = measuring > fitting ? measuring : fitting,
           have = (double)f->t->ops->memory_free(f->t);
    if (need <= have || have == 0)
        return E_OK;
    return why_set(why, E_NOMEM,
                   "Fitting this model takes %.1f GB of memory and %.100s has %.1f GB free: %s"
                   "--instant makes the file from the weights alone.",
                   need / 1e9, name, have / 1e9,
                   strcmp(f->t->ops->name, "cpu") == 0
                       ? ""
                       : "--device cpu fits it if the host has that much and twice, ");
}

static err_t read_models(struct fitting *f, struct why *why) {
    struct llama_files base = {&f->base_files->checkpoint, true}, fine = {f->fine, false};
    begin(f, "read base");
    err_t e = llama_load(&f->base, f->t, &base.files->config, llama_source_files(&base),
                         &f->progress, why);
    end(f);
    if (e || !f->text)
        return e;
    begin(f, "read model");
    e = llama_load(&f->teacher, f->t, &fine.files->config, llama_source_files(&fine), &f->progress,
                   why);
    end(f);
    return e;
}

static int32_t usual_steps(const struct fitting *f) {
    if (strcmp(f->t->ops->name, "cpu") == 0)
        return HOST_STEPS;
    return llama_bytes(&f->fine->config, 1) > large ? LARGE_STEPS : CARD_STEPS;
}

/* Keys of all that the text, and with it the fit, depends on. */
static err_t open_kept(struct fitting *f, const struct fit_options *o, struct why *why) {
    const struct fitted_options *w = f->o;
    char line[512], *text = NULL;
    size_t n_text = 0;
    struct sha256 key;
    err_t e = resume_open(&f->kept, w->path, why);
    e = e || !w->calibration ? e : corpus_read_file(w->calibration, &text, &n_text, why);
    if (!e && sha256_init(&key))
        e = why_set(why, E_NOMEM, "not enough memory");
    if (!e) {
        int n = snprintf(line, sizeof line, "%s %s %zu %s %d %d %d %a %a %llu %zu",
                         options_version(), f->t->ops->name, f->t->ops->weight_bytes,
                         f->base_files->fingerprint, o->steps, o->rows, o->max_length,
                         (double)o->other_share, passes, (unsigned long long)w->seed, n_text);
        sha256_add(&key, line, (size_t)n);
        sha256_add(&key, text, n_text);
        e = resume_add_weights(&key, f->fine, why);
        sha256_end(&key, f->kept.text_key);
    }
    if (!e && sha256_init(&key))
        e = why_set(why, E_NOMEM, "not enough memory");
    if (!e) {
        const struct student_rates *r = &o->rates;
        int n = snprintf(line, sizeof line, "%a %d %d %d %a %a %a %d %a %a %a %a", w->bits,
                         w->vocab_planes, w->dense_vocab, w->published, (double)o->kl_weight,
                         (double)o->mse_weight, (double)o->final_weight, o->halved,
                         (double)r->scale, (double)r->bit, (double)r->low_rank, (double)r->norm);
        sha256_add(&key, f->kept.text_key, sizeof f->kept.text_key);
        sha256_add(&key, line, (size_t)n);
        sha256_end(&key, f->kept.fit_key);
    }
    free(text);
    return e;
}

/* ---- text ------------------------------------------------------------------------------------ */

/* Documents that the model writes from its beginning, until there are about n ids: for the few that
 * are lacking none are begun, since a round of them takes as long as one of many. */
static err_t write_text(struct fitting *f, const struct llama *m, double n, uint64_t seed,
                        int32_t max_length, struct lesson *out, struct why *why) {
    struct sample_options o = {.temperature = 1, .seed = seed};
    o.stop = m->config.eos_id, o.n_stop = m->config.n_eos;
    err_t e = E_OK;
    while (!e && (double)out->text.n_ids < enough * n) {
        double left = n - (double)out->text.n_ids,
               length = out->text.n_ids ? (double)out->text.n_ids / (double)out->text.n_seqs
                                        : (double)max_length,
               most = out->text.n_ids ? MOST_DOCUMENTS : FIRST_DOCUMENTS,
               documents = ceil(left / length);
        e = sample_documents(m, (int32_t)(documents < most ? documents : most), max_length, &o, out,
                             why);
        o.seed += 1000003;
        progress_show(&f->progress, out->text.n_ids, (uint64_t)n);
    }
    return e;
}

static err_t read_text(struct fitting *f, int32_t max_length, struct corpus *out, struct why *why) {
    struct tokenizer *t = NULL;
    char *text = NULL;
    size_t n = 0;
    err_t e = tokenizer_open(&t, f->base_files->checkpoint.dir, why);
    e = e ? e : corpus_read_file(f->o->calibration, &text, &n, why);
    if (!e && f->o->published)
        e = published_text(out, t, text, n, max_length, f->fine->config.eos_id[0],
                           f->o->steps * PUBLISHED_BATCH, f->o->seed, why);
    else if (!e)
        e = corpus_add_text(out, t, text, n, max_length, why);
    if (!e && !out->n_seqs)
        e = why_set(why, E_INVAL, "%s holds no text.", f->o->calibration);
    free(text);
    tokenizer_close(t);
    return e;
}

static err_t new_text(struct fitting *f, const struct fit_options *o, struct why *why) {
    int32_t context = f->teacher.config.context, base_context = f->base.config.context,
            length = context < o->max_length ? context : o->max_length;
    length = base_context < length ? base_context : length;
    double ids = (double)f->o->steps * o->rows / passes, own = 1 - (double)o->other_share;
    ids = own > 0 && ids * own < LEAST_ROWS ? LEAST_ROWS / own : ids;
    struct lesson other = {0}; /* as it was written, or given */
    begin(f, "write text");
    err_t e = write_text(f, &f->teacher, JUDGE_ROWS, f->o->seed + 77, length, &f->judge, why);
    if (!e && own > 0)
        e = write_text(f, &f->teacher, ids * own, f->o->seed, length, &f->own, why);
    if (!e && f->o->calibration)
        e = read_text(f, length, &other.text, why);
    else if (!e)
        e = write_text(f, &f->base, ids * (double)o->other_share, f->o->seed, length, &other, why);
    end(f);
    corpus_limit(&other.text, f->teacher.config.shape.vocab); /* the base may know more tokens */
    begin(f, "read text");
    e = e ? e : lesson_read(&f->other, &f->teacher, &other.text, o->rows, &f->progress, why);
    end(f);
    lesson_free(&other);
    return e;
}

/* That a fit cannot be kept is no reason to stop it. */
static void warn(const struct why *why) {
    fprintf(stderr, "%s; the fit goes on, but could not be taken up again\n", why->text);
}

/* The text is that of before, if an earlier fit with the same options left it. */
static err_t gather_text(struct fitting *f, const struct fit_options *o, struct why *why) {
    struct lesson *const all[] = {&f->own, &f->other, &f->judge};
    size_t row_bytes = (size_t)f->fine->config.shape.dim * f->t->ops->weight_bytes;
    bool found = false;
    f->own.row_bytes = f->other.row_bytes = f->judge.row_bytes = row_bytes;
    err_t e = f->kept.folder ? resume_read_text(&f->kept, all, 3, &found, why) : 0;
    if (!e && !found) {
        struct why not_kept = {""};
        e = new_text(f, o, why);
        if (!e && f->kept.folder && resume_write_text(&f->kept, all, 3, &not_kept))
            warn(&not_kept);
    }
    begin(f, "judge base");
    e = e ? e : base_loss(&f->base, &f->teacher, &f->judge, &f->nothing_kept, &f->progress, why);
    end(f);
    return e;
}

/* ---- fitting and judging --------------------------------------------------------------------- */

/* After each step: shows it, keeps the fit from time to time, stops when a signal asks for it. */
static bool after(void *arg, const struct fit_report *at) {
    struct fitting *f = arg;
    struct why why = {""};
    progress_show(&f->progress, (uint64_t)at->step, (uint64_t)f->o->steps);
    if (at->step == 1)
        cost_look(f->cost, f->t);
    if (interrupt_came())
        return false;
    if (f->kept.folder && resume_is_due(&f->kept, &f->student) &&
        resume_write_fit(&f->kept, &f->student, at, &why))
        warn(&why);
    return true;
}

/* From its beginning, or from where it was left, to its end or to a signal. */
static err_t steps(struct fitting *f, struct fit_options *o, struct fit_report *r,
                   struct why *why) {
    struct interrupt watch;
    bool found = false;
    err_t e = f->kept.folder ? resume_read_fit(&f->kept, &f->student, r, &found, why) : 0;
    if (e)
        return e;
    if (found)
        fprintf(stderr, "Going on after step %d of %d.\n", r->step, o->steps);
    o->after = after, o->arg = f;
    begin(f, "fit");
    interrupt_watch(&watch);
    e = fit_run(&f->student, &f->teacher, &f->own, &f->other, o, r, why);
    if (!e && r->step < o->steps && f->kept.folder)
        fprintf(stderr, "Interrupted: keeping the fit in %s.\n", f->kept.folder);
    if (!e && r->step < o->steps && f->kept.folder)
        e = resume_write_fit(&f->kept, &f->student, r, why);
    interrupt_end(&watch);
    end(f);
    if (!e && r->step < o->steps)
        e = why_set(why, E_CANCELLED, "Interrupted after step %d of %d. The same command %s%s.",
                    r->step, o->steps, f->kept.folder ? "goes on from there, with " : "starts anew",
                    f->kept.folder ? f->kept.folder : "");
    return e;
}

/* The published method's steps. */
static err_t distil(struct fitting *f, struct fit_options *o, struct fit_report *r,
                    struct why *why) {
    struct published *p;
    err_t e = published_open(&p, &f->student, o->steps, why);
    if (e)
        return e;
    struct fit_learner learner = published_learner(p);
    o->learner = &learner;
    e = steps(f, o, r, why);
    o->learner = NULL;
    published_close(p);
    return e;
}

static void note(struct fitting *f, const char *what, const struct train_loss *l) {
    double rows = (double)l->n_rows, targets = (double)l->n_targets;
    json_t *now =
        json_pack("{s:f, s:f, s:f, s:f, s:f}", "kl", l->kl / rows, "top1",
                  (double)l->n_agree / rows, "logit_mse", l->mse / rows, "perplexity",
                  exp(l->nll / targets), "fine_tune_perplexity", exp(l->teacher_nll / targets));
    json_object_set_new(f->quality, what, now);
    json_object_set_new(f->quality, "tokens", json_integer(l->n_rows));
}

static err_t judge(struct fitting *f, const char *when, struct why *why) {
    struct train_loss l = {0};
    begin(f, "judge");
    err_t e = fit_judge(&f->student.model, &f->teacher, &f->judge, &l, &f->progress, why);
    end(f);
    if (!e)
        note(f, when, &l);
    return e;
}

/* Without gradients: signs and scales by least squares on the fine-tune's own text. */
static err_t refit(struct fitting *f, struct why *why) {
    struct refit_options o = {.rows = ROWS,
                              .batches = LEAST_ROWS / ROWS,
                              .damp = 0.3f,
                              .signs = true,
                              .pairs = true,
                              .teacher = &f->teacher,
                              .p = &f->progress};
    begin(f, "refit");
    err_t e = refit_run(&f->student, &f->own.text, &o, NULL, why);
    end(f);
    return e;
}

static err_t fit(struct fitting *f, struct fit_options *o, json_t *made, struct why *why) {
    struct fit_report r = {0};
    f->quality =
        json_pack("{s:s}", "measured_on", "text sampled from the fine-tune, not used in fitting");
    note(f, "base", &f->nothing_kept);
    err_t e = judge(f, "before_fitting", why);
    if (!e && refits(f))
        e = refit(f, why);
    llama_release(&f->teacher, llama_head(&f->teacher));
    if (!e && f->o->published)
        e = distil(f, o, &r, why);
    else if (!e && o->steps > 0)
        e = steps(f, o, &r, why);
    if (e)
        return e;
    json_object_set_new(made, "steps", json_integer(o->steps));
    json_object_set_new(made, "tokens", json_integer(r.n_rows));
    json_object_set_new(made, "seed", json_integer((json_int_t)f->o->seed));
    json_object_set_new(made, "calibration",
                        json_string(f->o->calibration ? job_name_of(f->o->calibration)
                                                      : "text of the fine-tune and of the base"));
    e = student_round(&f->student, why);
    return e ? e : judge(f, "fitted", why);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static err_t open_student(struct fitting *f, json_t *made, struct why *why) {
    const struct fitted_options *o = f->o;
    struct plan_options plan = {o->bits, o->vocab_planes, o->dense_vocab, o->published,
                                o->published && o->steps > 0};
    struct budget_choice *choice = calloc((size_t)f->base.n_matrices, sizeof *choice);
    struct budget_result expected;
    if (!choice)
        return why_set(why, E_NOMEM, "not enough memory");
    begin(f, "measure");
    err_t e = plan_choose(&plan, &f->base, &f->teacher, f->fine, &f->own.text, choice, &expected,
                          &f->progress, why);
    end(f);
    if (f->text && !refits(f))
        llama_release(&f->teacher, llama_head(&f->teacher));
    begin(f, "difference");
    e = e ? e
          : student_open(&f->student, f->t, &f->base, &f->base_files->checkpoint, f->fine, choice,
                         &f->progress, why);
    end(f);
    if (!e && expected.loss_at_base > 0)
        json_object_set_new(made, "expected_kl", json_real(expected.loss));
    free(choice);
    return e;
}

err_t fitted_write(const struct job_base *base, const struct checkpoint *fine,
                   const struct fitted_options *o, struct tenant_writer *w, struct report *report,
                   json_t *made, json_t **quality, bool *written, struct why *why) {
    struct fitted_options mine = *o; /* with the steps that are done */
    struct fitting f = {.o = &mine, .base_files = base, .fine = fine, .cost = &report->cost};
    f.text = !o->published || o->steps > 0;
    struct fit_options options = o->published ? published_defaults : fit_defaults;
    if (options.max_length > fine->config.context)
        options.max_length = fine->config.context;
    err_t e = device_open(&f.t, o->device, 0, why);
    if (!e && o->steps == STEPS_USUAL)
        mine.steps = usual_steps(&f);
    if (!e && !o->published && strcmp(f.t->ops->name, "cpu") != 0)
        options.rows = CARD_ROWS;
    options.steps = mine.steps;
    if (!e)
        cost_begin(f.cost, f.t);
    *written = false;
    if (!e && f.text && o->path && !o->published)
        e = open_kept(&f, &options, why);
    if (!e && f.kept.folder && o->only_quality && (f.quality = resume_look(&f.kept)))
        goto done;
    e = e ? e : check_memory(&f, &options, why);
    e = e ? e : read_models(&f, why);
    if (!e && f.text)
        e = gather_text(&f, &options, why);
    e = e ? e : open_student(&f, made, why);
    if (!e)
        e = f.text ? fit(&f, &options, made, why) : student_round(&f.student, why);
    begin(&f, "write");
    e = e ? e : student_write(&f.student, w, report, why);
    if (f.t)
        end(&f);
    *written = !e;
    if (!e && f.kept.folder && f.quality)
        resume_add_look(&f.kept, f.quality);
done:
    resume_close(&f.kept);
    if (!e)
        *quality = f.quality, f.quality = NULL;
    json_decref(f.quality);
    lesson_free(&f.own), lesson_free(&f.other), lesson_free(&f.judge);
    student_free(&f.student);
    llama_free(&f.teacher), llama_free(&f.base);
    if (f.t)
        f.t->ops->close(f.t);
    return e;
}
