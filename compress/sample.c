/* Decoding with a key and value cache: up to WAVE sequences advance one id a step; one that ends
 * gives its row and its cache to the next that waits, so the product always has rows enough. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/corpus.h"
#include "compress/llama_rows.h"

/* Sequences at once: enough rows for the product to run at its speed, and a bound on the cache. */
enum { WAVE = 192, MAX_CACHE_FLOATS = 1 << 28 };

struct wave {
    const struct llama *m;
    const struct gemm *g;
    int32_t cap_length, cap_seqs, n_rows;
    int32_t slot[WAVE], position[WAVE]; /* of each row: its place in the cache, its next position */
    int32_t number[WAVE];               /* of each row: its prompt */
    float *cache_k, *cache_v;           /* [L, cap_seqs, cap_length, K * E] */
    float *h, *x, *inv, *q, *k, *v, *ctx, *gate, *up, *act; /* [WAVE, .] */
    float *logits;                                          /* [WAVE, V] */
    float *score;                                           /* [WAVE * K, cap_length] */
    int32_t layer;                                          /* that the attention tasks work on */
    float *block;
};

static float *piece(float **at, size_t n) {
    float *p = *at;
    *at += (n + 15) / 16 * 16;
    return p;
}

static err_t wave_open(struct wave *w, const struct llama *m, const struct gemm *g,
                       int32_t cap_length) {
    const struct model_shape *s = &m->config.shape;
    size_t nk = (size_t)(s->n_kv_heads * s->head_dim), nq = (size_t)(s->n_heads * s->head_dim),
           dim = (size_t)s->dim, ffn = (size_t)s->ffn_dim, vocab = (size_t)s->vocab;
    size_t per_seq = (size_t)s->n_layers * (size_t)cap_length * nk,
           fit = MAX_CACHE_FLOATS / 2 / per_seq,
           seqs = fit < 1      ? 1
                  : fit > WAVE ? WAVE
                               : fit,
           cache = seqs * per_seq, score = WAVE * (size_t)s->n_kv_heads * (size_t)cap_length;
    size_t total =
        2 * cache + score + WAVE * (2 * dim + 1 + 2 * nq + 2 * nk + 3 * ffn + vocab) + 13 * 16;
    *w = (struct wave){.m = m, .g = g, .cap_length = cap_length, .cap_seqs = (int32_t)seqs};
    w->block = aligned_alloc(64, (total + 15) / 16 * 64);
    if (!w->block)
        return E_NOMEM;
    float *at = w->block;
    w->cache_k = piece(&at, cache), w->cache_v = piece(&at, cache), w->score = piece(&at, score);
    w->h = piece(&at, WAVE * dim), w->x = piece(&at, WAVE * dim), w->inv = piece(&at, WAVE);
    w->q = piece(&at, WAVE * nq), w->ctx = piece(&at, WAVE * nq);
    w->k = piece(&at, WAVE * nk), w->v = piece(&at, WAVE * nk);
    w->gate = piece(&at, WAVE * ffn), w->up = piece(&at, WAVE * ffn);
    w->act = piece(&at, WAVE * ffn), w->logits = piece(&at, WAVE * vocab);
    return 0;
}

/* The query heads of one kv head of one row, over the cached positions it may see. */
static void attend_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct wave *w = arg;
    const struct model_shape *s = &w->m->config.shape;
    int32_t row = task / s->n_kv_heads, kv = task % s->n_kv_heads, head = s->head_dim;
    int32_t group = s->n_heads / s->n_kv_heads, n = w->position[row] + 1, from = 0;
    if (s->sliding_window > 0 && n > s->sliding_window)
        from = n - s->sliding_window;
    size_t ld = (size_t)(s->n_kv_heads * head);
    size_t cache = ((size_t)w->layer * (size_t)w->cap_seqs + (size_t)w->slot[row]) *
                       (size_t)w->cap_length * ld +
                   (size_t)(kv * head);
    const float *k = w->cache_k + cache, *v = w->cache_v + cache;
    float *p = w->score + (size_t)task * (size_t)w->cap_length, scale = 1 / sqrtf((float)head);
    for (int32_t i = 0; i < group; i++) {
        size_t at = (size_t)row * (size_t)(s->n_heads * head) + (size_t)((kv * group + i) * head);
        const float *q = w->q + at;
        float *ctx = w->ctx + at, top = -INFINITY, sum = 0;
        for (int32_t t = from; t < n; t++) {
            float dot = 0;
            for (int32_t e = 0; e < head; e++)
                dot += q[e] * k[(size_t)t * ld + (size_t)e];
            p[t] = dot * scale;
            top = p[t] > top ? p[t] : top;
        }
        memset(ctx, 0, (size_t)head * sizeof *ctx);
        for (int32_t t = from; t < n; t++) {
            float e = fast_exp(p[t] - top);
            sum += e;
            for (int32_t j = 0; j < head; j++)
                ctx[j] += e * v[(size_t)t * ld + (size_t)j];
        }
        for (int32_t j = 0; j < head; j++)
            ctx[j] /= sum;
    }
}

