/* The cosine and sine of every position, for each RoPE kind: default, linear, dynamic NTK, llama3.
 * Single-precision arithmetic in the order of Hugging Face transformers, because checkpoints were
 * trained and published with those roundings. Pure functions. */
#ifndef ENGINE_ROPE_H
#define ENGINE_ROPE_H

#include "engine/checkpoint.h"

/* Floats in a table. */
static inline size_t rope_floats(int32_t context, int32_t head_dim) {
    return (size_t)context * (size_t)head_dim;
}

/* table: [context, head_dim/2, 2], written: cos, sin of position x frequency. Dynamic NTK: the
 * frequencies of the row at p are those of a text of max(p + 1, original_context) tokens, so a row
 * does not depend on what follows it or on how the prompt was cut
 * (docs/decisions/0001-dynamic-rope.md). */
void rope_fill(float *table, const struct rope_config *c, int32_t context, int32_t head_dim);

bool rope_equal(const struct rope_config *a, const struct rope_config *b);

#endif
