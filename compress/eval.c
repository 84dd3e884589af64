/* `bitdelta eval`: what tenant files make of texts and questions, beside their base and, where it
 * is at hand, their fine-tune. One tenant at a time is in memory, and the two others throughout. */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compress/canvas.h"
#include "compress/device.h"
#include "compress/evaluate.h"
#include "compress/fine_tune.h"
#include "compress/job.h"
#include "compress/llama_tenant.h"
#include "compress/plot.h"

/* What was measured of one model. */
struct score {
    struct train_loss text;
    int32_t right;  /* questions */
    bool is_beside; /* the text's numbers that need a fine-tune are there */
};

struct rival {
    const char *path;
    char *method, *source; /* as its file says how it was made; owned */
    double bits;
    size_t bytes;
    struct score score;
};

struct eval {
    struct job_base base_files;
    struct fine_tune fine_files;
    struct train *t;
    struct llama base, fine; /* matrix NULL: not at hand */
    struct tokenizer *base_words, *words;
    char *additions; /* of the tenants' tokenizer; owned */
    struct task_set set;
    struct rival tenant[MAX_MANY];
    int32_t n_tenants, vocab; /* the tenants' */
    struct score base_score, fine_score;
};

/* ---- models and questions -------------------------------------------------------------------- */

static err_t read_tenant(struct eval *v, const char *path, struct tenant_file *t, struct why *why) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return why_set(why, E_IO, "%s cannot be opened: %m.", path);
    err_t e = tenant_file_read(t, fd, path, &v->base_files.checkpoint.config,
                               v->base_files.fingerprint, why);
    close(fd);
    return e;
}

/* The first tenant says which tokens there are; the others must agree. */
static err_t read_words(struct eval *v, const struct args *a, const struct tenant_file *t,
                        struct why *why) {
    v->vocab = t->meta.config.shape.vocab;
    v->additions = strdup(t->meta.tokenizer_json);
    err_t e = v->additions ? tokenizer_open(&v->base_words, arg(a, "--base"), why)
                           : why_set(why, E_NOMEM, "not enough memory for the tokenizer");
    return e ? e : tokenizer_extend(&v->words, v->base_words, v->additions, v->vocab, why);
}

static err_t open_models(struct eval *v, const struct args *a, const struct tenant_file *first,
                         struct why *why) {
    const char *fine = arg(a, "--finetuned");
    const struct checkpoint *base_files = &v->base_files.checkpoint,
                            *fine_files = &v->fine_files.checkpoint;
    struct llama_files base = {base_files, true}, tuned = {fine_files, false};
    struct progress p;
    progress_begin(&p, "read models");
    /* The base answers the tenant's documents, too, which may be longer than it ever saw. */
    struct model_config reach = base_files->config;
    if (reach.context < first->meta.config.context)
        reach.context = first->meta.config.context;
    err_t e = llama_load(&v->base, v->t, &reach, llama_source_files(&base), &p, why);
    if (!e && fine)
        e = fine_tune_open(&v->fine_files, fine, base_files, why);
    if (!e && fine)
        e = llama_load(&v->fine, v->t, &fine_files->config, llama_source_files(&tuned), &p, why);
    progress_end(&p);
    if (e || !fine)
        return e;
    int32_t vocab = v->fine.config.shape.vocab, tenant = first->meta.config.shape.vocab;
    if (!e && vocab != tenant)
        e = why_set(why, E_INVAL,
                    "%s has %d vocabulary rows, the tenant %d: they do not belong together.", fine,
                    vocab, tenant);
    return e;
}

static err_t read_questions(struct eval *v, const struct args *a, const struct model_config *c,
                            struct why *why) {
    const char *text = arg(a, "--text"), *tasks = arg(a, "--tasks");
    int32_t limit;
    err_t e = arg_int(a, "--limit", 1, 1 << 30, 0, &limit, why);
    if (!e && tasks)
        e = task_set_read(&v->set, v->words, tasks, c->context, c->n_eos ? c->eos_id[0] : -1, limit,
                          why);
    if (!e && v->set.n_too_long)
        fprintf(stderr,
                "Note: %d of the questions in %s do not fit the context of %d tokens with room "
                "for an answer, and are not asked.\n",
                v->set.n_too_long, tasks, c->context);
    if (e || tasks)
        return e;
    char *buffer;
    size_t n;
    e = corpus_read_file(text, &buffer, &n, why);
    if (!e)
        e = corpus_add_text(&v->set.text, v->words, buffer, n, c->context, why);
    free(buffer);
    if (!e && limit > 0 && limit < v->set.text.n_seqs) {
        v->set.text.n_seqs = limit;
        v->set.text.n_ids = v->set.text.start[limit];
    }
    if (!e && !v->set.text.n_seqs)
        e = why_set(why, E_INVAL, "%s holds no text.", text);
    return e;
}

