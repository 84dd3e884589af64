/* Sign planes in the making: weights from them, and a step of learning. With G the gradient of the
 * weights and W = base + sum of diag(r) S diag(c) + B A:
 *     d log r_n = r_n sum_k G s c      d log c_k = c_k sum_n G s r      d bit = G r c
 * A hidden real is FP16, which is finest near 0, where signs turn. It moves by its gradient without
 * momentum, which was found to gain nothing, over the root of the gradient's mean square; that is
 * kept for rows and columns alone, and their product taken for an element's (Shazeer and Stern's
 * factored second moment). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/train_cpu.h"
#include "kernels/kernels.h"

enum { BLOCK_ROWS = 32, ADAM_BLOCK = 1 << 14 };
/* A difference beyond three scales is a sure sign; the cap lets learning still turn it. */
static const float unit_cap = 3;
/* Far below the squares of gradients that matter: rounding noise is not blown up. */
static const double least_square = 1e-24;

/* What lies behind train_plane.signs: one block. */
struct signs {
    float *row_sq, *col_sq; /* [n], [k] means of the squared gradient over rows and columns */
    uint16_t *x;            /* [n, k] hidden reals, FP16 */
};

static size_t state_bytes(int32_t n, int32_t k) {
    return ((size_t)n + (size_t)k) * sizeof(float) + (size_t)n * (size_t)k * sizeof(uint16_t);
}

err_t train_cpu_signs_make(struct train *t, int32_t n, int32_t k, void **signs) {
    (void)t;
    struct signs *s = calloc(1, sizeof *s + state_bytes(n, k));
    *signs = s;
    if (!s)
        return E_NOMEM;
    s->row_sq = (float *)(s + 1);
    s->col_sq = s->row_sq + n;
    s->x = (uint16_t *)(s->col_sq + k);
    return E_OK;
}

void train_cpu_signs_free(struct train *t, void *signs) {
    (void)t;
    free(signs);
}

size_t train_cpu_signs_bytes(const struct train *t, int32_t n, int32_t k) {
    (void)t;
    return state_bytes(n, k);
}

void train_cpu_signs_save(struct train *t, const void *signs, int32_t n, int32_t k, void *host) {
    (void)t;
    memcpy(host, (const struct signs *)signs + 1, state_bytes(n, k));
}

void train_cpu_signs_load(struct train *t, void *signs, int32_t n, int32_t k, const void *host) {
    (void)t;
    memcpy((struct signs *)signs + 1, host, state_bytes(n, k));
}

void train_cpu_signs_get(struct train *t, const void *signs, int32_t n, int32_t k,
                         uint32_t *tiles) {
    (void)t;
    const uint16_t *x = ((const struct signs *)signs)->x;
    memset(tiles, 0, plane_bytes(n, k));
    for (int32_t r = 0; r < n; r++)
        for (int32_t i = 0; i < k; i++, x++)
            if (!(*x & 0x8000))
                tiles[plane_word(r, i, k)] |= 1u << (i % 32);
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* out [n] = e^p, ones for a vector that is none, all the same for a single scale. */
static void scales(const struct train_vector *p, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++)
        out[i] = p->n ? expf(p->x[p->n > 1 ? i : 0]) : 1.0f;
}

static float log_scale(double x) {
    return x > 1e-13 ? (float)log(x) : -30.0f; /* 0 once it is stored */
}

struct fit_job {
    const struct train_isa *isa;
    int32_t n, k;
    const float *d, *col; /* [n, k], [k] weight times scale of the columns */
    double norm;          /* of those: sum of weight scale^2 */
    double *row;          /* [n] */
    float *part;          /* [blocks, k] */
};

static void fit_rows_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct fit_job *j = arg;
    for (int32_t n = task * BLOCK_ROWS; n < train_end(task, BLOCK_ROWS, j->n); n++) {
        double sum = (double)j->isa->size_row(j->k, j->d + (size_t)n * (size_t)j->k, j->col);
        j->row[n] = j->norm > 0 ? sum / j->norm : 0;
    }
}

