/* Decoding with a key and value cache: up to WAVE sequences advance one id a step; one that ends
 * gives its row and its cache to the next that waits, so the product always has rows enough. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/corpus.h"

/* Sequences at once: enough rows for the product to run at its speed; on a card, where a step of a
 * small model takes as long as its launches whatever the rows, more. */
enum { WAVE = 768, HOST_WAVE = 192 };
/* Of the device's free memory, for the cache; and what is enough of it: more does not make writing
 * faster, and others may want to fit on the same card. */
static const double cache_share = 0.6, cache_enough = 2e9, cache_models = 2;

struct wave {
    const struct llama *m;
    struct train *t;
    int32_t cap_length, cap_seqs, n_rows;
    int32_t slot[WAVE], position[WAVE]; /* of each row: its place in the cache, its next position */
    int32_t number[WAVE];               /* of each row: its prompt */
    float u[WAVE];                      /* of each row: its draw */
    int32_t drawn[WAVE];
    struct train_batch batch; /* ids and positions on the device */
    int32_t *ints;            /* device [4, WAVE]: ids, positions, slots, drawn */
    float *dev_u;             /* device [WAVE] */
    char *cache_k, *cache_v;  /* device [L, cap_seqs, cap_length, K * E] of weight_bytes */
    size_t layer_bytes;       /* of all that cache_k, or cache_v, has of a layer */
    float *h, *x, *inv, *q, *k, *v, *ctx, *gate, *up, *act; /* device [WAVE, .] */
    float *logits;                                          /* device [WAVE, V] */
    void *stream;      /* device [WAVE, D] as lessons keep it */
    char *host_stream; /* the same on the host */
    float *block;
};

static float *piece(float *block, size_t *at, size_t n) {
    float *p = block ? block + *at : NULL;
    *at += (n + 63) / 64 * 64;
    return p;
}

/* Floats of everything but the cache; with block NULL it only counts. */
static size_t carve(struct wave *w, float *block) {
    const struct model_shape *s = &w->m->config.shape;
    size_t nk = (size_t)(s->n_kv_heads * s->head_dim), nq = (size_t)(s->n_heads * s->head_dim),
           dim = (size_t)s->dim, ffn = (size_t)s->ffn_dim, at = 0;
    w->h = piece(block, &at, WAVE * dim), w->x = piece(block, &at, WAVE * dim);
    w->inv = piece(block, &at, WAVE);
    w->q = piece(block, &at, WAVE * nq), w->ctx = piece(block, &at, WAVE * nq);
    w->k = piece(block, &at, WAVE * nk), w->v = piece(block, &at, WAVE * nk);
    w->gate = piece(block, &at, WAVE * ffn), w->up = piece(block, &at, WAVE * ffn);
    w->act = piece(block, &at, WAVE * ffn);
    w->logits = piece(block, &at, WAVE * (size_t)s->vocab);
    w->stream = piece(block, &at, WAVE * dim);
    w->dev_u = piece(block, &at, WAVE);
    w->ints = (int32_t *)(void *)piece(block, &at, 4 * (size_t)WAVE);
    return at;
}

/* For n sequences. */
static err_t wave_open(struct wave *w, const struct llama *m, int32_t cap_length, int32_t n) {
    const struct model_shape *s = &m->config.shape;
    struct train *t = m->t;
    *w = (struct wave){.m = m, .t = t, .cap_length = cap_length};
    err_t e = t->ops->take(t, carve(w, NULL) * sizeof(float), (void **)&w->block);
    if (e)
        return e;
    carve(w, w->block);
    w->batch = (struct train_batch){.id = w->ints, .position = w->ints + WAVE};
    size_t per_seq = (size_t)cap_length * (size_t)(s->n_kv_heads * s->head_dim) *
                     t->ops->weight_bytes; /* of a layer */
    double each = 2 * (double)s->n_layers * (double)per_seq,
           most = cache_share * (double)t->ops->memory_free(t),
           enough = cache_enough + cache_models * llama_bytes(&m->config, t->ops->weight_bytes);
    int32_t wave = strcmp(t->ops->name, "cpu") == 0 ? HOST_WAVE : WAVE,
            fit = (int32_t)fmin(wave, fmin(most, enough) / each);
    w->cap_seqs = fit < 1 ? 1 : n < fit ? n : fit;
    w->layer_bytes = (size_t)w->cap_seqs * per_seq;
    size_t side = (size_t)s->n_layers * w->layer_bytes;
    w->host_stream = malloc(WAVE * (size_t)s->dim * t->ops->weight_bytes);
    e = w->host_stream ? 0 : E_NOMEM;
    e = e ? e : t->ops->take(t, 2 * side, (void **)&w->cache_k);
    w->cache_v = e ? NULL : w->cache_k + side;
    return e;
}

static void wave_close(struct wave *w) {
    if (!w->t)
        return;
    w->t->ops->give(w->t, w->block);
    w->t->ops->give(w->t, w->cache_k);
    free(w->host_stream);
}

