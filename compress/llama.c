/* Making, loading and freeing the calibration model's weights. */
#include "compress/llama.h"

#include <stdlib.h>
#include <string.h>

#include "engine/rope.h"

static float *floats(size_t n) {
    return aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);
}

err_t llama_make(struct llama *m, const struct model_config *config, struct why *why) {
    const struct model_shape *s = &config->shape;
    *m = (struct llama){.config = *config, .n_matrices = s->n_layers * N_PARTS + 2};
    m->matrix = calloc((size_t)m->n_matrices, sizeof *m->matrix);
    size_t n_norm = (size_t)(2 * s->n_layers + 1) * (size_t)s->dim;
    m->norm = floats(n_norm);
    m->rope = floats(rope_floats(config->context, s->head_dim));
    if (!m->matrix || !m->norm || !m->rope)
        return why_set(why, E_NOMEM, "There is not enough memory for the calibration model.");
    for (size_t i = 0; i < n_norm; i++)
        m->norm[i] = 1;
    rope_fill(m->rope, &config->rope, config->context, s->head_dim);
    for (int32_t i = 0; i < m->n_matrices; i++) {
        struct llama_matrix *x = &m->matrix[i];
        bool part = i < llama_embed(m);
        x->n = part ? part_rows(s, (enum part)(i % N_PARTS)) : s->vocab;
        x->k = part ? part_cols(s, (enum part)(i % N_PARTS)) : s->dim;
        if (i == llama_head(m) && config->tied) {
            x->w = m->matrix[llama_embed(m)].w;
            continue;
        }
        size_t n = (size_t)x->n * (size_t)x->k;
        if (!(x->w = floats(n)))
            return why_set(why, E_NOMEM, "There is not enough memory for the calibration model.");
        memset(x->w, 0, n * sizeof(float));
    }
    return 0;
}

err_t llama_load(struct llama *m, const struct checkpoint *c, struct why *why) {
    err_t e = llama_make(m, &c->config, why);
    const struct model_shape *s = &c->config.shape;
    char name[128];
    for (int32_t i = 0; !e && i < llama_embed(m); i++) {
        part_name(name, sizeof name - 8, i / N_PARTS, (enum part)(i % N_PARTS));
        strcat(name, ".weight");
        const struct llama_matrix *x = &m->matrix[i];
        e = checkpoint_read_f32(c, name, x->w, (size_t)x->n * (size_t)x->k, why);
    }
    size_t dim = (size_t)s->dim, n_vocab = (size_t)s->vocab * dim;
    if (!e)
        e = checkpoint_read_f32(c, "model.embed_tokens.weight", m->matrix[llama_embed(m)].w,
                                n_vocab, why);
    if (!e && !c->config.tied)
        e = checkpoint_read_f32(c, "lm_head.weight", m->matrix[llama_head(m)].w, n_vocab, why);
    for (int32_t i = 0; !e && i < 2 * s->n_layers + 1; i++) {
        norm_name(name, sizeof name, s, i);
        e = checkpoint_read_f32(c, name, m->norm + (size_t)i * dim, dim, why);
    }
    return e;
}

void llama_free(struct llama *m) {
    for (int32_t i = 0; m->matrix && i < m->n_matrices; i++)
        if (i != llama_head(m) || m->matrix[i].w != m->matrix[llama_embed(m)].w)
            free(m->matrix[i].w);
    free(m->matrix);
    free(m->norm);
    free(m->rope);
    *m = (struct llama){0};
}
