/* A small random model with tenants of every kind, and one step of it, for the kernel tests. Every
 * operator is checked against the same formula in double precision on the operator's own inputs, so
 * the tolerances are those of one operator. */
#ifndef TESTS_KERNELS_MODEL_H
#define TESTS_KERNELS_MODEL_H

#include "kernels/cpu/cpu.h"
#include "tests/check.h"

enum {
    M_TENANTS = 7, /* 0: the base; then one tenant of each kind, see model.c */
    M_MAX_PAGES = 64,
    M_ISAS = 4,
    M_MAX_ROWS = 96,
    M_MAX_BASE = 16,
};

struct model {
    struct model_shape shape;
    uint16_t *base[M_MAX_BASE]; /* matrices as kernels.h orders them */
    struct tenant_weights tenant[M_TENANTS];
    unsigned random;
};

/* Shape: dim, heads, kv heads, head dim, ffn, vocab, window. Memory is never freed: a test is a
 * process. */
void model_make(struct model *m, const int32_t shape[7]);
/* Gives a backend a copy of the base, and lets it check the tenants. */
void model_place(struct kernels *k, const struct model *m);
void model_open(struct kernels **k, const struct model *m, const struct isa *isa, int32_t threads);

/* A step of `n` sequences: rows[i] rows of tenant[i] (ascending) from position[i] on; a sequence's
 * pages are chosen by `slot`: slot[i] * 8 .. */
struct model_step {
    struct step step;
    int32_t token[M_MAX_ROWS];
    struct row_group group[M_TENANTS];
    struct row_seq seq[M_MAX_ROWS];
    struct logit_row logit[M_MAX_ROWS];
    struct sampled sampled[M_MAX_ROWS];
    int32_t pages[M_MAX_ROWS][8];
};
struct model_seq {
    int32_t tenant, slot, position, n;
    const int32_t *token; /* [position + n] the whole text */
};
/* Every row wants logits, greedy, with n_top alternatives. */
void model_step_fill(struct model_step *s, const struct model *m, const struct model_seq *seq,
                     int32_t n_seqs, int32_t n_top);
/* All operators of the step; results in s->sampled. */
void model_run(struct kernels *k, const struct model *m, struct model_step *s);

/* Weight [n, k] of a linear part as a tenant has it, in double. */
double model_weight(const struct model *m, int32_t tenant, int32_t layer, enum part part, int32_t n,
                    int32_t k);
/* The same for the embedding (head false) and the lm_head. */
double model_vocab_weight(const struct model *m, int32_t tenant, bool head, int32_t id, int32_t k);

/* The instruction sets that run here, plain C first. */
int32_t model_isas(const struct isa *out[M_ISAS]);

#endif
