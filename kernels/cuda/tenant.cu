/* Binding: a tenant's descriptor and the table of its deltas go to the device once, so that a step
 * names it by one pointer. Any thread; nothing here touches the steps. */
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/cuda.h"

static size_t deltas_of(const struct cuda *c) {
    return (size_t)c->shape.n_layers * N_PARTS;
}
/* The deltas follow the descriptor at the next multiple of 64 bytes. */
static size_t deltas_at(void) {
    return (sizeof(struct gpu_tenant) + 63) / 64 * 64;
}

/* Tied on a base with an lm_head of its own, and its embedding is the base's but for rows. */
static bool as_the_base(const struct cuda *c, const struct tenant_weights *t) {
    const struct delta *d = &t->embed.delta;
    return t->tied && !c->shape.tied && !t->embed.dense && !d->n_planes && !d->rank &&
           t->vocab <= c->shape.vocab;
}

static void describe(const struct cuda *c, const struct tenant_weights *t, struct gpu_tenant *g) {
    g->norm = t->norm;
    g->rope = t->rope;
    g->context = t->context;
    g->vocab = t->vocab;
    g->sliding_window = t->sliding_window;
    g->norm_eps = t->norm_eps;
    g->tied = t->tied;
    g->embed = t->embed;
    g->head = t->tied ? t->embed : t->head;
    if (as_the_base(c, t)) /* the packed lm_head is not what it multiplies with */
        g->head.dense = (const uint16_t *)c->embed;
    for (size_t i = 0; t->delta && i < deltas_of(c); i++) {
        g->has_pairs |= t->delta[i].rank > 0;
        g->has_dense |= t->delta[i].dense != NULL;
    }
    g->head_has_pairs = g->head.delta.rank > 0;
}

static err_t check(const struct cuda *c, const struct tenant_weights *t, struct why *why) {
    if (t->vocab < 1 || t->vocab > c->ld_logits || t->context < 1)
        return why_set(why, E_UNSUPPORTED,
                       "a vocabulary of %d is more than the logits' width of %d", t->vocab,
                       c->ld_logits);
    if (t->tied && !c->shape.tied && !t->embed.dense && !as_the_base(c, t))
        return why_set(why, E_UNSUPPORTED,
                       "its lm_head is its embedding, which on a base with an lm_head of its own "
                       "the CUDA backend can only do when the embedding is dense, or the base's "
                       "with other rows but no more of them");
    if (c->kv && t->context > c->max_context && c->n_pages * KV_PAGE_TOKENS > c->max_context)
        return why_set(why, E_UNSUPPORTED,
                       "a context of %d is longer than the %d that attention has scratch for",
                       t->context, c->max_context);
    return E_OK;
}

err_t cuda_bind_tenant(struct kernels *k, struct tenant_weights *t, struct why *why) {
    struct cuda *c = cuda_of(k);
    err_t e = check(c, t, why);
    if (e)
        return e;
    size_t deltas = t->delta ? deltas_of(c) * sizeof *t->delta : 0;
    struct cuda_tenant *bound = (struct cuda_tenant *)calloc(1, sizeof *bound);
    char *host = (char *)calloc(1, deltas_at() + deltas);
    void *device = NULL;
    e = bound && host ? E_OK : E_NOMEM;
    if (!e) {
        bound->bytes = deltas_at() + deltas;
        e = arena_take(&c->arena, bound->bytes, &device);
    }
    if (!e) {
        describe(c, t, &bound->host);
        if (deltas) {
            bound->host.delta = (const struct delta *)((char *)device + deltas_at());
            memcpy(host + deltas_at(), t->delta, deltas);
        }
        memcpy(host, &bound->host, sizeof bound->host);
        e = windows_upload(&c->windows, device, host, bound->bytes);
        if (!e)
            e = windows_settle(&c->windows);
    }
    free(host);
    if (e) {
        arena_give(&c->arena, device, deltas_at() + deltas);
        free(bound);
        return why_set(why, e, "no device memory for the table of its matrices: %s",
                       err_sentence(e));
    }
    if (!c->kv && t->context > c->max_context) /* the base */
        c->max_context = t->context;
    bound->device = (struct gpu_tenant *)device;
    t->bound = bound;
    return E_OK;
}

void cuda_unbind_tenant(struct kernels *k, struct tenant_weights *t) {
    struct cuda_tenant *bound = (struct cuda_tenant *)t->bound;
    if (!bound)
        return;
    arena_give(&cuda_of(k)->arena, bound->device, bound->bytes);
    free(bound);
    t->bound = NULL;
}
