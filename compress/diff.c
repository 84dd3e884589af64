#include "compress/diff.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/planes.h"
#include "kernels/f16.h"

enum { BLOCK_ELEMENTS = 1 << 24 }; /* 64 MiB of FP32 for each of base and fine-tune */

/* ---- rows ------------------------------------------------------------------------------------ */

static err_t read_checkpoint(void *arg, float *dst, int64_t first, int64_t n_rows,
                             struct why *why) {
    const struct checkpoint_rows *r = arg;
    return checkpoint_read_f32_rows(r->c, r->name, dst, (uint64_t)first * (uint64_t)r->k,
                                    (size_t)n_rows * (size_t)r->k, why);
}

struct rows rows_of_checkpoint(struct checkpoint_rows *r, int32_t n, int32_t k) {
    r->k = k;
    return (struct rows){.read = read_checkpoint, .arg = r, .n = n, .k = k};
}

const char *head_tensor(const struct model_config *c) {
    return c->tied ? "model.embed_tokens.weight" : "lm_head.weight";
}

err_t diff_to_half(uint16_t *dst, const float *src, size_t n, const char *what, struct why *why) {
    for (size_t i = 0; i < n; i++) {
        dst[i] = half_from_float(src[i]);
        if ((dst[i] & 0x7c00) == 0x7c00)
            return why_set(why, E_FORMAT, "%s: element %zu is %g, which FP16 cannot hold", what, i,
                           (double)src[i]);
    }
    return E_OK;
}

/* Blocks of rows of both matrices, one after the other. */
struct walk {
    struct rows base, fine;
    int32_t n, at, rows; /* of the rows that both have; the block is [at, at + rows) */
    int32_t block;       /* rows of a full block: a multiple of the tile */
    float *b, *f;        /* [block, k] */
};

static err_t walk_begin(struct walk *w, struct rows base, struct rows fine, int32_t n, bool whole,
                        struct why *why) {
    int32_t block = BLOCK_ELEMENTS / base.k / TILE_ROWS * TILE_ROWS;
    *w = (struct walk){.base = base, .fine = fine, .n = n};
    w->block = whole || block > n ? n : block < TILE_ROWS ? TILE_ROWS : block;
    size_t elements = (size_t)w->block * (size_t)base.k;
    w->b = malloc(elements * sizeof *w->b);
    w->f = malloc(elements * sizeof *w->f);
    return w->b && w->f
               ? E_OK
               : why_set(why, E_NOMEM, "not enough memory for %d rows of %d", w->block, base.k);
}

/* False past the end, or after an error in *e. */
static bool walk_next(struct walk *w, err_t *e, struct why *why) {
    w->at += w->rows;
    w->rows = w->n - w->at < w->block ? w->n - w->at : w->block;
    if (*e || w->rows <= 0)
        return false;
    *e = w->base.read(w->base.arg, w->b, w->at, w->rows, why);
    if (!*e)
        *e = w->fine.read(w->fine.arg, w->f, w->at, w->rows, why);
    return !*e;
}

static void walk_end(struct walk *w) {
    free(w->b);
    free(w->f);
}

err_t diff_energy(struct rows rows, double *energy, struct why *why) {
    int32_t block = BLOCK_ELEMENTS / rows.k + 1;
    if (block > rows.n)
        block = rows.n;
    float *x = malloc((size_t)block * (size_t)rows.k * sizeof *x);
    err_t e = x ? E_OK : why_set(why, E_NOMEM, "not enough memory for %d rows", block);
    for (int32_t at = 0; !e && at < rows.n; at += block) {
        int32_t n = rows.n - at < block ? rows.n - at : block;
        e = rows.read(rows.arg, x, at, n, why);
        for (size_t i = 0; !e && i < (size_t)n * (size_t)rows.k; i++)
            *energy += (double)x[i] * x[i];
    }
    free(x);
    return e;
}

/* The block's fine-tune becomes the difference; adds the base's energy. */
static void subtract(struct walk *w, struct report_row *report) {
    size_t n = (size_t)w->rows * (size_t)w->base.k;
    double energy = 0;
    for (size_t i = 0; i < n; i++) {
        energy += (double)w->b[i] * w->b[i];
        w->f[i] -= w->b[i];
    }
    report->base += energy;
}

/* ---- planes ---------------------------------------------------------------------------------- */