static void fit_cols_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct fit_job *j = arg;
    float *part = j->part + (size_t)task * (size_t)j->k;
    memset(part, 0, (size_t)j->k * sizeof *part);
    for (int32_t n = task * BLOCK_ROWS; n < train_end(task, BLOCK_ROWS, j->n); n++)
        j->isa->size_cols(j->k, j->d + (size_t)n * (size_t)j->k, (float)j->row[n], part);
}

/* col [k] = nearest column scales for the rows of the job. */
static void fit_cols(struct train_cpu *c, struct fit_job *j, double *col) {
    int32_t blocks = train_tasks((size_t)j->n, BLOCK_ROWS);
    double norm = 0;
    for (int32_t n = 0; n < j->n; n++)
        norm += j->row[n] * j->row[n];
    pool_run(c->pool, fit_cols_task, j, blocks);
    for (int32_t k = 0; k < j->k; k++) {
        double sum = 0;
        for (int32_t b = 0; b < blocks; b++)
            sum += (double)j->part[(size_t)b * (size_t)j->k + (size_t)k];
        col[k] = norm > 0 ? sum / norm : 0;
    }
}

void train_cpu_scales_fit(struct train *t, int32_t n, int32_t k, const float *d,
                          const float *weight, int32_t rounds, struct train_plane *p) {
    struct train_cpu *c = train_cpu(t);
    int32_t blocks = train_tasks((size_t)n, BLOCK_ROWS);
    size_t doubles = (size_t)n + (size_t)k;
    float *work = train_cpu_work(c, 2 * doubles + (size_t)k * (size_t)(blocks + 1));
    if (!work)
        return;
    double *row = (double *)(void *)work, *col = row + n;
    float *weighed = work + 2 * doubles;
    struct fit_job j = {c->isa, n, k, d, weighed, 0, row, weighed + k};
    for (int32_t i = 0; i < k; i++)
        col[i] = 1;
    for (int32_t round = 0; round < (p->col.n ? rounds : 1); round++) {
        j.norm = 0;
        for (int32_t i = 0; i < k; i++) {
            double w = weight ? (double)weight[i] : 1;
            weighed[i] = (float)(w * col[i]);
            j.norm += w * col[i] * col[i];
        }
        pool_run(c->pool, fit_rows_task, &j, blocks);
        if (p->col.n && rounds > 1)
            fit_cols(c, &j, col);
    }
    double mean = 0;
    for (int32_t i = 0; i < n; i++)
        mean += row[i] / n;
    for (size_t i = 0; i < p->row.n; i++)
        p->row.x[i] = log_scale(p->row.n > 1 || n == 1 ? row[i] : mean);
    for (size_t i = 0; i < p->col.n; i++)
        p->col.x[i] = log_scale(col[i]);
}

/* ---- weights --------------------------------------------------------------------------------- */

struct merge_job {
    const struct train_isa *isa;
    const struct train_delta *d;
    const float *base;  /* [n, k] or NULL: out holds it */
    const float *scale; /* [planes, n + k] row scales, then column scales */
    float sign, *out;   /* [n, k] */
};

static void merge_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct merge_job *j = arg;
    const struct train_delta *d = j->d;
    size_t k = (size_t)d->k, both = (size_t)d->n + k;
    for (int32_t n = task * BLOCK_ROWS; n < train_end(task, BLOCK_ROWS, d->n); n++) {
        size_t at = (size_t)n * k;
        float *w = j->out + at;
        if (j->base)
            memcpy(w, j->base + at, k * sizeof *w);
        for (int32_t r = 0; r < d->rank; r++)
            j->isa->axpy(k, j->sign * d->b[(size_t)n * (size_t)d->rank + (size_t)r],
                         d->a + (size_t)r * k, w);
        for (int32_t p = 0; p < d->n_planes; p++) {
            const float *scale = j->scale + (size_t)p * both;
            const struct signs *s = d->plane[p].signs;
            j->isa->plane_add(d->k, s->x + at, j->sign * scale[n], scale + d->n, w);
        }
    }
}

