/* Between the student's numbers and the tensors of docs/format.md. */
#include "compress/student_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/f16.h"

/* ---- rounding -------------------------------------------------------------------------------- */

/* A vector of the device as the host sees it, zeros behind it up to n; NULL when there is no
 * memory.
 */
static float *fetch(struct train *t, const struct train_vector *v, size_t n) {
    float *x = calloc((n > v->n ? n : v->n) + 1, sizeof *x);
    if (x && v->n)
        t->ops->get(t, x, v->x, v->n * sizeof *x);
    return x;
}

static void round_logs(float *x, size_t n, float add) {
    for (size_t i = 0; i < n; i++) {
        float scale = half_to_float(half_from_float(expf(x[i] + add)));
        x[i] = scale > 0 ? logf(scale) : -30.0f;
    }
}

static double mean_log(const float *x, size_t n) {
    double sum = 0;
    size_t some = 0;
    for (size_t i = 0; i < n; i++)
        if (x[i] > -25) /* scales of rows that do not change at all say nothing */
            sum += (double)x[i], some++;
    return some ? sum / (double)some : 0;
}

static err_t round_plane(struct train *t, struct train_plane *p) {
    if (p->row.n == 1 && !p->col.n)
        return 0; /* a single scale stays FP32 */
    float *row = fetch(t, &p->row, 0), *col = fetch(t, &p->col, 0);
    if (row && col) {
        /* Rows and columns share the size evenly, so that neither is small for FP16. */
        float shift = 0;
        if (p->col.n)
            shift = (float)((mean_log(col, p->col.n) - mean_log(row, p->row.n)) / 2);
        round_logs(row, p->row.n, shift);
        round_logs(col, p->col.n, -shift);
        t->ops->put(t, p->row.x, row, p->row.n * sizeof *row);
        if (p->col.n)
            t->ops->put(t, p->col.x, col, p->col.n * sizeof *col);
    }
    bool done = row && col;
    free(row), free(col);
    return done ? 0 : E_NOMEM;
}

static err_t round_factor(struct train *t, struct train_vector *v) {
    float *x = fetch(t, v, 0);
    for (size_t i = 0; x && i < v->n; i++)
        x[i] = half_to_float(half_from_float(x[i]));
    if (x && v->n)
        t->ops->put(t, v->x, x, v->n * sizeof *x);
    free(x);
    return x ? 0 : E_NOMEM;
}

/* Rows that have learnt, through the room for a matrix. */
static err_t round_rows(struct student *s, struct student_matrix *x) {
    struct train_vector all = {.x = s->work, .n = (size_t)x->ground.n * (size_t)x->ground.k};
    s->t->ops->load(s->t, &x->ground, s->work);
    err_t e = round_factor(s->t, &all);
    s->t->ops->store(s->t, s->work, &x->ground);
    return e;
}

err_t student_round(struct student *s, struct why *why) {
    err_t e = student_work(s, true, why);
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        struct student_matrix *x = &s->matrix[i];
        for (int32_t p = 0; !e && p < x->n_planes; p++)
            e = round_plane(s->t, &x->plane[p]);
        e = e || !x->rank ? e : round_factor(s->t, &x->a);
        e = e || !x->rank ? e : round_factor(s->t, &x->b);
        e = e || !x->has_learnt ? e : round_rows(s, x);
    }
    student_work(s, false, why);
    return e ? why_set(why, e, "There is not enough memory to round the tenant's numbers.") : 0;
}

/* ---- writing --------------------------------------------------------------------------------- */

struct out {
    struct student *s;
    struct tenant_writer *w;
    struct report *report;
    void *block; /* bytes of the largest tensor */
    struct why *why;
};

static err_t put(const struct out *o, const char *part, const char *suffix, enum st_dtype d,
                 int32_t n_dims, const int64_t *dim, const void *data) {
    return tenant_writer_tensor(o->w, part, suffix, d, n_dims, dim, data, o->why);
}

/* Planes and pairs have the base's rows. Those that the fine-tune gave up change by 0. */
static int32_t rows_in_file(const struct out *o, int32_t i) {
    return o->s->base->matrix[i].n;
}

/* x [n] as FP16. */
static err_t put_half(const struct out *o, const char *part, const char *suffix, int32_t n_dims,
                      const int64_t *dim, const float *x) {
    size_t n = (size_t)dim[0] * (n_dims > 1 ? (size_t)dim[1] : 1);
    uint16_t *half = o->block;
    for (size_t i = 0; i < n; i++) {
        half[i] = half_from_float(x[i]);
        if ((half[i] & 0x7c00) == 0x7c00)
            return why_set(o->why, E_FORMAT, "%s%s: element %zu is %g, which FP16 cannot hold",
                           part, suffix, i, (double)x[i]);
    }
    return put(o, part, suffix, ST_F16, n_dims, dim, half);
}

