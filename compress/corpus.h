/* Token sequences laid end to end: calibration text, evaluation text, what a model sampled. Plain
 * memory, one owner. */
#ifndef COMPRESS_CORPUS_H
#define COMPRESS_CORPUS_H

#include "compress/llama.h"
#include "tokenizer/tokenizer.h"

struct corpus {
    int32_t n_seqs, cap_seqs;
    size_t n_ids, cap_ids;
    int32_t *id;   /* [n_ids] owned */
    size_t *start; /* [n_seqs + 1] owned; start[n_seqs] = n_ids */
};

/* Appends a copy of ids [n]; E_NOMEM. A zeroed corpus is empty. */
err_t corpus_add(struct corpus *c, const int32_t *ids, int32_t n);
void corpus_free(struct corpus *c);
static inline int32_t corpus_length(const struct corpus *c, int32_t i) {
    return (int32_t)(c->start[i + 1] - c->start[i]);
}
/* Adds a text as sequences of at most max_length ids: documents are separated by lines "<|doc|>",
 * each starts with the tokenizer's BOS (if it adds one) and long ones go on in further sequences.
 */
err_t corpus_add_text(struct corpus *c, const struct tokenizer *t, const char *text, size_t n,
                      int32_t max_length, struct why *why);
/* Cuts every sequence before its first id that a vocabulary of `vocab` does not have, and drops
 * those of which less than two ids are left: one alone predicts nothing. */
void corpus_limit(struct corpus *c, int32_t vocab);
/* The whole file as text, at most 1 GB; *text: malloc'ed. */
err_t corpus_read_file(const char *path, char **text, size_t *n, struct why *why);

/* A view of sequences from *next on, as many as fit max_rows, as one batch; ids longer than
 * max_length are cut. start, id: the caller's [max seqs + 1], [max_rows]. Advances *next; wraps
 * round at the end when `wrap`. Returns false when there is nothing left. */
bool corpus_batch(const struct corpus *c, int32_t *next, bool wrap, int32_t max_rows, int32_t *id,
                  int32_t *start, struct llama_batch *out);

/* Text with what a model made of it: its residual stream before the final norm, in the device's
 * type for weights, from which its lm_head gives its predictions again at a small part of the
 * model's cost. row_bytes 0: the text alone. The last id of a sequence has no row: nothing follows
 * it. */
struct lesson {
    struct corpus text;
    char *stream; /* [text.n_ids, row_bytes] owned */
    size_t row_bytes, cap_rows;
};
void lesson_free(struct lesson *l);
/* Appends a sequence, and n - 1 rows of its stream unless row_bytes is 0. E_NOMEM. */
err_t lesson_add(struct lesson *l, const int32_t *ids, int32_t n, const char *stream);
/* Runs the model over a text and keeps what it made of it. */
err_t lesson_read(struct lesson *l, const struct llama *m, const struct corpus *text,
                  int32_t max_rows, struct progress *p, struct why *why);
/* As corpus_batch, without each sequence's last id. stream: the caller's [max_rows, row_bytes];
 * target [max_rows]: the id that follows. */
bool lesson_batch(const struct lesson *l, int32_t *next, bool wrap, int32_t max_rows, int32_t *id,
                  int32_t *start, int32_t *target, char *stream, struct llama_batch *out);

/* Runs the model on each prompt and lets it go on: forced ids first, then the most likely
 * (temperature 0) or drawn ones, until a stop id (kept) or max_length[i] ids in all. Appends whole
 * sequences to *out in the prompts' order. The draws depend on seed and the sequence's number
 * alone. progress may be NULL: called with sequences done. */
struct sample_options {
    float temperature;
    uint64_t seed;
    const int32_t *stop; /* [n_stop] */
    int32_t n_stop;
    void (*progress)(void *arg, int32_t done, int32_t total);
    void *arg;
};
err_t sample_continue(const struct llama *m, const struct corpus *prompts,
                      const int32_t *max_length, const struct sample_options *o, struct lesson *out,
                      struct why *why);
/* n documents of the model's own, from its BOS, each at most max_length ids. */
err_t sample_documents(const struct llama *m, int32_t n, int32_t max_length,
                       const struct sample_options *o, struct lesson *out, struct why *why);

#endif
