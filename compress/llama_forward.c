/* The forward and backward pass of the calibration model, layer by layer, and the tape's memory. */
#include <stdlib.h>
#include <string.h>

#include "compress/llama.h"

/* Activations of one layer, all [M, .] on the device. */
struct llama_acts {
    float *h, *x1, *inv1;   /* residual in [D], normed [D], 1 / rms [1] */
    float *q, *k, *v, *ctx; /* rotated q [H*E], rotated k [K*E], v [K*E], context [H*E] */
    float *mid, *x2, *inv2; /* residual after attention [D], normed [D], 1 / rms [1] */
    float *gate, *up, *act; /* [F] */
};

struct llama_tape {
    struct train *t;
    int32_t max_rows, n_layers;
    bool back;
    struct llama_acts *layer;   /* [L] */
    float *last, *xf, *inv;     /* residual after the last layer [M, D], normed, 1 / rms */
    float *dh, *dx;             /* gradients [M, D] */
    float *dq, *dk, *dv, *dctx; /* gradients like q, k, v, ctx */
    float *dgate, *dup, *dact;  /* gradients [M, F] */
    float *dw, *dembed;         /* gradient of the largest matrix; of the embedding, when tied */
    const float *dlogits;       /* [M, V] the caller's */
    float *block;               /* all of the above: one piece of the device; owned */
    struct train_batch batch;   /* of the last forward pass; arrays on the device */
    int32_t *ints, *host_ints;  /* [3 M + 1] those arrays, and what they are filled from; owned */
};

/* Gives out pieces of one block; with base NULL it only counts. */
struct carve {
    float *base;
    size_t at;
};
static float *carve(struct carve *c, size_t n) {
    float *p = c->base ? c->base + c->at : NULL;
    c->at += (n + 63) / 64 * 64; /* every piece starts at 256 bytes */
    return p;
}

static size_t largest_matrix(const struct model_shape *s) {
    size_t largest = (size_t)s->vocab * (size_t)s->dim;
    for (int p = 0; p < N_PARTS; p++) {
        size_t n = (size_t)part_rows(s, (enum part)p) * (size_t)part_cols(s, (enum part)p);
        largest = n > largest ? n : largest;
    }
    return largest;
}

static void carve_tape(struct llama_tape *t, const struct model_config *config, struct carve *c) {
    const struct model_shape *s = &config->shape;
    size_t rows = (size_t)t->max_rows, dim = rows * (size_t)s->dim, ffn = rows * (size_t)s->ffn_dim,
           nq = rows * (size_t)(s->n_heads * s->head_dim),
           nk = rows * (size_t)(s->n_kv_heads * s->head_dim);
    struct llama_acts shared = {0};
    for (int32_t l = 0; l < t->n_layers; l++) {
        struct llama_acts *a = t->layer ? &t->layer[l] : &shared;
        if (l > 0 && !t->back) {
            *a = t->layer ? t->layer[0] : shared;
            continue;
        }
        a->h = carve(c, dim), a->x1 = carve(c, dim), a->inv1 = carve(c, rows);
        a->q = carve(c, nq), a->k = carve(c, nk), a->v = carve(c, nk), a->ctx = carve(c, nq);
        a->mid = carve(c, dim), a->x2 = carve(c, dim), a->inv2 = carve(c, rows);
        a->gate = carve(c, ffn), a->up = carve(c, ffn), a->act = carve(c, ffn);
    }
    t->last = carve(c, dim), t->xf = carve(c, dim), t->inv = carve(c, rows);
    if (!t->back)
        return;
    t->dh = carve(c, dim), t->dx = carve(c, dim);
    t->dq = carve(c, nq), t->dk = carve(c, nk), t->dv = carve(c, nk), t->dctx = carve(c, nq);
    t->dgate = carve(c, ffn), t->dup = carve(c, ffn), t->dact = carve(c, ffn);
    t->dw = carve(c, largest_matrix(s));
    t->dembed = config->tied ? carve(c, (size_t)s->vocab * (size_t)s->dim) : t->dw;
}

double llama_tape_bytes(const struct model_config *config, int32_t max_rows, bool back) {
    struct llama_tape t = {.max_rows = max_rows, .n_layers = config->shape.n_layers, .back = back};
    struct carve c = {0};
    carve_tape(&t, config, &c);
    return (double)c.at * sizeof(float);
}

