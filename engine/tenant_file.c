/* Tensors of a tenant file: which must be there with which shape, and what the kernels see of them.
 * The content itself is read by tenant_content.c; nothing in it is believed before its hash and its
 * values were checked. Any thread. */
#include "engine/tenant_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/tenant_content.h"
#include "kernels/f16.h"

enum { MAX_TENSOR_NAME = 160 };

/* One reading. map_tensors() runs twice over it: first to check names and shapes, to say what the
 * values must be and to count the bytes of expanded scales; then, with the content read, to set the
 * pointers. */
struct load {
    struct tenant_file *t;
    const struct st_file *f;
    struct content content;
    bool placed;                      /* the second run */
    unsigned char *expanded;          /* host copy of the expanded scales; NULL in the first run */
    const unsigned char *expanded_at; /* where it will stand */
    size_t at;                        /* where the next expanded vector goes in it */
    uint64_t linear_bytes;            /* of tensors that belong to parts */
    struct why *why;
};

/* Where the tensor's data lies (NULL in the first run). */
static const void *data_of(const struct load *l, const struct st_tensor *t) {
    return l->placed ? content_address(&l->content, t) : NULL;
}
static struct content_tensor *plan_of(struct load *l, const struct st_tensor *t) {
    return &l->content.tensor[t - l->f->tensor];
}

static const struct st_tensor *lookup(const struct load *l, const char *part, const char *suffix) {
    char name[MAX_TENSOR_NAME];
    snprintf(name, sizeof name, "%s%s", part, suffix);
    return st_find(l->f, name);
}

/* Finds a tensor, checks dtype and shape (dims past n_dims unused), marks it as claimed. */
static err_t claim(struct load *l, const char *part, const char *suffix, enum st_dtype dtype,
                   int32_t n_dims, const int64_t *dim, enum value_check check,
                   const struct st_tensor **out) {
    const struct st_tensor *t = *out = lookup(l, part, suffix);
    if (!t)
        return why_set(l->why, E_FORMAT, "%s: tensor %s%s is missing", l->f->label, part, suffix);
    bool fits = t->dtype == dtype && t->n_dims == n_dims;
    char want[96] = "";
    for (int32_t i = 0; i < n_dims; i++) {
        fits = fits && t->dim[i] == dim[i];
        snprintf(want + strlen(want), sizeof want - strlen(want), "%s%lld", i ? ", " : "",
                 (long long)dim[i]);
    }
    if (!fits)
        return why_set(l->why, E_FORMAT,
                       "%s: tensor %s has another dtype or shape than %s [%s], which the tenant's "
                       "config makes it",
                       l->f->label, t->name, st_dtype_name(dtype), want);
    if (t->offset % TENANT_ALIGN)
        return why_set(l->why, E_FORMAT, "%s: tensor %s does not begin at a multiple of %d bytes",
                       l->f->label, t->name, TENANT_ALIGN);
    plan_of(l, t)->claimed = true;
    plan_of(l, t)->check = check;
    return E_OK;
}

/* ---- tensors of one matrix ------------------------------------------------------------------- */

/* A scale as a vector [n] of FP32: where it lies, or (one element for all rows; FP16) expanded in
 * memory of its own. */
static err_t map_scale(struct load *l, const char *part, const char *suffix, int32_t n,
                       bool may_be_one, const float **out) {
    const struct st_tensor *t = lookup(l, part, suffix);
    bool scalar = may_be_one && t && t->n_dims == 1 && t->dim[0] == 1,
         half = t && t->dtype == ST_F16;
    int64_t dim = scalar ? 1 : n;
    err_t e =
        claim(l, part, suffix, half ? ST_F16 : ST_F32, 1, &dim, half ? CHECK_F16 : CHECK_SCALE, &t);
    if (e)
        return e;
    if (!half && (!scalar || n == 1)) {
        *out = data_of(l, t);
        return E_OK;
    }
    plan_of(l, t)->keep = true;
    if (l->placed) {
        const void *data = content_kept(&l->content, t);
        float *vector = (float *)(void *)(l->expanded + l->at);
        for (int32_t i = 0; i < n; i++) {
            int32_t from = scalar ? 0 : i;
            vector[i] =
                half ? half_to_float(((const uint16_t *)data)[from]) : ((const float *)data)[from];
        }
        *out = (const float *)(const void *)(l->expanded_at + l->at);
    }
    l->at += ((size_t)n * sizeof(float) + TENANT_ALIGN - 1) / TENANT_ALIGN * TENANT_ALIGN;
    return E_OK;
}

