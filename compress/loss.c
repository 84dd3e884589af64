/* KL divergence, logit error and likelihood, row by row in the pool. */
#include "compress/loss.h"

#include <math.h>

#include "compress/fast_exp.h"

enum { ROWS_TASK = 8, MAX_TASKS = 512 };

struct loss_job {
    int32_t n_rows, vocab, rows_task;
    const float *student, *teacher; /* [M, V] */
    const int32_t *target;          /* [M] */
    float kl_weight, mse_weight, grad_scale;
    float *grad; /* [M, V] or NULL */
    struct loss sum[MAX_TASKS];
};

struct soft {
    float top, log_sum; /* log p = x - top - log_sum */
    int32_t best;
};

static struct soft soften(const float *x, int32_t n) {
    struct soft s = {x[0], 0, 0};
    for (int32_t i = 1; i < n; i++)
        if (x[i] > s.top)
            s.top = x[i], s.best = i;
    float sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += fast_exp(x[i] - s.top);
    s.log_sum = logf(sum);
    return s;
}

static void one_row(const struct loss_job *j, int32_t r, struct loss *sum) {
    size_t at = (size_t)r * (size_t)j->vocab;
    const float *y = j->student + at, *t = j->teacher + at;
    struct soft sy = soften(y, j->vocab), st = soften(t, j->vocab);
    float off_y = sy.top + sy.log_sum, off_t = st.top + st.log_sum;
    int32_t target = j->target ? j->target[r] : -1;
    if (target >= 0) {
        sum->nll += (double)off_y - (double)y[target];
        sum->teacher_nll += (double)off_t - (double)t[target];
        sum->n_targets++;
    }
    float kl = 0, mse = 0, pull = 2 * j->mse_weight / (float)j->vocab;
    float *grad = j->grad ? j->grad + at : NULL;
    for (int32_t i = 0; i < j->vocab; i++) {
        float lt = t[i] - off_t, ly = y[i] - off_y, p = fast_exp(lt), d = y[i] - t[i];
        kl += p * (lt - ly);
        mse += d * d;
        if (grad) /* last use of y[i]: grad may lie where y lies */
            grad[i] = ((fast_exp(ly) - p) * j->kl_weight + pull * d) * j->grad_scale;
    }
    sum->kl += (double)kl;
    sum->mse += (double)mse / (double)j->vocab;
    sum->n_rows++;
    sum->n_agree += sy.best == st.best;
}

static void loss_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    struct loss_job *j = arg;
    int32_t end = (task + 1) * j->rows_task < j->n_rows ? (task + 1) * j->rows_task : j->n_rows;
    for (int32_t r = task * j->rows_task; r < end; r++)
        one_row(j, r, &j->sum[task]);
}

void loss_distil(const struct gemm *g, int32_t n_rows, int32_t vocab, const float *student,
                 const float *teacher, const int32_t *target, float kl_weight, float mse_weight,
                 float grad_scale, float *grad, struct loss *sum) {
    struct loss_job j = {.n_rows = n_rows, .vocab = vocab, .rows_task = ROWS_TASK};
    j.student = student, j.teacher = teacher, j.target = target;
    j.kl_weight = kl_weight, j.mse_weight = mse_weight, j.grad_scale = grad_scale, j.grad = grad;
    while ((n_rows + j.rows_task - 1) / j.rows_task > MAX_TASKS)
        j.rows_task *= 2;
    int32_t n = (n_rows + j.rows_task - 1) / j.rows_task;
    pool_run(g->pool, loss_task, &j, n);
    for (int32_t i = 0; i < n; i++) { /* in task order, whoever computed them */
        sum->kl += j.sum[i].kl, sum->mse += j.sum[i].mse;
        sum->nll += j.sum[i].nll, sum->teacher_nll += j.sum[i].teacher_nll;
        sum->n_rows += j.sum[i].n_rows, sum->n_targets += j.sum[i].n_targets;
        sum->n_agree += j.sum[i].n_agree;
    }
}
