/* The random model of the kernel tests: see model.h. Tenants: 0 base; 1 one plane; 2 three planes,
 * the second with column scales; 3 low rank only; 4 plane + low rank, dense q and down, own rows in
 * the vocabulary beyond the base's; 5 dense embedding and head, larger vocabulary, other RoPE;
 * 6 planes in embedding, tied head. */
#include "tests/kernels/model.h"

#include <math.h>

#include "kernels/f16.h"

enum { LAYERS = 2, CONTEXT = 256, EXTRA = 3, RANK = 5 };

static void *zeroed(size_t bytes) {
    void *p = host_block(bytes);
    CHECK(p != NULL);
    return p;
}

static uint16_t *random_half(struct model *m, size_t n, float scale) {
    uint16_t *p = zeroed(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = half_from_float(test_gauss(&m->random) * scale);
    return p;
}

static float *random_float(struct model *m, size_t n, float mean, float scale) {
    float *p = zeroed(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = mean + scale * test_gauss(&m->random);
    return p;
}

static void add_plane(struct model *m, struct delta *d, int32_t n, int32_t k, bool col) {
    struct plane *p = &d->plane[d->n_planes++];
    uint32_t *bits = zeroed(plane_bytes(n, k));
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < k; j++)
            if (test_random(&m->random) & 1)
                bits[plane_word(i, j, k)] |= 1u << (j % 32);
    p->bits = bits;
    p->row = random_float(m, (size_t)n, 0.01f, 0.003f);
    p->col = col ? random_float(m, (size_t)k, 1, 0.2f) : NULL;
}

static void add_lowrank(struct model *m, struct delta *d, int32_t n, int32_t k) {
    d->rank = RANK;
    d->a = random_half(m, (size_t)RANK * (size_t)k, 0.05f);
    d->b = random_half(m, (size_t)n * RANK, 0.05f);
}

static void add_rows(struct model *m, struct vocab_matrix *v, int32_t dim) {
    int32_t *id = zeroed(sizeof *id * (2 + EXTRA));
    id[0] = 3;
    id[1] = 17;
    for (int32_t i = 0; i < EXTRA; i++)
        id[2 + i] = m->shape.vocab + i;
    v->n_rows = 2 + EXTRA;
    v->row_id = id;
    v->row = random_half(m, (size_t)(v->n_rows * dim), 0.3f);
}

static void make_rope(struct model *m, struct tenant_weights *t, float theta) {
    int32_t e = m->shape.head_dim;
    float *rope = zeroed(sizeof *rope * CONTEXT * (size_t)e);
    for (int32_t p = 0; p < CONTEXT; p++)
        for (int32_t i = 0; i < e / 2; i++) {
            double angle = p * pow((double)theta, -2.0 * i / e);
            rope[p * e + 2 * i] = (float)cos(angle);
            rope[p * e + 2 * i + 1] = (float)sin(angle);
        }
    t->rope = rope;
    t->context = CONTEXT;
}

static void make_tenant(struct model *m, int32_t i) {
    struct tenant_weights *t = &m->tenant[i];
    const struct model_shape *s = &m->shape;
    t->norm = random_float(m, (size_t)((2 * LAYERS + 1) * s->dim), 1, 0.1f);
    t->vocab = i == 4 || i == 5 ? s->vocab + EXTRA : s->vocab;
    t->norm_eps = i == 2 ? 1e-3f : s->norm_eps;
    t->sliding_window = i == 1 && s->sliding_window ? 0 : i == 6 ? 11 : s->sliding_window;
    make_rope(m, t, i == 5 ? 500.0f : 10000.0f);
    if (i == 0)
        return;
    t->delta = zeroed(sizeof *t->delta * LAYERS * N_PARTS);
    for (int32_t j = 0; j < LAYERS * N_PARTS; j++) {
        enum part part = (enum part)(j % N_PARTS);
        int32_t n = part_rows(s, part), k = part_cols(s, part);
        struct delta *d = &t->delta[j];
        for (int32_t p = 0; i != 3 && i != 5 && p < (i == 2 ? 3 : 1); p++)
            add_plane(m, d, n, k, i == 2 && p == 1);
        if (i == 3 || i == 4)
            add_lowrank(m, d, n, k);
        if (i == 4 && (part == PART_Q || part == PART_DOWN))
            d->dense = random_half(m, (size_t)n * (size_t)k, 0.06f);
    }
    if (i == 4) {
        add_rows(m, &t->embed, s->dim);
        add_rows(m, &t->head, s->dim);
    }
    if (i == 5) {
        t->embed.dense = random_half(m, (size_t)t->vocab * (size_t)s->dim, 0.5f);
        t->head.dense = random_half(m, (size_t)t->vocab * (size_t)s->dim, 0.2f);
    }
    if (i == 6) {
        add_plane(m, &t->embed.delta, s->vocab, s->dim, true);
        add_plane(m, &t->embed.delta, s->vocab, s->dim, false);
        add_lowrank(m, &t->embed.delta, s->vocab, s->dim);
        t->tied = true;
    }
    if (i == 1)
        add_plane(m, &t->head.delta, s->vocab, s->dim, false);
}

void model_make(struct model *m, const int32_t shape[7]) {
    *m = (struct model){.random = 12345};
    m->shape = (struct model_shape){
        .n_layers = LAYERS,
        .dim = shape[0],
        .n_heads = shape[1],
        .n_kv_heads = shape[2],
        .head_dim = shape[3],
        .ffn_dim = shape[4],
        .vocab = shape[5],
        .max_vocab = shape[5] + EXTRA,
        .sliding_window = shape[6],
        .norm_eps = 1e-5f,
    };
    const struct model_shape *s = &m->shape;
    CHECK(base_matrices(s) <= M_MAX_BASE);
    for (int32_t i = 0; i < base_matrices(s); i++)
        m->base[i] = random_half(m, base_matrix_bytes(s, i) / 2,
                                 i < base_embed(s)    ? 0.06f
                                 : i == base_embed(s) ? 0.5f
                                                      : 0.2f);
    for (int32_t i = 0; i < M_TENANTS; i++)
        make_tenant(m, i);
}

void model_place(struct kernels *k, const struct model *m) {
    struct why why = {""};
    for (int32_t i = 0; i < base_matrices(&m->shape); i++) {
        size_t bytes = base_matrix_bytes(&m->shape, i);
        void *copy = memcpy(zeroed(bytes), m->base[i], bytes); /* the backend's from here on */
        CHECK_EQ(k->ops->place_base(k, i, copy), 0);
    }
    for (int32_t i = 0; i < M_TENANTS; i++) {
        struct tenant_weights t = m->tenant[i];
        CHECK_OK(k->ops->bind_tenant(k, &t, &why), why);
    }
}

void model_open(struct kernels **k, const struct model *m, const struct isa *isa, int32_t threads) {
    struct why why = {""};
    CHECK_OK(cpu_open_isa(k, &m->shape, M_MAX_ROWS, threads, isa, &why), why);
    model_place(*k, m);
    CHECK_EQ((*k)->ops->kv_open(*k, M_MAX_PAGES), 0);
}

void model_step_fill(struct model_step *s, const struct model *m, const struct model_seq *seq,
                     int32_t n_seqs, int32_t n_top) {
    memset(s, 0, sizeof *s);
    int32_t row = 0, groups = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        for (int32_t p = 0; p < 8; p++)
            s->pages[i][p] = (seq[i].slot * 8 + (p * 5 + 3) % 8) % M_MAX_PAGES;
        if (!groups || s->group[groups - 1].tenant != &m->tenant[seq[i].tenant])
            s->group[groups++] =
                (struct row_group){.tenant = &m->tenant[seq[i].tenant], .first = row};
        s->group[groups - 1].n += seq[i].n;
        s->seq[i] = (struct row_seq){row, seq[i].n, seq[i].position, s->pages[i]};
        for (int32_t j = 0; j < seq[i].n; j++, row++) {
            CHECK(row < M_MAX_ROWS);
            s->token[row] = seq[i].token[seq[i].position + j];
            s->logit[row] = (struct logit_row){
                .row = row, .target = -1, .top_p = 1, .repetition = 1, .n_top = n_top};
        }
    }
    s->step = (struct step){.n_rows = row,
                            .n_groups = groups,
                            .n_seqs = n_seqs,
                            .n_logits = row,
                            .token = s->token,
                            .group = s->group,
                            .seq = s->seq,
                            .logit = s->logit,
                            .sampled = s->sampled};
}

