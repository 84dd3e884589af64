/* adapter_config.json of PEFT: what scales a pair, and whether a pair is all there is to it. */
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
    json_t *rank_pattern, *alpha_pattern; /* name -> number; owned; NULL: none */
};

/* Everything that would make the adapter more than scaled pairs is refused by its name. Free with
 * lora_config_free, also after an error. */
err_t lora_config_parse(struct lora_config *c, const char *text, size_t n, struct why *why);
void lora_config_free(struct lora_config *c);

/* The factor of B A for a part ("model.layers.0.self_attn.q_proj") whose tensors have `rank`. */
err_t lora_scale(const struct lora_config *c, const char *part, int32_t rank, float *out,
                 struct why *why);

#endif