static err_t map_plane(struct load *l, const char *part, int32_t i, int32_t n, int32_t k,
                       struct plane *plane) {
    char bits[24], row[24], col[24];
    snprintf(bits, sizeof bits, ".plane%d.bits", i);
    snprintf(row, sizeof row, ".plane%d.row", i);
    snprintf(col, sizeof col, ".plane%d.col", i);
    const struct st_tensor *t;
    int64_t tiles[3] = {tiles_of(n, TILE_ROWS), tiles_of(k, TILE_COLS), TILE_BYTES};
    err_t e = claim(l, part, bits, ST_U8, 3, tiles, CHECK_PADDING, &t);
    if (e)
        return e;
    plan_of(l, t)->n = n;
    plan_of(l, t)->k = k;
    plane->bits = data_of(l, t);
    e = map_scale(l, part, row, n, true, &plane->row);
    if (e || !lookup(l, part, col))
        return e;
    return map_scale(l, part, col, k, false, &plane->col);
}

static err_t map_low_rank(struct load *l, const char *part, int32_t n, int32_t k, struct delta *d) {
    const struct st_tensor *a = lookup(l, part, ".lora_a"), *b = lookup(l, part, ".lora_b");
    if (!a && !b)
        return E_OK;
    int64_t rank = a && a->n_dims == 2 ? a->dim[0] : 0, most = tenant_max_rank(n, k);
    if (rank < 1 || rank > most)
        return why_set(
            l->why, E_FORMAT,
            "%s: tensor %s.lora_a must be a matrix of 1 to %d rows; keep a difference of "
            "higher rank as planes or dense",
            l->f->label, part, (int)most);
    int64_t dim_a[2] = {rank, k}, dim_b[2] = {n, rank};
    err_t e = claim(l, part, ".lora_a", ST_F16, 2, dim_a, CHECK_F16, &a);
    if (!e)
        e = claim(l, part, ".lora_b", ST_F16, 2, dim_b, CHECK_F16, &b);
    if (e)
        return e;
    d->rank = (int32_t)rank;
    d->a = data_of(l, a);
    d->b = data_of(l, b);
    return E_OK;
}

static err_t map_planes(struct load *l, const char *part, int32_t n, int32_t k, struct delta *d) {
    d->n_planes = 0;
    for (int32_t i = 0; i < MAX_PLANES; i++) {
        char bits[24];
        snprintf(bits, sizeof bits, ".plane%d.bits", i);
        if (!lookup(l, part, bits))
            break;
        err_t e = map_plane(l, part, i, n, k, &d->plane[i]);
        if (e)
            return e;
        d->n_planes++;
    }
    err_t e = map_low_rank(l, part, n, k, d);
    if (!e && !d->n_planes && !d->rank)
        e = why_set(l->why, E_FORMAT,
                    "%s: %s is of kind planes but has neither planes nor a "
                    "low-rank pair",
                    l->f->label, part);
    return e;
}

static err_t map_dense(struct load *l, const char *part, int32_t n, int32_t k,
                       const uint16_t **out) {
    const struct st_tensor *t;
    int64_t dim[2] = {n, k};
    err_t e = claim(l, part, ".dense", ST_F16, 2, dim, CHECK_F16, &t);
    if (!e)
        *out = data_of(l, t);
    return e;
}

static err_t map_part(struct load *l, int32_t i) {
    const struct model_shape *s = &l->t->meta.config.shape;
    enum part p = (enum part)(i % N_PARTS);
    struct delta *d = &l->t->delta[i];
    char name[128];
    part_name(name, sizeof name, i / N_PARTS, p);
    switch (l->t->meta.part_kind[i]) {
    case KIND_PLANES:
        return map_planes(l, name, part_rows(s, p), part_cols(s, p), d);
    case KIND_DENSE:
        return map_dense(l, name, part_rows(s, p), part_cols(s, p), &d->dense);
    default:
        return E_OK;
    }
}

/* ids ascending and within the vocabulary; those beyond the base's must all be there, because there
 * is nothing that they could fall back to. */
