/* Row operators of fitting: how each is split over the pool. All are bound by memory; a task takes
 * a run of rows so that a thread stays on its own lines. Sums over rows are made per task and added
 * up in task order, so they are the same on any number of threads. */
#include <string.h>

#include "kernels/cpu/train_cpu.h"

enum { ROWS_TASK = 32, ELEMENTS_TASK = 32768, LOSS_TASK = 8, LOSS_TASKS = 512 };

/* ---- embedding ------------------------------------------------------------------------------- */

void train_cpu_embed(struct train *t, const struct train_batch *b, const struct train_weights *w,
                     float *h) {
    (void)t;
    size_t k = (size_t)w->k;
    for (int32_t r = 0; r < b->n_rows; r++)
        memcpy(h + (size_t)r * k, (const float *)w->w + (size_t)b->id[r] * k, k * sizeof *h);
}

void train_cpu_embed_back(struct train *t, const struct train_batch *b, const float *dh, int32_t n,
                          int32_t k, float *dw) {
    (void)n;
    for (int32_t r = 0; r < b->n_rows; r++)
        train_cpu(t)->isa->axpy((size_t)k, 1, dh + (size_t)r * (size_t)k,
                                dw + (size_t)b->id[r] * (size_t)k);
}

/* ---- norm ------------------------------------------------------------------------------------ */

struct norm_job {
    const struct train_isa *isa;
    int32_t rows, dim;
    float eps;
    const float *x, *w, *dy, *inv_in; /* [M, D], [D], [M, D], [M] */
    float *y, *inv, *dx, *part;       /* part [tasks, D] */
};

static void norm_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct norm_job *j = arg;
    for (int32_t r = task * ROWS_TASK; r < train_end(task, ROWS_TASK, j->rows); r++) {
        size_t at = (size_t)r * (size_t)j->dim;
        j->isa->norm(j->dim, j->eps, j->x + at, j->w, j->y + at, &j->inv[r]);
    }
}

void train_cpu_norm(struct train *t, int32_t rows, int32_t dim, float eps, const float *x,
                    const float *w, float *y, float *inv) {
    struct norm_job j = {.isa = train_cpu(t)->isa, .rows = rows, .dim = dim, .eps = eps};
    j.x = x, j.w = w, j.y = y, j.inv = inv;
    pool_run(train_cpu(t)->pool, norm_task, &j, train_tasks((size_t)rows, ROWS_TASK));
}

static void norm_back_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct norm_job *j = arg;
    float *dw = j->part + (size_t)task * (size_t)j->dim;
    memset(dw, 0, (size_t)j->dim * sizeof *dw);
    for (int32_t r = task * ROWS_TASK; r < train_end(task, ROWS_TASK, j->rows); r++) {
        size_t at = (size_t)r * (size_t)j->dim;
        j->isa->norm_back(j->dim, j->inv_in[r], j->x + at, j->w, j->dy + at, j->dx + at, dw);
    }
}

void train_cpu_norm_back(struct train *t, int32_t rows, int32_t dim, const float *x, const float *w,
                         const float *inv, const float *dy, float *dx, float *dw) {
    struct train_cpu *c = train_cpu(t);
    struct norm_job j = {.isa = c->isa, .rows = rows, .dim = dim, .x = x, .w = w, .dy = dy};
    int32_t n = train_tasks((size_t)rows, ROWS_TASK);
    j.inv_in = inv, j.dx = dx;
    j.part = train_cpu_work(c, (size_t)n * (size_t)dim);
    if (!j.part)
        return;
    pool_run(c->pool, norm_back_task, &j, n);
    memset(dw, 0, (size_t)dim * sizeof *dw);
    for (int32_t i = 0; i < n; i++)
        c->isa->axpy((size_t)dim, 1, j.part + (size_t)i * (size_t)dim, dw);
}

/* ---- rotation and SwiGLU --------------------------------------------------------------------- */

struct rope_job {
    const struct train_batch *b;
    const float *table; /* [context, E/2, 2] */
    int32_t heads, head_dim;
    float sign; /* of the sine: -1 rotates back */
    float *x;   /* [M, heads * E] */
};

static void rope_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct rope_job *j = arg;
    int32_t half = j->head_dim / 2;
    for (int32_t r = task * ROWS_TASK; r < train_end(task, ROWS_TASK, j->b->n_rows); r++) {
        const float *turn = j->table + (size_t)j->b->position[r] * (size_t)j->head_dim;
        float *x = j->x + (size_t)r * (size_t)(j->heads * j->head_dim);
        for (int32_t h = 0; h < j->heads; h++, x += j->head_dim)
            for (int32_t i = 0; i < half; i++) {
                float c = turn[2 * i], s = turn[2 * i + 1] * j->sign, lo = x[i], hi = x[i + half];
                x[i] = lo * c - hi * s;
                x[i + half] = hi * c + lo * s;
            }
    }
}

void train_cpu_rope(struct train *t, const struct train_batch *b, const float *table, int32_t heads,
                    int32_t head_dim, bool back, float *x) {
    struct rope_job j = {b, table, heads, head_dim, back ? -1.0f : 1.0f, x};
    pool_run(train_cpu(t)->pool, rope_task, &j, train_tasks((size_t)b->n_rows, ROWS_TASK));
}

