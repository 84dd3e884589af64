/* The merged weights: FP16(base) + delta in FP32, rounded once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/diff.h"
#include "compress/export.h"
#include "compress/merge.h"
#include "kernels/f16.h"

enum { BLOCK_ELEMENTS = 1 << 24 };

bool export_matrix_at(const struct export_job *j, int32_t i, struct export_matrix *m) {
    const struct model_shape *s = &j->base->checkpoint.config.shape;
    const struct model_config *c = &j->t->meta.config;
    memset(m, 0, sizeof *m);
    if (i < s->n_layers * N_PARTS) {
        enum part p = (enum part)(i % N_PARTS);
        part_name(m->part, sizeof m->part, i / N_PARTS, p);
        snprintf(m->name, sizeof m->name, "%s.weight", m->part);
        snprintf(m->base_name, sizeof m->base_name, "%s", m->name);
        m->n = m->base_n = part_rows(s, p);
        m->k = part_cols(s, p);
        m->delta = &j->t->delta[i];
        return true;
    }
    i -= s->n_layers * N_PARTS;
    if (i > (c->tied ? 0 : 1))
        return false;
    snprintf(m->name, sizeof m->name, "%s", i ? "lm_head.weight" : "model.embed_tokens.weight");
    snprintf(m->base_name, sizeof m->base_name, "%s",
             i ? head_tensor(&j->base->checkpoint.config) : m->name);
    m->n = c->shape.vocab;
    m->base_n = s->vocab;
    m->k = s->dim;
    m->vocab = i ? &j->t->head : &j->t->embed;
    return true;
}

/* Rows [at, at + rows) merged, in w. */
static err_t merge_block(const struct export_job *j, const struct export_matrix *m, int32_t at,
                         int32_t rows, float *w, uint16_t *half, struct why *why) {
    int32_t common = m->base_n - at < rows ? m->base_n - at : rows;
    size_t n = (size_t)rows * (size_t)m->k;
    memset(w, 0, n * sizeof *w);
    err_t e = common <= 0 ? E_OK
                          : checkpoint_read_f32_rows(&j->base->checkpoint, m->base_name, w,
                                                     (uint64_t)at * (uint64_t)m->k,
                                                     (size_t)common * (size_t)m->k, why);
    if (e)
        return e;
    for (size_t i = 0; i < n; i++) /* the base that the server computes with is FP16 */
        w[i] = half_to_float(half_from_float(w[i]));
    if (m->delta)
        merge_rows(w, m->delta, at, rows, m->k);
    else
        merge_vocab_rows(w, m->vocab, at, rows, m->base_n, m->k);
    return diff_to_half(half, w, n, m->name, why);
}

err_t export_write_merged(const struct export_job *j, const struct export_matrix *m,
                          struct st_writer *w, struct why *why) {
    int32_t block = BLOCK_ELEMENTS / m->k + 1;
    if (block > m->n)
        block = m->n;
    size_t elements = (size_t)block * (size_t)m->k;
    float *x = malloc(elements * sizeof *x);
    uint16_t *half = malloc(elements * sizeof *half);
    err_t e = x && half ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory", m->name);
    for (int32_t at = 0; !e && at < m->n; at += block) {
        int32_t rows = m->n - at < block ? m->n - at : block;
        e = merge_block(j, m, at, rows, x, half, why);
        if (!e)
            e = st_writer_data(w, half, (size_t)rows * (size_t)m->k * sizeof *half, why);
    }
    free(x);
    free(half);
    return e;
}

static err_t write_norms(const struct export_job *j, struct st_writer *w, struct why *why) {
    const struct model_shape *s = &j->base->checkpoint.config.shape;
    uint16_t *half = malloc((size_t)s->dim * sizeof *half);
    err_t e = half ? E_OK : why_set(why, E_NOMEM, "not enough memory for the norms");
    for (int32_t i = 0; !e && i < 2 * s->n_layers + 1; i++) {
        e = diff_to_half(half, j->t->norm + (size_t)i * (size_t)s->dim, (size_t)s->dim, "norm",
                         why);
        if (!e)
            e = st_writer_data(w, half, (size_t)s->dim * sizeof *half, why);
    }
    free(half);
    return e;
}

static void declare(const struct export_job *j, struct st_writer *w) {
    const struct model_shape *s = &j->base->checkpoint.config.shape;
    struct export_matrix m;
    st_writer_meta(w, "format", "pt");
    for (int32_t i = 0; export_matrix_at(j, i, &m); i++)
        st_writer_tensor(w, m.name, ST_F16, 2, (int64_t[]){m.n, m.k});
    for (int32_t i = 0; i < 2 * s->n_layers + 1; i++) {
        char name[128];
        norm_name(name, sizeof name, s, i);
        st_writer_tensor(w, name, ST_F16, 1, (int64_t[]){s->dim});
    }
}

err_t export_weights(const struct export_job *j, struct why *why) {
    struct st_writer *w;
    struct progress progress;
    char path[4096];
    struct export_matrix m;
    snprintf(path, sizeof path, "%s/model.safetensors", j->dir);
    err_t e = st_writer_open(&w, path, why);
    if (e)
        return e;
    declare(j, w);
    e = st_writer_header(w, 8, why);
    progress_begin(&progress, "export");
    for (int32_t i = 0; !e && export_matrix_at(j, i, &m); i++) {
        e = export_write_merged(j, &m, w, why);
        progress_show(&progress, (uint64_t)i,
                      (uint64_t)j->base->checkpoint.config.shape.n_layers * N_PARTS + 2);
    }
    progress_end(&progress);
    if (!e)
        e = write_norms(j, w, why);
    if (!e)
        return st_writer_end(w, why);
    st_writer_abort(w);
    return e;
}
