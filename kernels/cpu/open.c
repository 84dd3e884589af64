/* Opening and closing the CPU backend, and the memory it counts. Everything a step needs is carved
 * from one block here. */
#include "kernels/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/memory.h"

enum {
    LOGITS_BYTES = 16 << 20, /* logits of a step are computed in chunks of at most this */
    MAX_DIM = 1 << 20,
};

static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

/* Takes bytes from the block at *at; with base NULL it only counts. Aligned to cache lines. */
static void *carve(char *base, size_t *at, size_t count, size_t size) {
    void *p = base ? base + *at : NULL;
    *at += round_up(count * size, 64);
    return p;
}

static void carve_scratch(struct scratch *s, char *base, size_t *at, const struct model_shape *m) {
    s->delta = carve(base, at, (size_t)DELTA_PLANES * DELTA_ROWS * UNIT_ROWS, sizeof(float));
    s->table = carve(base, at, (size_t)DELTA_TABLE, sizeof(int32_t));
    s->bits =
        carve(base, at, (size_t)DELTA_PLANES * UNIT_ROWS / TILE_ROWS * 128 + 16, sizeof(uint32_t));
    s->bytes = carve(base, at, (size_t)2 * DELTA_ROWS * TILE_COLS, 1);
    s->signs = carve(base, at, (size_t)2 * TILE_ROWS * TILE_COLS, 1);
    s->cells = carve(base, at, 2048, sizeof(int32_t));
    s->x = carve(base, at, UNIT_TOKENS, sizeof *s->x);
    s->y = carve(base, at, UNIT_TOKENS, sizeof *s->y);
    s->context = carve(base, at, (size_t)QUERIES * (size_t)kv_lanes(m->head_dim), sizeof(float));
    s->gather = carve(base, at, UNIT_ROWS, sizeof(float));
}

/* Counts (base NULL) or carves all memory of a step. */
static size_t carve_all(struct cpu *c, char *base) {
    const struct model_shape *m = &c->shape;
    size_t at = 0, rows = (size_t)c->max_rows, threads = (size_t)pool_threads(c->pool);
    size_t vocab = (size_t)(m->max_vocab > m->vocab ? m->max_vocab : m->vocab);
    c->ld_h = round_up((size_t)m->dim, 16);
    c->ld_ctx = round_up((size_t)m->n_heads * (size_t)m->head_dim, 16);
    c->ld_qkv = round_up((size_t)(m->n_heads + 2 * m->n_kv_heads) * (size_t)m->head_dim, 16);
    c->ld_gate_up = round_up(2 * (size_t)m->ffn_dim, 16);
    c->ld_act = round_up((size_t)m->ffn_dim, 16);
    c->ld_logits = round_up(vocab, 16);
    size_t chunk = LOGITS_BYTES / (c->ld_logits * sizeof(float));
    c->logit_rows = (int32_t)(chunk < 1 ? 1 : chunk > rows ? rows : chunk);

    c->h = carve(base, &at, rows * c->ld_h, sizeof(float));
    c->x = carve(base, &at, rows * c->ld_h, sizeof(float));
    c->qkv = carve(base, &at, rows * c->ld_qkv, sizeof(float));
    c->ctx = carve(base, &at, rows * c->ld_ctx, sizeof(float));
    c->gate_up = carve(base, &at, rows * c->ld_gate_up, sizeof(float));
    c->act = carve(base, &at, rows * c->ld_act, sizeof(float));
    c->logits = carve(base, &at, (size_t)c->logit_rows * c->ld_logits, sizeof(float));
    c->share = carve(base, &at, MAX_PARTS * rows, sizeof *c->share);
    c->query_block = carve(base, &at, rows, sizeof *c->query_block);
    c->row_group = carve(base, &at, rows, sizeof *c->row_group);
    c->row_position = carve(base, &at, rows, sizeof *c->row_position);
    c->row_pages = carve(base, &at, rows, sizeof *c->row_pages);
    c->scratch = carve(base, &at, threads, sizeof *c->scratch);
    c->sample = carve(base, &at, threads, sizeof *c->sample);
    for (size_t i = 0; i < threads; i++) {
        struct scratch counted;
        struct sample_scratch counted_too, *s = base ? &c->sample[i] : &counted_too;
        carve_scratch(base ? &c->scratch[i] : &counted, base, &at, m);
        s->weight = carve(base, &at, c->ld_logits, sizeof(float));
        s->raw = carve(base, &at, c->ld_logits, sizeof(float));
        s->id = carve(base, &at, c->ld_logits, sizeof(int32_t));
    }
    return at;
}

static err_t check_shape(const struct model_shape *m, int32_t max_rows, struct why *why) {
    const int32_t size[] = {m->n_layers, m->dim,     m->n_heads, m->n_kv_heads,
                            m->head_dim, m->ffn_dim, m->vocab,   max_rows};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        if (size[i] < 1 || size[i] > MAX_DIM)
            return why_set(why, E_UNSUPPORTED, "The CPU backend cannot run a model of this shape.");
    if (m->n_heads % m->n_kv_heads || m->head_dim % 2)
        return why_set(why, E_UNSUPPORTED,
                       "The CPU backend needs an even head size and as many query heads per "
                       "key-value head, not %d x %d over %d.",
                       m->n_heads, m->head_dim, m->n_kv_heads);
    return E_OK;
}

