/* The difference of a matrix, streamed from the two checkpoints, and the planes and the pair that
 * fit it best. */
#include "compress/student_start.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/low_rank.h"

enum {
    SCALE_ROUNDS = 8,
    SPLIT_ROUNDS = 2,
    JOINT_ROUNDS = 4,
    TURN_ROUNDS = 2, /* of the scales of one plane, within one of those */
};

/* ---- reading --------------------------------------------------------------------------------- */

/* Sums over the rows of a matrix, as the device left them. */
static err_t add_up(struct student_matrix *x, struct train *t, const float *base,
                    const float *change, const int32_t *zeros, bool *changed) {
    size_t n = (size_t)x->n, bytes = n * sizeof(float);
    float *sum = malloc(2 * bytes);
    int32_t *count = malloc(n * sizeof *count);
    if (sum && count) {
        t->ops->get(t, sum, base, bytes), t->ops->get(t, sum + n, change, bytes);
        t->ops->get(t, count, zeros, n * sizeof *count);
        x->base = x->change = 0, x->zeros = 0;
    }
    for (size_t r = 0; sum && count && r < n; r++) {
        x->base += (double)sum[r], x->change += (double)sum[n + r];
        x->zeros += (uint64_t)count[r];
        if (changed)
            changed[r] = count[r] != x->k;
    }
    bool done = sum && count;
    free(sum), free(count);
    return done ? 0 : E_NOMEM;
}

err_t student_survey(struct student *s, int32_t i, float *d, bool *changed, struct why *why) {
    struct student_matrix *x = &s->matrix[i];
    struct train *t = s->t;
    size_t k = (size_t)x->k, each = t->ops->weight_bytes;
    int32_t step = LLAMA_BLOCK / x->k > 0 ? LLAMA_BLOCK / x->k : 1;
    err_t e = student_read(s, why);
    float *changes = e ? NULL : s->sums + x->n;
    int32_t *zeros = (int32_t *)(void *)(e ? NULL : changes + x->n);
    for (int32_t at = 0, rows; !e && at < x->n; at += rows) {
        rows = x->n - at < step ? x->n - at : step;
        char *from = (char *)s->base->matrix[i].w + (size_t)at * k * each;
        struct train_weights part = {from, rows, x->k};
        float *to = d + (size_t)at * k;
        e = llama_read(&s->reader, i, at, rows, x->k, to, why);
        if (e)
            break;
        t->ops->load(t, &part, s->block);
        t->ops->axpy(t, (size_t)rows * k, -1, s->block, to);
        t->ops->row_dots(t, rows, x->k, s->block, s->block, s->sums + at);
        t->ops->row_dots(t, rows, x->k, to, to, changes + at);
        t->ops->row_zeros(t, rows, x->k, to, zeros + at);
    }
    e = e ? e : add_up(x, t, s->sums, changes, zeros, changed);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory to read weights.") : e;
}

err_t student_difference(struct student *s, int32_t i, float *d, struct why *why) {
    return student_survey(s, i, d, NULL, why);
}

err_t student_put_exact_rows(struct student *s, int32_t i, struct why *why) {
    const struct student_matrix *x = &s->matrix[i];
    size_t k = (size_t)x->k, bytes = s->t->ops->weight_bytes;
    err_t e = student_read(s, why);
    for (int32_t at = 0, n; !e && at < x->n_rows; at += n) { /* runs of neighbours */
        for (n = 1; at + n < x->n_rows && x->row_id[at + n] == x->row_id[at] + n; n++)
            ;
        struct train_weights part = {(char *)x->ground.w + (size_t)x->row_id[at] * k * bytes, n,
                                     x->k};
        e = llama_read(&s->reader, i, x->row_id[at], n, x->k, s->work, why);
        if (!e)
            s->t->ops->store(s->t, s->work, &part);
    }
    return e;
}

/* ---- planes and pair ------------------------------------------------------------------------- */

/* Step between the 2^p evenly spaced levels that are nearest to normally distributed values of
 * variance 1: the scales of p planes are this, halved once, times 1, 2, 4, .. */
static const float level_step[MAX_PLANES + 1] = {0,       1.5958f, 0.9957f, 0.5860f, 0.3352f,
                                                 0.1881f, 0.1041f, 0.0569f, 0.0308f};
static const float size_of_mean = 1.2533f; /* standard deviation over mean absolute value */

/* Scales and signs of one plane for d, which becomes what the plane leaves. */
static void fit_plane(struct student *s, const struct student_matrix *x, struct train_plane *p,
                      float *d) {
    struct train_delta one = {x->n, x->k, 1, 0, p, NULL, NULL};
    s->t->ops->scales_fit(s->t, x->n, x->k, d, NULL, p->col.n ? SCALE_ROUNDS : 1, p);
    s->t->ops->signs_set(s->t, p, x->n, x->k, d);
    s->t->ops->unmerge(s->t, &one, -1, d);
}

