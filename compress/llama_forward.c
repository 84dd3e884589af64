/* The forward and backward pass of the calibration model, layer by layer, and the tape's memory. */
#include <stdlib.h>
#include <string.h>

#include "compress/llama_rows.h"

/* Gives out pieces of one block; with base NULL it only counts. */
struct carve {
    float *base;
    size_t at;
};
static float *carve(struct carve *c, size_t n) {
    float *p = c->base ? c->base + c->at : NULL;
    c->at += (n + 15) / 16 * 16; /* every piece starts on a cache line */
    return p;
}

static void carve_tape(struct llama_tape *t, const struct llama *m, struct carve *c) {
    const struct model_shape *s = &m->config.shape;
    size_t rows = (size_t)t->max_rows, dim = rows * (size_t)s->dim, ffn = rows * (size_t)s->ffn_dim,
           nq = rows * (size_t)(s->n_heads * s->head_dim),
           nk = rows * (size_t)(s->n_kv_heads * s->head_dim), largest = 0;
    for (int32_t i = 0; i < m->n_matrices; i++) {
        size_t n = (size_t)m->matrix[i].n * (size_t)m->matrix[i].k;
        largest = n > largest ? n : largest;
    }
    for (int32_t l = 0; l < t->n_layers; l++) {
        struct llama_acts *a = &t->layer[l];
        a->h = carve(c, dim), a->x1 = carve(c, dim), a->rms1 = carve(c, rows);
        a->q = carve(c, nq), a->k = carve(c, nk), a->v = carve(c, nk), a->ctx = carve(c, nq);
        a->mid = carve(c, dim), a->x2 = carve(c, dim), a->rms2 = carve(c, rows);
        a->gate = carve(c, ffn), a->up = carve(c, ffn), a->act = carve(c, ffn);
    }
    t->last = carve(c, dim), t->xf = carve(c, dim), t->rmsf = carve(c, rows);
    t->dh = carve(c, dim), t->dx = carve(c, dim);
    t->dq = carve(c, nq), t->dk = carve(c, nk), t->dv = carve(c, nk), t->dctx = carve(c, nq);
    t->dgate = carve(c, ffn), t->dup = carve(c, ffn), t->dact = carve(c, ffn);
    t->dw = carve(c, largest);
    t->dembed = carve(c, (size_t)s->vocab * (size_t)s->dim);
    t->partial = carve(c, dim); /* one row per task of rows_norm_back, and it has fewer than rows */
    t->score = carve(c, 0);
}

err_t llama_tape_open(struct llama_tape **out, const struct llama *m, const struct gemm *g,
                      int32_t max_rows, int32_t max_length) {
    struct llama_tape *t = calloc(1, sizeof *t);
    if (!t)
        return E_NOMEM;
    t->max_rows = max_rows;
    t->n_layers = m->config.shape.n_layers;
    t->layer = calloc((size_t)t->n_layers, sizeof *t->layer);
    struct carve c = {0};
    if (t->layer)
        carve_tape(t, m, &c);
    size_t square = (size_t)max_length * (size_t)max_length,
           n_score = 2 * square * (size_t)pool_threads(g->pool);
    t->block = t->layer ? aligned_alloc(64, (c.at + n_score + 15) / 16 * 16 * sizeof(float)) : NULL;
    if (!t->block) {
        llama_tape_close(t);
        return E_NOMEM;
    }
    c = (struct carve){t->block, 0};
    carve_tape(t, m, &c);
    *out = t;
    return 0;
}

void llama_tape_close(struct llama_tape *t) {
    if (!t)
        return;
    free(t->block);
    free(t->layer);
    free(t);
}

/* y [M, n] = x [M, k] W' */
static void product(const struct gemm *g, int32_t rows, const float *x,
                    const struct llama_matrix *w, float *y, bool add) {
    gemm(g, rows, w->n, w->k, mat_of(x, (size_t)w->k), mat_transposed(w->w, (size_t)w->k), y,
         (size_t)w->n, add);
}

void llama_forward(const struct llama *m, const struct gemm *g, const struct llama_batch *b,
                   struct llama_tape *t, float *logits) {
    const struct model_shape *s = &m->config.shape;
    int32_t rows = b->n_rows;
    size_t dim = (size_t)s->dim, bytes = (size_t)rows * dim * sizeof(float);
    float *h = t->layer[0].h;
    for (int32_t r = 0; r < rows; r++)
        memcpy(h + (size_t)r * dim, m->matrix[llama_embed(m)].w + (size_t)b->id[r] * dim,
               dim * sizeof(float));
    for (int32_t l = 0; l < s->n_layers; l++) {
        struct llama_acts *a = &t->layer[l];
        const struct llama_matrix *w = &m->matrix[llama_part(l, 0)];
        const float *norm = m->norm + (size_t)(2 * l) * dim;
        rows_norm(g, rows, s->dim, s->norm_eps, a->h, norm, a->x1, a->rms1);
        product(g, rows, a->x1, &w[PART_Q], a->q, false);
        product(g, rows, a->x1, &w[PART_K], a->k, false);
        product(g, rows, a->x1, &w[PART_V], a->v, false);
        rows_rope(g, b, m->rope, s->n_heads, s->head_dim, false, a->q);
        rows_rope(g, b, m->rope, s->n_kv_heads, s->head_dim, false, a->k);
        llama_attention(m, g, b, t, a);
        memcpy(a->mid, a->h, bytes);
        product(g, rows, a->ctx, &w[PART_O], a->mid, true);
        rows_norm(g, rows, s->dim, s->norm_eps, a->mid, norm + dim, a->x2, a->rms2);
        product(g, rows, a->x2, &w[PART_GATE], a->gate, false);
        product(g, rows, a->x2, &w[PART_UP], a->up, false);
        rows_swiglu(g, (size_t)rows * (size_t)s->ffn_dim, a->gate, a->up, a->act);
        float *next = l + 1 < s->n_layers ? t->layer[l + 1].h : t->last;
        memcpy(next, a->mid, bytes);
        product(g, rows, a->act, &w[PART_DOWN], next, true);
    }
    rows_norm(g, rows, s->dim, s->norm_eps, t->last, m->norm + (size_t)(2 * s->n_layers) * dim,
              t->xf, t->rmsf);
    product(g, rows, t->xf, &m->matrix[llama_head(m)], logits, false);
}

