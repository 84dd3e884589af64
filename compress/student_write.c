/* Between the student's numbers and the tensors of docs/format.md. */
#include "compress/student_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/student_block.h"
#include "kernels/f16.h"

/* ---- rounding ---------------------------------------------------------------------------------
 */

static void round_logs(struct param *p, float add) {
    for (size_t i = 0; i < p->n; i++) {
        float x = half_to_float(half_from_float(expf(p->x[i] + add)));
        p->x[i] = x > 0 ? logf(x) : -30.0f;
    }
}

static double mean_log(const struct param *p) {
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++)
        if (p->x[i] > -25) /* scales of rows that do not change at all say nothing */
            sum += (double)p->x[i], n++;
    return n ? sum / (double)n : 0;
}

static void round_pair(struct param *p) {
    for (size_t i = 0; i < p->n; i++)
        p->x[i] = half_to_float(half_from_float(p->x[i]));
}

void student_round(struct student *s, const struct gemm *g) {
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        struct student_matrix *x = &s->matrix[i];
        if (x->kind != STUDENT_PLANES)
            continue;
        for (int32_t p = 0; p < x->n_planes; p++) {
            struct student_plane *q = &x->plane[p];
            if (!q->col.n)
                continue; /* a single scale stays FP32 */
            /* Rows and columns share the size evenly, so that neither is small for FP16. */
            float shift = (float)((mean_log(&q->col) - mean_log(&q->row)) / 2);
            round_logs(&q->row, shift);
            round_logs(&q->col, -shift);
            plane_columns(x, q);
        }
        round_pair(&x->a), round_pair(&x->b);
        student_set_weights(s, g, i);
    }
}

/* ---- writing ----------------------------------------------------------------------------------
 */

struct out {
    const struct student *s;
    struct tenant_writer *w;
    struct report *report;
    void *block; /* bytes of the largest tensor */
    struct why *why;
};

