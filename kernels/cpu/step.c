/* One step on the CPU, in the order the engine calls it. What touches little memory is done by the
 * engine thread alone: waking the pool would cost more than it saves. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/f16.h"

/* Elements below which an element-wise operator stays on one thread (a few us of work). */
enum { SERIAL_ELEMENTS = 1 << 13 };

static void run_rows(struct cpu *c, pool_fn fn, void *arg, int32_t n, size_t elements_each) {
    if ((size_t)n * elements_each >= SERIAL_ELEMENTS) {
        pool_run(c->pool, fn, arg, n);
        return;
    }
    for (int32_t i = 0; i < n; i++)
        fn(arg, i, 0);
}

/* ---- bind, begin, end ------------------------------------------------------------------------ */

/* The scratch that A x has in each product: cpu_linear and cpu_head say where. Pairs of at most
 * half the rank of their matrix, which is all that tenant files may hold, fit unless D exceeds F by
 * a third. */
static bool lowrank_fits(const struct cpu *c, const struct tenant_weights *t) {
    for (int32_t layer = 0; t->delta && layer < c->shape.n_layers; layer++)
        for (int32_t which = 0; which < N_LINEARS; which++) {
            size_t rank = 0;
            for (int32_t i = 0; i < linear_n_parts((enum linear)which); i++)
                rank += (size_t)t
                            ->delta[layer * N_PARTS +
                                    (int32_t)linear_first_part((enum linear)which) + i]
                            .rank;
            if (rank > (which == LINEAR_GATE_UP ? c->ld_act : c->ld_gate_up))
                return false;
        }
    return (size_t)(t->tied ? t->embed : t->head).delta.rank <= c->ld_gate_up;
}

err_t cpu_bind_tenant(struct kernels *k, struct tenant_weights *t, struct why *why) {
    const struct cpu *c = cpu_of(k);
    if (!lowrank_fits(c, t))
        return why_set(why, E_UNSUPPORTED,
                       "a low-rank pair has more ranks than the CPU backend has room for");
    if (t->vocab < 1 || (size_t)t->vocab > c->ld_logits || t->context < 1)
        return why_set(why, E_UNSUPPORTED,
                       "a vocabulary of %d is more than the logits' width of %d", t->vocab,
                       (int)c->ld_logits);
    return E_OK;
}

static err_t map_groups(struct cpu *c, const struct step *step) {
    int32_t row = 0;
    for (int32_t i = 0; i < step->n_groups; i++) {
        const struct row_group *g = &step->group[i];
        if (g->first != row || g->n < 1 || g->n > step->n_rows - row)
            return E_INVAL;
        for (; row < g->first + g->n; row++) {
            c->row_group[row] = i;
            if (step->token[row] < 0 || step->token[row] >= g->tenant->vocab)
                return E_TOKEN_RANGE;
        }
    }
    return row == step->n_rows ? E_OK : E_INVAL;
}

static err_t map_sequences(struct cpu *c, const struct step *step) {
    int32_t row = 0, block = QUERIES / (c->shape.n_heads / c->shape.n_kv_heads);
    block = block < 1 ? 1 : block;
    c->n_query_blocks = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct row_seq *s = &step->seq[i];
        if (s->first != row || s->n < 1 || s->n > step->n_rows - row || s->position < 0)
            return E_INVAL;
        for (int32_t at = 0; at < s->n; at += block)
            c->query_block[c->n_query_blocks++] = (struct query_block){
                .first = s->first + at,
                .n = s->n - at < block ? s->n - at : block,
                .position = s->position + at,
                .pages = s->pages,
            };
        for (; row < s->first + s->n; row++) {
            c->row_position[row] = s->position + row - s->first;
            c->row_pages[row] = s->pages;
            if (c->row_position[row] >= step->group[c->row_group[row]].tenant->context)
                return E_CONTEXT;
        }
    }
    return row == step->n_rows ? E_OK : E_INVAL;
}

err_t cpu_begin(struct kernels *k, const struct step *step) {
    struct cpu *c = cpu_of(k);
    if (step->n_rows < 1 || step->n_rows > c->max_rows || step->n_logits > step->n_rows)
        return E_INVAL;
    err_t e = map_groups(c, step);
    if (!e)
        e = map_sequences(c, step);
    if (!e)
        c->step = step;
    return e;
}