struct pass {
    struct llama *m;
    const struct gemm *g;
    int32_t rows;
    struct llama_tape *t;
    struct llama_sink sink;
};

/* Through y = x W':  dx (+)= dy W, then dW = dy' x to the sink. */
static void product_back(const struct pass *p, int32_t i_matrix, const float *x, const float *dy,
                         float *dx, bool add) {
    const struct llama_matrix *w = &p->m->matrix[i_matrix];
    size_t n = (size_t)w->n, k = (size_t)w->k;
    gemm(p->g, p->rows, w->k, w->n, mat_of(dy, n), mat_of(w->w, k), dx, k, add);
    gemm(p->g, w->n, w->k, p->rows, mat_transposed(dy, n), mat_of(x, k), p->t->dw, k, false);
    p->sink.matrix(p->sink.arg, i_matrix, p->t->dw);
}

static void layer_back(const struct pass *p, const struct llama_batch *b, int32_t l, float *dnorm) {
    const struct llama *m = p->m;
    const struct model_shape *s = &m->config.shape;
    struct llama_tape *t = p->t;
    const struct llama_acts *a = &t->layer[l];
    size_t dim = (size_t)s->dim;
    const float *norm = m->norm + (size_t)(2 * l) * dim;
    float *dn = dnorm + (size_t)(2 * l) * dim;
    product_back(p, llama_part(l, PART_DOWN), a->act, t->dh, t->dact, false);
    rows_swiglu_back(p->g, (size_t)p->rows * (size_t)s->ffn_dim, a->gate, a->up, t->dact, t->dgate,
                     t->dup);
    product_back(p, llama_part(l, PART_UP), a->x2, t->dup, t->dx, false);
    product_back(p, llama_part(l, PART_GATE), a->x2, t->dgate, t->dx, true);
    rows_norm_back(p->g, p->rows, s->dim, a->mid, norm + dim, a->rms2, t->dx, t->dh, dn + dim,
                   t->partial);
    product_back(p, llama_part(l, PART_O), a->ctx, t->dh, t->dctx, false);
    llama_attention_back(m, p->g, b, t, a);
    rows_rope(p->g, b, m->rope, s->n_heads, s->head_dim, true, t->dq);
    rows_rope(p->g, b, m->rope, s->n_kv_heads, s->head_dim, true, t->dk);
    product_back(p, llama_part(l, PART_V), a->x1, t->dv, t->dx, false);
    product_back(p, llama_part(l, PART_K), a->x1, t->dk, t->dx, true);
    product_back(p, llama_part(l, PART_Q), a->x1, t->dq, t->dx, true);
    rows_norm_back(p->g, p->rows, s->dim, a->h, norm, a->rms1, t->dx, t->dh, dn, t->partial);
}

void llama_backward(struct llama *m, const struct gemm *g, const struct llama_batch *b,
                    struct llama_tape *t, const float *dlogits, float *dnorm,
                    struct llama_sink sink) {
    const struct model_shape *s = &m->config.shape;
    struct pass p = {m, g, b->n_rows, t, sink};
    size_t dim = (size_t)s->dim, vocab = (size_t)s->vocab, n_vocab = vocab * dim;
    const struct llama_matrix *head = &m->matrix[llama_head(m)];
    gemm(g, b->n_rows, s->dim, s->vocab, mat_of(dlogits, vocab), mat_of(head->w, dim), t->dx, dim,
         false);
    float *dhead = m->config.tied ? t->dembed : t->dw;
    gemm(g, s->vocab, s->dim, b->n_rows, mat_transposed(dlogits, vocab), mat_of(t->xf, dim), dhead,
         dim, false);
    if (!m->config.tied) {
        sink.matrix(sink.arg, llama_head(m), dhead);
        memset(t->dembed, 0, n_vocab * sizeof(float));
    }
    memset(t->dh, 0, (size_t)b->n_rows * dim * sizeof(float));
    rows_norm_back(g, b->n_rows, s->dim, t->last, m->norm + (size_t)(2 * s->n_layers) * dim,
                   t->rmsf, t->dx, t->dh, dnorm + (size_t)(2 * s->n_layers) * dim, t->partial);
    for (int32_t l = s->n_layers - 1; l >= 0; l--)
        layer_back(&p, b, l, dnorm);
    for (int32_t r = 0; r < b->n_rows; r++) {
        float *dst = t->dembed + (size_t)b->id[r] * dim;
        const float *src = t->dh + (size_t)r * dim;
        for (size_t i = 0; i < dim; i++)
            dst[i] += src[i];
    }
    sink.matrix(sink.arg, llama_embed(m), t->dembed);
}