static void rotate(const struct wave *w, int32_t heads, float *x) {
    int32_t head = w->m->config.shape.head_dim, half = head / 2;
    for (int32_t r = 0; r < w->n_rows; r++) {
        const float *turn = w->m->rope + (size_t)w->position[r] * (size_t)head;
        for (int32_t h = 0; h < heads; h++, x += head)
            for (int32_t i = 0; i < half; i++) {
                float c = turn[2 * i], s = turn[2 * i + 1], lo = x[i], hi = x[i + half];
                x[i] = lo * c - hi * s;
                x[i + half] = hi * c + lo * s;
            }
    }
}

static void product(const struct wave *w, int32_t i_matrix, const float *x, float *y, bool add) {
    const struct llama_matrix *a = &w->m->matrix[i_matrix];
    gemm(w->g, w->n_rows, a->n, a->k, mat_of(x, (size_t)a->k), mat_transposed(a->w, (size_t)a->k),
         y, (size_t)a->n, add);
}

/* One id per row, at the row's position; leaves the logits [n_rows, V]. */
static void wave_step(struct wave *w, const int32_t *id) {
    const struct llama *m = w->m;
    const struct model_shape *s = &m->config.shape;
    size_t dim = (size_t)s->dim, nk = (size_t)(s->n_kv_heads * s->head_dim);
    for (int32_t r = 0; r < w->n_rows; r++)
        memcpy(w->h + (size_t)r * dim, m->matrix[llama_embed(m)].w + (size_t)id[r] * dim,
               dim * sizeof(float));
    for (int32_t l = 0; l < s->n_layers; l++) {
        const float *norm = m->norm + (size_t)(2 * l) * dim;
        rows_norm(w->g, w->n_rows, s->dim, s->norm_eps, w->h, norm, w->x, w->inv);
        product(w, llama_part(l, PART_Q), w->x, w->q, false);
        product(w, llama_part(l, PART_K), w->x, w->k, false);
        product(w, llama_part(l, PART_V), w->x, w->v, false);
        rotate(w, s->n_heads, w->q);
        rotate(w, s->n_kv_heads, w->k);
        for (int32_t r = 0; r < w->n_rows; r++) {
            size_t at =
                (((size_t)l * (size_t)w->cap_seqs + (size_t)w->slot[r]) * (size_t)w->cap_length +
                 (size_t)w->position[r]) *
                nk;
            memcpy(w->cache_k + at, w->k + (size_t)r * nk, nk * sizeof(float));
            memcpy(w->cache_v + at, w->v + (size_t)r * nk, nk * sizeof(float));
        }
        w->layer = l;
        pool_run(w->g->pool, attend_task, w, w->n_rows * s->n_kv_heads);
        product(w, llama_part(l, PART_O), w->ctx, w->h, true);
        rows_norm(w->g, w->n_rows, s->dim, s->norm_eps, w->h, norm + dim, w->x, w->inv);
        product(w, llama_part(l, PART_GATE), w->x, w->gate, false);
        product(w, llama_part(l, PART_UP), w->x, w->up, false);
        rows_swiglu(w->g, (size_t)w->n_rows * (size_t)s->ffn_dim, w->gate, w->up, w->act);
        product(w, llama_part(l, PART_DOWN), w->act, w->h, true);
    }
    rows_norm(w->g, w->n_rows, s->dim, s->norm_eps, w->h, m->norm + (size_t)(2 * s->n_layers) * dim,
              w->x, w->inv);
    product(w, llama_head(m), w->x, w->logits, false);
}

/* splitmix64: a draw of its own for every (seed, sequence, position). */
static double uniform(uint64_t seed, uint64_t sequence, uint64_t position) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + sequence * 0xbf58476d1ce4e5b9u + position + 1;
    for (int i = 0; i < 2; i++) {
        z += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return (double)(z >> 11) / 9007199254740992.0;
}