void model_run(struct kernels *k, const struct model *m, struct model_step *s) {
    const struct kernels_ops *o = k->ops;
    CHECK_EQ(o->begin(k, &s->step), 0);
    o->embed(k);
    for (int32_t layer = 0; layer < m->shape.n_layers; layer++) {
        o->norm(k, layer, NORM_ATTN);
        o->linear(k, layer, LINEAR_QKV);
        o->rope_append(k, layer);
        o->attention(k, layer);
        o->linear(k, layer, LINEAR_O);
        o->norm(k, layer, NORM_FFN);
        o->linear(k, layer, LINEAR_GATE_UP);
        o->swiglu(k);
        o->linear(k, layer, LINEAR_DOWN);
    }
    o->head(k);
    CHECK_EQ(o->end(k), 0);
}

static double delta_weight(const struct delta *d, int32_t n, int32_t k, int32_t cols) {
    double w = 0;
    for (int32_t i = 0; i < d->n_planes; i++) {
        const struct plane *p = &d->plane[i];
        bool set = p->bits[plane_word(n, k, cols)] >> (k % 32) & 1;
        double scale = (double)p->row[n] * (p->col ? (double)p->col[k] : 1);
        w += set ? scale : -scale;
    }
    for (int32_t r = 0; r < d->rank; r++)
        w += (double)half_to_float(d->b[n * d->rank + r]) *
             (double)half_to_float(d->a[r * cols + k]);
    return w;
}

