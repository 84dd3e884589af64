/* What a tenant holds of each matrix: kinds, memory, and the weights that follow from it. */
#include "compress/student.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/student_start.h"

static err_t vector_open(struct train *t, struct train_vector *v, size_t n) {
    *v = (struct train_vector){.n = n};
    err_t e = n ? t->ops->take(t, 3 * n * sizeof(float), (void **)&v->x) : 0;
    if (e || !n) {
        *v = (struct train_vector){0};
        return e;
    }
    v->m = v->x + n, v->v = v->m + n;
    return 0;
}

static size_t size_of(const struct train_weights *w) {
    return (size_t)w->n * (size_t)w->k;
}

/* ---- one matrix ------------------------------------------------------------------------------ */

/* Memory for the planes and the pair of a choice. */
static err_t open_delta(struct student *s, struct student_matrix *x,
                        const struct budget_choice *c) {
    struct train *t = s->t;
    size_t n = (size_t)x->n, k = (size_t)x->k;
    int32_t least = x->n < x->k ? x->n : x->k;
    err_t e = 0;
    x->rank = c->rank < least ? c->rank : least;
    if (x->rank > 0) {
        e = vector_open(t, &x->a, (size_t)x->rank * k);
        e = e ? e : vector_open(t, &x->b, n * (size_t)x->rank);
    }
    for (x->n_planes = 0; !e && x->n_planes < c->planes; x->n_planes++) {
        struct train_plane *p = &x->plane[x->n_planes];
        e = vector_open(t, &p->row, c->scales == SCALES_ONE ? 1 : n);
        e = e ? e : vector_open(t, &p->col, c->scales == SCALES_BOTH ? k : 0);
        e = e ? e : t->ops->signs_make(t, x->n, x->k, &p->signs);
    }
    return e;
}

/* The model's matrix with its exact rows in place and the base's elsewhere. */
static err_t open_ground(struct student *s, int32_t i, struct why *why) {
    struct student_matrix *x = &s->matrix[i];
    struct train_weights both = x->ground;
    size_t bytes = s->t->ops->weight_bytes;
    x->ground = s->model.matrix[i];
    err_t e = s->t->ops->take(s->t, size_of(&x->ground) * bytes, &x->ground.w);
    if (e)
        return e;
    x->owns_ground = true;
    s->t->ops->copy(s->t, x->ground.w, both.w, size_of(&both) * bytes);
    return student_put_exact_rows(s, i, why);
}

/* The rows to keep exactly: of those both have `changed` ones if wanted, and all further ones. */
static err_t list_rows(struct student_matrix *x, int32_t n_model, const bool *changed, bool all) {
    x->row_id = calloc((size_t)n_model + 1, sizeof *x->row_id);
    for (int32_t r = 0; x->row_id && r < n_model; r++)
        if (r >= x->n || (all && changed[r]))
            x->row_id[x->n_rows++] = r;
    return x->row_id ? 0 : E_NOMEM;
}

