/* A PEFT LoRA adapter beside its base: which tensors it has for which module, and the weights that
 * base and adapter make together. One thread; the base is borrowed and must outlive the adapter. */
#ifndef COMPRESS_LORA_H
#define COMPRESS_LORA_H

#include "compress/lora_config.h"
#include "engine/checkpoint.h"

/* A weight of the base and what the adapter says about it; tensors NULL: nothing. */
struct lora_module {
    char name[128];            /* "model.layers.0.self_attn.q_proj", "model.embed_tokens",
                                  "lm_head", or a norm's */
    int32_t n, k;              /* of its weight; a norm is [1, D] */
    const struct st_tensor *a; /* [rank, K]; of an embedding [rank, N] */
    const struct st_tensor *b; /* [N, rank]; of an embedding [K, rank] */
    bool of_embedding;
    const struct st_tensor *magnitude; /* [N] DoRA's: lengths of the rows */
    const struct st_tensor *whole;  /* replaces the base's, perhaps with another number of rows */
    const struct st_tensor *tokens; /* [ids, K] replaces rows */
};

struct lora {
    char *dir; /* owned */
    struct lora_config config;
    const struct checkpoint *base;
    struct st_file file;
    int fd;
    struct lora_module *module; /* [n_modules] owned: L * N_PARTS linears, embedding, lm_head, then
                                   norms */
    int32_t n_modules, vocab;
    bool tied; /* whether the result is; an adapter with an lm_head of its own unties */
    struct lora_pair *last; /* of lora_read; owned */
};

/* Whether the folder is an adapter: adapter_config.json and no weights of a whole model. */
bool lora_is_adapter(const char *dir);

/* Reads config and header; every tensor must belong to a module of the base and have the shape
 * that it asks for. Close with lora_close, also after an error. */
err_t lora_open(struct lora *l, const char *dir, const struct checkpoint *base, struct why *why);
void lora_close(struct lora *l);

/* By the first n bytes of a name; NULL: the base has no such module. */
struct lora_module *lora_find(const struct lora *l, const char *name, size_t n);
static inline int32_t lora_embed(const struct lora *l) {
    return l->base->config.shape.n_layers * N_PARTS;
}
static inline int32_t lora_head(const struct lora *l) {
    return lora_embed(l) + 1;
}
/* Nothing but a pair. */
static inline bool lora_is_low_rank(const struct lora_module *m) {
    return m->a && !m->magnitude && !m->whole && !m->tokens;
}
static inline bool lora_is_absent(const struct lora_module *m) {
    return !m->a && !m->magnitude && !m->whole && !m->tokens;
}

/* The product b a is what is added to the weight [n, k]. */
struct lora_pair {
    int32_t rank, n, k;
    const struct lora_module *module; /* whose; borrowed */
    float *a, *b;                     /* [rank, k], [n, rank], the scaling in b; owned */
};
err_t lora_pair_read(const struct lora *l, const struct lora_module *m, struct lora_pair *out,
                     struct why *why);
void lora_pair_free(struct lora_pair *p);

/* The merged model as a checkpoint whose weights are computed as they are read, in FP32: only
 * checkpoint_read_f32 and checkpoint_read_f32_rows read it. Borrows l. Close with checkpoint_close,
 * also after an error. */
err_t lora_checkpoint(struct lora *l, struct checkpoint *out, struct why *why);

#endif