static void merge(struct train_cpu *c, const struct train_delta *d, const float *base, float sign,
                  float *out) {
    size_t both = (size_t)d->n + (size_t)d->k;
    float *scale = train_cpu_work(c, both * (size_t)d->n_planes);
    if (!scale && d->n_planes)
        return;
    for (int32_t p = 0; p < d->n_planes; p++) {
        scales(&d->plane[p].row, d->n, scale + (size_t)p * both);
        scales(&d->plane[p].col, d->k, scale + (size_t)p * both + d->n);
    }
    struct merge_job j = {.isa = c->isa, .d = d, .base = base, .scale = scale};
    j.sign = sign, j.out = out;
    pool_run(c->pool, merge_task, &j, train_tasks((size_t)d->n, BLOCK_ROWS));
}

void train_cpu_merge(struct train *t, const struct train_weights *base, const struct train_delta *d,
                     struct train_weights *out) {
    size_t k = (size_t)base->k, at = (size_t)d->n * k;
    const float *from = base->w != out->w ? base->w : NULL;
    merge(train_cpu(t), d, from, 1, out->w);
    if (from && base->n > d->n)
        memcpy((float *)out->w + at, from + at, (size_t)(base->n - d->n) * k * sizeof(float));
}

void train_cpu_unmerge(struct train *t, const struct train_delta *x, float sign, float *d) {
    merge(train_cpu(t), x, NULL, sign, d);
}

/* ---- learning -------------------------------------------------------------------------------- */

static struct adam_step adam_at(struct train_adam a) {
    return (struct adam_step){.rate = a.rate,
                              .fix1 = (float)(1 / (1 - pow((double)adam_beta1, a.t))),
                              .fix2 = (float)(1 / (1 - pow((double)a.beta2, a.t))),
                              .beta2 = a.beta2,
                              .least = a.least,
                              .keep = 1 - a.rate * a.decay};
}

struct adam_job {
    const struct train_isa *isa;
    const struct train_vector *p;
    const float *grad;
    struct adam_step step;
};

static void adam_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct adam_job *j = arg;
    size_t at = (size_t)task * ADAM_BLOCK, left = j->p->n - at;
    j->isa->adam(left < ADAM_BLOCK ? left : ADAM_BLOCK, j->step, j->grad + at, j->p->x + at,
                 j->p->m + at, j->p->v + at);
}

void train_cpu_adam(struct train *t, struct train_vector *p, const float *grad,
                    struct train_adam a) {
    struct adam_job j = {train_cpu(t)->isa, p, grad, adam_at(a)};
    pool_run(train_cpu(t)->pool, adam_task, &j, train_tasks(p->n, ADAM_BLOCK));
}

void train_cpu_signs_set(struct train *t, const struct train_plane *p, int32_t n, int32_t k,
                         const float *d) {
    struct train_cpu *c = train_cpu(t);
    struct signs *s = p->signs;
    memset(s + 1, 0, state_bytes(n, k));
    float *row = train_cpu_work(c, (size_t)n + (size_t)k), *col = row + n;
    if (!row)
        return;
    scales(&p->row, n, row);
    scales(&p->col, k, col);
    for (int32_t i = 0; i < n; i++) {
        size_t at = (size_t)i * (size_t)k;
        c->isa->plane_start(k, row[i], col, d + at, unit_cap, s->x + at);
    }
}

struct back_job {
    const struct train_isa *isa;
    int32_t n, k;
    const struct signs *s;
    const float *grad, *row, *col; /* [n, k], [n], [k] scales */
    float *row_grad, *row_sq;      /* [n] */
    float *col_grad, *col_sq;      /* [blocks, k] */
    const float *row_step, *col_step;
    bool moves;
};

static void back_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct back_job *j = arg;
    size_t k = (size_t)j->k;
    float *col_grad = j->col_grad + (size_t)task * k, *col_sq = j->col_sq + (size_t)task * k;
    memset(col_grad, 0, k * sizeof *col_grad);
    memset(col_sq, 0, k * sizeof *col_sq);
    for (int32_t n = task * BLOCK_ROWS; n < train_end(task, BLOCK_ROWS, j->n); n++) {
        size_t at = (size_t)n * k;
        float sum =
            j->isa->plane_grad(j->k, j->s->x + at, j->row[n], j->col, j->grad + at, col_grad);
        j->row_grad[n] = sum * j->row[n];
        if (j->moves)
            j->row_sq[n] = j->isa->plane_square(j->k, j->row[n], j->col, j->grad + at, col_sq);
    }
}