err_t cpu_end(struct kernels *k) {
    cpu_of(k)->step = NULL; /* every operator has finished when it returns */
    return E_OK;
}

/* ---- embed ----------------------------------------------------------------------------------- */

static const uint16_t *find_row(const struct vocab_matrix *m, int32_t id, int32_t dim) {
    int32_t lo = 0, hi = m->n_rows;
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if (m->row_id[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < m->n_rows && m->row_id[lo] == id ? m->row + (size_t)lo * (size_t)dim : NULL;
}

/* h += row `id` of the planes and of B A. */
static void embed_delta(const struct delta *d, int32_t id, int32_t dim, float *h) {
    for (int32_t i = 0; i < d->n_planes; i++) {
        const struct plane *p = &d->plane[i];
        for (int32_t j = 0; j < dim; j++) {
            bool set = p->bits[plane_word(id, j, dim)] >> (j % 32) & 1;
            float scale = p->row[id] * (p->col ? p->col[j] : 1.0f);
            h[j] += set ? scale : -scale;
        }
    }
    for (int32_t r = 0; r < d->rank; r++) {
        float b = half_to_float(d->b[(size_t)id * (size_t)d->rank + (size_t)r]);
        for (int32_t j = 0; j < dim; j++)
            h[j] += b * half_to_float(d->a[(size_t)r * (size_t)dim + (size_t)j]);
    }
}

static void embed_row(void *arg, int32_t row, int32_t thread) {
    const struct cpu *c = arg;
    const struct tenant_weights *t = c->step->group[c->row_group[row]].tenant;
    int32_t id = c->step->token[row], dim = c->shape.dim;
    float *h = c->h + (size_t)row * c->ld_h;
    const uint16_t *own = find_row(&t->embed, id, dim);
    (void)thread;
    if (!own && t->embed.dense)
        own = t->embed.dense + (size_t)id * (size_t)dim;
    if (own) {
        c->isa->widen(own, dim, h);
    } else if (id < c->shape.vocab) {
        c->isa->widen(base_vocab(c, false) + (size_t)id * (size_t)dim, dim, h);
        embed_delta(&t->embed.delta, id, dim, h);
    } else {
        for (int32_t j = 0; j < dim; j++) /* a file that promised a row it lacks: not finite */
            h[j] = NAN;
    }
}

void cpu_embed(struct kernels *k) {
    struct cpu *c = cpu_of(k);
    run_rows(c, embed_row, c, c->step->n_rows, (size_t)c->shape.dim);
}

/* ---- norm, swiglu ---------------------------------------------------------------------------- */

struct layer_job {
    struct cpu *c;
    int32_t layer;
    enum norm which;
};

static void norm_row(void *arg, int32_t row, int32_t thread) {
    const struct layer_job *job = arg;
    const struct cpu *c = job->c;
    const struct tenant_weights *t = c->step->group[c->row_group[row]].tenant;
    const float *w =
        t->norm + (size_t)(2 * job->layer + (job->which == NORM_FFN)) * (size_t)c->shape.dim;
    (void)thread;
    c->isa->norm(c->h + (size_t)row * c->ld_h, w, t->norm_eps, c->shape.dim,
                 c->x + (size_t)row * c->ld_h);
}

void cpu_norm(struct kernels *k, int32_t layer, enum norm which) {
    struct cpu *c = cpu_of(k);
    struct layer_job job = {c, layer, which};
    run_rows(c, norm_row, &job, c->step->n_rows, (size_t)c->shape.dim);
}

static void swiglu_row(void *arg, int32_t row, int32_t thread) {
    const struct cpu *c = arg;
    const float *gate = c->gate_up + (size_t)row * c->ld_gate_up;
    (void)thread;
    c->isa->swiglu(gate, gate + c->shape.ffn_dim, c->shape.ffn_dim,
                   c->act + (size_t)row * c->ld_act);
}

void cpu_swiglu(struct kernels *k) {
    struct cpu *c = cpu_of(k);
    run_rows(c, swiglu_row, c, c->step->n_rows, (size_t)c->shape.ffn_dim);
}

/* ---- rope, attention ------------------------------------------------------------------------- */

/* Pairs (i, i + E/2), as Hugging Face's Llama has it. */
static void rotate(float *v, const float *cos_sin, int32_t e) {
    for (int32_t i = 0; i < e / 2; i++) {
        float a = v[i], b = v[i + e / 2], cs = cos_sin[2 * i], sn = cos_sin[2 * i + 1];
        v[i] = a * cs - b * sn;
        v[i + e / 2] = b * cs + a * sn;
    }
}

/* k and v of one row and kv head, into their place in the page. */
static void append(const struct cpu *c, int32_t layer, int32_t kv, int32_t row, const float *key,
                   const float *value) {
    int32_t e = c->shape.head_dim, at = c->row_position[row] % KV_PAGE_TOKENS;
    int32_t page = c->row_pages[row][c->row_position[row] / KV_PAGE_TOKENS];
    float *keys = kv_head(c, layer, kv) + (size_t)page * kv_page_stride(c);
    float *values = keys + (size_t)KV_PAGE_TOKENS * (size_t)e + (size_t)at * (size_t)kv_lanes(e);
    for (int32_t i = 0; i < e; i++) {
        keys[i * KV_PAGE_TOKENS + at] = key[i];
        values[i] = value[i];
    }
}

/* One head of all rows: keys of neighbouring tokens share cache lines, so rows are not split. */
static void rope_head(void *arg, int32_t head, int32_t thread) {
    const struct layer_job *job = arg;
    const struct cpu *c = job->c;
    int32_t e = c->shape.head_dim, kv = head - c->shape.n_heads;
    (void)thread;
    for (int32_t row = 0; row < c->step->n_rows; row++) {
        const struct tenant_weights *t = c->step->group[c->row_group[row]].tenant;
        float *v = c->qkv + (size_t)row * c->ld_qkv + (size_t)head * (size_t)e;
        rotate(v, t->rope + (size_t)c->row_position[row] * (size_t)e, e);
        if (kv >= 0)
            append(c, job->layer, kv, row, v, v + (size_t)c->shape.n_kv_heads * (size_t)e);
    }
}

void cpu_rope_append(struct kernels *k, int32_t layer) {
    struct cpu *c = cpu_of(k);
    struct layer_job job = {c, layer, NORM_ATTN};
    run_rows(c, rope_head, &job, c->shape.n_heads + c->shape.n_kv_heads,
             4 * (size_t)c->step->n_rows * (size_t)c->shape.head_dim);
}

/* A block of rows and one kv head, with all query heads that share it. */
static void attend(void *arg, int32_t item, int32_t thread) {
    const struct layer_job *job = arg;
    const struct cpu *c = job->c;
    const struct model_shape *m = &c->shape;
    int32_t kv = item % m->n_kv_heads, heads = m->n_heads / m->n_kv_heads;
    const struct query_block *b = &c->query_block[item / m->n_kv_heads];
    int32_t window = c->step->group[c->row_group[b->first]].tenant->sliding_window;
    struct attention_args a = {.kv = kv_head(c, job->layer, kv),
                               .page_stride = kv_page_stride(c),
                               .pages = b->pages,
                               .e = m->head_dim,
                               .scale = 1.0f / sqrtf((float)m->head_dim)};
    for (int32_t r = 0; r < b->n; r++)
        for (int32_t h = 0; h < heads; h++) {
            size_t row = (size_t)(b->first + r), at = (size_t)(kv * heads + h) * (size_t)a.e;
            a.q[a.n_q] = c->qkv + row * c->ld_qkv + at;
            a.out[a.n_q] = c->ctx + row * c->ld_ctx + at;
            a.to[a.n_q] = b->position + r;
            a.from[a.n_q] = window > 0 && a.to[a.n_q] >= window ? a.to[a.n_q] - window + 1 : 0;
            if (++a.n_q == QUERIES || (h == heads - 1 && r == b->n - 1)) {
                c->isa->attention(&a, &c->scratch[thread]);
                a.n_q = 0;
            }
        }
}

void cpu_attention(struct kernels *k, int32_t layer) {
    struct cpu *c = cpu_of(k);
    struct layer_job job = {c, layer, NORM_ATTN};
    size_t keys = 0;
    for (int32_t i = 0; i < c->n_query_blocks; i++)
        keys += (size_t)c->query_block[i].position + 1;
    run_rows(c, attend, &job, c->n_query_blocks * c->shape.n_kv_heads,
             keys * (size_t)c->shape.head_dim);
}