static void product(const struct wave *w, int32_t i, const float *x, float *y, bool add) {
    struct train_weights a = llama_weights(w->m, i);
    w->t->ops->product(w->t, w->n_rows, x, &a, y, add);
}

static void layer(struct wave *w, int32_t l) {
    const struct llama *m = w->m;
    const struct model_shape *s = &m->config.shape;
    const struct train_ops *op = w->t->ops;
    size_t dim = (size_t)s->dim, cache = (size_t)l * w->layer_bytes;
    const float *norm = m->norm + (size_t)(2 * l) * dim;
    struct train_heads heads = {s->n_heads, s->n_kv_heads, s->head_dim, s->sliding_window};
    op->norm(w->t, w->n_rows, s->dim, s->norm_eps, w->h, norm, w->x, w->inv);
    op->hold(w->t, 0, w->x, (size_t)w->n_rows * dim);
    product(w, llama_part(l, PART_Q), w->x, w->q, false);
    product(w, llama_part(l, PART_K), w->x, w->k, false);
    product(w, llama_part(l, PART_V), w->x, w->v, false);
    op->rope(w->t, &w->batch, m->rope, s->n_heads, s->head_dim, false, w->q);
    op->rope(w->t, &w->batch, m->rope, s->n_kv_heads, s->head_dim, false, w->k);
    op->decode_attention(w->t, w->n_rows, w->ints + 2 * WAVE, w->batch.position, w->cap_length,
                         heads, w->q, w->k, w->v, w->cache_k + cache, w->cache_v + cache, w->ctx);
    product(w, llama_part(l, PART_O), w->ctx, w->h, true);
    op->hold(w->t, 0, NULL, 0);
    op->norm(w->t, w->n_rows, s->dim, s->norm_eps, w->h, norm + dim, w->x, w->inv);
    op->hold(w->t, 0, w->x, (size_t)w->n_rows * dim);
    product(w, llama_part(l, PART_GATE), w->x, w->gate, false);
    product(w, llama_part(l, PART_UP), w->x, w->up, false);
    op->hold(w->t, 0, NULL, 0);
    op->swiglu(w->t, (size_t)w->n_rows * (size_t)s->ffn_dim, w->gate, w->up, w->act);
    product(w, llama_part(l, PART_DOWN), w->act, w->h, true);
}

/* One id per row, at the row's position; leaves what each row draws, and its stream if kept. */
static void wave_step(struct wave *w, const int32_t *id, float temperature, bool keep) {
    const struct llama *m = w->m;
    const struct model_shape *s = &m->config.shape;
    const struct train_ops *op = w->t->ops;
    size_t ints = (size_t)w->n_rows * sizeof(int32_t);
    w->batch.n_rows = w->n_rows;
    op->put(w->t, w->ints, id, ints);
    op->put(w->t, w->ints + WAVE, w->position, ints);
    op->put(w->t, w->ints + 2 * WAVE, w->slot, ints);
    op->put(w->t, w->dev_u, w->u, (size_t)w->n_rows * sizeof(float));
    struct train_weights embed = llama_weights(m, llama_embed(m));
    op->embed(w->t, &w->batch, &embed, w->h);
    for (int32_t l = 0; l < s->n_layers; l++)
        layer(w, l);
    if (keep) {
        struct train_weights stream = {w->stream, w->n_rows, s->dim};
        op->store(w->t, w->h, &stream);
        op->get(w->t, w->host_stream, w->stream,
                (size_t)w->n_rows * (size_t)s->dim * op->weight_bytes);
    }
    op->norm(w->t, w->n_rows, s->dim, s->norm_eps, w->h,
             m->norm + (size_t)(2 * s->n_layers) * (size_t)s->dim, w->x, w->inv);
    product(w, llama_head(m), w->x, w->logits, false);
    op->draw(w->t, w->n_rows, s->vocab, w->logits, temperature, w->dev_u, w->ints + 3 * WAVE);
    op->get(w->t, w->drawn, w->ints + 3 * WAVE, ints);
}

/* splitmix64: a draw of its own for every (seed, sequence, position), in [0, 1). */
static float uniform(uint64_t seed, uint64_t sequence, uint64_t position) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + sequence * 0xbf58476d1ce4e5b9u + position + 1;
    for (int i = 0; i < 2; i++) {
        z += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return (float)(z >> 40) / 16777216.0f;
}

static bool stops(const struct sample_options *o, int32_t id) {
    for (int32_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == id)
            return true;
    return false;
}

/* A sequence as it grows. */
struct text {
    int32_t *id, n;
    char *stream; /* [max length, row_bytes], or NULL */
};

/* Everything of one call. */
struct run {
    struct wave w;
    const struct corpus *prompts;
    const int32_t *max_length;
    const struct sample_options *o;
    struct text *text; /* [prompts] */
    size_t row_bytes;
    int32_t next; /* prompt that waits */
    bool taken[WAVE];
};