/* ---- judging --------------------------------------------------------------------------------- */

/* The base knows only its own vocabulary; a text with a tenant's added tokens is not for it. */
static bool can_read(const struct llama *m, const struct corpus *text) {
    for (size_t i = 0; i < text->n_ids; i++)
        if (text->id[i] >= m->config.shape.vocab)
            return false;
    return m->matrix != NULL;
}

static err_t judge(struct eval *v, const struct llama *m, struct score *s, struct why *why) {
    bool beside = v->fine.matrix && v->fine.config.shape.vocab == m->config.shape.vocab;
    if (!can_read(m, &v->set.text))
        return E_OK;
    s->is_beside = beside;
    struct progress p;
    progress_begin(&p, "judge text");
    err_t e = evaluate_text(m, beside && m != &v->fine ? &v->fine : NULL, &v->set.text, &s->text,
                            &p, why);
    progress_end(&p);
    progress_begin(&p, "ask");
    if (!e && v->set.n_tasks)
        e = evaluate_tasks(m, v->words, &v->set, &s->right, &p, why);
    progress_end(&p);
    return e;
}

/* What a tenant says of how it was made. A method that the format has no form for is kept as whole
 * matrices and says what it takes by its own. */
static void read_made(struct rival *r, const struct tenant_file *t) {
    json_t *made = json_loads(t->meta.made_json, 0, NULL);
    const char *method = json_string_value(json_object_get(made, "method")),
               *source = json_string_value(json_object_get(made, "source"));
    const json_t *own = json_object_get(made, "bits_taken");
    r->method = strdup(method ? method : "unknown");
    r->source = strdup(source ? source : "unknown");
    r->bits = json_is_number(own) ? json_number_value(own) : t->bits_per_weight;
    r->bytes = t->file_bytes;
    json_decref(made);
}

static err_t judge_tenant(struct eval *v, const struct tenant_file *t, const char *path,
                          struct why *why) {
    struct rival *r = &v->tenant[v->n_tenants++];
    struct llama m = {0};
    *r = (struct rival){.path = path};
    read_made(r, t);
    if (t->meta.config.shape.vocab != v->vocab || strcmp(t->meta.tokenizer_json, v->additions) != 0)
        return why_set(why, E_INVAL,
                       "%s has other tokens than %s: no text is the same to both; evaluate them "
                       "one by one.",
                       path, v->tenant[0].path);
    if (!r->method || !r->source)
        return why_set(why, E_NOMEM, "not enough memory for %s", path);
    err_t e = llama_of_tenant(&m, v->t, &v->base_files.checkpoint, t, NULL, why);
    e = e ? e : judge(v, &m, &r->score, why);
    llama_free(&m);
    return e;
}

/* ---- what comes out -------------------------------------------------------------------------- */

static double mean(double sum, int64_t n) {
    return n > 0 ? sum / (double)n : NAN;
}

/* How much of the way from base to fine-tune; NAN: one of the two is not at hand. */
static double way_of(const struct eval *v, const struct score *s) {
    const struct train_loss *l = &s->text, *base = &v->base_score.text;
    return s->is_beside && v->base_score.is_beside
               ? report_way(mean(l->kl, l->n_rows), mean(base->kl, base->n_rows))
               : NAN;
}

static void print_row(const struct eval *v, const char *name, const struct score *s,
                      const struct rival *r) {
    if (!s->text.n_targets)
        return;
    const struct train_loss *l = &s->text;
    char bits[16] = "-", bytes[24] = "-";
    if (r) {
        snprintf(bits, sizeof bits, "%.3f", r->bits);
        snprintf(bytes, sizeof bytes, "%zu", r->bytes);
    }
    printf("%-24s %7s %12s %11.4f", name, bits, bytes, exp(mean(l->nll, l->n_targets)));
    double way = way_of(v, s);
    if (s->is_beside)
        printf(" %9.5f", mean(l->kl, l->n_rows));
    else
        printf(" %9s", "-");
    if (isfinite(way))
        printf(" %6.2f %%", 100 * way);
    else
        printf(" %8s", "-");
    if (s->is_beside)
        printf(" %6.2f %% %10.4f", 100 * mean((double)l->n_agree, l->n_rows),
               mean(l->mse, l->n_rows));
    else
        printf(" %8s %10s", "-", "-");
    if (v->set.n_tasks)
        printf(" %5d of %4d", s->right, v->set.n_tasks);
    putchar('\n');
}

