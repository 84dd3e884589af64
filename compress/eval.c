/* `bitdelta eval`: what a tenant file makes of texts and questions, beside its base and, where it
 * is at hand, its fine-tune. */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compress/evaluate.h"
#include "compress/fine_tune.h"
#include "compress/job.h"
#include "compress/llama_tenant.h"

enum { WHO_BASE, WHO_TENANT, WHO_FINE, N_WHO };
static const char *const who_names[N_WHO] = {"base", "tenant", "fine_tune"};

struct eval {
    struct job_base base;
    struct fine_tune fine_files;
    struct tenant_file file;
    struct gemm gemm;
    struct llama model[N_WHO]; /* matrix NULL: not at hand */
    struct tokenizer *base_words, *words;
    struct task_set set;
    struct loss text[N_WHO];
    int32_t right[N_WHO];
};

static err_t read_tenant(struct eval *v, const char *path, struct why *why) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return why_set(why, E_IO, "%s cannot be opened: %m.", path);
    err_t e =
        tenant_file_read(&v->file, fd, path, &v->base.checkpoint.config, v->base.fingerprint, why);
    close(fd);
    return e;
}

static err_t open_models(struct eval *v, const struct args *a, struct why *why) {
    const char *fine = arg(a, "--finetuned");
    err_t e = job_base_open(&v->base, arg(a, "--base"), why);
    e = e ? e : gemm_open(&v->gemm, 0);
    e = e ? e : read_tenant(v, arg(a, "--tenant"), why);
    e = e ? e : llama_load(&v->model[WHO_BASE], &v->base.checkpoint, why);
    e = e ? e
          : llama_of_tenant(&v->model[WHO_TENANT], &v->gemm, &v->model[WHO_BASE], &v->file, why);
    if (!e && fine) {
        e = fine_tune_open(&v->fine_files, fine, &v->base.checkpoint, why);
        e = e ? e : llama_load(&v->model[WHO_FINE], &v->fine_files.checkpoint, why);
        if (!e && v->model[WHO_FINE].config.shape.vocab != v->model[WHO_TENANT].config.shape.vocab)
            e = why_set(why, E_INVAL,
                        "%s has %d vocabulary rows, the tenant %d: they do not belong "
                        "together.",
                        fine, v->model[WHO_FINE].config.shape.vocab,
                        v->model[WHO_TENANT].config.shape.vocab);
    }
    e = e ? e : tokenizer_open(&v->base_words, arg(a, "--base"), why);
    return e ? e
             : tokenizer_extend(&v->words, v->base_words, v->file.meta.tokenizer_json,
                                v->model[WHO_TENANT].config.shape.vocab, why);
}

