/* Running a model over texts and questions. */
#include "compress/evaluate.h"

#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH_ROWS = 1024, MAX_IDS = 1 << 20, MAX_TEXT = 1 << 24 };

/* ---- reading questions ----------------------------------------------------------------------- */

static char *trimmed(const char *text, size_t n) {
    while (n && isspace((unsigned char)*text))
        text++, n--;
    while (n && isspace((unsigned char)text[n - 1]))
        n--;
    return strndup(text, n);
}

/* Where the answer begins in a document that asks for one, else 0. */
static size_t answer_start(const char *text) {
    const char *line = strrchr(text, '\n');
    if (!line)
        return 0;
    const char *p = ++line;
    while (isalpha((unsigned char)*p))
        p++;
    return p > line && *p == ':' && p[1] ? (size_t)(p + 1 - text) : 0;
}

/* One document as the strings that the model sees and is to say. */
struct document {
    char *prompt, *whole; /* owned; prompt NULL: text alone */
    char *answer;         /* owned */
    bool chat;
};

static err_t document_parse(struct document *d, const json_t *j, bool chatml, struct why *why) {
    const char *text = json_string_value(j), *tab = text ? strchr(text, '\t') : NULL;
    const char *prompt = json_string_value(json_object_get(j, "prompt"));
    const char *answer = json_string_value(json_object_get(j, "answer"));
    int n = 0;
    if (prompt && answer) {
        d->prompt = strdup(prompt);
        n = asprintf(&d->whole, "%s%s", prompt, answer);
        d->answer = trimmed(answer, strlen(answer));
    } else if (!text) {
        return why_set(why, E_FORMAT,
                       "A document must be a string or {\"prompt\": ..., \"answer\": ...}.");
    } else if (tab) {
        if (!chatml)
            return why_set(why, E_UNSUPPORTED,
                           "Questions and answers apart by a tab need a tokenizer with a ChatML "
                           "template.");
        int q = (int)(tab - text);
        d->chat = true;
        n = asprintf(&d->prompt, "<|im_start|>user\n%.*s<|im_end|>\n<|im_start|>assistant\n", q,
                     text);
        if (n >= 0)
            n = asprintf(&d->whole, "%s%s<|im_end|>\n", d->prompt, tab + 1);
        d->answer = trimmed(tab + 1, strlen(tab + 1));
    } else {
        size_t at = answer_start(text);
        d->whole = strdup(text);
        if (at) {
            d->prompt = strndup(text, at);
            d->answer = trimmed(text + at, strlen(text + at));
        }
    }
    bool all = d->whole && n >= 0 && !d->prompt == !d->answer;
    return all ? 0 : why_set(why, E_NOMEM, "There is not enough memory for the questions.");
}

static void document_free(struct document *d) {
    free(d->prompt), free(d->whole), free(d->answer);
}

static err_t add_document(struct task_set *set, const struct tokenizer *t, const struct document *d,
                          int32_t context, int32_t eos_id, struct why *why) {
    unsigned flags = ENCODE_SPECIAL_TOKENS | (d->chat ? ENCODE_PARSE_SPECIAL : 0);
    int32_t *ids = NULL, n = 0;
    err_t e =
        tokenizer_encode(t, d->whole, strlen(d->whole), flags, MAX_TEXT, MAX_IDS, &ids, &n, why);
    if (e)
        return e;
    int32_t *more = realloc(ids, (size_t)(n + 1) * sizeof *ids);
    if (!more) {
        free(ids);
        return E_NOMEM;
    }
    ids = more;
    if (eos_id >= 0 && !d->chat) /* where a document ends is part of what a model must know */
        ids[n++] = eos_id;
    e = corpus_add(&set->text, ids, n < context ? n : context);
    free(ids);
    if (e || !d->prompt)
        return e;
    struct task *k = &set->task[set->n_tasks];
    int32_t *answer = NULL, n_answer = 0;
    e = tokenizer_encode(t, d->prompt, strlen(d->prompt), flags, MAX_TEXT, MAX_IDS, &k->prompt,
                         &k->n_prompt, why);
    e = e ? e
          : tokenizer_encode(t, d->answer, strlen(d->answer), 0, MAX_TEXT, MAX_IDS, &answer,
                             &n_answer, why);
    free(answer);
    k->max_new = 2 * n_answer + 8; /* an answer longer than that is wrong anyway */
    bool fits = k->n_prompt + k->max_new <= context;
    set->n_too_long += !e && !fits;
    if (!e && fits && !(k->answer = strdup(d->answer)))
        e = E_NOMEM;
    if (k->answer)
        set->n_tasks++;
    else
        free(k->prompt), *k = (struct task){0};
    return e;
}

err_t task_set_read(struct task_set *set, const struct tokenizer *t, const char *path,
                    int32_t context, int32_t eos_id, int32_t limit, struct why *why) {
    *set = (struct task_set){0};
    char *text;
    size_t n_text;
    err_t e = corpus_read_file(path, &text, &n_text, why);
    if (e)
        return e;
    json_error_t error;
    json_t *list = json_loadb(text, n_text, 0, &error);
    free(text);
    if (!json_is_array(list))
        e = why_set(why, E_FORMAT, "%s is not a JSON array of documents%s%s.", path,
                    list ? "" : ": ", list ? "" : error.text);
    size_t n = json_array_size(list);
    if (limit > 0 && n > (size_t)limit)
        n = (size_t)limit;
    if (!e && !n)
        e = why_set(why, E_INVAL, "%s holds no documents.", path);
    if (!e && !(set->task = calloc(n + 1, sizeof *set->task)))
        e = E_NOMEM;
    const char *template = tokenizer_facts(t)->chat_template;
    bool chatml = template && strstr(template, "<|im_start|>") && strstr(template, "<|im_end|>");
    for (size_t i = 0; !e && i < n; i++) {
        struct document d = {0};
        e = document_parse(&d, json_array_get(list, i), chatml, why);
        e = e ? e : add_document(set, t, &d, context, eos_id, why);
        document_free(&d);
        if (e)
            why_prefix(why, e, "%s, document %zu", path, i);
    }
    json_decref(list);
    return e;
}