static err_t put(const struct out *o, const char *part, const char *suffix, enum st_dtype d,
                 int32_t n_dims, const int64_t *dim, const void *data) {
    return tenant_writer_tensor(o->w, part, suffix, d, n_dims, dim, data, o->why);
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

static err_t put_scales(const struct out *o, const char *part, const char *suffix,
                        const struct param *logs, float *scratch) {
    int64_t n = (int64_t)logs->n;
    for (int64_t i = 0; i < n; i++)
        scratch[i] = logs->x[i] > -25 ? expf(logs->x[i]) : 0;
    return n == 1 ? put(o, part, suffix, ST_F32, 1, &n, scratch)
                  : put_half(o, part, suffix, 1, &n, scratch);
}

static err_t put_plane(const struct out *o, const char *part, const struct student_matrix *x,
                       int32_t i) {
    const struct student_plane *p = &x->plane[i];
    int64_t tiles[3] = {tiles_of(x->n, TILE_ROWS), tiles_of(x->k, TILE_COLS), TILE_BYTES};
    char suffix[24];
    uint32_t *bits = o->block;
    memset(bits, 0, plane_bytes(x->n, x->k));
    for (int32_t n = 0; n < x->n; n++)
        for (int32_t k = 0; k < x->k; k++)
            if (p->bit.x[(size_t)n * (size_t)x->k + (size_t)k] >= 0)
                bits[plane_word(n, k, x->k)] |= 1u << (k % 32);
    snprintf(suffix, sizeof suffix, ".plane%d.bits", i);
    err_t e = put(o, part, suffix, ST_U8, 3, tiles, bits);
    float *scratch = (float *)o->block + (x->n > x->k ? x->n : x->k); /* behind the halves */
    snprintf(suffix, sizeof suffix, ".plane%d.row", i);
    e = e ? e : put_scales(o, part, suffix, &p->row, scratch);
    snprintf(suffix, sizeof suffix, ".plane%d.col", i);
    return e || !p->col.n ? e : put_scales(o, part, suffix, &p->col, scratch);
}

/* Rows of the fine-tune, gathered; n of them, ids NULL: all. */
static err_t put_rows(const struct out *o, const char *part, int32_t i) {
    const struct student_matrix *x = &o->s->matrix[i];
    int64_t n = x->n_rows, dim[2] = {x->n_rows, x->k};
    size_t k = (size_t)x->k;
    err_t e = put(o, part, ".row_ids", ST_I32, 1, &n, x->row_id);
    float *row = malloc((size_t)n * k * sizeof *row);
    if (!e && !row)
        e = why_set(o->why, E_NOMEM, "%s: not enough memory for %d rows", part, x->n_rows);
    for (int64_t r = 0; !e && r < n; r++)
        memcpy(row + (size_t)r * k, o->s->teacher->matrix[i].w + (size_t)x->row_id[r] * k,
               k * sizeof *row);
    e = e ? e : put_half(o, part, ".rows", 2, dim, row);
    free(row);
    return e;
}

static void measure(const struct out *o, int32_t i, struct report_row *r) {
    const struct student_matrix *x = &o->s->matrix[i];
    const float *b = o->s->base->matrix[i].w, *t = o->s->teacher->matrix[i].w,
                *y = o->s->model.matrix[i].w;
    double base = 0, change = 0, residual = 0;
    for (size_t l = 0; l < (size_t)x->n * (size_t)x->k; l++) {
        double d = (double)t[l] - (double)b[l], left = (double)t[l] - (double)y[l];
        base += (double)b[l] * (double)b[l], change += d * d, residual += left * left;
        r->zeros += t[l] == b[l];
    }
    r->weights += (double)o->s->model.matrix[i].n * (double)x->k;
    r->base += base, r->change += change, r->residual += residual;
}

static err_t put_matrix(const struct out *o, int32_t i, const char *part, struct report_row *r) {
    static const enum tenant_kind kinds[] = {KIND_ABSENT, KIND_DENSE, KIND_ROWS, KIND_PLANES};
    const struct student_matrix *x = &o->s->matrix[i];
    uint64_t before = tenant_writer_bytes(o->w);
    tenant_writer_kind(o->w, part, kinds[x->kind]);
    report_kind(r, tenant_kind_name(kinds[x->kind]));
    err_t e = 0;
    if (x->kind == STUDENT_DENSE) {
        int64_t dim[2] = {o->s->model.matrix[i].n, x->k};
        e = put_half(o, part, ".dense", 2, dim, o->s->teacher->matrix[i].w);
    }
    for (int32_t p = 0; !e && p < x->n_planes; p++)
        e = put_plane(o, part, x, p);
    if (!e && x->rank) {
        int64_t a[2] = {x->rank, x->k}, b[2] = {x->n, x->rank};
        e = put_half(o, part, ".lora_a", 2, a, x->a.x);
        e = e ? e : put_half(o, part, ".lora_b", 2, b, x->b.x);
    }
    if (!e && x->n_rows)
        e = put_rows(o, part, i);
    r->bytes += (double)(tenant_writer_bytes(o->w) - before);
    measure(o, i, r);
    return e;
}

static err_t put_norms(const struct out *o) {
    const struct model_shape *s = &o->s->model.config.shape;
    struct report_row *r = &o->report->row[REPORT_NORM];
    int64_t dim[2] = {2 * s->n_layers + 1, s->dim};
    uint64_t before = tenant_writer_bytes(o->w);
    err_t e = put(o, "norm", "", ST_F32, 2, dim, o->s->model.norm);
    for (size_t i = 0; i < o->s->norm.n; i++) {
        double b = (double)o->s->base->norm[i], d = (double)o->s->teacher->norm[i] - b,
               left = (double)o->s->teacher->norm[i] - (double)o->s->model.norm[i];
        r->base += b * b, r->change += d * d, r->residual += left * left;
        r->zeros += (float)d == 0;
    }
    r->weights += (double)o->s->norm.n;
    r->bytes += (double)(tenant_writer_bytes(o->w) - before);
    report_kind(r, "dense");
    return e;
}

err_t student_write(const struct student *s, struct tenant_writer *w, struct report *report,
                    struct why *why) {
    size_t bytes = 0; /* a matrix in FP16, its sign bits, or scales in both widths */
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        int32_t n = s->model.matrix[i].n, k = s->model.matrix[i].k, longer = n > k ? n : k;
        size_t half = 2 * (size_t)n * (size_t)k, scales = 8 * (size_t)longer;
        bytes = half > bytes ? half : bytes;
        bytes = scales > bytes ? scales : bytes;
        bytes = plane_bytes(n, k) > bytes ? plane_bytes(n, k) : bytes;
    }
    struct out o = {s, w, report, malloc(bytes), why};
    err_t e =
        o.block ? 0 : why_set(why, E_NOMEM, "There is not enough memory to write the tenant.");
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
    free(o.block);
    return e;
}