err_t llama_tape_open(struct llama_tape **out, const struct llama *m, int32_t max_rows, bool back,
                      struct why *why) {
    struct train *train = m->t;
    struct llama_tape *t = calloc(1, sizeof *t);
    size_t ints = (3 * (size_t)max_rows + 1) * sizeof(int32_t);
    err_t e = t ? 0 : E_NOMEM;
    if (t) {
        *t = (struct llama_tape){.t = train, .max_rows = max_rows, .back = back};
        t->n_layers = m->config.shape.n_layers;
        struct carve c = {0};
        carve_tape(t, &m->config, &c); /* counts */
        t->layer = calloc((size_t)t->n_layers, sizeof *t->layer);
        t->host_ints = malloc(ints);
        e = t->layer && t->host_ints ? 0 : E_NOMEM;
        e = e ? e : train->ops->take(train, c.at * sizeof(float), (void **)&t->block);
        e = e ? e : train->ops->take(train, ints, (void **)&t->ints);
    }
    if (e) {
        llama_tape_close(t);
        return why_set(why, e, "There is not enough memory for %d rows of activations (%s).",
                       max_rows, train->ops->describe(train));
    }
    struct carve c = {t->block, 0};
    carve_tape(t, &m->config, &c);
    *out = t;
    return 0;
}

void llama_tape_close(struct llama_tape *t) {
    if (!t)
        return;
    t->t->ops->give(t->t, t->block);
    t->t->ops->give(t->t, t->ints);
    free(t->layer), free(t->host_ints);
    free(t);
}

const float *llama_stream(const struct llama_tape *t) {
    return t->last;
}

const float *llama_input(const struct llama_tape *t, const struct llama *m, int32_t i) {
    if (i >= llama_embed(m))
        return t->xf;
    const struct llama_acts *a = &t->layer[i / N_PARTS];
    switch ((enum part)(i % N_PARTS)) {
    case PART_O:
        return a->ctx;
    case PART_GATE:
    case PART_UP:
        return a->x2;
    case PART_DOWN:
        return a->act;
    default:
        return a->x1;
    }
}

const float *llama_output_grad(const struct llama_tape *t, const struct llama *m, int32_t i) {
    const float *const of_part[N_PARTS] = {
        [PART_Q] = t->dq,       [PART_K] = t->dk,   [PART_V] = t->dv,   [PART_O] = t->dh,
        [PART_GATE] = t->dgate, [PART_UP] = t->dup, [PART_DOWN] = t->dh};
    return i < llama_embed(m) ? of_part[i % N_PARTS] : i == llama_head(m) ? t->dlogits : NULL;
}

/* Brings ids, positions and starts to the device. */
static void put_batch(struct llama_tape *t, const struct llama_batch *b) {
    int32_t rows = b->n_rows, longest = 0, *id = t->host_ints, *position = id + rows,
            *start = position + rows;
    memcpy(id, b->id, (size_t)rows * sizeof *id);
    memcpy(start, b->start, ((size_t)b->n_seqs + 1) * sizeof *start);
    for (int32_t s = 0; s < b->n_seqs; s++) {
        int32_t n = start[s + 1] - start[s];
        longest = n > longest ? n : longest;
        for (int32_t i = 0; i < n; i++)
            position[start[s] + i] = i;
    }
    t->t->ops->put(t->t, t->ints, id, ((size_t)(2 * rows + b->n_seqs) + 1) * sizeof *id);
    t->batch =
        (struct train_batch){rows, b->n_seqs, longest, t->ints, t->ints + 2 * rows, t->ints + rows};
}

static void product(const struct llama *m, int32_t i, int32_t rows, const float *x, float *y,
                    bool add) {
    struct train_weights w = llama_weights(m, i);
    m->t->ops->product(m->t, rows, x, &w, y, add);
}

static struct train_heads heads_of(const struct model_shape *s) {
    return (struct train_heads){s->n_heads, s->n_kv_heads, s->head_dim, s->sliding_window};
}

