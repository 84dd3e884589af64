/* The loop of fitting. */
#include "compress/fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct run {
    struct student *s;
    const struct gemm *g;
    struct student_rates rates; /* of this step */
    struct llama_tape *tape;    /* of both models in turn: the teacher's is not needed for long */
    float *student, *teacher, *norm_grad; /* [rows, V], [rows, V], [2L + 1, D] */
    int32_t *id, *start;                  /* [rows], [rows + 1] */
    int32_t next_own, next_other;
};

static void learn(void *arg, int32_t i_matrix, float *grad) {
    struct run *r = arg;
    student_learn(r->s, r->g, i_matrix, grad, &r->rates);
}

static struct student_rates rates_at(const struct fit_options *o, int32_t step) {
    float warm = 0.1f * (float)o->steps, at = (float)step,
          f = 0.5f * (1 + cosf(3.14159265f * at / (float)o->steps));
    if (at + 1 < warm)
        f *= (at + 1) / warm;
    struct student_rates r = o->rates;
    r.scale *= f, r.bit *= f, r.low_rank *= f, r.norm *= f;
    r.t = step + 1;
    return r;
}

/* The next sequences of both corpora, end to end. */
static struct llama_batch next_batch(struct run *r, const struct corpus *own,
                                     const struct corpus *other, const struct fit_options *o) {
    struct llama_batch a = {0}, b = {0};
    int32_t n_other = other->n_seqs ? (int32_t)(o->other_share * (float)o->rows) : 0;
    if (own->n_seqs)
        corpus_batch(own, &r->next_own, true, o->rows - n_other, r->id, r->start, &a);
    if (n_other > 0) {
        int32_t *start = r->start + a.n_seqs;
        corpus_batch(other, &r->next_other, true, o->rows - a.n_rows, r->id + a.n_rows, start, &b);
        for (int32_t i = 0; i <= b.n_seqs; i++)
            start[i] += a.n_rows;
    }
    return (struct llama_batch){a.n_rows + b.n_rows, a.n_seqs + b.n_seqs, r->id, r->start};
}

static double one_step(struct run *r, const struct llama_batch *b, const struct fit_options *o) {
    struct loss sum = {0};
    int32_t vocab = r->s->model.config.shape.vocab;
    llama_forward(r->s->teacher, r->g, b, r->tape, r->teacher);
    llama_forward(&r->s->model, r->g, b, r->tape, r->student);
    loss_distil(r->g, b->n_rows, vocab, r->student, r->teacher, NULL, o->kl_weight, o->mse_weight,
                1 / (float)b->n_rows, r->student, &sum);
    llama_backward(&r->s->model, r->g, b, r->tape, r->student, r->norm_grad,
                   (struct llama_sink){learn, r});
    student_learn_norms(r->s, r->norm_grad, &r->rates);
    return sum.kl / (double)sum.n_rows;
}

err_t fit_run(struct student *s, const struct gemm *g, const struct corpus *own,
              const struct corpus *other, const struct fit_options *o, struct fit_report *report,
              struct why *why) {
    const struct model_shape *shape = &s->model.config.shape;
    size_t rows = (size_t)o->rows, n_logits = rows * (size_t)shape->vocab;
    *report = (struct fit_report){0};
    struct run r = {.s = s, .g = g};
    r.student = malloc(2 * n_logits * sizeof(float));
    r.teacher = r.student ? r.student + n_logits : NULL;
    r.norm_grad = malloc(s->norm.n * sizeof(float));
    r.id = malloc(rows * sizeof *r.id);
    r.start = malloc((rows + 2) * sizeof *r.start);
    err_t e = r.student && r.norm_grad && r.id && r.start ? 0 : E_NOMEM;
    e = e ? e : llama_tape_open(&r.tape, &s->model, g, o->rows, o->max_length);
    int32_t tenth = o->steps >= 10 ? o->steps / 10 : 1;
    for (int32_t step = 0; !e && step < o->steps; step++) {
        struct llama_batch b = next_batch(&r, own, other, o);
        if (!b.n_rows) {
            e = why_set(why, E_INVAL, "There is no text to fit on.");
            break;
        }
        r.rates = rates_at(o, step);
        double kl = one_step(&r, &b, o);
        if (!isfinite(kl)) {
            e = why_set(why, E_NONFINITE, "Fitting gave numbers that are not finite at step %d.",
                        step + 1);
            break;
        }
        report->n_rows += b.n_rows;
        if (step < tenth)
            report->first_kl += kl / tenth;
        if (step >= o->steps - tenth)
            report->last_kl += kl / tenth;
        if (o->progress)
            o->progress(o->arg, step + 1, o->steps, kl);
    }
    llama_tape_close(r.tape);
    free(r.student), free(r.norm_grad), free(r.id), free(r.start);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory for fitting.") : e;
}