/* n scales from their logarithms; e^-30 stands for 0, and so does what is not there. */
static err_t put_scales(const struct out *o, const char *part, const char *suffix, int64_t n,
                        const struct train_vector *logs) {
    float *x = fetch(o->s->t, logs, (size_t)n);
    err_t e = x ? 0 : why_set(o->why, E_NOMEM, "%s: not enough memory for its scales", part);
    for (int64_t i = 0; x && i < (int64_t)logs->n; i++)
        x[i] = x[i] > -25 ? expf(x[i]) : 0;
    e = e        ? e
        : n == 1 ? put(o, part, suffix, ST_F32, 1, &n, x)
                 : put_half(o, part, suffix, 1, &n, x);
    free(x);
    return e;
}

static err_t put_plane(const struct out *o, const char *part, const struct student_matrix *x,
                       int32_t n, int32_t i) {
    const struct train_plane *p = &x->plane[i];
    int64_t tiles[3] = {tiles_of(n, TILE_ROWS), tiles_of(x->k, TILE_COLS), TILE_BYTES};
    char suffix[24];
    memset(o->block, 0, plane_bytes(n, x->k));
    o->s->t->ops->signs_get(o->s->t, p->signs, x->n, x->k, o->block);
    snprintf(suffix, sizeof suffix, ".plane%d.bits", i);
    err_t e = put(o, part, suffix, ST_U8, 3, tiles, o->block);
    snprintf(suffix, sizeof suffix, ".plane%d.row", i);
    e = e ? e : put_scales(o, part, suffix, p->row.n > 1 ? n : 1, &p->row);
    snprintf(suffix, sizeof suffix, ".plane%d.col", i);
    return e || !p->col.n ? e : put_scales(o, part, suffix, x->k, &p->col);
}

static err_t put_factor(const struct out *o, const char *part, const char *suffix, int64_t n,
                        int64_t k, const struct train_vector *v) {
    int64_t dim[2] = {n, k};
    float *x = fetch(o->s->t, v, (size_t)(n * k));
    err_t e = x ? put_half(o, part, suffix, 2, dim, x)
                : why_set(o->why, E_NOMEM, "%s: not enough memory for its pair", part);
    free(x);
    return e;
}

/* A whole matrix that has learnt, in place of the fine-tune's rows [n, K]; adds the squares of how
 * far it went. */
static err_t take_learnt(const struct out *o, const struct student_matrix *x, float *row,
                         double *squares) {
    struct train_vector all = {.x = o->s->work, .n = (size_t)x->ground.n * (size_t)x->ground.k};
    o->s->t->ops->load(o->s->t, &x->ground, o->s->work);
    float *learnt = fetch(o->s->t, &all, 0);
    for (size_t l = 0; learnt && l < all.n; l++) {
        double went = (double)learnt[l] - (double)row[l];
        *squares += went * went;
        row[l] = learnt[l];
    }
    free(learnt);
    return learnt ? 0 : why_set(o->why, E_NOMEM, "not enough memory to write the vocabulary");
}

/* Exact rows: all of them as one tensor, or the listed ones with their ids. They are the
 * fine-tune's, unless they have learnt. */
static err_t put_rows(const struct out *o, const char *part, int32_t i, double *squares) {
    const struct student_matrix *x = &o->s->matrix[i];
    struct llama_files files = {o->s->fine, false};
    struct llama_source from = llama_source_files(&files);
    int64_t n = x->n_rows, dim[2] = {x->n_rows, x->k};
    bool dense = x->kind == STUDENT_DENSE;
    size_t k = (size_t)x->k;
    err_t e = dense ? 0 : put(o, part, ".row_ids", ST_I32, 1, &n, x->row_id);
    float *row = malloc((size_t)n * k * sizeof *row);
    if (!e && !row)
        e = why_set(o->why, E_NOMEM, "%s: not enough memory for %d rows", part, x->n_rows);
    for (int32_t r = 0, run; !e && r < x->n_rows; r += run) {
        for (run = 1; r + run < x->n_rows && x->row_id[r + run] == x->row_id[r] + run; run++)
            ;
        e = from.rows(from.arg, i, x->row_id[r], run, row + (size_t)r * k, o->why);
    }
    if (!e && x->has_learnt)
        e = take_learnt(o, x, row, squares);
    e = e ? e : put_half(o, part, dense ? ".dense" : ".rows", 2, dim, row);
    free(row);
    return e;
}

/* Squares of what planes and pair leave of the difference. */
static err_t residual(const struct out *o, int32_t i, double *sum) {
    struct student *s = o->s;
    const struct student_matrix *x = &s->matrix[i];
    struct train_vector squares = {.x = s->grad, .n = (size_t)x->n};
    struct train_delta d = student_delta(s, i);
    err_t e = student_difference(s, i, s->work, o->why);
    if (e)
        return e;
    s->t->ops->unmerge(s->t, &d, -1, s->work);
    s->t->ops->row_dots(s->t, x->n, x->k, s->work, s->work, squares.x);
    float *row = fetch(s->t, &squares, 0);
    for (int32_t r = 0; row && r < x->n; r++)
        *sum += (double)row[r];
    e = row ? 0 : why_set(o->why, E_NOMEM, "not enough memory to measure the tenant");
    free(row);
    return e;
}

