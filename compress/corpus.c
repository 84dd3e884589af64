/* Sequences of ids: growing, cutting into batches, reading text. */
#include "compress/corpus.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char separator[] = "<|doc|>\n";
enum { MAX_FILE = 1 << 30 };

err_t corpus_add(struct corpus *c, const int32_t *ids, int32_t n) {
    if (c->n_seqs + 2 > c->cap_seqs) {
        int32_t cap = c->cap_seqs ? 2 * c->cap_seqs : 64;
        size_t *start = realloc(c->start, (size_t)cap * sizeof *start);
        if (!start)
            return E_NOMEM;
        c->start = start, c->cap_seqs = cap;
        c->start[0] = 0;
    }
    if (c->n_ids + (size_t)n > c->cap_ids) {
        size_t cap = 2 * c->cap_ids + (size_t)n + 1024;
        int32_t *id = realloc(c->id, cap * sizeof *id);
        if (!id)
            return E_NOMEM;
        c->id = id, c->cap_ids = cap;
    }
    memcpy(c->id + c->n_ids, ids, (size_t)n * sizeof *ids);
    c->n_ids += (size_t)n;
    c->start[++c->n_seqs] = c->n_ids;
    return 0;
}

void corpus_free(struct corpus *c) {
    free(c->id);
    free(c->start);
    *c = (struct corpus){0};
}

err_t corpus_add_text(struct corpus *c, const struct tokenizer *t, const char *text, size_t n,
                      int32_t max_length, struct why *why) {
    const char *end = text + n;
    err_t e = 0;
    while (!e && text < end) {
        const char *cut = memmem(text, (size_t)(end - text), separator, sizeof separator - 1);
        const char *stop = cut ? cut : end;
        const char *next = cut ? cut + sizeof separator - 1 : end;
        while (stop > text && (stop[-1] == '\n' || stop[-1] == ' '))
            stop--;
        int32_t *ids = NULL, n_ids = 0;
        if (stop > text)
            e = tokenizer_encode(t, text, (size_t)(stop - text), ENCODE_SPECIAL_TOKENS, MAX_FILE,
                                 INT32_MAX, &ids, &n_ids, why);
        for (int32_t at = 0; !e && at < n_ids; at += max_length)
            if (n_ids - at > 1) /* one id alone predicts nothing */
                e = corpus_add(c, ids + at, n_ids - at < max_length ? n_ids - at : max_length);
        free(ids);
        text = next;
    }
    return e;
}

void corpus_limit(struct corpus *c, int32_t vocab) {
    int32_t kept = 0;
    size_t at = 0, next = 0;
    for (int32_t i = 0; i < c->n_seqs; i++) {
        size_t from = next, n = 0;
        next = c->start[i + 1]; /* read before it is written: sequences close up */
        while (from + n < next && c->id[from + n] < vocab)
            n++;
        if (n < 2)
            continue;
        memmove(c->id + at, c->id + from, n * sizeof *c->id);
        at += n;
        c->start[++kept] = at;
    }
    c->n_seqs = kept, c->n_ids = at;
}

err_t corpus_read_file(const char *path, char **text, size_t *n, struct why *why) {
    *text = NULL, *n = 0;
    FILE *f = fopen(path, "rb");
    if (!f)
        return why_set(why, E_IO, "%s cannot be read: %s.", path, strerror(errno));
    err_t e = 0;
    size_t cap = 0;
    for (;;) {
        if (*n == cap) {
            cap = cap ? 2 * cap : 1 << 16;
            char *more = cap > MAX_FILE ? NULL : realloc(*text, cap + 1);
            if (!more) {
                e = why_set(why, E_TOO_LARGE, "%s is too large to be read as text.", path);
                break;
            }
            *text = more;
        }
        size_t got = fread(*text + *n, 1, cap - *n, f);
        *n += got;
        if (!got)
            break;
    }
    if (!e && ferror(f))
        e = why_set(why, E_IO, "%s cannot be read: %s.", path, strerror(errno));
    fclose(f);
    if (e) {
        free(*text);
        *text = NULL, *n = 0;
        return e;
    }
    (*text)[*n] = 0;
    return 0;
}

bool corpus_batch(const struct corpus *c, int32_t *next, bool wrap, int32_t max_rows, int32_t *id,
                  int32_t *start, struct llama_batch *out) {
    *out = (struct llama_batch){.id = id, .start = start};
    start[0] = 0;
    for (int32_t taken = 0; taken < c->n_seqs; taken++) {
        if (*next >= c->n_seqs) {
            if (!wrap)
                break;
            *next = 0;
        }
        int32_t n = corpus_length(c, *next);
        if (n > max_rows)
            n = max_rows; /* only ever the first of a batch */
        if (out->n_rows + n > max_rows)
            break;
        memcpy(id + out->n_rows, c->id + c->start[*next], (size_t)n * sizeof *id);
        out->n_rows += n;
        start[++out->n_seqs] = out->n_rows;
        ++*next;
    }
    return out->n_rows > 0;
}