static void layer_forward(const struct llama *m, struct llama_tape *t, int32_t l) {
    struct train *train = m->t;
    const struct train_ops *op = train->ops;
    const struct model_shape *s = &m->config.shape;
    const struct train_batch *b = &t->batch;
    int32_t rows = b->n_rows;
    size_t dim = (size_t)s->dim, bytes = (size_t)rows * dim * sizeof(float);
    const struct llama_acts *a = &t->layer[l];
    const float *norm = m->norm + (size_t)(2 * l) * dim;
    op->norm(train, rows, s->dim, s->norm_eps, a->h, norm, a->x1, a->inv1);
    op->hold(train, 0, a->x1, (size_t)rows * dim);
    product(m, llama_part(l, PART_Q), rows, a->x1, a->q, false);
    product(m, llama_part(l, PART_K), rows, a->x1, a->k, false);
    product(m, llama_part(l, PART_V), rows, a->x1, a->v, false);
    op->hold(train, 0, NULL, 0);
    op->rope(train, b, m->rope, s->n_heads, s->head_dim, false, a->q);
    op->rope(train, b, m->rope, s->n_kv_heads, s->head_dim, false, a->k);
    op->attention(train, b, heads_of(s), a->q, a->k, a->v, a->ctx);
    op->copy(train, a->mid, a->h, bytes);
    product(m, llama_part(l, PART_O), rows, a->ctx, a->mid, true);
    op->norm(train, rows, s->dim, s->norm_eps, a->mid, norm + dim, a->x2, a->inv2);
    op->hold(train, 0, a->x2, (size_t)rows * dim);
    product(m, llama_part(l, PART_GATE), rows, a->x2, a->gate, false);
    product(m, llama_part(l, PART_UP), rows, a->x2, a->up, false);
    op->hold(train, 0, NULL, 0);
    op->swiglu(train, (size_t)rows * (size_t)s->ffn_dim, a->gate, a->up, a->act);
    float *next = l + 1 < s->n_layers ? t->layer[l + 1].h : t->last;
    op->copy(train, next, a->mid, bytes);
    product(m, llama_part(l, PART_DOWN), rows, a->act, next, true);
}

void llama_forward(const struct llama *m, const struct llama_batch *b, struct llama_tape *t,
                   float *logits) {
    const struct model_shape *s = &m->config.shape;
    put_batch(t, b);
    struct train_weights embed = llama_weights(m, llama_embed(m));
    m->t->ops->embed(m->t, &t->batch, &embed, t->layer[0].h);
    for (int32_t l = 0; l < s->n_layers; l++)
        layer_forward(m, t, l);
    if (!logits)
        return;
    m->t->ops->norm(m->t, b->n_rows, s->dim, s->norm_eps, t->last,
                    m->norm + (size_t)(2 * s->n_layers) * (size_t)s->dim, t->xf, t->inv);
    product(m, llama_head(m), b->n_rows, t->xf, logits, false);
}

void llama_rows_in(const struct llama *m, const struct llama_batch *b, struct llama_tape *t,
                   float *h) {
    put_batch(t, b);
    struct train_weights embed = llama_weights(m, llama_embed(m));
    m->t->ops->embed(m->t, &t->batch, &embed, h);
}

void llama_layer(const struct llama *m, const struct llama_batch *b, struct llama_tape *t,
                 int32_t layer, const float *in, float *out) {
    size_t bytes = (size_t)b->n_rows * (size_t)m->config.shape.dim * sizeof(float);
    put_batch(t, b);
    m->t->ops->copy(m->t, t->layer[layer].h, in, bytes);
    layer_forward(m, t, layer);
    if (out)
        m->t->ops->copy(m->t, out, layer + 1 < t->n_layers ? t->layer[layer + 1].h : t->last,
                        bytes);
}

struct pass {
    const struct llama *m;
    struct train *train;
    const struct train_ops *op;
    struct llama_tape *t;
    int32_t rows;
    struct llama_sink sink;
};

static bool wanted(const struct pass *p, int32_t i) {
    return !p->sink.wants || p->sink.wants(p->sink.arg, i);
}

static struct train_weights back_weights(const struct llama *m, int32_t i) {
    return m->back ? m->back(m->arg, i) : llama_weights(m, i);
}

/* Through y = x W':  dx (+)= dy W, then dW = dy' x to the sink. */
static void product_back(const struct pass *p, int32_t i, const float *x, const float *dy,
                         float *dx, bool add) {
    struct train_weights w = back_weights(p->m, i);
    p->op->hold(p->train, 1, dy, (size_t)p->rows * (size_t)w.n);
    p->op->product_dx(p->train, p->rows, dy, &w, dx, add);
    if (wanted(p, i))
        p->op->product_dw(p->train, p->rows, dy, w.n, x, w.k, p->t->dw);
    p->op->hold(p->train, 1, NULL, 0);
    if (wanted(p, i))
        p->sink.matrix(p->sink.arg, i, p->t->dw);
}