double model_weight(const struct model *m, int32_t tenant, int32_t layer, enum part part, int32_t n,
                    int32_t k) {
    int32_t cols = part_cols(&m->shape, part), which = 0, at = n;
    while (which < N_LINEARS - 1 && linear_first_part((enum linear)(which + 1)) <= part)
        which++;
    for (enum part p = linear_first_part((enum linear)which); p < part; p++)
        at += part_rows(&m->shape, p);
    const struct delta *d = m->tenant[tenant].delta;
    d = d ? &d[layer * N_PARTS + (int32_t)part] : NULL;
    if (d && d->dense)
        return (double)half_to_float(d->dense[n * cols + k]);
    double w = (double)half_to_float(
        m->base[layer * N_LINEARS + which][(size_t)at * (size_t)cols + (size_t)k]);
    return d ? w + delta_weight(d, n, k, cols) : w;
}

double model_vocab_weight(const struct model *m, int32_t tenant, bool head, int32_t id, int32_t k) {
    const struct tenant_weights *t = &m->tenant[tenant];
    const struct vocab_matrix *v = head && !t->tied ? &t->head : &t->embed;
    int32_t dim = m->shape.dim;
    for (int32_t i = 0; i < v->n_rows; i++)
        if (v->row_id[i] == id)
            return (double)half_to_float(v->row[i * dim + k]);
    if (v->dense)
        return (double)half_to_float(v->dense[id * dim + k]);
    const uint16_t *base = m->base[base_embed(&m->shape) + (head && !t->tied)];
    return (double)half_to_float(base[id * dim + k]) + delta_weight(&v->delta, id, k, dim);
}

int32_t model_isas(const struct isa *out[M_ISAS]) {
    int32_t n = 0;
    const struct isa *all[M_ISAS] = {&isa_c, &isa_avx2, &isa_avx512, &isa_amx};
    for (int32_t i = 0; i < M_ISAS; i++)
        if (all[i]->runs_here())
            out[n++] = all[i];
    return n;
}