static void move_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct back_job *j = arg;
    for (int32_t n = task * BLOCK_ROWS; n < train_end(task, BLOCK_ROWS, j->n); n++) {
        size_t at = (size_t)n * (size_t)j->k;
        j->isa->plane_move(j->k, j->row_step[n], j->col_step, j->grad + at, j->s->x + at);
    }
}

/* The first of `blocks` rows of x [blocks, k] becomes their sum. */
static void add_blocks(const struct train_isa *isa, int32_t blocks, int32_t k, float *x) {
    for (int32_t b = 1; b < blocks; b++)
        isa->axpy((size_t)k, 1, x + (size_t)b * (size_t)k, x);
}

/* Means of squares move on by this step's sums; step [n] = scale / sqrt of them. Returns the mean
 * of means. */
static double moments(const float *sum, int32_t n, int32_t each, float *mean) {
    const float kept = train_adam(0, 1).beta2;
    double all = 0;
    for (int32_t i = 0; i < n; i++) {
        mean[i] = kept * mean[i] + (1 - kept) * sum[i] / (float)each;
        all += (double)mean[i] / n;
    }
    return all;
}
static void steps(const float *mean, int32_t n, double scale, float *step) {
    for (int32_t i = 0; i < n; i++)
        step[i] = (double)mean[i] > least_square ? (float)(scale / sqrt((double)mean[i])) : 0;
}

/* An element's mean square is row_sq col_sq / their mean; its gradient is grad row col. */
static void move(struct train_cpu *c, struct back_job *j, struct signs *s, struct adam_step a,
                 float *row_step, float *col_step) {
    double all = moments(j->row_sq, j->n, j->k, s->row_sq);
    moments(j->col_sq, j->k, j->n, s->col_sq);
    steps(s->row_sq, j->n, (double)a.rate * sqrt(all / (double)a.fix2), row_step);
    steps(s->col_sq, j->k, 1, col_step);
    for (int32_t i = 0; i < j->n; i++)
        row_step[i] *= j->row[i];
    for (int32_t i = 0; i < j->k; i++)
        col_step[i] *= j->col[i];
    j->row_step = row_step, j->col_step = col_step;
    pool_run(c->pool, move_task, j, train_tasks((size_t)j->n, BLOCK_ROWS));
}

void train_cpu_plane_back(struct train *t, struct train_plane *p, int32_t n, int32_t k,
                          const float *grad, struct train_adam bits, float *row_grad,
                          float *col_grad) {
    struct train_cpu *c = train_cpu(t);
    int32_t blocks = train_tasks((size_t)n, BLOCK_ROWS);
    size_t rows = (size_t)n, cols = (size_t)k;
    float *work = train_cpu_work(c, 4 * rows + cols * (size_t)(2 * blocks + 2));
    if (!work)
        return;
    float *row = work, *sums = row + n, *row_sq = sums + n, *row_step = row_sq + n,
          *col = row_step + n, *col_step = col + k, *parts = col_step + k;
    scales(&p->row, n, row);
    scales(&p->col, k, col);
    struct back_job j = {.isa = c->isa, .n = n, .k = k, .s = p->signs, .grad = grad};
    j.row = row, j.col = col, j.row_grad = sums, j.row_sq = row_sq;
    j.col_grad = parts, j.col_sq = parts + cols * (size_t)blocks;
    j.moves = bits.rate > 0;
    pool_run(c->pool, back_task, &j, blocks);
    add_blocks(c->isa, blocks, k, j.col_grad);
    add_blocks(c->isa, blocks, k, j.col_sq);
    if (p->row.n == 1 && n > 1)
        for (int32_t i = 1; i < n; i++)
            sums[0] += sums[i];
    memcpy(row_grad, sums, p->row.n * sizeof *row_grad);
    for (size_t i = 0; i < p->col.n; i++)
        col_grad[i] = j.col_grad[i] * col[i];
    if (j.moves)
        move(c, &j, p->signs, adam_at(train_adam(bits.rate, bits.t)), row_step, col_step);
}
