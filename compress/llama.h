/* The calibration model: a Llama in FP32 on the CPU, with gradients of every weight.
 *
 * It exists to fit and to judge tenants offline, where the serving kernels' fixed point and paged
 * cache would be in the way: a plain forward pass over whole sequences, back-propagation, and a
 * cached decode for sampling. Weights lie dense in FP32; a tenant is its base plus its planes,
 * materialised. Owner and caller: the tool's main thread; the work is spread over the gemm's pool.
 *
 * Shape letters as in kernels/kernels.h; M rows (tokens of all sequences of a batch). */
#ifndef COMPRESS_LLAMA_H
#define COMPRESS_LLAMA_H

#include "compress/gemm.h"
#include "engine/checkpoint.h"
#include "kernels/kernels.h"

struct llama_matrix {
    float *w; /* [n, k] */
    int32_t n, k;
};

/* Matrices are numbered layer by layer in the order of enum part, then embedding and lm_head. */
struct llama {
    struct model_config config;
    struct llama_matrix *matrix; /* [n_matrices] owned */
    int32_t n_matrices;          /* L * N_PARTS + 2 */
    float *norm;                 /* [2L + 1, D] owned: attn, ffn of each layer; final */
    float *rope;                 /* [context, E/2, 2] owned */
};

static inline int32_t llama_part(int32_t layer, enum part p) {
    return layer * N_PARTS + (int32_t)p;
}
static inline int32_t llama_embed(const struct llama *m) {
    return m->n_matrices - 2;
}
/* When tied, this matrix's w is the embedding's. */
static inline int32_t llama_head(const struct llama *m) {
    return m->n_matrices - 1;
}

/* Zeroed weights of the config's shapes, norms 1, rope filled. Free with llama_free, also on error.
 */
err_t llama_make(struct llama *m, const struct model_config *config, struct why *why);
err_t llama_load(struct llama *m, const struct checkpoint *c, struct why *why);
void llama_free(struct llama *m);

/* Sequences laid end to end; each starts at position 0 and is no longer than the context. */
struct llama_batch {
    int32_t n_rows, n_seqs;
    const int32_t *id;    /* [n_rows] below the vocabulary */
    const int32_t *start; /* [n_seqs + 1] first row of each; the last entry is n_rows */
};

/* What a forward pass leaves for the backward pass. One per use, reused from batch to batch. */
struct llama_tape;
/* max_rows of a batch, max_length of a sequence in it. E_NOMEM. */
err_t llama_tape_open(struct llama_tape **out, const struct llama *m, const struct gemm *g,
                      int32_t max_rows, int32_t max_length);
void llama_tape_close(struct llama_tape *t);

/* logits [M, V], V = vocabulary of m. Ids, lengths and M are the caller's to keep. */
void llama_forward(const struct llama *m, const struct gemm *g, const struct llama_batch *b,
                   struct llama_tape *t, float *logits);

/* Receives the gradient of one matrix, [n, k], valid during the call. It may change that matrix's
 * weights: they are not read again in this pass. Order: lm_head, last layer .. first, embedding.
 * When tied, the embedding gets the sum and lm_head no call. */
struct llama_sink {
    void (*matrix)(void *arg, int32_t i_matrix, float *grad);
    void *arg;
};
/* dlogits [M, V]: gradient of the loss. dnorm [2L + 1, D]: written.
 * The batch, tape and weights must be those of the last llama_forward. */
void llama_backward(struct llama *m, const struct gemm *g, const struct llama_batch *b,
                    struct llama_tape *t, const float *dlogits, float *dnorm,
                    struct llama_sink sink);

#endif