static err_t open_matrix(struct student *s, int32_t i, const struct budget_choice *c,
                         struct why *why) {
    struct student_matrix *x = &s->matrix[i];
    int32_t n_model = s->model.matrix[i].n, n_changed = 0;
    bool vocab = i >= llama_embed(&s->model), *changed = calloc((size_t)n_model, sizeof *changed);
    x->ground = s->base->matrix[i];
    if (x->ground.n > n_model)
        x->ground.n = n_model; /* the fine-tune gave up tokens: the base's first rows */
    x->n = x->ground.n, x->k = x->ground.k;
    err_t e = changed ? student_survey(s, i, s->work, changed, why) : E_NOMEM;
    if (!e && c->whole)
        memset(changed, true, (size_t)n_model * sizeof *changed);
    for (int32_t r = 0; !e && r < x->n; r++)
        n_changed += changed[r];
    /* Exact rows where they cost no more than the signs would. */
    bool exact = vocab && (c->exact || 16 * (int64_t)n_changed <= (int64_t)x->n * c->planes),
         planes = n_changed > 0 && !exact && (c->planes > 0 || c->rank > 0);
    if (!e && vocab)
        e = list_rows(x, n_model, changed, exact);
    x->kind = x->n_rows && x->n_rows == n_model ? STUDENT_DENSE
              : planes                          ? STUDENT_PLANES
              : x->n_rows                       ? STUDENT_ROWS
                                                : STUDENT_BASE;
    if (!e && x->n_rows)
        e = open_ground(s, i, why);
    if (!e && x->kind == STUDENT_PLANES) {
        if (x->n_rows) /* whose way to the device went through the work room */
            e = student_difference(s, i, s->work, why);
        e = e ? e : open_delta(s, x, c);
        e = e ? e : student_start(s, i, s->work);
    }
    free(changed);
    return e;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static struct train_weights merged(void *arg, int32_t i) {
    struct student *s = arg;
    if (i == llama_head(&s->model) && s->model.config.tied)
        i = llama_embed(&s->model);
    struct student_matrix *x = &s->matrix[i];
    if (x->kind != STUDENT_PLANES)
        return x->ground;
    struct train_weights w = {x->merged ? x->merged : s->merged.w, x->ground.n, x->k};
    if (!x->is_merged) {
        struct train_delta d = student_delta(s, i);
        s->t->ops->merge(s->t, &x->ground, &d, &w);
        x->is_merged = x->merged != NULL;
    }
    return w;
}

void student_keep(struct student *s) {
    size_t left = s->t->ops->memory_free(s->t) / 2;
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        struct student_matrix *x = &s->matrix[i];
        size_t bytes = size_of(&x->ground) * s->t->ops->weight_bytes;
        if (x->kind == STUDENT_PLANES && bytes <= left && !s->t->ops->take(s->t, bytes, &x->merged))
            left -= bytes;
    }
}

void student_keep_no_more(struct student *s) {
    for (int32_t i = 0; s->matrix && i < s->model.n_matrices; i++) {
        s->t->ops->give(s->t, s->matrix[i].merged);
        s->matrix[i].merged = NULL, s->matrix[i].is_merged = false;
    }
}

struct train_delta student_delta(const struct student *s, int32_t i) {
    const struct student_matrix *x = &s->matrix[i];
    return (struct train_delta){x->n, x->k, x->n_planes, x->rank, x->plane, x->a.x, x->b.x};
}

static size_t largest(const struct student *s) {
    size_t most = 0;
    for (int32_t i = 0; i < s->model.n_matrices; i++)
        most = size_of(&s->model.matrix[i]) > most ? size_of(&s->model.matrix[i]) : most;
    return most;
}

static void stop_reading(struct student *s) {
    s->t->ops->give(s->t, s->block), s->t->ops->give(s->t, s->sums);
    s->block = s->sums = NULL;
    llama_reader_close(&s->reader);
}

err_t student_read(struct student *s, struct why *why) {
    struct train *t = s->t;
    size_t rows = 0;
    if (s->block)
        return 0;
    for (int32_t i = 0; i < s->model.n_matrices; i++)
        rows = (size_t)s->model.matrix[i].n > rows ? (size_t)s->model.matrix[i].n : rows;
    s->fine_files = (struct llama_files){s->fine, false};
    err_t e = llama_reader_open(&s->reader, t, llama_source_files(&s->fine_files), why);
    e = e ? e : t->ops->take(t, 3 * rows * sizeof(float), (void **)&s->sums);
    e = e ? e : t->ops->take(t, LLAMA_BLOCK * sizeof(float), (void **)&s->block);
    if (e)
        stop_reading(s);
    return e ? why_set(why, e, "There is not enough memory to read weights.") : 0;
}

err_t student_work(struct student *s, bool wanted, struct why *why) {
    if (!wanted) {
        s->t->ops->give(s->t, s->work);
        s->work = NULL;
        stop_reading(s);
    } else if (!s->work && s->t->ops->take(s->t, largest(s) * sizeof(float), (void **)&s->work)) {
        s->work = NULL;
        return why_set(why, E_NOMEM, "There is not enough memory for a matrix of differences.");
    }
    return 0;
}

