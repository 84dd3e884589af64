/* The loop of fitting. */
#include "compress/fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { JUDGE_ROWS = 768 };

/* A model beside its fine-tune's predictions, over batches of lessons. */
struct bench {
    const struct llama *m;
    struct train *t;
    const struct llama *teacher; /* its last norm and lm_head */
    struct llama_tape *tape;
    float *ours, *theirs;         /* device [rows, V] logits */
    float *stream, *final, *inv;  /* device: the teacher's [rows, D], normed, 1 / rms [rows] */
    void *raw;                    /* device [rows, row_bytes] */
    int32_t *target;              /* device [rows] */
    char *host;                   /* [rows, row_bytes] */
    int32_t *id, *start, *follow; /* host [rows], [rows + 2], [rows] */
};

static err_t bench_open(struct bench *b, const struct llama *m, const struct llama *teacher,
                        int32_t max_rows, bool back, struct why *why) {
    struct train *t = m->t;
    size_t rows = (size_t)max_rows, logits = rows * (size_t)m->config.shape.vocab * sizeof(float),
           dim = (size_t)m->config.shape.dim;
    *b = (struct bench){.m = m, .t = t, .teacher = teacher};
    b->host = malloc(rows * dim * t->ops->weight_bytes);
    b->id = malloc((3 * rows + 2) * sizeof *b->id);
    err_t e = b->host && b->id ? 0 : E_NOMEM;
    e = e ? e : t->ops->take(t, logits, (void **)&b->ours);
    e = e ? e : t->ops->take(t, logits, (void **)&b->theirs);
    e = e ? e : t->ops->take(t, rows * dim * sizeof(float), (void **)&b->stream);
    e = e ? e : t->ops->take(t, rows * dim * sizeof(float), (void **)&b->final);
    e = e ? e : t->ops->take(t, rows * sizeof(float), (void **)&b->inv);
    e = e ? e : t->ops->take(t, rows * dim * t->ops->weight_bytes, &b->raw);
    e = e ? e : t->ops->take(t, rows * sizeof(int32_t), (void **)&b->target);
    if (e)
        return why_set(why, e, "There is not enough memory for fitting (%s).", t->ops->describe(t));
    b->follow = b->id + rows, b->start = b->follow + rows;
    return llama_tape_open(&b->tape, m, max_rows, back, why);
}

static void bench_close(struct bench *b) {
    void *const device[] = {b->ours, b->theirs, b->stream, b->final, b->inv, b->raw, b->target};
    llama_tape_close(b->tape);
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        b->t->ops->give(b->t, device[i]);
    free(b->host), free(b->id);
}

/* Logits of both for a batch whose ids, streams and targets lie in the host's arrays. */
static void bench_forward(struct bench *b, const struct llama_batch *batch) {
    const struct train_ops *op = b->t->ops;
    const struct model_shape *s = &b->teacher->config.shape;
    struct train_weights head = llama_weights(b->teacher, llama_head(b->teacher)),
                         stream = {b->raw, batch->n_rows, s->dim};
    size_t rows = (size_t)batch->n_rows, dim = (size_t)s->dim;
    op->put(b->t, b->raw, b->host, rows * dim * op->weight_bytes);
    op->put(b->t, b->target, b->follow, rows * sizeof(int32_t));
    op->load(b->t, &stream, b->stream);
    op->norm(b->t, batch->n_rows, s->dim, s->norm_eps, b->stream,
             b->teacher->norm + (size_t)(2 * s->n_layers) * dim, b->final, b->inv);
    op->product(b->t, batch->n_rows, b->final, &head, b->theirs, false);
    llama_forward(b->m, batch, b->tape, b->ours);
}

struct run {
    struct student *s;
    struct fit_learner learner;
    struct bench b;
    struct student_rates rates; /* of this step */
    int32_t rows;               /* of this step */
    float *norm_grad;           /* device [2L + 1, D] */
    float *final_grad;          /* device [rows, D] */
    float *dots, *host_dots;    /* device, host [rows] */
};

