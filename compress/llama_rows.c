/* RMS norm, rotation and SwiGLU over rows, forwards and backwards. Each is bound by memory; a task
 * takes a run of rows so that a thread stays on its own lines. */
#include "compress/llama_rows.h"

#include <math.h>
#include <string.h>

enum { ROWS_TASK = 32, ELEMENTS_TASK = 32768 };

static int32_t tasks(size_t n, size_t step) {
    return (int32_t)((n + step - 1) / step);
}

struct norm_job {
    int32_t n_rows, dim;
    float eps;
    const float *x, *w, *dy; /* [M, D], [D], [M, D] */
    float *y, *inv, *dx, *partial;
};

static void norm_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct norm_job *j = arg;
    int32_t end = (task + 1) * ROWS_TASK < j->n_rows ? (task + 1) * ROWS_TASK : j->n_rows;
    for (int32_t r = task * ROWS_TASK; r < end; r++) {
        const float *x = j->x + (size_t)r * (size_t)j->dim;
        float *y = j->y + (size_t)r * (size_t)j->dim, sum = 0;
        for (int32_t i = 0; i < j->dim; i++)
            sum += x[i] * x[i];
        float inv = 1.0f / sqrtf(sum / (float)j->dim + j->eps);
        j->inv[r] = inv;
        for (int32_t i = 0; i < j->dim; i++)
            y[i] = x[i] * inv * j->w[i];
    }
}

void rows_norm(const struct gemm *g, int32_t n_rows, int32_t dim, float eps, const float *x,
               const float *w, float *y, float *inv) {
    struct norm_job j = {
        .n_rows = n_rows, .dim = dim, .eps = eps, .x = x, .w = w, .y = y, .inv = inv};
    pool_run(g->pool, norm_task, &j, tasks((size_t)n_rows, ROWS_TASK));
}

/* y = x inv w, inv = (mean x^2 + eps)^-1/2:  dx = inv (dy w - x inv^2 mean(dy w x)),  dw = dy x inv
 */
static void norm_back_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct norm_job *j = arg;
    float *dw = j->partial + (size_t)task * (size_t)j->dim;
    memset(dw, 0, (size_t)j->dim * sizeof *dw);
    int32_t end = (task + 1) * ROWS_TASK < j->n_rows ? (task + 1) * ROWS_TASK : j->n_rows;
    for (int32_t r = task * ROWS_TASK; r < end; r++) {
        size_t at = (size_t)r * (size_t)j->dim;
        const float *x = j->x + at, *dy = j->dy + at;
        float *dx = j->dx + at, inv = j->inv[r], dot = 0;
        for (int32_t i = 0; i < j->dim; i++)
            dot += dy[i] * j->w[i] * x[i];
        float shrink = dot * inv * inv * inv / (float)j->dim;
        for (int32_t i = 0; i < j->dim; i++) {
            dx[i] += dy[i] * j->w[i] * inv - x[i] * shrink;
            dw[i] += dy[i] * x[i] * inv;
        }
    }
}

void rows_norm_back(const struct gemm *g, int32_t n_rows, int32_t dim, const float *x,
                    const float *w, const float *inv, const float *dy, float *dx, float *dw,
                    float *partial) {
    struct norm_job j = {.n_rows = n_rows, .dim = dim, .x = x, .w = w, .dy = dy, .dx = dx};
    j.inv = (float *)inv;
    j.partial = partial;
    int32_t n = tasks((size_t)n_rows, ROWS_TASK);
    pool_run(g->pool, norm_back_task, &j, n);
    memset(dw, 0, (size_t)dim * sizeof *dw);
    for (int32_t t = 0; t < n; t++) /* in task order: the same sum on any number of threads */
        for (int32_t i = 0; i < dim; i++)
            dw[i] += partial[(size_t)t * (size_t)dim + (size_t)i];
}

struct rope_job {
    const struct llama_batch *b;
    const float *rope; /* [context, E/2, 2] */
    int32_t heads, head_dim;
    float sign; /* of the sine: -1 rotates back */
    float *x;   /* [M, heads * E] */
};

static void rope_task(void *arg, int32_t seq, int32_t thread) {
    (void)thread;
    const struct rope_job *j = arg;
    int32_t half = j->head_dim / 2;
    for (int32_t r = j->b->start[seq]; r < j->b->start[seq + 1]; r++) {
        const float *turn = j->rope + (size_t)(r - j->b->start[seq]) * (size_t)j->head_dim;
        float *x = j->x + (size_t)r * (size_t)(j->heads * j->head_dim);
        for (int32_t h = 0; h < j->heads; h++, x += j->head_dim)
            for (int32_t i = 0; i < half; i++) {
                float c = turn[2 * i], s = turn[2 * i + 1] * j->sign, lo = x[i], hi = x[i + half];
                x[i] = lo * c - hi * s;
                x[i + half] = hi * c + lo * s;
            }
    }
}

void rows_rope(const struct gemm *g, const struct llama_batch *b, const float *rope, int32_t heads,
               int32_t head_dim, bool back, float *x) {
    struct rope_job j = {b, rope, heads, head_dim, back ? -1.0f : 1.0f, x};
    pool_run(g->pool, rope_task, &j, b->n_seqs);
}

struct swiglu_job {
    size_t n;
    const float *gate, *up, *dact;
    float *act, *dgate, *dup;
};

static void swiglu_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct swiglu_job *j = arg;
    size_t end = (size_t)(task + 1) * ELEMENTS_TASK;
    end = end < j->n ? end : j->n;
    for (size_t i = (size_t)task * ELEMENTS_TASK; i < end; i++)
        j->act[i] = j->gate[i] / (1.0f + fast_exp(-j->gate[i])) * j->up[i];
}

void rows_swiglu(const struct gemm *g, size_t n, const float *gate, const float *up, float *act) {
    struct swiglu_job j = {.n = n, .gate = gate, .up = up, .act = act};
    pool_run(g->pool, swiglu_task, &j, tasks(n, ELEMENTS_TASK));
}

static void swiglu_back_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct swiglu_job *j = arg;
    size_t end = (size_t)(task + 1) * ELEMENTS_TASK;
    end = end < j->n ? end : j->n;
    for (size_t i = (size_t)task * ELEMENTS_TASK; i < end; i++) {
        float sig = 1.0f / (1.0f + fast_exp(-j->gate[i])), silu = j->gate[i] * sig;
        j->dup[i] = j->dact[i] * silu;
        j->dgate[i] = j->dact[i] * j->up[i] * (sig + silu * (1.0f - sig));
    }
}

void rows_swiglu_back(const struct gemm *g, size_t n, const float *gate, const float *up,
                      const float *dact, float *dgate, float *dup) {
    struct swiglu_job j = {n, gate, up, dact, NULL, dgate, dup};
    pool_run(g->pool, swiglu_back_task, &j, tasks(n, ELEMENTS_TASK));
}