/* Gives free slots to the prompts that wait. */
static err_t fill(struct run *r) {
    struct wave *w = &r->w;
    for (int32_t slot = 0; slot < w->cap_seqs && r->next < r->prompts->n_seqs; slot++) {
        if (r->taken[slot])
            continue;
        int32_t number = r->next++, row = w->n_rows++;
        struct text *t = &r->text[number];
        size_t cap = (size_t)(r->max_length[number] > 1 ? r->max_length[number] : 1);
        t->id = malloc(cap * sizeof(int32_t));
        t->stream = r->row_bytes ? malloc(cap * r->row_bytes) : NULL;
        if (!t->id || (r->row_bytes && !t->stream))
            return E_NOMEM;
        t->id[0] = r->prompts->id[r->prompts->start[number]];
        t->n = 1;
        w->slot[row] = slot, w->position[row] = 0, w->number[row] = number;
        r->taken[slot] = true;
    }
    return E_OK;
}

/* The id that follows a row's last, put behind its text; false when the text has ended. */
static bool extend(struct run *r, int32_t row) {
    struct wave *w = &r->w;
    int32_t number = w->number[row];
    struct text *t = &r->text[number];
    if (t->stream)
        memcpy(t->stream + (size_t)w->position[row] * r->row_bytes,
               w->host_stream + (size_t)row * r->row_bytes, r->row_bytes);
    int32_t at = ++w->position[row];
    bool forced = at < corpus_length(r->prompts, number);
    if (at >= r->max_length[number])
        return false;
    int32_t id = forced ? r->prompts->id[r->prompts->start[number] + (size_t)at] : w->drawn[row];
    t->id[t->n++] = id;
    /* Nothing comes behind the last id: its own row is not needed. */
    return t->n < r->max_length[number] && (forced || !stops(r->o, id));
}

static err_t advance(struct run *r) {
    struct wave *w = &r->w;
    int32_t id[WAVE], kept = 0, before = w->n_rows;
    for (int32_t i = 0; i < w->n_rows; i++) {
        id[i] = r->text[w->number[i]].id[w->position[i]];
        w->u[i] = uniform(r->o->seed, (uint64_t)w->number[i], (uint64_t)w->position[i] + 1);
    }
    wave_step(w, id, r->o->temperature, r->row_bytes > 0);
    for (int32_t i = 0; i < before; i++) {
        if (!extend(r, i)) {
            struct text *t = &r->text[w->number[i]];
            char *less = t->stream ? realloc(t->stream, (size_t)t->n * r->row_bytes) : NULL;
            t->stream = less ? less : t->stream;
            r->taken[w->slot[i]] = false;
            continue;
        }
        w->slot[kept] = w->slot[i], w->position[kept] = w->position[i];
        w->number[kept++] = w->number[i];
    }
    w->n_rows = kept;
    err_t e = fill(r);
    if (kept < before && r->o->progress)
        r->o->progress(r->o->arg, r->next - w->n_rows, r->prompts->n_seqs);
    return e;
}

err_t sample_continue(const struct llama *m, const struct corpus *prompts,
                      const int32_t *max_length, const struct sample_options *o, struct lesson *out,
                      struct why *why) {
    int32_t cap = 1;
    for (int32_t i = 0; i < prompts->n_seqs; i++)
        cap = max_length[i] > cap ? max_length[i] : cap;
    struct run r = {.prompts = prompts, .max_length = max_length, .o = o};
    r.row_bytes = out->row_bytes;
    r.text = calloc((size_t)prompts->n_seqs + 1, sizeof *r.text);
    err_t e = r.text ? wave_open(&r.w, m, cap, prompts->n_seqs) : E_NOMEM;
    e = e ? e : fill(&r);
    while (!e && r.w.n_rows)
        e = advance(&r);
    e = e ? e : m->t->ops->settle(m->t, why);
    for (int32_t i = 0; r.text && i < prompts->n_seqs; i++) {
        e = e ? e : lesson_add(out, r.text[i].id, r.text[i].n, r.text[i].stream);
        free(r.text[i].id), free(r.text[i].stream);
    }
    free(r.text);
    wave_close(&r.w);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory to let the model write.") : e;
}

err_t sample_documents(const struct llama *m, int32_t n, int32_t max_length,
                       const struct sample_options *o, struct lesson *out, struct why *why) {
    /* A model without BOS was trained on documents that follow an end. */
    int32_t first = m->config.bos_id >= 0 ? m->config.bos_id
                    : m->config.n_eos     ? m->config.eos_id[0]
                                          : 0;
    struct corpus prompts = {0};
    int32_t *lengths = malloc((size_t)n * sizeof *lengths);
    err_t e = lengths ? 0 : E_NOMEM;
    for (int32_t i = 0; !e && i < n; i++) {
        lengths[i] = max_length;
        e = corpus_add(&prompts, &first, 1);
    }
    e = e ? e : sample_continue(m, &prompts, lengths, o, out, why);
    free(lengths);
    corpus_free(&prompts);
    return e;
}