static void learn(void *arg, int32_t i_matrix, float *grad) {
    struct run *r = arg;
    const struct llama *m = r->b.m;
    struct student_flow flow = {r->rows, llama_input(r->b.tape, m, i_matrix),
                                llama_output_grad(r->b.tape, m, i_matrix)};
    r->learner.matrix(r->learner.arg, i_matrix, grad, &flow, r->rates.t);
}
static bool wants(void *arg, int32_t i_matrix) {
    const struct run *r = arg;
    return r->learner.wants(r->learner.arg, i_matrix);
}

/* The learner where no other is named: the student, at this step's rates. */
static bool student_wants(void *arg, int32_t i) {
    const struct run *r = arg;
    return student_learns(r->s, i);
}
static void student_matrix(void *arg, int32_t i, const float *grad, const struct student_flow *flow,
                           int32_t t) {
    struct run *r = arg;
    (void)t;
    student_learn(r->s, i, grad, flow, &r->rates);
}
static void student_rest(void *arg, const float *norm_grad, int32_t t) {
    struct run *r = arg;
    (void)t;
    student_learn_norms(r->s, norm_grad, &r->rates);
}

static struct student_rates rates_at(const struct fit_options *o, int32_t step) {
    float warm = 0.1f * (float)o->steps, at = (float)step,
          f = 0.5f * (1 + cosf(3.14159265f * at / (float)o->steps));
    if (at + 1 < warm)
        f *= (at + 1) / warm;
    struct student_rates r = o->rates;
    r.scale *= f, r.low_rank *= f, r.norm *= f;
    float left = 1 - at / (float)o->steps;
    r.bit *= f * left * left; /* signs come to rest first */
    r.t = step + 1;
    return r;
}

/* The next sequences of both lessons, end to end. */
static struct llama_batch next_batch(struct bench *s, const struct lesson *own,
                                     const struct lesson *other, const struct fit_options *o,
                                     struct fit_report *at) {
    struct llama_batch a = {0}, b = {0};
    int32_t n_other = other->text.n_seqs ? (int32_t)(o->other_share * (float)o->rows) : 0;
    s->start[0] = 0;
    if (own->text.n_seqs)
        lesson_batch(own, &at->next_own, true, o->rows - n_other, s->id, s->start, s->follow,
                     s->host, &a);
    if (n_other > 0) {
        int32_t *start = s->start + a.n_seqs, n = a.n_rows;
        lesson_batch(other, &at->next_other, true, o->rows - n, s->id + n, start, s->follow + n,
                     s->host + (size_t)n * other->row_bytes, &b);
        for (int32_t i = 0; i <= b.n_seqs; i++)
            start[i] += n;
    }
    return (struct llama_batch){a.n_rows + b.n_rows, a.n_seqs + b.n_seqs, s->id, s->start};
}

/* The gradient of weight |x - t|^2 / |t|^2, x: lm_head's input, t: the teacher's. */
static const float *final_gradient(struct run *r, int32_t rows, float weight) {
    struct bench *b = &r->b;
    const struct train_ops *op = b->t->ops;
    int32_t dim = b->m->config.shape.dim;
    size_t n = (size_t)rows * (size_t)dim;
    double square = 0;
    if (weight <= 0)
        return NULL;
    op->row_dots(b->t, rows, dim, b->final, b->final, r->dots);
    op->get(b->t, r->host_dots, r->dots, (size_t)rows * sizeof *r->dots);
    for (int32_t i = 0; i < rows; i++)
        square += (double)r->host_dots[i];
    float scale = square > 0 ? (float)(2 * (double)weight / square) : 0;
    op->zero(b->t, r->final_grad, n * sizeof(float));
    op->axpy(b->t, n, scale, llama_input(b->tape, b->m, llama_head(b->m)), r->final_grad);
    op->axpy(b->t, n, -scale, b->final, r->final_grad);
    return r->final_grad;
}