static err_t check_row_ids(const struct load *l, const struct st_tensor *t, const char *part) {
    const int32_t *id = l->placed ? content_kept(&l->content, t) : NULL;
    int32_t vocab = l->t->meta.config.shape.vocab, beyond = 0;
    int64_t n = t->dim[0];
    for (int64_t i = 0; id && i < n; i++) {
        if (id[i] < 0 || id[i] >= vocab || (i && id[i] <= id[i - 1]))
            return why_set(l->why, E_FORMAT,
                           "%s: tensor %s: element %lld is %d; ids must ascend and be below the "
                           "vocabulary size %d",
                           l->f->label, t->name, (long long)i, id[i], vocab);
        beyond += id[i] >= l->t->meta.base_vocab;
    }
    int32_t missing = vocab - l->t->meta.base_vocab - beyond;
    if (id && missing > 0)
        return why_set(l->why, E_FORMAT,
                       "%s: %s lacks %d of the rows that this tenant has beyond the base's "
                       "vocabulary of %d",
                       l->f->label, part, missing, l->t->meta.base_vocab);
    return E_OK;
}

static err_t map_rows(struct load *l, const char *part, struct vocab_matrix *v) {
    const struct st_tensor *ids = lookup(l, part, ".row_ids"), *rows;
    int32_t vocab = l->t->meta.config.shape.vocab;
    if (!ids || ids->n_dims != 1 || ids->dim[0] < 1 || ids->dim[0] > vocab)
        return why_set(l->why, E_FORMAT, "%s: tensor %s.row_ids must be there with 1 to %d ids",
                       l->f->label, part, vocab);
    int64_t n = ids->dim[0], dim[2] = {n, l->t->meta.config.shape.dim};
    err_t e = claim(l, part, ".row_ids", ST_I32, 1, &n, CHECK_NOTHING, &ids);
    if (!e)
        e = claim(l, part, ".rows", ST_F16, 2, dim, CHECK_F16, &rows);
    if (e)
        return e;
    plan_of(l, ids)->keep = true;
    e = check_row_ids(l, ids, part);
    if (e)
        return e;
    v->n_rows = (int32_t)n;
    v->row_id = data_of(l, ids);
    v->row = data_of(l, rows);
    return E_OK;
}

static err_t map_vocab(struct load *l, const char *part, enum tenant_kind kind,
                       struct vocab_matrix *v) {
    const struct tenant_meta *m = &l->t->meta;
    int32_t dim = m->config.shape.dim, vocab = m->config.shape.vocab;
    bool wider = vocab > m->base_vocab;
    err_t e = E_OK;
    switch (kind) {
    case KIND_ABSENT:
        if (wider)
            e = why_set(l->why, E_FORMAT,
                        "%s: %s is absent, but the tenant has %d tokens beyond "
                        "the base's %d",
                        l->f->label, part, vocab - m->base_vocab, m->base_vocab);
        return e;
    case KIND_PLANES:
        e = map_planes(l, part, m->base_vocab, dim, &v->delta);
        return e || (!wider && !lookup(l, part, ".row_ids")) ? e : map_rows(l, part, v);
    case KIND_ROWS:
        return map_rows(l, part, v);
    case KIND_DENSE:
        return map_dense(l, part, vocab, dim, &v->dense);
    default: /* tied */
        return E_OK;
    }
}

static err_t map_norm(struct load *l) {
    const struct model_shape *s = &l->t->meta.config.shape;
    const struct st_tensor *t;
    int64_t dim[2] = {2 * s->n_layers + 1, s->dim};
    err_t e = claim(l, "norm", "", ST_F32, 2, dim, CHECK_F32, &t);
    if (!e)
        l->t->norm = data_of(l, t);
    return e;
}

static err_t map_tensors(struct load *l) {
    const struct model_shape *s = &l->t->meta.config.shape;
    err_t e = E_OK;
    for (int32_t i = 0; !e && i < s->n_layers * N_PARTS; i++)
        e = map_part(l, i);
    l->linear_bytes = 0;
    for (int32_t i = 0; i < l->f->n_tensors; i++)
        if (l->content.tensor[i].claimed && strncmp(l->f->tensor[i].name, "model.layers.", 13) == 0)
            l->linear_bytes += l->f->tensor[i].bytes;
    if (!e)
        e = map_vocab(l, "embed", l->t->meta.embed, &l->t->embed);
    if (!e)
        e = map_vocab(l, "head", l->t->meta.head, &l->t->head);
    return e ? e : map_norm(l);
}

/* ---- the whole file -------------------------------------------------------------------------- */

static bool is_pad(const struct st_tensor *t) {
    return strncmp(t->name, "_pad.", 5) == 0;
}

