/* AdamW over a student. */
#include "compress/published.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/draw.h"

/* AdamW's defaults in the published code, and the rate it is given. */
static const struct train_adam defaults = {1e-4f, 0, 0.999f, 1e-8f, 0.01f};
/* Far below any scale: one that would become negative stays here. */
static const float least_scale = 1e-9f;

struct published {
    struct student *s;
    int32_t steps, n_scales;
    struct train_vector
        scale;               /* [n_scales] of all planes, themselves: the student has logarithms */
    float *scale_grad;       /* device [n_scales] of the logarithms */
    float *host, *host_grad; /* [n_scales] */
    int32_t *first;          /* [n_matrices] number of a matrix's first scale */
    struct train_vector vocab[2]; /* embedding, lm_head; n 0: tied */
};

/* ---- opening --------------------------------------------------------------------------------- */

/* The scales that the planes start with. */
static err_t open_scales(struct published *p) {
    struct student *s = p->s;
    const struct train_ops *op = s->t->ops;
    size_t most = (size_t)s->model.n_matrices * MAX_PLANES;
    p->first = calloc((size_t)s->model.n_matrices, sizeof *p->first);
    p->host = calloc(2 * most, sizeof *p->host);
    if (!p->first || !p->host)
        return E_NOMEM;
    p->host_grad = p->host + most;
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        p->first[i] = p->n_scales;
        for (int32_t l = 0; l < s->matrix[i].n_planes; l++) {
            float *x = &p->host[p->n_scales++];
            op->get(s->t, x, s->matrix[i].plane[l].row.x, sizeof *x);
            *x = expf(*x);
        }
    }
    size_t n = (size_t)p->n_scales;
    err_t e = op->take(s->t, (4 * n + 1) * sizeof(float), (void **)&p->scale.x);
    if (e)
        return e;
    p->scale.m = p->scale.x + n, p->scale.v = p->scale.m + n, p->scale.n = n;
    p->scale_grad = p->scale.v + n;
    op->put(s->t, p->scale.x, p->host, n * sizeof(float));
    return 0;
}

static err_t open_vocab(struct published *p, int32_t which) {
    struct student *s = p->s;
    const struct student_matrix *x = &s->matrix[llama_embed(&s->model) + which];
    struct train_vector *v = &p->vocab[which];
    size_t n = (size_t)x->ground.n * (size_t)x->ground.k;
    err_t e = s->t->ops->take(s->t, 3 * n * sizeof(float), (void **)&v->x);
    if (e)
        return e;
    v->m = v->x + n, v->v = v->m + n, v->n = n;
    s->t->ops->load(s->t, &x->ground, v->x);
    return 0;
}

/* What a linear's gradient goes back through. */
static struct train_weights base_of(void *arg, int32_t i) {
    const struct student *s = arg;
    if (i == llama_head(&s->model) && s->model.config.tied)
        i = llama_embed(&s->model);
    return s->matrix[i].ground;
}

err_t published_open(struct published **out, struct student *s, int32_t steps, struct why *why) {
    struct published *p = calloc(1, sizeof *p);
    err_t e = p ? 0 : E_NOMEM;
    if (p) {
        *p = (struct published){.s = s, .steps = steps};
        e = open_scales(p);
    }
    for (int32_t which = 0; !e && which < (s->model.config.tied ? 1 : 2); which++)
        e = open_vocab(p, which);
    if (e) {
        published_close(p);
        return why_set(why, e, "There is not enough memory to learn embedding and lm_head (%s).",
                       s->t->ops->describe(s->t));
    }
    s->model.back = base_of;
    *out = p;
    return 0;
}

void published_close(struct published *p) {
    if (!p)
        return;
    struct train *t = p->s->t;
    p->s->model.back = NULL;
    t->ops->give(t, p->scale.x);
    t->ops->give(t, p->vocab[0].x), t->ops->give(t, p->vocab[1].x);
    free(p->first), free(p->host);
    free(p);
}

double published_bytes(const struct model_config *c) {
    return (c->tied ? 1.0 : 2.0) * 3 * sizeof(float) * c->shape.vocab * c->shape.dim;
}

/* ---- learning -------------------------------------------------------------------------------- */

/* Along a cosine to 0, from the first step on. */
static struct train_adam adam_at(const struct published *p, int32_t t) {
    struct train_adam a = defaults;
    a.rate *= 0.5f * (1 + cosf(3.14159265f * (float)(t - 1) / (float)p->steps));
    a.t = t;
    return a;
}

