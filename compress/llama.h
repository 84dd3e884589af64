/* The calibration model: a Llama on a struct train's device, with gradients of every weight.
 *
 * It exists to fit and to judge tenants offline, where the serving kernels' fixed point and paged
 * cache would be in the way: a plain forward pass over whole sequences, back-propagation, and
 * (compress/sample.c) a cached decode. A model either holds dense weights or says right before each
 * product what they are (compress/student.c merges base and delta there), so a tenant in the making
 * needs no dense copy. Written once for all devices. Owner and caller: the tool's main thread.
 *
 * Shape letters as in kernels/train.h. */
#ifndef COMPRESS_LLAMA_H
#define COMPRESS_LLAMA_H

#include "compress/command.h"
#include "engine/checkpoint.h"
#include "kernels/kernels.h"
#include "kernels/train.h"

/* Matrices are numbered layer by layer in the order of enum part, then embedding and lm_head. */
struct llama {
    struct train *t; /* borrowed; outlives the model */
    struct model_config config;
    struct train_weights *matrix; /* [n_matrices] owned; w NULL where `weights` makes them */
    int32_t n_matrices;           /* L * N_PARTS + 2 */
    float *norm;                  /* device [2L + 1, D] owned: attn, ffn of each layer; final */
    float *rope;                  /* device [context, E/2, 2] owned */
    /* The weights of a matrix, valid until the next call; NULL: matrix[i] are there. */
    struct train_weights (*weights)(void *arg, int32_t i_matrix);
    /* Those that gradients go back through, where that is not the same; else NULL. */
    struct train_weights (*back)(void *arg, int32_t i_matrix);
    void *arg;
};

static inline int32_t llama_part(int32_t layer, enum part p) {
    return layer * N_PARTS + (int32_t)p;
}
static inline int32_t llama_embed(const struct llama *m) {
    return m->n_matrices - 2;
}
static inline int32_t llama_head(const struct llama *m) {
    return m->n_matrices - 1;
}
static inline struct train_weights llama_weights(const struct llama *m, int32_t i) {
    return m->weights ? m->weights(m->arg, i) : m->matrix[i];
}
/* Name of a matrix's tensor in a checkpoint; lm_head's is the embedding's when tied. */
void llama_tensor(char *out, size_t n, const struct model_config *c, int32_t i_matrix);

/* Where weights come from. Rows [first, first + n) of a matrix [.., k], and all norms [2L + 1, D],
 * in FP32; rows is called from several threads at once, unless one_by_one. */
struct llama_source {
    bool one_by_one;
    err_t (*rows)(void *arg, int32_t i_matrix, int32_t first, int32_t n, float *out,
                  struct why *why);
    /* How a matrix is stored (NULL: all in FP32), and rows of one in F16 or BF16 as they are
     * stored, to be rounded to FP16 if `served`. */
    enum train_number (*type)(void *arg, int32_t i_matrix);
    err_t (*stored)(void *arg, int32_t i_matrix, int32_t first, int32_t n, uint16_t *out,
                    struct why *why);
    bool served;
    err_t (*norms)(void *arg, float *out, struct why *why);
    void *arg;
};
/* Of a checkpoint, in its stored precision; served: rounded to FP16, as the server has them. */
struct llama_files {
    const struct checkpoint *files;
    bool served;
};
struct llama_source llama_source_files(struct llama_files *f);

/* The way of a source's rows to a device: a block is read by all cores and goes there as it is
 * stored. */
enum { LLAMA_BLOCK = 1 << 24 }; /* numbers */
struct llama_reader {
    struct train *t;
    struct llama_source from;
    char *host;  /* a block; owned */
    void *stage; /* the same, device; owned */
};
err_t llama_reader_open(struct llama_reader *r, struct train *t, struct llama_source from,
                        struct why *why); /* close also after an error */