struct element_job {
    const struct train_isa *isa;
    size_t n;
    const float *gate, *up, *dact;
    float *act, *dgate, *dup;
};

static void swiglu_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct element_job *j = arg;
    size_t at = (size_t)task * ELEMENTS_TASK,
           n = j->n - at < ELEMENTS_TASK ? j->n - at : ELEMENTS_TASK;
    if (j->dact)
        j->isa->swiglu_back(n, j->gate + at, j->up + at, j->dact + at, j->dgate + at, j->dup + at);
    else
        j->isa->swiglu(n, j->gate + at, j->up + at, j->act + at);
}

void train_cpu_swiglu(struct train *t, size_t n, const float *gate, const float *up, float *act) {
    struct element_job j = {.isa = train_cpu(t)->isa, .n = n, .gate = gate, .up = up, .act = act};
    pool_run(train_cpu(t)->pool, swiglu_task, &j, train_tasks(n, ELEMENTS_TASK));
}

void train_cpu_swiglu_back(struct train *t, size_t n, const float *gate, const float *up,
                           const float *dact, float *dgate, float *dup) {
    struct element_job j = {train_cpu(t)->isa, n, gate, up, dact, NULL, dgate, dup};
    pool_run(train_cpu(t)->pool, swiglu_task, &j, train_tasks(n, ELEMENTS_TASK));
}

void train_cpu_axpy(struct train *t, size_t n, float scale, const float *y, float *x) {
    train_cpu(t)->isa->axpy(n, scale, y, x);
}

/* ---- logits ---------------------------------------------------------------------------------- */

struct draw_job {
    const struct train_isa *isa;
    int32_t vocab;
    const float *logits, *u;
    float temperature;
    float *e; /* [threads, V] */
    int32_t *out;
};

static void draw_task(void *arg, int32_t row, int32_t thread) {
    const struct draw_job *j = arg;
    const float *x = j->logits + (size_t)row * (size_t)j->vocab;
    int32_t best = j->isa->largest(j->vocab, x);
    j->out[row] = best;
    if (j->temperature <= 0)
        return;
    float *e = j->e + (size_t)thread * (size_t)j->vocab;
    j->isa->weigh(j->vocab, x[best], 1 / j->temperature, x, e);
    double sum = 0, run = 0;
    for (int32_t i = 0; i < j->vocab; i++)
        sum += (double)e[i];
    for (int32_t i = 0; i < j->vocab; i++)
        if ((run += (double)e[i]) > (double)j->u[row] * sum) {
            j->out[row] = i;
            return;
        }
}

void train_cpu_draw(struct train *t, int32_t rows, int32_t vocab, const float *logits,
                    float temperature, const float *u, int32_t *out) {
    struct train_cpu *c = train_cpu(t);
    struct draw_job j = {c->isa, vocab, logits, u, temperature, NULL, out};
    j.e = train_cpu_work(c, (size_t)vocab * (size_t)pool_threads(c->pool));
    if (j.e)
        pool_run(c->pool, draw_task, &j, rows);
}

struct loss_job {
    const struct train_isa *isa;
    int32_t rows, rows_task;
    const int32_t *target;
    struct distil_row row; /* of the first row, without its target */
    struct train_loss sum[LOSS_TASKS];
};

static void loss_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    struct loss_job *j = arg;
    for (int32_t r = task * j->rows_task; r < train_end(task, j->rows_task, j->rows); r++) {
        size_t at = (size_t)r * (size_t)j->row.vocab;
        struct distil_row d = j->row;
        d.target = j->target ? j->target[r] : -1;
        d.student += at, d.teacher += at;
        d.grad = d.grad ? d.grad + at : NULL;
        j->isa->distil(&d, &j->sum[task]);
    }
}

void train_cpu_distil(struct train *t, int32_t rows, int32_t vocab, const float *student,
                      const float *teacher, const int32_t *target, float kl_weight,
                      float mse_weight, float grad_scale, float *grad, struct train_loss *sum) {
    struct loss_job j = {.isa = train_cpu(t)->isa, .rows = rows, .rows_task = LOSS_TASK};
    j.row =
        (struct distil_row){vocab, -1, student, teacher, kl_weight, mse_weight, grad_scale, grad};
    j.target = target;
    while (train_tasks((size_t)rows, (size_t)j.rows_task) > LOSS_TASKS)
        j.rows_task *= 2;
    int32_t n = train_tasks((size_t)rows, (size_t)j.rows_task);
    pool_run(train_cpu(t)->pool, loss_task, &j, n);
    for (int32_t i = 0; i < n; i++) {
        sum->kl += j.sum[i].kl, sum->mse += j.sum[i].mse;
        sum->nll += j.sum[i].nll, sum->teacher_nll += j.sum[i].teacher_nll;
        sum->n_rows += j.sum[i].n_rows, sum->n_targets += j.sum[i].n_targets;
        sum->n_agree += j.sum[i].n_agree;
    }
}