static bool wants(void *arg, int32_t i) {
    const struct published *p = arg;
    return i >= llama_embed(&p->s->model) || p->s->matrix[i].n_planes > 0;
}

static void learn_matrix(void *arg, int32_t i, const float *grad, const struct student_flow *flow,
                         int32_t t) {
    (void)flow;
    struct published *p = arg;
    struct train *train = p->s->t;
    struct student_matrix *x = &p->s->matrix[i];
    int32_t which = i - llama_embed(&p->s->model);
    for (int32_t l = 0; l < x->n_planes; l++)
        train->ops->plane_back(train, &x->plane[l], x->n, x->k, grad, train_adam(0, t),
                               p->scale_grad + p->first[i] + l, NULL);
    if (which < 0)
        return;
    train->ops->adam(train, &p->vocab[which], grad, adam_at(p, t));
    train->ops->store(train, p->vocab[which].x, &x->ground);
    x->has_learnt = true;
}

/* Scales of more than two planes stay ever nearer to where they started: an error in the first is
 * to be small beside the last. */
static float calmed(const struct published *p, float rate) {
    int32_t most = 1;
    for (int32_t i = 0; i < p->s->model.n_matrices; i++)
        most = p->s->matrix[i].n_planes > most ? p->s->matrix[i].n_planes : most;
    return most > 2 ? ldexpf(rate, 2 - most) : rate;
}

/* From the gradients of their logarithms a step of the scales themselves. */
static void learn_scales(struct published *p, int32_t t) {
    struct student *s = p->s;
    const struct train_ops *op = s->t->ops;
    size_t bytes = p->scale.n * sizeof(float);
    struct train_adam a = adam_at(p, t);
    a.rate = calmed(p, a.rate);
    op->get(s->t, p->host_grad, p->scale_grad, bytes);
    for (size_t i = 0; i < p->scale.n; i++)
        p->host_grad[i] /= p->host[i];
    op->put(s->t, p->scale_grad, p->host_grad, bytes);
    op->adam(s->t, &p->scale, p->scale_grad, a);
    op->get(s->t, p->host, p->scale.x, bytes);
    for (size_t i = 0; i < p->scale.n; i++)
        p->host[i] = p->host[i] > least_scale ? p->host[i] : least_scale;
    op->put(s->t, p->scale.x, p->host, bytes);
    for (int32_t i = 0; i < s->model.n_matrices; i++)
        for (int32_t l = 0; l < s->matrix[i].n_planes; l++) {
            float x = logf(p->host[p->first[i] + l]);
            op->put(s->t, s->matrix[i].plane[l].row.x, &x, sizeof x);
        }
}

static void learn_rest(void *arg, const float *norm_grad, int32_t t) {
    struct published *p = arg;
    if (p->scale.n)
        learn_scales(p, t);
    p->s->t->ops->adam(p->s->t, &p->s->norm, norm_grad, adam_at(p, t));
}

struct fit_learner published_learner(struct published *p) {
    return (struct fit_learner){wants, learn_matrix, learn_rest, p};
}

/* ---- text ------------------------------------------------------------------------------------ */

err_t published_text(struct corpus *out, const struct tokenizer *t, const char *text, size_t n_text,
                     int32_t length, int32_t pad, int32_t n, uint64_t seed, struct why *why) {
    struct corpus all = {0};
    int32_t *order = NULL, *id = malloc((size_t)length * sizeof *id);
    err_t e = id ? 0 : E_NOMEM;
    e = e ? e : corpus_add_text(&all, t, text, n_text, length, why);
    if (!e && !(order = malloc(((size_t)all.n_seqs + 1) * sizeof *order)))
        e = E_NOMEM;
    for (int32_t i = 0; !e && i < all.n_seqs; i++)
        order[i] = i;
    for (int32_t i = 0; !e && i < all.n_seqs && i < n; i++) {
        int32_t left = all.n_seqs - i,
                other = i + (int32_t)(draw_uniform(seed, (uint64_t)i) * (double)left),
                next = order[other], has = corpus_length(&all, next);
        order[other] = order[i];
        memcpy(id, all.id + all.start[next], (size_t)has * sizeof *id);
        for (int32_t at = has; at < length; at++)
            id[at] = pad;
        e = corpus_add(out, id, length);
    }
    free(id), free(order);
    corpus_free(&all);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory for the calibration text.")
                        : e;
}
