/* The CPU backend's state, shared by its own files. Owned by the engine thread; other threads touch
 * `placed` and the base's matrices before the first step alone. Activations are FP32, rows ld_*
 * floats apart; nothing is allocated after open but the KV pages. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include <stdatomic.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/sample.h"
#include "kernels/kernels.h"

/* One tenant's share of a product: rows [first, first + n) of the step use w and delta. */
struct share {
    int32_t first, n;
    int32_t n_out;             /* rows of w (a vocabulary may differ from the base's) */
    const uint16_t *w;         /* [n_out, k] fp16 */
    const struct delta *delta; /* planes and low rank to add, or NULL */
    float *u;                  /* [n, rank] A x, when the delta has a low rank */
};

/* out[t][out0 + r] (+)= W x of the share that row t belongs to. */
struct product_part {
    int32_t n_out, out0, unit; /* unit: output rows of one work item, a multiple of 16 */
    struct share *share;       /* [n_shares] in row order */
};
struct product {
    int32_t n_parts, n_shares, n_rows, k;
    size_t ldx, ldo;
    const float *x; /* [n_rows, k] */
    float *out;     /* [n_rows, all parts] */
    bool add;
    struct product_part part[MAX_PARTS];
};

/* Rows of one sequence that attend together. */
struct query_block {
    int32_t first, n, position; /* rows of the step; position of the first */
    const int32_t *pages;
};

struct cpu {
    struct kernels base; /* first: a struct kernels * is this */
    const struct isa *isa;
    struct pool *pool;
    struct model_shape shape;
    uint16_t **base_matrix; /* [base_matrices] as kernels.h orders them; owned, as what they name */
    int32_t max_rows;
    char description[128];

    void *block; /* all that follows is carved from it; owned */
    size_t block_bytes;
    float *h, *x, *qkv, *ctx, *gate_up, *act, *logits;
    size_t ld_h, ld_qkv, ld_ctx, ld_gate_up, ld_act, ld_logits;
    int32_t logit_rows;              /* rows of logits computed at a time */
    struct scratch *scratch;         /* [threads] */
    struct share *share;             /* [MAX_PARTS * max_rows] */
    struct query_block *query_block; /* [max_rows] */
    int32_t n_query_blocks;
    int32_t *row_group, *row_position; /* [max_rows] */
    const int32_t **row_pages;         /* [max_rows] */
    struct sample_scratch *sample;     /* [threads] */

    float *kv; /* [L, n_pages, kv heads, page of one head] owned */
    size_t kv_bytes;
    int32_t n_kv_pages;
    _Atomic size_t placed;

    const struct step *step; /* between begin and end */
};

static inline struct cpu *cpu_of(struct kernels *k) {
    return (struct cpu *)k;
}

/* kernels_cpu_open with a given instruction set (tests compare them); NULL: the best that runs. */
err_t cpu_open_isa(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                   int32_t threads, const struct isa *isa, struct why *why);

/* Cuts the parts of `p` into units and runs them all. u of the shares points into lowrank
 * [n_rows * the widest rank sum]. */
void product_run(struct cpu *c, struct product *p, float *lowrank);

static inline const uint16_t *base_linear(const struct cpu *c, int32_t layer, enum linear which) {
    return c->base_matrix[layer * N_LINEARS + (int32_t)which];
}
static inline const uint16_t *base_vocab(const struct cpu *c, bool head) {
    return c->base_matrix[base_embed(&c->shape) + (head && !c->shape.tied)];
}

/* bind_tenant: checks what the products' scratch can hold. */
err_t cpu_bind_tenant(struct kernels *k, struct tenant_weights *t, struct why *why);
err_t cpu_begin(struct kernels *k, const struct step *step);
err_t cpu_end(struct kernels *k);
void cpu_embed(struct kernels *k);
void cpu_norm(struct kernels *k, int32_t layer, enum norm which);
void cpu_linear(struct kernels *k, int32_t layer, enum linear which);
void cpu_rope_append(struct kernels *k, int32_t layer);
void cpu_attention(struct kernels *k, int32_t layer);
void cpu_swiglu(struct kernels *k);
void cpu_head(struct kernels *k);

/* Start of the pages of one layer and kv head; pages are kv_page_stride floats apart. */
static inline float *kv_head(const struct cpu *c, int32_t layer, int32_t kv) {
    size_t head = kv_head_floats(c->shape.head_dim);
    return c->kv +
           ((size_t)layer * (size_t)c->n_kv_pages * (size_t)c->shape.n_kv_heads + (size_t)kv) *
               head;
}
static inline size_t kv_page_stride(const struct cpu *c) {
    return (size_t)c->shape.n_kv_heads * kv_head_floats(c->shape.head_dim);
}

#endif