/* Scales of all planes from those of the first alone, each half the one before it. */
static err_t halve_scales(struct train *t, struct student_matrix *x) {
    size_t n = x->plane[0].row.n, bytes = n * sizeof(float);
    float *row = malloc(bytes);
    if (!row)
        return E_NOMEM;
    t->ops->get(t, row, x->plane[0].row.x, bytes);
    for (int32_t p = 0; p < x->n_planes; p++) {
        float times = size_of_mean * level_step[x->n_planes] / 2;
        float add = p ? -logf(2) : logf(ldexpf(times, x->n_planes - 1));
        for (size_t i = 0; i < n; i++)
            row[i] += row[i] > -25 ? add : 0; /* 0 stays 0 */
        t->ops->put(t, x->plane[p].row.x, row, bytes);
        if (p && x->plane[p].col.n)
            t->ops->copy(t, x->plane[p].col.x, x->plane[0].col.x,
                         x->plane[p].col.n * sizeof(float));
    }
    free(row);
    return 0;
}

/* All planes together: from evenly spaced levels, signs for the scales, the largest first, and
 * scales for the signs, in turns. One plane behind the other would leave three times as much at 4
 * planes, and a hundred times at 8. */
static err_t fit_jointly(struct student *s, struct student_matrix *x, float *d) {
    const struct train_ops *op = s->t->ops;
    op->scales_fit(s->t, x->n, x->k, d, NULL, x->plane[0].col.n ? SCALE_ROUNDS : 1, &x->plane[0]);
    err_t e = halve_scales(s->t, x);
    for (int32_t round = 0; !e; round++) {
        for (int32_t p = 0; p < x->n_planes; p++) {
            struct train_delta one = {x->n, x->k, 1, 0, &x->plane[p], NULL, NULL};
            op->signs_set(s->t, &x->plane[p], x->n, x->k, d);
            op->unmerge(s->t, &one, -1, d);
        }
        if (round == JOINT_ROUNDS)
            break;
        for (int32_t p = 0; p < x->n_planes; p++) {
            struct train_delta one = {x->n, x->k, 1, 0, &x->plane[p], NULL, NULL};
            op->unmerge(s->t, &one, 1, d); /* what the other planes leave */
            op->scales_fit(s->t, x->n, x->k, d, NULL, x->plane[p].col.n ? TURN_ROUNDS : 1,
                           &x->plane[p]);
            op->unmerge(s->t, &one, -1, d);
        }
        struct train_delta all = {x->n, x->k, x->n_planes, 0, x->plane, NULL, NULL};
        op->unmerge(s->t, &all, 1, d);
    }
    return e;
}

/* Fits the planes of a matrix to d [N, K], which becomes what they leave. The pair is as it is. */
static err_t fit_planes(struct student *s, struct student_matrix *x, float *d) {
    /* Planes with a scale each are the published method's, one behind the other. */
    if (x->n_planes > 1 && x->plane[0].row.n > 1)
        return fit_jointly(s, x, d);
    for (int32_t p = 0; p < x->n_planes; p++)
        fit_plane(s, x, &x->plane[p], d);
    return 0;
}

static err_t root_mean_square(struct train *t, const struct train_vector *v, float *out) {
    float *host = malloc(v->n * sizeof *host);
    double sum = 0;
    if (!host)
        return E_NOMEM;
    t->ops->get(t, host, v->x, v->n * sizeof *host);
    for (size_t i = 0; i < v->n; i++)
        sum += (double)host[i] * (double)host[i];
    free(host);
    *out = (float)sqrt(sum / (double)v->n);
    return 0;
}

err_t student_size_pair(struct student *s, int32_t i) {
    struct student_matrix *x = &s->matrix[i];
    err_t e = root_mean_square(s->t, &x->a, &x->a_size);
    return e ? e : root_mean_square(s->t, &x->b, &x->b_size);
}

/* The pair and the first plane take turns, since each is to fit what the other leaves; then all
 * planes together. */
err_t student_start(struct student *s, int32_t i, float *d) {
    struct student_matrix *x = &s->matrix[i];
    struct train *t = s->t;
    struct train_delta pair = {x->n, x->k, 0, x->rank, NULL, x->a.x, x->b.x},
                       first = {x->n, x->k, 1, 0, x->plane, NULL, NULL};
    int32_t planes = x->n_planes;
    err_t e = 0;
    for (int32_t round = 0; !e && x->rank > 0 && round < (planes ? SPLIT_ROUNDS : 1); round++) {
        if (round > 0)
            t->ops->unmerge(t, &pair, 1, d); /* d: what the first plane leaves */
        e = low_rank(t, x->n, x->k, x->rank, d, NULL, x->b.x, x->a.x, NULL);
        if (e)
            break;
        if (round > 0)
            t->ops->unmerge(t, &first, 1, d); /* d: what the pair leaves */
        if (round + 1 == SPLIT_ROUNDS || !planes)
            break;
        fit_plane(s, x, x->plane, d);
    }
    e = e ? e : fit_planes(s, x, d);
    return e || !x->rank ? e : student_size_pair(s, i);
}
