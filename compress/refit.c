#include "compress/refit.h"

#include <stdlib.h>

#include "compress/closed.h"

enum { INPUTS = 4 }; /* of a layer: of q|k|v, of o, of gate|up, of down */
static const enum part first_of[INPUTS] = {PART_Q, PART_O, PART_GATE, PART_DOWN};
static const enum part last_of[INPUTS] = {PART_V, PART_O, PART_UP, PART_DOWN};

struct refitting {
    struct student *s;
    const struct corpus *own;
    const struct refit_options *o;
    struct closed closed;
    struct moments moments[INPUTS];
    struct llama_tape *tape, *teacher_tape;
    float *d;             /* device: the largest linear */
    float *h, *teacher_h; /* device [all rows, D]: what goes into the layer that is worked on */
    int32_t *id, *start;  /* host: a batch */
    double *error;
    int32_t layer; /* that is worked on, */
    int input;     /* and which of its inputs */
    bool factored; /* closed holds this input's factor */
};

/* Calls for every batch of the text; at: its first row of all. */
typedef void batch_fn(struct refitting *r, const struct llama_batch *b, size_t at);
static void each_batch(struct refitting *r, batch_fn *fn) {
    int32_t next = 0;
    size_t at = 0;
    struct llama_batch b;
    for (int32_t n = 0; n < r->o->batches; n++) {
        if (!corpus_batch(r->own, &next, false, r->o->rows, r->id, r->start, &b))
            return;
        fn(r, &b, at);
        at += (size_t)b.n_rows;
    }
}

static float *rows_at(float *h, const struct refitting *r, size_t at) {
    return h + at * (size_t)r->s->model.config.shape.dim;
}

static void begin(struct refitting *r, const struct llama_batch *b, size_t at) {
    llama_rows_in(&r->s->model, b, r->tape, rows_at(r->h, r, at));
    if (r->o->teacher)
        llama_rows_in(r->o->teacher, b, r->teacher_tape, rows_at(r->teacher_h, r, at));
}

static void add_moments(struct refitting *r, const struct llama_batch *b, size_t at) {
    int32_t part = llama_part(r->layer, first_of[r->input]);
    const float *fine = NULL;
    llama_layer(&r->s->model, b, r->tape, r->layer, rows_at(r->h, r, at), NULL);
    if (r->o->teacher) {
        llama_layer(r->o->teacher, b, r->teacher_tape, r->layer, rows_at(r->teacher_h, r, at),
                    NULL);
        fine = llama_input(r->teacher_tape, r->o->teacher, part);
    }
    moments_add(&r->moments[r->input], r->s->t, b->n_rows, llama_input(r->tape, &r->s->model, part),
                fine);
}

static void go_on(struct refitting *r, const struct llama_batch *b, size_t at) {
    float *h = rows_at(r->h, r, at);
    llama_layer(&r->s->model, b, r->tape, r->layer, h, h);
    if (!r->o->teacher)
        return;
    h = rows_at(r->teacher_h, r, at);
    llama_layer(r->o->teacher, b, r->teacher_tape, r->layer, h, h);
}

/* d: what the planes and the pair of a matrix are to be. closed_target needs the input's factor. */
static err_t find_target(struct refitting *r, int32_t i, struct why *why) {
    err_t e = student_difference(r->s, i, r->d, why);
    if (!e && r->o->teacher)
        closed_target(&r->closed, &r->moments[r->input], &r->o->teacher->matrix[i], r->d);
    return e;
}

static void note_error(struct refitting *r, int32_t i, const struct train_delta *x) {
    if (r->error)
        r->error[i] = closed_error(&r->closed, &r->moments[r->input], x, r->d);
}

/* Signs with the scales as they are, then scales with these signs. */
static void refit_planes(struct refitting *r, const struct train_delta *x, bool columns) {
    const struct moments *m = &r->moments[r->input];
    if (r->o->signs)
        closed_signs(&r->closed, x, r->d);
    closed_rows(&r->closed, m, x, r->d);
    if (columns) {
        closed_columns(&r->closed, m, x, r->d, r->o->damp);
        closed_rows(&r->closed, m, x, r->d);
    }
}

/* The planes, the pair with these planes, and the planes with this pair. Column scales need the
 * factor's place, so it is made again for every matrix that has them. */