/* Norms start as the fine-tune's. */
static err_t open_norms(struct student *s, struct why *why) {
    size_t n = (size_t)(2 * s->model.config.shape.n_layers + 1) * (size_t)s->model.config.shape.dim;
    struct llama_files files = {s->fine, false};
    struct llama_source from = llama_source_files(&files);
    float *host = malloc(n * sizeof *host);
    err_t e = host ? vector_open(s->t, &s->norm, n) : E_NOMEM;
    if (!e) {
        s->t->ops->give(s->t, s->model.norm);
        s->model.norm = s->norm.x;
        e = from.norms(from.arg, host, why);
    }
    if (!e)
        s->t->ops->put(s->t, s->norm.x, host, n * sizeof *host);
    free(host);
    return e;
}

/* Room for the gradients of any matrix's scales and pair. */
static err_t open_gradients(struct student *s) {
    size_t most = 0;
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        const struct student_matrix *x = &s->matrix[i];
        size_t each = (size_t)x->n + (size_t)x->k + STUDENT_MAX_ROWS,
               n = each * (size_t)(x->rank > 1 ? x->rank : 1);
        most = n > most ? n : most;
    }
    return s->t->ops->take(s->t, most * sizeof(float), (void **)&s->grad);
}

err_t student_open(struct student *s, struct train *t, const struct llama *base,
                   const struct checkpoint *base_files, const struct checkpoint *fine,
                   const struct budget_choice *choice, struct progress *p, struct why *why) {
    *s = (struct student){.t = t, .base = base, .base_files = base_files, .fine = fine};
    err_t e = llama_make(&s->model, t, &fine->config, true, why);
    if (e)
        return e;
    s->model.weights = merged, s->model.arg = s;
    s->matrix = calloc((size_t)base->n_matrices, sizeof *s->matrix);
    e = s->matrix ? open_norms(s, why) : E_NOMEM;
    e = e ? e : t->ops->take(t, largest(s) * t->ops->weight_bytes, &s->merged.w);
    e = e ? e : student_work(s, true, why);
    int32_t n = s->model.n_matrices - (s->model.config.tied ? 1 : 0);
    for (int32_t i = 0; !e && i < n; i++) {
        e = open_matrix(s, i, &choice[i], why);
        if (p)
            progress_show(p, (uint64_t)i + 1, (uint64_t)n);
    }
    e = e ? e : open_gradients(s);
    e = e ? e : t->ops->settle(t, why);
    student_work(s, false, why);
    if (e && why && !why->text[0])
        why_set(why, e, "There is not enough memory for fitting a tenant of this base (%s).",
                t->ops->describe(t));
    return e;
}

void student_free(struct student *s) {
    struct train *t = s->t;
    student_keep_no_more(s);
    for (int32_t i = 0; s->matrix && i < s->model.n_matrices; i++) {
        struct student_matrix *x = &s->matrix[i];
        for (int32_t p = 0; p < MAX_PLANES; p++) {
            t->ops->give(t, x->plane[p].row.x), t->ops->give(t, x->plane[p].col.x);
            t->ops->signs_free(t, x->plane[p].signs);
        }
        t->ops->give(t, x->a.x), t->ops->give(t, x->b.x);
        if (x->owns_ground)
            t->ops->give(t, x->ground.w);
        free(x->row_id);
    }
    if (t) {
        t->ops->give(t, s->merged.w), t->ops->give(t, s->grad);
        student_work(s, false, NULL);
    }
    free(s->matrix);
    llama_free(&s->model); /* and the norms with it: norm.x is model.norm */
    *s = (struct student){0};
}

double student_bits_per_weight(const struct student *s) {
    double bits = 0, weights = 0;
    for (int32_t i = 0; i < llama_embed(&s->model); i++) {
        const struct student_matrix *x = &s->matrix[i];
        weights += (double)x->n * (double)x->k;
        for (int32_t p = 0; p < x->n_planes; p++)
            bits +=
                (double)x->n * (double)x->k + 16 * (double)(x->plane[p].row.n + x->plane[p].col.n);
        bits += 16 * (double)(x->a.n + x->b.n);
    }
    return bits / weights;
}