static err_t read_questions(struct eval *v, const struct args *a, struct why *why) {
    const struct model_config *c = &v->model[WHO_TENANT].config;
    const char *text = arg(a, "--text"), *tasks = arg(a, "--tasks");
    int32_t limit;
    err_t e = arg_int(a, "--limit", 1, 1 << 30, 0, &limit, why);
    if (!e && !text == !tasks)
        e = why_set(why, E_USAGE, "Give one of --text and --tasks.");
    if (e || tasks)
        return e ? e
                 : task_set_read(&v->set, v->words, tasks, c->context, c->n_eos ? c->eos_id[0] : -1,
                                 limit, why);
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

/* The base knows only its own vocabulary; a text with a tenant's added tokens is not for it. */
static bool can_read(const struct llama *m, const struct corpus *text) {
    for (size_t i = 0; i < text->n_ids; i++)
        if (text->id[i] >= m->config.shape.vocab)
            return false;
    return m->matrix != NULL;
}

static err_t judge(struct eval *v, struct why *why) {
    const struct llama *fine = v->model[WHO_FINE].matrix ? &v->model[WHO_FINE] : NULL;
    err_t e = 0;
    for (int i = 0; !e && i < N_WHO; i++) {
        struct llama *m = &v->model[i];
        if (!can_read(m, &v->set.text)) {
            llama_free(m);
            continue;
        }
        bool same = fine && fine->config.shape.vocab == m->config.shape.vocab;
        e = evaluate_text(m, same ? fine : NULL, &v->gemm, &v->set.text, &v->text[i], why);
        if (!e && v->set.n_tasks)
            e = evaluate_tasks(m, &v->gemm, v->words, &v->set, &v->right[i], why);
    }
    return e;
}

static void print_table(const struct eval *v) {
    bool fine = v->model[WHO_FINE].matrix != NULL;
    printf("%-10s %12s %10s %9s %11s %13s\n", "", "perplexity", "KL", "top-1", "logit MSE",
           "exact match");
    for (int i = 0; i < N_WHO; i++) {
        const struct loss *l = &v->text[i];
        if (!v->model[i].matrix || !l->n_targets)
            continue;
        double rows = (double)l->n_rows;
        printf("%-10s %12.4f", i == WHO_FINE ? "fine-tune" : who_names[i],
               exp(l->nll / (double)l->n_targets));
        if (fine && v->model[i].config.shape.vocab == v->model[WHO_FINE].config.shape.vocab)
            printf(" %10.5f %7.2f %% %11.4f", l->kl / rows, 100 * (double)l->n_agree / rows,
                   l->mse / rows);
        else
            printf(" %10s %9s %11s", "-", "-", "-");
        if (v->set.n_tasks)
            printf(" %5d of %4d", v->right[i], v->set.n_tasks);
        putchar('\n');
    }
    printf("%d documents, %lld tokens. KL (nats per token), top-1 and logit MSE: against the "
           "fine-tune%s.\n",
           v->set.text.n_seqs, (long long)v->text[WHO_TENANT].n_targets,
           fine ? "" : ", which --finetuned names");
}

static void print_json(const struct eval *v) {
    bool fine = v->model[WHO_FINE].matrix != NULL;
    json_t *out = json_object();
    for (int i = 0; i < N_WHO; i++) {
        const struct loss *l = &v->text[i];
        if (!v->model[i].matrix || !l->n_targets)
            continue;
        double rows = (double)l->n_rows;
        json_t *row = json_pack("{s:f}", "perplexity", exp(l->nll / (double)l->n_targets));
        if (fine && v->model[i].config.shape.vocab == v->model[WHO_FINE].config.shape.vocab) {
            json_object_set_new(row, "kl", json_real(l->kl / rows));
            json_object_set_new(row, "top1", json_real((double)l->n_agree / rows));
            json_object_set_new(row, "logit_mse", json_real(l->mse / rows));
        }
        if (v->set.n_tasks)
            json_object_set_new(row, "exact_match",
                                json_real((double)v->right[i] / (double)v->set.n_tasks));
        json_object_set_new(out, who_names[i], row);
    }
    json_object_set_new(out, "documents", json_integer(v->set.text.n_seqs));
    json_object_set_new(out, "questions", json_integer(v->set.n_tasks));
    json_object_set_new(out, "tokens", json_integer(v->text[WHO_TENANT].n_targets));
    json_object_set_new(out, "bits_per_weight", json_real(v->file.bits_per_weight));
    json_object_set_new(out, "file_bytes", json_integer((json_int_t)v->file.file_bytes));
    json_dumpf(out, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(out);
}

static err_t run(const struct args *a, struct why *why) {
    struct eval v = {.fine_files = {.adapter = {.fd = -1}}};
    err_t e = open_models(&v, a, why);
    e = e ? e : read_questions(&v, a, why);
    e = e ? e : judge(&v, why);
    if (!e && arg(a, "--json"))
        print_json(&v);
    else if (!e)
        print_table(&v);
    task_set_free(&v.set);
    tokenizer_close(v.words);
    tokenizer_close(v.base_words);
    for (int i = 0; i < N_WHO; i++)
        llama_free(&v.model[i]);
    tenant_file_free(&v.file);
    fine_tune_close(&v.fine_files);
    gemm_close(&v.gemm);
    job_base_close(&v.base);
    return e;
}

const struct command command_eval = {
    .name = "eval",
    .summary = "measure a tenant on text or questions, beside base and fine-tune",
    .about =
        "Prints, for the base, the tenant and (with --finetuned) the fine-tune it was made from:\n"
        "perplexity; the KL divergence from the fine-tune's predictions, how often the most "
        "likely\n"
        "token is the same, and the mean squared error of the logits; and how many questions are\n"
        "answered exactly (greedily, and ending where the answer ends). Runs on the CPU in "
        "FP32.\n\n"
        "--text: UTF-8 text, documents apart by lines \"<|doc|>\". --tasks: a JSON array; of each\n"
        "string the answer is what follows the first colon of a last line such as \"A: 42\", or\n"
        "what follows a tab (put into a ChatML template); or {\"prompt\": ..., \"answer\": ...}.\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--tenant", "FILE", true, "the tenant file"},
               {"--finetuned", "DIR", false, "the fine-tune it was made from"},
               {"--text", "FILE", false, "text to predict"},
               {"--tasks", "FILE", false, "questions to answer (JSON)"},
               {"--limit", "N", false, "the first N documents only"},
               {"--json", NULL, false, "print JSON"}},
    .examples = "  bitdelta eval --base llama-7b --finetuned my-math-7b --tenant math.bitdelta "
                "--tasks heldout.json\n",
    .run = run,
};