void task_set_free(struct task_set *set) {
    for (int32_t i = 0; i < set->n_tasks; i++)
        free(set->task[i].prompt), free(set->task[i].answer);
    free(set->task);
    corpus_free(&set->text);
    *set = (struct task_set){0};
}

/* ---- judging --------------------------------------------------------------------------------- */

static int32_t longest(const struct corpus *c) {
    int32_t n = 1;
    for (int32_t i = 0; i < c->n_seqs; i++)
        n = corpus_length(c, i) > n ? corpus_length(c, i) : n;
    return n;
}

err_t evaluate_text(const struct llama *m, const struct llama *teacher, const struct corpus *text,
                    struct train_loss *sum, struct progress *p, struct why *why) {
    int32_t length = longest(text), max_rows = length > BATCH_ROWS ? length : BATCH_ROWS, next = 0;
    int32_t vocab = m->config.shape.vocab;
    struct train *t = m->t;
    size_t rows = (size_t)max_rows, bytes = rows * (size_t)vocab * sizeof(float);
    float *ours = NULL, *theirs = NULL;
    int32_t *id = malloc((3 * rows + 2) * sizeof *id), *target = id + rows, *start = target + rows,
            *follow = NULL;
    struct llama_tape *tape = NULL;
    err_t e = id ? t->ops->take(t, bytes, (void **)&ours) : E_NOMEM;
    e = e || !teacher ? e : t->ops->take(t, bytes, (void **)&theirs);
    e = e ? e : t->ops->take(t, rows * sizeof *follow, (void **)&follow);
    e = e ? e : llama_tape_open(&tape, m, max_rows, false, why);
    struct llama_batch b;
    while (!e && corpus_batch(text, &next, false, max_rows, id, start, &b)) {
        for (int32_t s = 0; s < b.n_seqs; s++)
            for (int32_t r = start[s]; r < start[s + 1]; r++)
                target[r] = r + 1 < start[s + 1] ? id[r + 1] : -1;
        t->ops->put(t, follow, target, (size_t)b.n_rows * sizeof *target);
        llama_forward(m, &b, tape, ours);
        if (teacher)
            llama_forward(teacher, &b, tape, theirs);
        t->ops->distil(t, b.n_rows, vocab, ours, teacher ? theirs : ours, follow, 1, 0, 1, NULL,
                       sum);
        if (p)
            progress_show(p, (uint64_t)next, (uint64_t)text->n_seqs);
    }
    e = e ? e : t->ops->settle(t, why);
    llama_tape_close(tape);
    t->ops->give(t, ours), t->ops->give(t, theirs), t->ops->give(t, follow);
    free(id);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory for the evaluation.") : e;
}

static bool answers(const struct tokenizer *t, const struct task *k, const int32_t *ids, int32_t n,
                    const struct sample_options *o) {
    bool ended = false;
    for (int32_t i = 0; i < o->n_stop && n > k->n_prompt; i++)
        ended = ended || ids[n - 1] == o->stop[i];
    char *text = NULL, *said = NULL;
    size_t n_text = 0;
    bool right = false;
    if (ended &&
        tokenizer_decode(t, ids + k->n_prompt, n - k->n_prompt, true, &text, &n_text) == 0 &&
        (said = trimmed(text, n_text)))
        right = strcmp(said, k->answer) == 0;
    free(text), free(said);
    return right;
}

static void show(void *arg, int32_t done, int32_t total) {
    progress_show(arg, (uint64_t)done, (uint64_t)total);
}

err_t evaluate_tasks(const struct llama *m, const struct tokenizer *t, const struct task_set *set,
                     int32_t *right, struct progress *p, struct why *why) {
    struct corpus prompts = {0};
    struct lesson said = {0};
    int32_t stop[9], *length = calloc((size_t)set->n_tasks + 1, sizeof *length);
    struct sample_options o = {.stop = stop, .progress = p ? show : NULL, .arg = p};
    for (int32_t i = 0; i < m->config.n_eos; i++)
        stop[o.n_stop++] = m->config.eos_id[i];
    int32_t turn_end = tokenizer_special_id(t, "<|im_end|>");
    if (turn_end >= 0)
        stop[o.n_stop++] = turn_end;
    err_t e = length ? 0 : E_NOMEM;
    for (int32_t i = 0; !e && i < set->n_tasks; i++) {
        length[i] = set->task[i].n_prompt + set->task[i].max_new;
        e = corpus_add(&prompts, set->task[i].prompt, set->task[i].n_prompt);
    }
    *right = 0;
    if (!e && set->n_tasks)
        e = sample_continue(m, &prompts, length, &o, &said, why);
    for (int32_t i = 0; !e && i < said.text.n_seqs; i++)
        *right += answers(t, &set->task[i], said.text.id + said.text.start[i],
                          corpus_length(&said.text, i), &o);
    corpus_free(&prompts), lesson_free(&said);
    free(length);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory for the evaluation.") : e;
}