err_t diff_write_planes(struct tenant_writer *w, const char *part, const struct planes *p,
                        struct why *why) {
    int64_t tiles[3] = {tiles_of(p->n, TILE_ROWS), tiles_of(p->k, TILE_COLS), TILE_BYTES};
    int64_t scales = p->per_row ? p->n : 1;
    err_t e = E_OK;
    for (int32_t i = 0; !e && i < p->n_planes; i++) {
        char bits[24], row[24];
        snprintf(bits, sizeof bits, ".plane%d.bits", i);
        snprintf(row, sizeof row, ".plane%d.row", i);
        e = tenant_writer_tensor(w, part, bits, ST_U8, 3, tiles, p->bits[i], why);
        if (!e)
            e = tenant_writer_tensor(w, part, row, ST_F32, 1, &scales, p->row[i], why);
    }
    return e;
}

static err_t fit(struct planes *p, struct rows base, struct rows fine, int32_t n, int32_t n_planes,
                 bool per_row, struct report_row *report, struct why *why) {
    struct walk walk;
    err_t e = planes_init(p, base.n, base.k, n_planes, per_row, why);
    if (e)
        return e;
    e = walk_begin(&walk, base, fine, n, !per_row, why);
    while (walk_next(&walk, &e, why)) {
        subtract(&walk, report);
        e = per_row ? planes_fit_rows(p, walk.f, walk.at, walk.rows, why)
                    : planes_fit_matrix(p, walk.f, why);
    }
    walk_end(&walk);
    return e;
}

static void add_fit(struct report_row *report, const struct planes *p) {
    report->change += p->change;
    report->residual += p->residual;
    report->zeros += p->zeros;
}

err_t diff_write_part(struct tenant_writer *w, const char *part, struct rows base, struct rows fine,
                      const struct diff_options *o, struct report_row *report, struct why *why) {
    struct planes p;
    uint64_t before = tenant_writer_bytes(w);
    err_t e = fit(&p, base, fine, base.n, o->n_planes, o->per_row, report, why);
    if (e)
        return why_prefix(why, e, "%s", part);
    enum tenant_kind kind = p.change > 0 ? KIND_PLANES : KIND_ABSENT;
    if (kind == KIND_PLANES)
        e = diff_write_planes(w, part, &p, why);
    tenant_writer_kind(w, part, kind);
    report_kind(report, tenant_kind_name(kind));
    report->weights += (double)base.n * base.k;
    report->bytes += (double)(tenant_writer_bytes(w) - before);
    add_fit(report, &p);
    planes_free(&p);
    return e;
}

/* ---- embedding and lm_head ------------------------------------------------------------------- */

/* Ids of the rows that differ, then of those beyond the base. */
struct changed {
    int32_t *id; /* [n] owned */
    int32_t n, n_common;
};

static err_t find_changed(struct changed *c, struct rows base, struct rows fine,
                          struct report_row *report, struct why *why) {
    struct walk walk = {0};
    int32_t common = base.n < fine.n ? base.n : fine.n;
    *c = (struct changed){.id = malloc((size_t)fine.n * sizeof *c->id)};
    if (!c->id)
        return why_set(why, E_NOMEM, "not enough memory for %d rows", fine.n);
    err_t e = walk_begin(&walk, base, fine, common, false, why);
    while (walk_next(&walk, &e, why)) {
        for (int32_t r = 0; r < walk.rows; r++) {
            const float *x = walk.b + (size_t)r * (size_t)base.k,
                        *y = walk.f + (size_t)r * (size_t)base.k;
            double change = 0, energy = 0;
            for (int32_t i = 0; i < base.k; i++) {
                change += ((double)y[i] - x[i]) * ((double)y[i] - x[i]);
                energy += (double)x[i] * x[i];
                report->zeros += y[i] == x[i];
            }
            report->base += energy;
            report->change += change;
            if (change > 0)
                c->id[c->n++] = walk.at + r;
        }
    }
    walk_end(&walk);
    c->n_common = c->n;
    for (int32_t i = base.n; i < fine.n; i++)
        c->id[c->n++] = i;
    return e;
}

err_t diff_measure(struct rows base, struct rows fine, struct report_row *report, struct why *why) {
    struct changed c;
    err_t e = find_changed(&c, base, fine, report, why);
    free(c.id);
    return e;
}