static err_t refit_matrix(struct refitting *r, int32_t i, struct why *why) {
    const struct moments *m = &r->moments[r->input];
    struct closed *c = &r->closed;
    struct train_delta x = student_delta(r->s, i);
    bool columns = false;
    for (int32_t p = 0; p < x.n_planes; p++)
        columns = columns || x.plane[p].col.n;
    if (r->error)
        r->error[i] = 0;
    if (!x.n_planes)
        return 0;
    if (!r->factored)
        closed_factor(c, m, r->o->damp);
    r->factored = !columns;
    err_t e = find_target(r, i, why);
    if (e)
        return e;
    refit_planes(r, &x, columns);
    if (x.rank && r->o->pairs) {
        struct student_matrix *own = &r->s->matrix[i];
        e = closed_pair(c, m, &x, r->d, own->b.x, own->a.x);
        e = e ? e : student_size_pair(r->s, i);
        if (columns)
            closed_factor(c, m, r->o->damp);
        refit_planes(r, &x, columns);
    }
    note_error(r, i, &x);
    return e ? why_set(why, e, "There is not enough memory to refit the pairs.") : 0;
}

/* Input by input, each as the student makes it with the matrices before it refitted. */
static err_t refit_layer(struct refitting *r, struct why *why) {
    err_t e = 0;
    for (r->input = 0; !e && r->input < INPUTS; r->input++) {
        struct moments *m = &r->moments[r->input];
        moments_clear(m, r->s->t);
        each_batch(r, add_moments);
        if (!m->n_rows)
            return why_set(why, E_INVAL, "There is no text to refit on.");
        r->factored = false;
        for (enum part p = first_of[r->input]; !e && p <= last_of[r->input]; p++)
            e = refit_matrix(r, llama_part(r->layer, p), why);
    }
    each_batch(r, go_on);
    return e ? e : r->s->t->ops->settle(r->s->t, why);
}

static err_t open_all(struct refitting *r, struct why *why) {
    struct student *s = r->s;
    int32_t n = 1, k = 1, planes = 1;
    size_t largest = 0;
    for (int32_t i = 0; i < llama_embed(&s->model); i++) {
        const struct student_matrix *x = &s->matrix[i];
        size_t floats = (size_t)x->n * (size_t)x->k;
        n = x->n > n ? x->n : n, k = x->k > k ? x->k : k;
        planes = x->n_planes > planes ? x->n_planes : planes;
        largest = floats > largest ? floats : largest;
    }
    err_t e = closed_open(&r->closed, s->t, n, k, planes, why);
    for (int i = 0; !e && i < INPUTS; i++)
        e = moments_open(&r->moments[i], s->t, s->matrix[first_of[i]].k, r->o->teacher != NULL,
                         why);
    e = e ? e : llama_tape_open(&r->tape, &s->model, r->o->rows, false, why);
    if (!e && r->o->teacher)
        e = llama_tape_open(&r->teacher_tape, r->o->teacher, r->o->rows, false, why);
    if (e)
        return e;
    r->id = malloc((size_t)r->o->rows * sizeof *r->id);
    r->start = malloc(((size_t)r->o->rows + 1) * sizeof *r->start);
    size_t stream = (size_t)r->o->rows * (size_t)r->o->batches * (size_t)s->model.config.shape.dim *
                    sizeof(float);
    if (r->o->teacher)
        e = s->t->ops->take(s->t, stream, (void **)&r->teacher_h);
    e = e ? e : s->t->ops->take(s->t, stream, (void **)&r->h);
    e = e ? e : s->t->ops->take(s->t, largest * sizeof(float), (void **)&r->d);
    if (e || !r->id || !r->start)
        return why_set(why, E_NOMEM, "There is not enough memory to refit the planes.");
    return 0;
}

err_t refit_run(struct student *s, const struct corpus *own, const struct refit_options *o,
                double *error, struct why *why) {
    struct refitting r = {.s = s, .own = own, .o = o, .error = error};
    int32_t layers = s->model.config.shape.n_layers;
    err_t e = open_all(&r, why);
    if (!e)
        each_batch(&r, begin);
    for (; !e && r.layer < layers; r.layer++) {
        e = refit_layer(&r, why);
        if (o->p)
            progress_show(o->p, (uint64_t)r.layer + 1, (uint64_t)layers);
    }
    for (int i = 0; i < INPUTS; i++)
        moments_close(&r.moments[i], s->t);
    closed_close(&r.closed);
    llama_tape_close(r.tape), llama_tape_close(r.teacher_tape);
    s->t->ops->give(s->t, r.d);
    s->t->ops->give(s->t, r.h), s->t->ops->give(s->t, r.teacher_h);
    free(r.id), free(r.start);
    return e;
}
