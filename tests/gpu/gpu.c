#include "tests/gpu/gpu.h"

#include "engine/backend.h"
#include "engine/upload.h"

static void *copied(struct kernels *k, const void *host, size_t bytes) {
    void *device = NULL;
    if (host && bytes)
        CHECK_EQ(upload_new(k, host, bytes, &device), 0);
    return device;
}

static void copy_delta(struct kernels *k, struct delta *d, int32_t n, int32_t cols) {
    size_t rows = (size_t)n, columns = (size_t)cols, rank = (size_t)d->rank;
    for (int32_t i = 0; i < d->n_planes; i++) {
        d->plane[i].bits = copied(k, d->plane[i].bits, plane_bytes(n, cols));
        d->plane[i].row = copied(k, d->plane[i].row, rows * sizeof(float));
        d->plane[i].col = copied(k, d->plane[i].col, columns * sizeof(float));
    }
    d->a = copied(k, d->a, rank * columns * sizeof *d->a);
    d->b = copied(k, d->b, rows * rank * sizeof *d->b);
    d->dense = copied(k, d->dense, rows * columns * sizeof *d->dense);
}

static void copy_vocab(struct kernels *k, const struct model *m, struct vocab_matrix *v,
                       int32_t vocab) {
    size_t dim = (size_t)m->shape.dim, rows = (size_t)v->n_rows;
    v->dense = copied(k, v->dense, (size_t)vocab * dim * sizeof *v->dense);
    v->row_id = copied(k, v->row_id, rows * sizeof *v->row_id);
    v->row = copied(k, v->row, rows * dim * sizeof *v->row);
    copy_delta(k, &v->delta, m->shape.vocab, m->shape.dim);
}

static void copy_tenant(struct kernels *k, const struct model *m, struct tenant_weights *t) {
    const struct model_shape *s = &m->shape;
    int32_t n = s->n_layers * N_PARTS;
    t->norm = copied(k, t->norm, (size_t)(2 * s->n_layers + 1) * (size_t)s->dim * sizeof(float));
    t->rope = copied(k, t->rope, (size_t)t->context * (size_t)s->head_dim * sizeof(float));
    if (t->delta) {
        struct delta *d = calloc((size_t)n, sizeof *d);
        CHECK(d);
        memcpy(d, t->delta, (size_t)n * sizeof *d);
        for (int32_t i = 0; i < n; i++)
            copy_delta(k, &d[i], part_rows(s, (enum part)(i % N_PARTS)),
                       part_cols(s, (enum part)(i % N_PARTS)));
        t->delta = d;
    }
    copy_vocab(k, m, &t->embed, t->vocab);
    copy_vocab(k, m, &t->head, t->vocab);
}

static struct kernels *open_or_skip(const struct model_shape *s, int32_t max_rows) {
    struct kernels *k = NULL;
    struct why why = {""};
    err_t e = backend_open(&k, "cuda", s, max_rows, 0, &why);
    if (e == E_UNSUPPORTED)
        test_skip("%s", why.text);
    CHECK_OK(e, why);
    return k;
}

void gpu_need(void) {
    static const struct model_shape shape = {1, 256, 4, 4, 64, 256, 256, 256, 0, 1e-5f, true};
    struct kernels *k = open_or_skip(&shape, 1);
    k->ops->close(k);
}

void gpu_open(struct kernels **k, const struct model *m, int32_t max_rows,
              struct model *on_device) {
    struct why why = {""};
    *k = open_or_skip(&m->shape, max_rows);
    *on_device = *m;
    for (int32_t i = 0; i < base_matrices(&m->shape); i++) {
        size_t bytes = base_matrix_bytes(&m->shape, i);
        void *block = host_block(bytes);
        CHECK(block);
        memcpy(block, m->base[i], bytes);
        CHECK_EQ((*k)->ops->place_base(*k, i, block), 0);
    }
    CHECK_EQ((*k)->ops->kv_open(*k, M_MAX_PAGES), 0);
    for (int32_t i = 0; i < M_TENANTS; i++) {
        struct tenant_weights *t = &on_device->tenant[i];
        copy_tenant(*k, m, t);
        CHECK_OK((*k)->ops->bind_tenant(*k, t, &why), why);
    }
}

struct engine_options gpu_options(const char *base_dir) {
    struct engine_options o = drive_options(base_dir);
    o.device = "cuda";
    return o;
}