/* Rows id[0 .. n) of the fine-tune, exactly (as FP16). */
static err_t write_rows(struct tenant_writer *w, const char *part, struct rows fine,
                        const int32_t *id, int32_t n, struct why *why) {
    size_t k = (size_t)fine.k;
    int64_t count = n, dim[2] = {n, fine.k};
    float *row = malloc(k * sizeof *row);
    uint16_t *half = malloc((size_t)n * k * sizeof *half);
    err_t e = E_OK;
    if (!row || !half)
        e = why_set(why, E_NOMEM, "%s: not enough memory for %d rows", part, n);
    for (int32_t i = 0; !e && i < n; i++) {
        e = fine.read(fine.arg, row, id[i], 1, why);
        if (!e)
            e = diff_to_half(half + (size_t)i * k, row, k, part, why);
    }
    if (!e)
        e = tenant_writer_tensor(w, part, ".row_ids", ST_I32, 1, &count, id, why);
    if (!e)
        e = tenant_writer_tensor(w, part, ".rows", ST_F16, 2, dim, half, why);
    free(row);
    free(half);
    return e;
}

err_t diff_write_dense(struct tenant_writer *w, const char *part, struct rows fine,
                       struct why *why) {
    int64_t dim[2] = {fine.n, fine.k};
    size_t k = (size_t)fine.k;
    int32_t block = BLOCK_ELEMENTS / fine.k + 1;
    uint16_t *half = malloc((size_t)fine.n * k * sizeof *half);
    float *x = malloc((size_t)block * k * sizeof *x);
    err_t e = half && x ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory", part);
    for (int32_t at = 0; !e && at < fine.n; at += block) {
        int32_t rows = fine.n - at < block ? fine.n - at : block;
        e = fine.read(fine.arg, x, at, rows, why);
        if (!e)
            e = diff_to_half(half + (size_t)at * k, x, (size_t)rows * k, part, why);
    }
    if (!e)
        e = tenant_writer_tensor(w, part, ".dense", ST_F16, 2, dim, half, why);
    free(half);
    free(x);
    return e;
}

static err_t write_vocab_planes(struct tenant_writer *w, const char *part, struct rows base,
                                struct rows fine, const struct changed *c,
                                const struct diff_options *o, struct report_row *report,
                                struct why *why) {
    struct planes p;
    struct report_row ignored = {0}; /* the energies are known from find_changed */
    int32_t common = base.n < fine.n ? base.n : fine.n;
    err_t e = fit(&p, base, fine, common, o->embed_planes, true, &ignored, why);
    if (e)
        return why_prefix(why, e, "%s", part);
    report->residual += p.residual;
    e = diff_write_planes(w, part, &p, why);
    planes_free(&p);
    if (!e && c->n > c->n_common)
        e = write_rows(w, part, fine, c->id + c->n_common, c->n - c->n_common, why);
    return e;
}

err_t diff_write_vocab(struct tenant_writer *w, const char *part, struct rows base,
                       struct rows fine, const struct diff_options *o, struct report_row *report,
                       struct why *why) {
    struct changed c;
    uint64_t before = tenant_writer_bytes(w);
    err_t e = find_changed(&c, base, fine, report, why);
    enum tenant_kind kind = KIND_ABSENT;
    if (c.n > 0) {
        /* Dense or exact rows are the same 16 bits; a quarter of the rows is well worth an index.
         */
        int32_t bits = o->embed_dense ? 4 : o->embed_planes;
        bool few = 16.0 * c.n_common <= (double)bits * base.n;
        kind = few ? KIND_ROWS : o->embed_dense ? KIND_DENSE : KIND_PLANES;
    }
    if (!e && kind == KIND_ROWS)
        e = write_rows(w, part, fine, c.id, c.n, why);
    else if (!e && kind == KIND_DENSE)
        e = diff_write_dense(w, part, fine, why);
    else if (!e && kind == KIND_PLANES)
        e = write_vocab_planes(w, part, base, fine, &c, o, report, why);
    tenant_writer_kind(w, part, kind);
    report_kind(report, tenant_kind_name(kind));
    report->weights += (double)fine.n * fine.k;
    report->bytes += (double)(tenant_writer_bytes(w) - before);
    free(c.id);
    return e;
}

err_t diff_write_norms(struct tenant_writer *w, const struct model_shape *s, const float *base,
                       const float *fine, struct report_row *report, struct why *why) {
    int64_t dim[2] = {2 * s->n_layers + 1, s->dim};
    size_t n = (size_t)dim[0] * (size_t)dim[1];
    uint64_t before = tenant_writer_bytes(w);
    for (size_t i = 0; i < n; i++) {
        report->base += (double)base[i] * base[i];
        report->change += ((double)fine[i] - base[i]) * ((double)fine[i] - base[i]);
        report->zeros += fine[i] == base[i];
    }
    err_t e = tenant_writer_tensor(w, "norm", "", ST_F32, 2, dim, fine, why);
    report->weights += (double)n;
    report->bytes += (double)(tenant_writer_bytes(w) - before);
    report_kind(report, "dense");
    return e;
}