static err_t put_matrix(const struct out *o, int32_t i, const char *part, struct report_row *r) {
    static const enum tenant_kind kinds[] = {KIND_ABSENT, KIND_DENSE, KIND_ROWS, KIND_PLANES};
    const struct student_matrix *x = &o->s->matrix[i];
    uint64_t before = tenant_writer_bytes(o->w);
    tenant_writer_kind(o->w, part, kinds[x->kind]);
    report_kind(r, tenant_kind_name(kinds[x->kind]));
    err_t e = 0;
    for (int32_t p = 0; !e && p < x->n_planes; p++)
        e = put_plane(o, part, x, rows_in_file(o, i), p);
    if (!e && x->rank) {
        e = put_factor(o, part, ".lora_a", x->rank, x->k, &x->a);
        e = e ? e : put_factor(o, part, ".lora_b", rows_in_file(o, i), x->rank, &x->b);
    }
    if (!e && x->n_rows)
        e = put_rows(o, part, i, &r->residual);
    r->bytes += (double)(tenant_writer_bytes(o->w) - before);
    r->weights += (double)o->s->model.matrix[i].n * (double)x->k;
    r->base += x->base, r->change += x->change, r->zeros += x->zeros;
    return e || x->kind != STUDENT_PLANES ? e : residual(o, i, &r->residual);
}

static err_t put_norms(const struct out *o) {
    const struct model_shape *s = &o->s->model.config.shape;
    struct report_row *r = &o->report->row[REPORT_NORM];
    int64_t dim[2] = {2 * s->n_layers + 1, s->dim};
    uint64_t before = tenant_writer_bytes(o->w);
    size_t n = o->s->norm.n;
    struct llama_files files[2] = {{o->s->base_files, false}, {o->s->fine, false}};
    struct llama_source base = llama_source_files(&files[0]), fine = llama_source_files(&files[1]);
    float *ours = fetch(o->s->t, &o->s->norm, 0), *was = malloc(2 * n * sizeof *was);
    err_t e = ours && was ? put(o, "norm", "", ST_F32, 2, dim, ours)
                          : why_set(o->why, E_NOMEM, "not enough memory for the norms");
    e = e ? e : base.norms(base.arg, was, o->why);
    e = e ? e : fine.norms(fine.arg, was + n, o->why);
    for (size_t i = 0; !e && i < n; i++) {
        double b = (double)was[i], d = (double)was[n + i] - b,
               left = (double)was[n + i] - (double)ours[i];
        r->base += b * b, r->change += d * d, r->residual += left * left;
        r->zeros += (float)d == 0;
    }
    free(ours), free(was);
    r->weights += (double)n;
    r->bytes += (double)(tenant_writer_bytes(o->w) - before);
    report_kind(r, "dense");
    return e;
}

err_t student_write(struct student *s, struct tenant_writer *w, struct report *report,
                    struct why *why) {
    size_t bytes = 0; /* a matrix in FP16, or its sign bits */
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        int32_t n = s->model.matrix[i].n, k = s->model.matrix[i].k, rows = s->base->matrix[i].n;
        n = rows > n ? rows : n;
        size_t half = 2 * (size_t)n * (size_t)k;
        bytes = half > bytes ? half : bytes;
        bytes = plane_bytes(n, k) > bytes ? plane_bytes(n, k) : bytes;
    }
    struct out o = {s, w, report, malloc(bytes), why};
    err_t e =
        o.block ? 0 : why_set(why, E_NOMEM, "There is not enough memory to write the tenant.");
    e = e ? e : student_work(s, true, why);
    for (int32_t i = 0; !e && i < llama_embed(&s->model); i++) {
        char name[128];
        part_name(name, sizeof name, i / N_PARTS, (enum part)(i % N_PARTS));
        e = put_matrix(&o, i, name, &report->row[i % N_PARTS]);
    }
    e = e ? e : put_matrix(&o, llama_embed(&s->model), "embed", &report->row[REPORT_EMBED]);
    if (!e && s->model.config.tied) {
        tenant_writer_kind(w, "head", KIND_TIED);
        report_kind(&report->row[REPORT_HEAD], "tied");
    } else if (!e) {
        e = put_matrix(&o, llama_head(&s->model), "head", &report->row[REPORT_HEAD]);
    }
    e = e ? e : put_norms(&o);
    e = e ? e : s->t->ops->settle(s->t, why);
    student_work(s, false, why);
    free(o.block);
    return e;
}
