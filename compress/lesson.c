/* Text together with what a model made of it. */
#include <stdlib.h>
#include <string.h>

#include "compress/corpus.h"

void lesson_free(struct lesson *l) {
    corpus_free(&l->text);
    free(l->stream);
    *l = (struct lesson){0};
}

err_t lesson_add(struct lesson *l, const int32_t *ids, int32_t n, const char *stream) {
    size_t at = l->text.n_ids, rows = at + (size_t)n;
    if (l->row_bytes && rows > l->cap_rows) {
        size_t cap = 2 * l->cap_rows > rows ? 2 * l->cap_rows : rows + 1024;
        char *more = realloc(l->stream, cap * l->row_bytes);
        if (!more)
            return E_NOMEM;
        l->stream = more, l->cap_rows = cap;
    }
    err_t e = corpus_add(&l->text, ids, n);
    if (!e && l->row_bytes && n > 1)
        memcpy(l->stream + at * l->row_bytes, stream, (size_t)(n - 1) * l->row_bytes);
    return e;
}

/* The stream of the last pass, as it is kept, to the host. */
static void keep_rows(const struct llama *m, const struct llama_tape *tape, int32_t rows,
                      void *room, char *out) {
    struct train_weights w = {room, rows, m->config.shape.dim};
    m->t->ops->store(m->t, llama_stream(tape), &w);
    m->t->ops->get(m->t, out, room, (size_t)rows * (size_t)w.k * m->t->ops->weight_bytes);
}

err_t lesson_read(struct lesson *l, const struct llama *m, const struct corpus *text,
                  int32_t max_rows, struct progress *p, struct why *why) {
    size_t rows = (size_t)max_rows;
    int32_t next = 0, *id = malloc((2 * rows + 2) * sizeof *id), *start = id + rows;
    char *host = malloc(rows * l->row_bytes);
    void *room = NULL;
    struct llama_tape *tape = NULL;
    err_t e = id && host ? m->t->ops->take(m->t, rows * l->row_bytes, &room) : E_NOMEM;
    e = e ? e : llama_tape_open(&tape, m, max_rows, false, why);
    struct llama_batch b;
    while (!e && corpus_batch(text, &next, false, max_rows, id, start, &b)) {
        llama_forward(m, &b, tape, NULL);
        keep_rows(m, tape, b.n_rows, room, host);
        for (int32_t s = 0; !e && s < b.n_seqs; s++)
            e = lesson_add(l, id + start[s], start[s + 1] - start[s],
                           host + (size_t)start[s] * l->row_bytes);
        if (p)
            progress_show(p, (uint64_t)next, (uint64_t)text->n_seqs);
    }
    llama_tape_close(tape);
    m->t->ops->give(m->t, room);
    free(id), free(host);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory for the calibration text.")
                        : e;
}

bool lesson_batch(const struct lesson *l, int32_t *next, bool wrap, int32_t max_rows, int32_t *id,
                  int32_t *start, int32_t *target, char *stream, struct llama_batch *out) {
    const struct corpus *c = &l->text;
    *out = (struct llama_batch){.id = id, .start = start};
    start[0] = 0;
    for (int32_t taken = 0; taken < c->n_seqs; taken++) {
        if (*next >= c->n_seqs) {
            if (!wrap)
                break;
            *next = 0;
        }
        int32_t n = corpus_length(c, *next) - 1, at = out->n_rows;
        if (n > max_rows)
            n = max_rows; /* only ever the first of a batch */
        if (at + n > max_rows)
            break;
        size_t from = c->start[(*next)++];
        if (n < 1)
            continue;
        memcpy(id + at, c->id + from, (size_t)n * sizeof *id);
        memcpy(target + at, c->id + from + 1, (size_t)n * sizeof *target);
        memcpy(stream + (size_t)at * l->row_bytes, l->stream + from * l->row_bytes,
               (size_t)n * l->row_bytes);
        out->n_rows += n;
        start[++out->n_seqs] = out->n_rows;
    }
    return out->n_rows > 0;
}