/* The most likely id, or one drawn with u in [0, 1). x [n] is overwritten. */
static int32_t choose(float *x, int32_t n, float temperature, double u) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    if (temperature <= 0)
        return best;
    float top = x[best], sum = 0;
    for (int32_t i = 0; i < n; i++) {
        x[i] = fast_exp((x[i] - top) / temperature);
        sum += x[i];
    }
    double left = u * (double)sum;
    for (int32_t i = 0; i < n; i++)
        if ((left -= (double)x[i]) < 0)
            return i;
    return best;
}

static bool stops(const struct sample_options *o, int32_t id) {
    for (int32_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == id)
            return true;
    return false;
}

struct text {
    int32_t *id, n; /* owned */
};

/* Gives a row to the next prompts while there are any and room for them. */
static err_t fill(struct wave *w, const struct corpus *prompts, const int32_t *max_length,
                  int32_t *next, bool *taken, struct text *text) {
    for (int32_t slot = 0; slot < w->cap_seqs && *next < prompts->n_seqs; slot++) {
        if (taken[slot])
            continue;
        int32_t number = (*next)++, r = w->n_rows++;
        size_t cap = (size_t)(max_length[number] > 1 ? max_length[number] : 1);
        if (!(text[number].id = malloc(cap * sizeof(int32_t))))
            return E_NOMEM;
        text[number].id[0] = prompts->id[prompts->start[number]];
        text[number].n = 1;
        w->slot[r] = slot, w->position[r] = 0, w->number[r] = number;
        taken[slot] = true;
    }
    return E_OK;
}

/* The id that follows a row's last, put behind its text; false when the text has ended. */
static bool extend(struct wave *w, int32_t r, const struct corpus *prompts,
                   const int32_t *max_length, const struct sample_options *o, struct text *text) {
    int32_t number = w->number[r], at = ++w->position[r], vocab = w->m->config.shape.vocab;
    bool forced = at < corpus_length(prompts, number);
    if (at >= max_length[number])
        return false;
    int32_t id = forced ? prompts->id[prompts->start[number] + (size_t)at]
                        : choose(w->logits + (size_t)r * (size_t)vocab, vocab, o->temperature,
                                 uniform(o->seed, (uint64_t)number, (uint64_t)at));
    text->id[text->n++] = id;
    return forced || !stops(o, id);
}

err_t sample_continue(const struct llama *m, const struct gemm *g, const struct corpus *prompts,
                      const int32_t *max_length, const struct sample_options *o,
                      struct corpus *out) {
    int32_t cap = 1, next = 0, id[WAVE];
    bool taken[WAVE] = {false};
    for (int32_t i = 0; i < prompts->n_seqs; i++)
        cap = max_length[i] > cap ? max_length[i] : cap;
    struct wave w = {0};
    struct text *text = calloc((size_t)prompts->n_seqs + 1, sizeof *text);
    err_t e = text ? wave_open(&w, m, g, cap) : E_NOMEM;
    e = e ? e : fill(&w, prompts, max_length, &next, taken, text);
    while (!e && w.n_rows) {
        for (int32_t r = 0; r < w.n_rows; r++)
            id[r] = text[w.number[r]].id[w.position[r]];
        wave_step(&w, id);
        int32_t kept = 0;
        for (int32_t r = 0; r < w.n_rows; r++) {
            if (!extend(&w, r, prompts, max_length, o, &text[w.number[r]])) {
                taken[w.slot[r]] = false;
                continue;
            }
            w.slot[kept] = w.slot[r], w.position[kept] = w.position[r];
            w.number[kept++] = w.number[r];
        }
        bool ended = kept < w.n_rows;
        w.n_rows = kept;
        e = fill(&w, prompts, max_length, &next, taken, text);
        if (ended && o->progress)
            o->progress(o->arg, next - w.n_rows, prompts->n_seqs);
    }
    for (int32_t i = 0; text && i < prompts->n_seqs; i++) {
        e = e ? e : corpus_add(out, text[i].id, text[i].n);
        free(text[i].id);
    }
    free(text);
    free(w.block);
    return e;
}

err_t sample_documents(const struct llama *m, const struct gemm *g, int32_t n, int32_t max_length,
                       const struct sample_options *o, struct corpus *out) {
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
    if (!e)
        e = sample_continue(m, g, &prompts, lengths, o, out);
    free(lengths);
    corpus_free(&prompts);
    return e;
}
