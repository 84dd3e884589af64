/* Frequencies first (one per pair of dimensions), then the table. */
#include "engine/rope.h"

#include <math.h>

static const float TWO_PI = 6.2831853071795864769f;

/* 1 / theta^(2i/E), in floats as torch computes it. */
static float frequency(float theta, int32_t i, int32_t head_dim) {
    return 1.0f / powf(theta, (float)(2 * i) / (float)head_dim);
}

/* Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended. */
static float llama3_frequency(const struct rope_config *c, float f) {
    float original = (float)c->original_context, wave = TWO_PI / f;
    if (wave > original / c->low_freq_factor)
        return f / c->factor;
    if (wave < original / c->high_freq_factor)
        return f;
    float smooth =
        (original / wave - c->low_freq_factor) / (c->high_freq_factor - c->low_freq_factor);
    return (1.0f - smooth) * f / c->factor + smooth * f;
}

/* Dynamic NTK: theta grows with the length of the text. Double until theta is stored, as Python
 * has it. */
static float dynamic_theta(const struct rope_config *c, int32_t length, int32_t head_dim) {
    double stretch = (double)c->factor * length / c->original_context - ((double)c->factor - 1.0);
    return (float)((double)c->theta * pow(stretch, (double)head_dim / (head_dim - 2)));
}

static float scaled_frequency(const struct rope_config *c, int32_t i, int32_t head_dim) {
    float f = frequency(c->theta, i, head_dim);
    if (c->kind == ROPE_LINEAR)
        return f / c->factor;
    return c->kind == ROPE_LLAMA3 ? llama3_frequency(c, f) : f;
}

void rope_fill(float *table, const struct rope_config *c, int32_t context, int32_t head_dim) {
    enum { BLOCK = 64 }; /* positions at a time: a block of the table stays in the cache */
    int32_t half = head_dim / 2;
    for (int32_t first = 0; first < context; first += BLOCK) {
        int32_t end = first + BLOCK < context ? first + BLOCK : context;
        for (int32_t i = 0; i < half; i++) {
            float f = scaled_frequency(c, i, head_dim);
            for (int32_t p = first; p < end; p++) {
                if (c->kind == ROPE_DYNAMIC && p >= c->original_context)
                    f = frequency(dynamic_theta(c, p + 1, head_dim), i, head_dim);
                float *at = table + ((size_t)p * (size_t)half + (size_t)i) * 2;
                at[0] = cosf((float)p * f);
                at[1] = sinf((float)p * f);
            }
        }
    }
}

bool rope_equal(const struct rope_config *a, const struct rope_config *b) {
    if (a->kind != b->kind || a->theta != b->theta)
        return false;
    switch (a->kind) {
    case ROPE_DEFAULT:
        return true;
    case ROPE_LINEAR:
        return a->factor == b->factor;
    case ROPE_DYNAMIC:
        return a->factor == b->factor && a->original_context == b->original_context;
    default:
        return a->factor == b->factor && a->original_context == b->original_context &&
               a->low_freq_factor == b->low_freq_factor &&
               a->high_freq_factor == b->high_freq_factor;
    }
}