static void cpu_close(struct kernels *k) {
    struct cpu *c = cpu_of(k);
    pool_close(c->pool);
    host_block_free(c->kv, c->kv_bytes);
    host_block_free(c->block, c->block_bytes);
    for (int32_t i = 0; c->base_matrix && i < base_matrices(&c->shape); i++)
        host_block_free(c->base_matrix[i], base_matrix_bytes(&c->shape, i));
    free(c->base_matrix);
    free(c);
}

static const char *cpu_describe(const struct kernels *k) {
    return ((const struct cpu *)k)->description;
}

static err_t cpu_reserve(struct kernels *k, size_t bytes, void **device) {
    *device = host_block(bytes);
    if (!*device)
        return E_NOMEM;
    atomic_fetch_add(&cpu_of(k)->placed, bytes);
    return E_OK;
}

static void cpu_release(struct kernels *k, void *device, size_t bytes) {
    if (!device)
        return;
    atomic_fetch_sub(&cpu_of(k)->placed, bytes);
    host_block_free(device, bytes);
}

static err_t cpu_stage(struct kernels *k, void *device, size_t bytes, void **window) {
    (void)k;
    *window = device;
    return bytes <= WINDOW_BYTES ? E_OK : E_INVAL;
}

static err_t cpu_commit(struct kernels *k, void *device, void *window, size_t bytes) {
    (void)k, (void)bytes;
    return window == device ? E_OK : E_INVAL;
}

static err_t cpu_settle(struct kernels *k) {
    (void)k;
    return E_OK;
}

static err_t cpu_place_base(struct kernels *k, int32_t i, void *block) {
    struct cpu *c = cpu_of(k);
    c->base_matrix[i] = block;
    atomic_fetch_add(&c->placed, base_matrix_bytes(&c->shape, i));
    return E_OK;
}

static void cpu_unbind_tenant(struct kernels *k, struct tenant_weights *t) {
    (void)k, (void)t;
}

static size_t cpu_memory_used(const struct kernels *k) {
    const struct cpu *c = (const struct cpu *)k;
    return atomic_load(&c->placed) + c->kv_bytes + c->block_bytes;
}

static size_t cpu_memory_free(const struct kernels *k) {
    (void)k;
    return memory_available();
}

static size_t cpu_kv_page_bytes(const struct kernels *k) {
    const struct cpu *c = (const struct cpu *)k;
    return (size_t)c->shape.n_layers * kv_page_stride(c) * sizeof(float);
}

static err_t cpu_kv_open(struct kernels *k, int32_t n_pages) {
    struct cpu *c = cpu_of(k);
    host_block_free(c->kv, c->kv_bytes);
    c->kv_bytes = (size_t)n_pages * cpu_kv_page_bytes(k);
    c->n_kv_pages = n_pages;
    c->kv = host_block(c->kv_bytes);
    if (c->kv)
        return E_OK;
    c->kv_bytes = 0;
    return E_NOMEM;
}

static const struct kernels_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .describe = cpu_describe,
    .reserve = cpu_reserve,
    .release = cpu_release,
    .stage = cpu_stage,
    .commit = cpu_commit,
    .settle = cpu_settle,
    .memory_used = cpu_memory_used,
    .memory_free = cpu_memory_free,
    .kv_page_bytes = cpu_kv_page_bytes,
    .place_base = cpu_place_base,
    .bind_tenant = cpu_bind_tenant,
    .unbind_tenant = cpu_unbind_tenant,
    .kv_open = cpu_kv_open,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .linear = cpu_linear,
    .rope_append = cpu_rope_append,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .head = cpu_head,
    .end = cpu_end,
};

static const struct isa *best_isa(void) {
    static const struct isa *const order[] = {
#if defined(__x86_64__)
        &isa_amx,
        &isa_avx512,
        &isa_avx2,
#endif
        &isa_c
    };
    size_t i = 0;
    while (!order[i]->runs_here())
        i++;
    return order[i];
}

err_t cpu_open_isa(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                   int32_t threads, const struct isa *isa, struct why *why) {
    err_t e = check_shape(shape, max_rows, why);
    if (e)
        return e;
    struct cpu *c = calloc(1, sizeof *c);
    if (!c)
        return why_set(why, E_NOMEM, "There is no memory for the CPU backend.");
    c->base.ops = &cpu_ops;
    c->isa = isa ? isa : best_isa();
    c->shape = *shape;
    c->max_rows = max_rows;
    c->base_matrix = calloc((size_t)base_matrices(shape), sizeof *c->base_matrix);
    e = c->base_matrix ? pool_open(&c->pool, threads) : E_NOMEM;
    if (!e) {
        c->block_bytes = carve_all(c, NULL);
        c->block = host_block(c->block_bytes);
        e = c->block ? E_OK : E_NOMEM;
    }
    if (e) {
        why_set(why, e, "There is no memory for the CPU backend: a step of %d rows needs %zu MiB.",
                max_rows, c->block_bytes >> 20);
        cpu_close(&c->base);
        return e;
    }
    carve_all(c, c->block);
    snprintf(c->description, sizeof c->description, "cpu, %s, %d thread%s", c->isa->name,
             pool_threads(c->pool), pool_threads(c->pool) == 1 ? "" : "s");
    *out = &c->base;
    return E_OK;
}

err_t kernels_cpu_open(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                       int32_t threads, struct why *why) {
    return cpu_open_isa(out, shape, max_rows, threads, NULL, why);
}