static void print_table(const struct eval *v) {
    printf("%-24s %7s %12s %11s %9s %8s %8s %10s%s\n", "", "bits/wt", "bytes", "perplexity", "KL",
           "way", "top-1", "logit MSE", v->set.n_tasks ? "  exact match" : "");
    print_row(v, "base", &v->base_score, NULL);
    for (int32_t i = 0; i < v->n_tenants; i++)
        print_row(v, job_name_of(v->tenant[i].path), &v->tenant[i].score, &v->tenant[i]);
    print_row(v, "fine-tune", &v->fine_score, NULL);
    printf("%d documents, %lld tokens. KL (nats per token), top-1 and logit MSE: against the "
           "fine-tune%s. Way: 1 - sqrt(KL / KL of the base).\n",
           v->set.text.n_seqs, (long long)v->tenant[0].score.text.n_targets,
           v->fine.matrix ? "" : ", which --finetuned names");
}

static json_t *score_json(const struct eval *v, const struct score *s) {
    const struct train_loss *l = &s->text;
    if (!l->n_targets)
        return json_null();
    json_t *row = json_pack("{s:f}", "perplexity", exp(mean(l->nll, l->n_targets)));
    if (s->is_beside) {
        json_object_set_new(row, "kl", json_real(mean(l->kl, l->n_rows)));
        if (isfinite(way_of(v, s)))
            json_object_set_new(row, "way", json_real(way_of(v, s)));
        json_object_set_new(row, "top1", json_real(mean((double)l->n_agree, l->n_rows)));
        json_object_set_new(row, "logit_mse", json_real(mean(l->mse, l->n_rows)));
    }
    if (v->set.n_tasks)
        json_object_set_new(row, "exact_match",
                            json_real((double)s->right / (double)v->set.n_tasks));
    return row;
}

static void print_json(const struct eval *v) {
    json_t *list = json_array();
    for (int32_t i = 0; i < v->n_tenants; i++) {
        const struct rival *r = &v->tenant[i];
        json_t *row = score_json(v, &r->score);
        json_object_set_new(row, "file", json_string(r->path));
        json_object_set_new(row, "method", json_string(r->method));
        json_object_set_new(row, "bits_per_weight", json_real(r->bits));
        json_object_set_new(row, "file_bytes", json_integer((json_int_t)r->bytes));
        json_array_append_new(list, row);
    }
    json_t *out = json_pack("{s:o, s:o, s:o, s:i, s:i, s:I}", "base", score_json(v, &v->base_score),
                            "tenants", list, "fine_tune", score_json(v, &v->fine_score),
                            "documents", v->set.text.n_seqs, "questions", v->set.n_tasks, "tokens",
                            (json_int_t)v->tenant[0].score.text.n_targets);
    json_dumpf(out, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(out);
}

static void plot_values(const struct eval *v, const struct score *s, double *out) {
    const struct train_loss *l = &s->text;
    for (int i = 0; i < N_PLOT_METRICS; i++)
        out[i] = NAN;
    if (!l->n_targets)
        return;
    out[PLOT_PERPLEXITY] = exp(mean(l->nll, l->n_targets));
    if (s->is_beside) {
        out[PLOT_KL] = mean(l->kl, l->n_rows);
        out[PLOT_TOP1] = 100 * mean((double)l->n_agree, l->n_rows);
    }
    if (v->set.n_tasks)
        out[PLOT_EXACT] = 100 * (double)s->right / v->set.n_tasks;
}

/* A method as a legend names it. */
static const char *method_label(const char *method) {
    static const char *const labels[][2] = {
        {"fit", "fitted"},
        {"mean", "instant"},
        {"bitdelta", "BitDelta"},
        {"published BitDelta", "BitDelta, imported"},
        {"lora", "LoRA, imported"},
        {"svd", "SVD"},
        {"delta-come", "Delta-CoMe"},
    };
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++)
        if (strcmp(method, labels[i][0]) == 0)
            return labels[i][1];
    return method;
}

/* A series is a method; of several fine-tunes, a method of one of them. */
static err_t draw(const struct eval *v, const struct args *a, struct why *why) {
    struct plot_point point[MAX_MANY];
    char series[MAX_MANY][96], title[256];
    const char *asked = arg(a, "--tasks") ? arg(a, "--tasks") : arg(a, "--text");
    bool one_source = true;
    for (int32_t i = 1; i < v->n_tenants; i++)
        one_source &= strcmp(v->tenant[i].source, v->tenant[0].source) == 0;
    for (int32_t i = 0; i < v->n_tenants; i++) {
        const struct rival *r = &v->tenant[i];
        snprintf(series[i], sizeof series[i], "%s%s%s", one_source ? "" : r->source,
                 one_source ? "" : ": ", method_label(r->method));
        point[i] = (struct plot_point){.series = series[i], .bits = r->bits};
        plot_values(v, &r->score, point[i].value);
    }
    snprintf(title, sizeof title, "%s%s%s: %d documents, %lld tokens",
             one_source ? v->tenant[0].source : "", one_source ? " on " : "", job_name_of(asked),
             v->set.text.n_seqs, (long long)v->tenant[0].score.text.n_targets);
    struct plot p = {.title = title, .point = point, .n_points = v->n_tenants};
    plot_values(v, &v->base_score, p.base);
    plot_values(v, &v->fine_score, p.fine_tune);
    return plot_write(arg(a, "--plot"), &p, why);
}

