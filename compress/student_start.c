/* The difference of a matrix, streamed from the two checkpoints, and the planes and the pair that
 * fit it best. */
#include "compress/student_start.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/low_rank.h"
#include "compress/parallel.h"

enum {
    SCALE_ROUNDS = 8,
    SPLIT_ROUNDS = 2,
    BLOCK_FLOATS = 1 << 23, /* read at a time from each checkpoint */
    MAX_TASKS = 64,
};

/* ---- reading -----------------------------------------------------------------------------------
 */

/* A block of rows of both checkpoints; each task fills its rows and its sums. */
struct block {
    struct llama_source base, fine;
    int32_t i_matrix, first, k, step;
    float *d;      /* [rows, k] */
    bool *changed; /* [rows] or NULL */
    struct {
        double base, change;
        uint64_t zeros;
        err_t error;
        struct why why;
    } task[MAX_TASKS];
};

static void read_rows(void *arg, int32_t first, int32_t end) {
    struct block *b = arg;
    size_t k = (size_t)b->k, n = (size_t)(end - first) * k;
    int32_t task = first / b->step, at = b->first + first, rows = end - first;
    float *base = malloc(n * sizeof *base), *d = b->d + (size_t)first * k;
    err_t e = base ? 0 : why_set(&b->task[task].why, E_NOMEM, "not enough memory to read weights");
    e = e ? e : b->base.rows(b->base.arg, b->i_matrix, at, rows, base, &b->task[task].why);
    e = e ? e : b->fine.rows(b->fine.arg, b->i_matrix, at, rows, d, &b->task[task].why);
    double size = 0, change = 0;
    uint64_t zeros = 0;
    for (int32_t r = 0; !e && r < rows; r++) {
        uint64_t before = zeros;
        for (size_t i = (size_t)r * k; i < (size_t)(r + 1) * k; i++) {
            d[i] -= base[i];
            size += (double)base[i] * (double)base[i];
            change += (double)d[i] * (double)d[i];
            zeros += d[i] == 0;
        }
        if (b->changed)
            b->changed[first + r] = zeros - before != k;
    }
    b->task[task].base = size, b->task[task].change = change, b->task[task].zeros = zeros;
    b->task[task].error = e;
    free(base);
}

err_t student_survey(struct student *s, int32_t i, float *d, bool *changed, struct why *why) {
    struct student_matrix *x = &s->matrix[i];
    struct llama_files base = {s->base_files, true}, fine = {s->fine, false};
    int32_t step = BLOCK_FLOATS / x->k > 0 ? BLOCK_FLOATS / x->k : 1;
    float *host = malloc((size_t)step * (size_t)x->k * sizeof *host);
    struct block *b = malloc(sizeof *b);
    err_t e = host && b ? 0 : why_set(why, E_NOMEM, "not enough memory to read weights");
    x->base = x->change = 0, x->zeros = 0;
    for (int32_t at = 0; !e && at < x->n; at += step) {
        int32_t rows = x->n - at < step ? x->n - at : step;
        *b = (struct block){.i_matrix = i, .first = at, .k = x->k, .d = host};
        b->base = llama_source_files(&base), b->fine = llama_source_files(&fine);
        b->changed = changed ? changed + at : NULL;
        b->step = b->fine.one_by_one ? rows : (rows + MAX_TASKS - 1) / MAX_TASKS;
        parallel_rows(rows, b->step, read_rows, b);
        for (int32_t task = 0; task < MAX_TASKS; task++) { /* in order: always the same sums */
            x->base += b->task[task].base, x->change += b->task[task].change;
            x->zeros += b->task[task].zeros;
            if (!e && b->task[task].error) {
                e = b->task[task].error;
                *why = b->task[task].why;
            }
        }
        if (!e && d)
            s->t->ops->put(s->t, d + (size_t)at * (size_t)x->k, host,
                           (size_t)rows * (size_t)x->k * sizeof *host);
    }
    free(host), free(b);
    return e;
}

err_t student_difference(struct student *s, int32_t i, float *d, struct why *why) {
    return student_survey(s, i, d, NULL, why);
}

err_t student_put_exact_rows(struct student *s, int32_t i, struct why *why) {
    const struct student_matrix *x = &s->matrix[i];
    struct llama_files files = {s->fine, false};
    struct llama_source from = llama_source_files(&files);
    size_t k = (size_t)x->k, bytes = s->t->ops->weight_bytes;
    int32_t step = BLOCK_FLOATS / x->k > 0 ? BLOCK_FLOATS / x->k : 1;
    float *host = malloc((size_t)step * k * sizeof *host);
    err_t e = host ? 0 : why_set(why, E_NOMEM, "not enough memory to read weights");
    for (int32_t at = 0, n; !e && at < x->n_rows; at += n) { /* runs of neighbours */
        for (n = 1; n < step && at + n < x->n_rows && x->row_id[at + n] == x->row_id[at] + n; n++)
            ;
        struct train_weights part = {(char *)x->ground.w + (size_t)x->row_id[at] * k * bytes, n,
                                     x->k};
        e = from.rows(from.arg, i, x->row_id[at], n, host, why);
        if (e)
            break;
        s->t->ops->put(s->t, s->work, host, (size_t)n * k * sizeof *host);
        s->t->ops->store(s->t, s->work, &part);
    }
    free(host);
    return e;
}

/* ---- planes and pair ---------------------------------------------------------------------------
 */

void student_fit_planes(struct student *s, int32_t i, float *d) {
    struct student_matrix *x = &s->matrix[i];
    struct train *t = s->t;
    for (int32_t p = 0; p < x->n_planes; p++) {
        struct train_delta one = {x->n, x->k, 1, 0, &x->plane[p], NULL, NULL};
        t->ops->scales_fit(t, x->n, x->k, d, NULL, x->plane[p].col.n ? SCALE_ROUNDS : 1,
                           &x->plane[p]);
        t->ops->signs_set(t, &x->plane[p], x->n, x->k, d);
        t->ops->unmerge(t, &one, -1, d);
    }
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

/* The pair and the first plane take turns, since each is to fit what the other leaves; further
 * planes come last. */
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
        t->ops->unmerge(t, &pair, -1, d);
        if (round > 0)
            t->ops->unmerge(t, &first, 1, d); /* d: what the pair leaves */
        if (round + 1 == SPLIT_ROUNDS || !planes)
            break;
        x->n_planes = 1;
        student_fit_planes(s, i, d);
        x->n_planes = planes;
    }
    if (!e)
        student_fit_planes(s, i, d);
    e = e || !x->rank ? e : root_mean_square(t, &x->a, &x->a_size);
    return e || !x->rank ? e : root_mean_square(t, &x->b, &x->b_size);
}
