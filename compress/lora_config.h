/* adapter_config.json of PEFT: what scales a pair, and what there is beside pairs. */
#ifndef COMPRESS_LORA_CONFIG_H
#define COMPRESS_LORA_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

struct lora_config {
    int32_t rank;
    double alpha;
    bool rank_stabilised;                 /* rsLoRA: alpha / sqrt(r) */
    bool keeps_tying;                     /* ensure_weight_tying */
    bool dora;                            /* rows have magnitudes of their own */
    json_t *rank_pattern, *alpha_pattern; /* expression -> number; owned; NULL: none */
    json_t *tokens;                       /* trainable_token_indices; owned; NULL: none */
};

/* What would make the adapter another model than base + pairs, rows of their own magnitude, whole
 * matrices and rows of tokens is refused by its name. Free with lora_config_free, also after an
 * error. */
err_t lora_config_parse(struct lora_config *c, const char *text, size_t n, struct why *why);
void lora_config_free(struct lora_config *c);

/* Ids whose rows of a module ("embed_tokens", "lm_head") the adapter replaces, in its tensor's
 * order; NULL: none. Borrowed: a JSON array of whole numbers. */
const json_t *lora_token_ids(const struct lora_config *c, const char *module);

/* The factor of B A for a part ("model.layers.0.self_attn.q_proj") whose tensors have `rank`. */
err_t lora_scale(const struct lora_config *c, const char *part, int32_t rank, float *out,
                 struct why *why);

#endif