/* Padding is zero; what is neither claimed nor padding has no meaning here. */
static err_t check_rest(const struct load *l) {
    for (int32_t i = 0; i < l->f->n_tensors; i++) {
        const struct st_tensor *t = &l->f->tensor[i];
        unsigned char pad[TENANT_ALIGN];
        if (l->content.tensor[i].claimed)
            continue;
        if (!is_pad(t) || t->dtype != ST_U8 || t->bytes >= TENANT_ALIGN)
            return why_set(l->why, E_FORMAT,
                           "%s: tensor %s belongs to nothing that tenant.parts, embed or head "
                           "names",
                           l->f->label, t->name);
        err_t e = st_read(l->f, t, pad, l->why);
        if (e)
            return e;
        for (uint64_t j = 0; j < t->bytes; j++)
            if (pad[j])
                return why_set(l->why, E_FORMAT, "%s: tensor %s is padding, but is not zero",
                               l->f->label, t->name);
    }
    return E_OK;
}

/* The content into memory, then the pointers to it. */
static err_t place(struct load *l, bool trusted) {
    size_t expanded = l->at;
    err_t e = content_read(&l->content, trusted);
    if (e)
        return e;
    l->placed = true;
    l->at = 0;
    const void *at = NULL;
    if (expanded) {
        l->expanded = calloc(1, expanded);
        if (!l->expanded)
            return why_set(l->why, E_NOMEM, "%s: not enough memory for its scales", l->f->label);
        e = content_reserve(&l->content, expanded, &at);
    }
    l->expanded_at = at;
    if (!e)
        e = map_tensors(l);
    if (!e && expanded)
        e = content_fill(&l->content, at, l->expanded, expanded);
    return e ? e : content_settle(&l->content);
}

/* A file that is written to while it is read may pass the hashes and still be half old. */
static err_t check_unchanged(int fd, const struct stat *before, const char *label,
                             struct why *why) {
    struct stat now;
    if (fstat(fd, &now) < 0 || now.st_size != before->st_size ||
        now.st_mtim.tv_sec != before->st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != before->st_mtim.tv_nsec)
        return why_set(why, E_IO, "%s: changed while it was read", label);
    return E_OK;
}

static double linear_weights(const struct model_shape *s) {
    double n = 0;
    for (int p = 0; p < N_PARTS; p++)
        n += (double)part_rows(s, (enum part)p) * part_cols(s, (enum part)p);
    return n * s->n_layers;
}

err_t tenant_file_load(struct tenant_file *t, int fd, const char *label, struct kernels *k,
                       bool trusted, const struct model_config *base, const char *base_fingerprint,
                       struct why *why) {
    memset(t, 0, sizeof *t);
    t->kernels = k;
    struct st_file f;
    struct stat before;
    err_t e = st_open(&f, fd, label, TENANT_MAX_HEADER, why);
    struct load l = {.t = t, .f = &f, .why = why};
    if (!e && fstat(fd, &before) < 0)
        e = why_set(why, E_IO, "%s: cannot stat it", label);
    if (!e)
        e = tenant_meta_read(&t->meta, &f, base, base_fingerprint, why);
    if (!e && f.data_start % TENANT_DATA_ALIGN)
        e = why_set(why, E_FORMAT, "%s: its data does not begin at a multiple of %d bytes", label,
                    TENANT_DATA_ALIGN);
    if (!e)
        e = content_open(&l.content, t, &f, why);
    if (!e) {
        t->file_bytes = (size_t)f.size;
        t->delta = calloc((size_t)t->meta.config.shape.n_layers * N_PARTS, sizeof *t->delta);
        e = t->delta ? map_tensors(&l) : why_set(why, E_NOMEM, "%s: not enough memory", label);
    }
    if (!e)
        e = check_rest(&l);
    if (!e)
        e = place(&l, trusted);
    if (!e)
        e = check_unchanged(fd, &before, label, why);
    if (!e)
        t->bits_per_weight = 8 * (double)l.linear_bytes / linear_weights(&t->meta.config.shape);
    free(l.expanded);
    content_close(&l.content);
    st_close(&f);
    return e;
}

err_t tenant_file_read(struct tenant_file *t, int fd, const char *label,
                       const struct model_config *base, const char *base_fingerprint,
                       struct why *why) {
    return tenant_file_load(t, fd, label, NULL, false, base, base_fingerprint, why);
}

void tenant_file_free(struct tenant_file *t) {
    for (int32_t i = 0; i < t->n_extents; i++)
        if (t->kernels)
            t->kernels->ops->release(t->kernels, t->extent[i].device, t->extent[i].bytes);
        else
            host_block_free(t->extent[i].device, t->extent[i].bytes);
    free(t->extent);
    free(t->delta);
    tenant_meta_free(&t->meta);
    memset(t, 0, sizeof *t);
}