/* ---- the command ----------------------------------------------------------------------------- */

static err_t evaluate(struct eval *v, const struct args *a, struct why *why) {
    err_t e = job_base_open(&v->base_files, arg(a, "--base"), why);
    e = e ? e : device_open(&v->t, arg(a, "--device") ? arg(a, "--device") : "auto", 0, why);
    for (int32_t i = 0; !e && i < a->n_many; i++) {
        struct tenant_file t = {0};
        e = read_tenant(v, a->many[i], &t, why);
        if (!e && i == 0) {
            e = open_models(v, a, &t, why);
            e = e ? e : read_words(v, a, &t, why);
            e = e ? e : read_questions(v, a, &t.meta.config, why);
            e = e ? e : judge(v, &v->base, &v->base_score, why);
        }
        e = e ? e : judge_tenant(v, &t, a->many[i], why);
        tenant_file_free(&t);
    }
    return e || !v->fine.matrix ? e : judge(v, &v->fine, &v->fine_score, why);
}

static err_t run(const struct args *a, struct why *why) {
    if (!arg(a, "--text") == !arg(a, "--tasks"))
        return why_set(why, E_USAGE, "Give one of --text and --tasks.");
    err_t e = arg(a, "--plot") ? canvas_check(arg(a, "--plot"), why) : E_OK;
    struct eval *v = calloc(1, sizeof *v);
    if (!v)
        return why_set(why, E_NOMEM, "not enough memory");
    v->fine_files.adapter.fd = -1;
    e = e ? e : evaluate(v, a, why);
    if (!e && arg(a, "--json"))
        print_json(v);
    else if (!e)
        print_table(v);
    if (!e && arg(a, "--plot"))
        e = draw(v, a, why);
    for (int32_t i = 0; i < v->n_tenants; i++)
        free(v->tenant[i].method), free(v->tenant[i].source);
    task_set_free(&v->set);
    tokenizer_close(v->words);
    tokenizer_close(v->base_words);
    free(v->additions);
    llama_free(&v->fine);
    llama_free(&v->base);
    fine_tune_close(&v->fine_files);
    if (v->t)
        v->t->ops->close(v->t);
    job_base_close(&v->base_files);
    free(v);
    return e;
}

const struct command command_eval = {
    .name = "eval",
    .summary = "measure tenants on text or questions, beside base and fine-tune",
    .about =
        "Prints, for the base, each tenant and (with --finetuned) the fine-tune they were made\n"
        "from: bits per weight and bytes; perplexity; the KL divergence from the fine-tune's\n"
        "predictions, and how much of the way from the base to it a tenant goes; how often the\n"
        "most likely token is the same, and the mean squared error of the logits; and how many\n"
        "questions are answered exactly (greedily, and ending where the answer ends). Several\n"
        "tenants in one call share the loaded models; --plot draws what\n"
        "they reach against their bits. On a GPU weights are FP16.\n\n"
        "--text: UTF-8 text, documents apart by lines \"<|doc|>\". --tasks: a JSON array; of each\n"
        "string the answer is what follows the first colon of a last line such as \"A: 42\", or\n"
        "what follows a tab (put into a ChatML template); or {\"prompt\": ..., \"answer\": ...}.\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--tenant", "FILE...", true, "tenant files, of one fine-tune or of several"},
               {"--finetuned", "DIR", false, "the fine-tune (or adapter) they were made from"},
               {"--text", "FILE", false, "text to predict"},
               {"--tasks", "FILE", false, "questions to answer (JSON)"},
               {"--limit", "N", false, "the first N documents only"},
               {"--plot", "FILE.svg|FILE.png", false, "draw quality against bits"},
               {"--device", "auto|cpu|cuda", false, "where to compute (default: a GPU if it can)"},
               {"--json", NULL, false, "print JSON"}},
    .examples = "  bitdelta eval --base llama-7b --finetuned my-math-7b --tenant math.bitdelta "
                "--tasks heldout.json\n"
                "  bitdelta eval --base llama-7b --finetuned my-math-7b --tenant math-*.bitdelta "
                "--tasks heldout.json --plot math.svg\n",
    .run = run,
};