void llama_reader_close(struct llama_reader *r);
/* x [n, k] device = rows [first, first + n) of a matrix. */
err_t llama_read(struct llama_reader *r, int32_t i_matrix, int32_t first, int32_t n, int32_t k,
                 float *x, struct why *why);

/* The shapes of the config, norms 1, rope filled, and zeroed weights unless `shell`. E_NOMEM. Free
 * with llama_free, also on error. */
err_t llama_make(struct llama *m, struct train *t, const struct model_config *config, bool shell,
                 struct why *why);
/* Made and filled, a block of rows at a time: the host never holds a matrix. p: NULL for none. */
err_t llama_load(struct llama *m, struct train *t, const struct model_config *config,
                 struct llama_source from, struct progress *p, struct why *why);
/* Gives all weights back but those of matrix `keep` (-1: none is kept). */
void llama_release(struct llama *m, int32_t keep);
void llama_free(struct llama *m);
/* Bytes of its weights on a device. */
double llama_bytes(const struct model_config *c, size_t weight_bytes);

/* Sequences laid end to end, on the host; each starts at position 0 and is no longer than the
 * context. */
struct llama_batch {
    int32_t n_rows, n_seqs;
    const int32_t *id;    /* [n_rows] below the vocabulary */
    const int32_t *start; /* [n_seqs + 1] first row of each; the last entry is n_rows */
};

/* What a forward pass leaves for the backward pass. One per use, reused from batch to batch. */
struct llama_tape;
/* max_rows of a batch. back: gradients will be asked for; without, layers share their memory. */
err_t llama_tape_open(struct llama_tape **out, const struct llama *m, int32_t max_rows, bool back,
                      struct why *why);
void llama_tape_close(struct llama_tape *t);
/* Bytes it takes on a device. */
double llama_tape_bytes(const struct model_config *c, int32_t max_rows, bool back);
/* The last forward pass: its residual stream before the final norm, device [M, D]; and the input
 * that a matrix was multiplied with, device [M, k] (of a layer's matrix: back alone). */
const float *llama_stream(const struct llama_tape *t);
const float *llama_input(const struct llama_tape *t, const struct llama *m, int32_t i_matrix);
/* In a sink: the gradient of what the matrix gave, device [M, n], from which its own was made, grad
 * = dy' input; NULL: of the embedding. */
const float *llama_output_grad(const struct llama_tape *t, const struct llama *m, int32_t i_matrix);

/* logits: device [M, V], V = vocabulary of m; NULL: up to llama_stream alone. */
void llama_forward(const struct llama *m, const struct llama_batch *b, struct llama_tape *t,
                   float *logits);

/* The same piece by piece, for work on one layer at a time. h: device [M, D], the rows that go into
 * the first layer. */
void llama_rows_in(const struct llama *m, const struct llama_batch *b, struct llama_tape *t,
                   float *h);
/* One layer: in [M, D] to out [M, D], which may be the same, or NULL where its inputs (llama_input,
 * also of a tape that is not for gradients) are all that is wanted. */
void llama_layer(const struct llama *m, const struct llama_batch *b, struct llama_tape *t,
                 int32_t layer, const float *in, float *out);

/* Receives the gradient of one matrix, device [n, k], valid during the call. It may change that
 * matrix's weights: they are not read again in this pass. Order: lm_head, last layer .. first,
 * embedding. When tied, the embedding gets the sum and lm_head no call. wants: NULL for all. */
struct llama_sink {
    void (*matrix)(void *arg, int32_t i_matrix, float *grad);
    bool (*wants)(void *arg, int32_t i_matrix);
    void *arg;
};
/* dlogits: device [M, V], gradient of the loss; dfinal: device [M, D], what else it is of lm_head's
 * input, or NULL. dnorm: device [2L + 1, D], written. The batch, tape and weights must be
 * those of the last llama_forward. */
void llama_backward(const struct llama *m, struct llama_tape *t, const float *dlogits,
                    const float *dfinal, float *dnorm, struct llama_sink sink);

#endif
