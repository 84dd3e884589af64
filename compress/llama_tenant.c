#include "compress/llama_tenant.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/f16.h"

struct delta_job {
    const struct delta *d;
    int32_t n, k;
    float *w; /* [N, K], holds the base */
};

static void delta_task(void *arg, int32_t n, int32_t thread) {
    (void)thread;
    const struct delta_job *j = arg;
    const struct delta *d = j->d;
    float *w = j->w + (size_t)n * (size_t)j->k; /* [K] */
    for (int32_t p = 0; p < d->n_planes; p++) {
        const struct plane *q = &d->plane[p];
        for (int32_t k = 0; k < j->k; k++) {
            float scale = q->row[n] * (q->col ? q->col[k] : 1.0f);
            w[k] += q->bits[plane_word(n, k, j->k)] >> (k % 32) & 1 ? scale : -scale;
        }
    }
    for (int32_t r = 0; r < d->rank; r++) {
        float b = half_to_float(d->b[(size_t)n * (size_t)d->rank + (size_t)r]);
        const uint16_t *a = d->a + (size_t)r * (size_t)j->k;
        for (int32_t k = 0; k < j->k; k++)
            w[k] += b * half_to_float(a[k]);
    }
    for (int32_t k = 0; d->dense && k < j->k; k++)
        w[k] = half_to_float(d->dense[(size_t)n * (size_t)j->k + (size_t)k]);
}

/* w: the tenant's matrix; its first n_base rows become base + delta. */
static void set_matrix(const struct gemm *g, const struct llama_matrix *base, int32_t n,
                       const struct delta *d, struct llama_matrix *w) {
    int32_t common = n < base->n ? n : base->n;
    memcpy(w->w, base->w, (size_t)common * (size_t)base->k * sizeof(float));
    struct delta_job j = {d, common, base->k, w->w};
    pool_run(g->pool, delta_task, &j, common);
}

static void set_vocab(const struct gemm *g, const struct llama_matrix *base,
                      const struct vocab_matrix *v, struct llama_matrix *w) {
    size_t k = (size_t)w->k;
    if (v->dense)
        for (size_t i = 0; i < (size_t)w->n * k; i++)
            w->w[i] = half_to_float(v->dense[i]);
    else
        set_matrix(g, base, w->n, &v->delta, w);
    for (int32_t r = 0; r < v->n_rows; r++)
        for (size_t i = 0; i < k; i++)
            w->w[(size_t)v->row_id[r] * k + i] = half_to_float(v->row[(size_t)r * k + i]);
}

err_t llama_of_tenant(struct llama *m, const struct gemm *g, const struct llama *base,
                      const struct tenant_file *t, struct why *why) {
    err_t e = llama_make(m, &t->meta.config, why);
    if (e)
        return e;
    for (int32_t i = 0; i < llama_embed(m); i++)
        set_matrix(g, &base->matrix[i], m->matrix[i].n, &t->delta[i], &m->matrix[i]);
    int32_t embed = llama_embed(m), head = llama_head(m);
    set_vocab(g, &base->matrix[embed], &t->embed, &m->matrix[embed]);
    if (!m->config.tied)
        set_vocab(g, &base->matrix[head], &t->head, &m->matrix[head]);
    size_t n_norm = (size_t)(2 * m->config.shape.n_layers + 1) * (size_t)m->config.shape.dim;
    memcpy(m->norm, t->norm, n_norm * sizeof(float));
    return 0;
}