static double one_step(struct run *r, const struct llama_batch *batch,
                       const struct fit_options *o) {
    struct train_loss sum = {0};
    struct bench *b = &r->b;
    float fall = o->halved ? 1 + (float)r->rates.t / (float)o->halved : 1;
    r->rows = batch->n_rows;
    bench_forward(b, batch);
    b->t->ops->distil(b->t, batch->n_rows, b->m->config.shape.vocab, b->ours, b->theirs, NULL,
                      o->kl_weight, o->mse_weight / fall, 1 / (float)batch->n_rows, b->ours, &sum);
    llama_backward(b->m, b->tape, b->ours, final_gradient(r, batch->n_rows, o->final_weight / fall),
                   r->norm_grad, (struct llama_sink){learn, wants, r});
    r->learner.rest(r->learner.arg, r->norm_grad, r->rates.t);
    return sum.kl / (double)sum.n_rows;
}

err_t fit_run(struct student *s, const struct llama *teacher, const struct lesson *own,
              const struct lesson *other, const struct fit_options *o, struct fit_report *report,
              struct why *why) {
    struct run r = {.s = s};
    r.learner = o->learner ? *o->learner
                           : (struct fit_learner){student_wants, student_matrix, student_rest, &r};
    size_t rows = (size_t)o->rows * sizeof(float), final = rows * (size_t)s->model.config.shape.dim;
    err_t e = bench_open(&r.b, &s->model, teacher, o->rows, true, why);
    r.host_dots = malloc(rows);
    if (!e && (!r.host_dots || s->t->ops->take(s->t, rows, (void **)&r.dots) ||
               s->t->ops->take(s->t, s->norm.n * sizeof(float), (void **)&r.norm_grad) ||
               s->t->ops->take(s->t, final, (void **)&r.final_grad)))
        e = why_set(why, E_NOMEM, "There is not enough memory for fitting.");
    int32_t tenth = o->steps >= 10 ? o->steps / 10 : 1;
    if (!e && !o->learner) /* what others change is merged anew */
        student_keep(s);
    while (!e && report->step < o->steps) {
        struct llama_batch b = next_batch(&r.b, own, other, o, report);
        if (!b.n_rows) {
            e = why_set(why, E_INVAL, "There is no text to fit on.");
            break;
        }
        r.rates = rates_at(o, report->step);
        double kl = one_step(&r, &b, o);
        if (!isfinite(kl))
            e = why_set(why, E_NONFINITE, "Fitting gave numbers that are not finite at step %d.",
                        report->step + 1);
        report->n_rows += b.n_rows;
        if (report->step < tenth)
            report->first_kl += kl / tenth;
        if (report->step >= o->steps - tenth)
            report->last_kl += kl / tenth;
        report->step++;
        if (!e && o->after && !o->after(o->arg, report))
            break;
    }
    e = e ? e : s->t->ops->settle(s->t, why);
    student_keep_no_more(s);
    bench_close(&r.b);
    s->t->ops->give(s->t, r.norm_grad), s->t->ops->give(s->t, r.final_grad);
    s->t->ops->give(s->t, r.dots);
    free(r.host_dots);
    return e;
}

err_t fit_judge(const struct llama *m, const struct llama *teacher, const struct lesson *held,
                struct train_loss *sum, struct progress *p, struct why *why) {
    struct bench b;
    struct llama_batch batch;
    int32_t next = 0;
    err_t e = bench_open(&b, m, teacher, JUDGE_ROWS, false, why);
    while (!e &&
           lesson_batch(held, &next, false, JUDGE_ROWS, b.id, b.start, b.follow, b.host, &batch)) {
        bench_forward(&b, &batch);
        m->t->ops->distil(m->t, batch.n_rows, m->config.shape.vocab, b.ours, b.theirs, b.target, 1,
                          0, 1, NULL, sum);
        if (p)
            progress_show(p, (uint64_t)next, (uint64_t)held->text.n_seqs);
    }
    e = e ? e : m->t->ops->settle(m->t, why);
    bench_close(&b);
    return e;
}
