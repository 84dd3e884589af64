/* The end of a step: final norm of the rows that want logits, lm_head, sampling. Logits are made
 * for a chunk of rows at a time, so their memory does not grow with the batch. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

struct head_chunk {
    struct cpu *c;
    int32_t first, n; /* entries of step->logit */
};

/* A tied tenant's lm_head is its embedding. */
static const struct vocab_matrix *head_matrix(const struct tenant_weights *t) {
    return t->tied ? &t->embed : &t->head;
}

static const struct tenant_weights *tenant_of(const struct cpu *c, int32_t logit) {
    return c->step->group[c->row_group[c->step->logit[logit].row]].tenant;
}

static void norm_logit(void *arg, int32_t i, int32_t thread) {
    const struct head_chunk *h = arg;
    const struct cpu *c = h->c;
    const struct tenant_weights *t = tenant_of(c, h->first + i);
    size_t row = (size_t)c->step->logit[h->first + i].row, dim = (size_t)c->shape.dim;
    (void)thread;
    c->isa->norm(c->h + row * c->ld_h, t->norm + 2 * (size_t)c->shape.n_layers * dim, t->norm_eps,
                 c->shape.dim, c->x + (size_t)i * c->ld_h);
}

/* Shares of the chunk: logit rows of one tenant stand together, since rows do. */
static void head_shares(const struct head_chunk *h, struct product *p) {
    struct cpu *c = h->c;
    const struct tenant_weights *last = NULL;
    for (int32_t i = 0; i < h->n; i++) {
        const struct tenant_weights *t = tenant_of(c, h->first + i);
        if (t == last) {
            p->part[0].share[p->n_shares - 1].n++;
            continue;
        }
        const struct vocab_matrix *m = head_matrix(t);
        struct share *s = &p->part[0].share[p->n_shares++];
        *s = (struct share){.first = i, .n = 1, .n_out = t->vocab, .w = m->dense};
        if (!m->dense) {
            s->n_out = c->shape.vocab < t->vocab ? c->shape.vocab : t->vocab;
            s->w = base_vocab(c, !t->tied);
            s->delta = &m->delta;
        }
        if (p->part[0].n_out < s->n_out)
            p->part[0].n_out = s->n_out;
        last = t;
    }
}

/* Rows of the vocabulary that the tenant gives itself; ids that nothing gives are never drawn. */
static void own_rows(const struct cpu *c, const struct share *s, const struct vocab_matrix *m,
                     int32_t vocab, int32_t row, struct scratch *sc) {
    float *z = c->logits + (size_t)row * c->ld_logits, *y = sc->gather;
    const float *x = c->x + (size_t)row * c->ld_h;
    for (int32_t i = s->n_out; i < vocab; i++)
        z[i] = -INFINITY;
    for (int32_t r0 = 0; r0 < m->n_rows; r0 += UNIT_ROWS) {
        struct matmul_args a = {.w = m->row + (size_t)r0 * (size_t)c->shape.dim,
                                .n_out = m->n_rows - r0 < UNIT_ROWS ? m->n_rows - r0 : UNIT_ROWS,
                                .k = c->shape.dim,
                                .n_x = 1,
                                .x = &x,
                                .y = &y};
        c->isa->matmul(&a);
        for (int32_t i = 0; i < a.n_out; i++)
            if (m->row_id[r0 + i] < vocab)
                z[m->row_id[r0 + i]] = y[i];
    }
}

static void finish_logit(void *arg, int32_t i, int32_t thread) {
    const struct head_chunk *h = arg;
    const struct cpu *c = h->c;
    const struct tenant_weights *t = tenant_of(c, h->first + i);
    const struct share *s = c->share;
    while (i >= s->first + s->n)
        s++;
    own_rows(c, s, head_matrix(t), t->vocab, i, &c->scratch[thread]);
    sample_row(c->isa, c->logits + (size_t)i * c->ld_logits, t->vocab,
               &c->step->logit[h->first + i], &c->sample[thread], &c->step->sampled[h->first + i]);
}

void cpu_head(struct kernels *k) {
    struct cpu *c = cpu_of(k);
    for (int32_t first = 0; first < c->step->n_logits; first += c->logit_rows) {
        struct head_chunk h = {c, first, c->step->n_logits - first};
        h.n = h.n < c->logit_rows ? h.n : c->logit_rows;
        struct product p = {.n_parts = 1,
                            .n_rows = h.n,
                            .k = c->shape.dim,
                            .ldx = c->ld_h,
                            .ldo = c->ld_logits,
                            .x = c->x,
                            .out = c->logits};
        p.part[0].share = c->share;
        for (int32_t i = 0; i < h.n; i++)
            norm_logit(&h, i, 0);
        head_shares(&h, &p);
        product_run(c, &p, c->gate_up);
        pool_run(c->pool, finish_logit, &h, h.n);
    }
}