static void layer_back(const struct pass *p, int32_t l, float *dnorm) {
    const struct llama *m = p->m;
    const struct model_shape *s = &m->config.shape;
    const struct llama_tape *t = p->t;
    const struct llama_acts *a = &t->layer[l];
    const struct train_batch *b = &t->batch;
    size_t dim = (size_t)s->dim;
    const float *norm = m->norm + (size_t)(2 * l) * dim;
    float *dn = dnorm + (size_t)(2 * l) * dim;
    product_back(p, llama_part(l, PART_DOWN), a->act, t->dh, t->dact, false);
    p->op->swiglu_back(p->train, (size_t)p->rows * (size_t)s->ffn_dim, a->gate, a->up, t->dact,
                       t->dgate, t->dup);
    p->op->hold(p->train, 0, a->x2, (size_t)p->rows * dim);
    product_back(p, llama_part(l, PART_UP), a->x2, t->dup, t->dx, false);
    product_back(p, llama_part(l, PART_GATE), a->x2, t->dgate, t->dx, true);
    p->op->norm_back(p->train, p->rows, s->dim, a->mid, norm + dim, a->inv2, t->dx, t->dh,
                     dn + dim);
    product_back(p, llama_part(l, PART_O), a->ctx, t->dh, t->dctx, false);
    p->op->attention_back(p->train, b, heads_of(s), a->q, a->k, a->v, a->ctx, t->dctx, t->dq, t->dk,
                          t->dv);
    p->op->rope(p->train, b, m->rope, s->n_heads, s->head_dim, true, t->dq);
    p->op->rope(p->train, b, m->rope, s->n_kv_heads, s->head_dim, true, t->dk);
    p->op->hold(p->train, 0, a->x1, (size_t)p->rows * dim);
    product_back(p, llama_part(l, PART_V), a->x1, t->dv, t->dx, false);
    product_back(p, llama_part(l, PART_K), a->x1, t->dk, t->dx, true);
    product_back(p, llama_part(l, PART_Q), a->x1, t->dq, t->dx, true);
    p->op->hold(p->train, 0, NULL, 0);
    p->op->norm_back(p->train, p->rows, s->dim, a->h, norm, a->inv1, t->dx, t->dh, dn);
}

static void head_back(const struct pass *p, const float *dlogits) {
    const struct llama *m = p->m;
    struct llama_tape *t = p->t;
    struct train_weights head = back_weights(m, llama_head(m));
    int32_t learns = m->config.tied ? llama_embed(m) : llama_head(m);
    float *dhead = m->config.tied ? t->dembed : t->dw;
    p->op->hold(p->train, 1, dlogits, (size_t)p->rows * (size_t)head.n);
    p->op->product_dx(p->train, p->rows, dlogits, &head, t->dx, false);
    if (wanted(p, learns))
        p->op->product_dw(p->train, p->rows, dlogits, head.n, t->xf, head.k, dhead);
    p->op->hold(p->train, 1, NULL, 0);
    if (!wanted(p, learns))
        return;
    if (!m->config.tied)
        p->sink.matrix(p->sink.arg, learns, dhead);
}

void llama_backward(const struct llama *m, struct llama_tape *t, const float *dlogits,
                    const float *dfinal, float *dnorm, struct llama_sink sink) {
    const struct model_shape *s = &m->config.shape;
    struct pass p = {m, m->t, m->t->ops, t, t->batch.n_rows, sink};
    size_t dim = (size_t)s->dim, last = (size_t)(2 * s->n_layers) * dim;
    t->dlogits = dlogits;
    head_back(&p, dlogits);
    if (dfinal)
        p.op->axpy(p.train, (size_t)p.rows * dim, 1, dfinal, t->dx);
    p.op->zero(p.train, t->dh, (size_t)p.rows * dim * sizeof(float));
    p.op->norm_back(p.train, p.rows, s->dim, t->last, m->norm + last, t->inv, t->dx, t->dh,
                    dnorm + last);
    for (int32_t l = s->n_layers - 1; l >= 0; l--)
        layer_back(&p, l, dnorm);
    if (!wanted(&p, llama_embed(m)))
        return;
    if (!m->config.tied)
        p.op->zero(p.train, t->dembed, (size_t)s->vocab * dim * sizeof(float));
    p.op->embed_back(p.train, &t->batch, t->dh, s->vocab, s->dim, t->dembed);
    sink.matrix(sink.arg, llama_embed(m), t->dembed);
}
