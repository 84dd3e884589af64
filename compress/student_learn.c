/* Weights from what a tenant holds, and a step of learning. With G the gradient of the weights and
 * W = base + sum of diag(r) S diag(c) + B A:
 *     d log r_n = r_n sum_k G s c      d log c_k = c_k sum_n G s r      d bit = G r c
 *     dB = G A'                        dA = B' G
 * All planes of a matrix see the same G, so they are learnt jointly. The pass over a matrix reads
 * G, the bits and their moments once: bound by memory. */
#include <math.h>
#include <string.h>

#include "compress/student_block.h"

static const float beta1 = 0.9f, beta2 = 0.99f;
/* Far below the gradients of any number that matters, so that rounding noise is not blown up. */
static const float least_gradient = 1e-12f;

struct adam {
    float rate, fix1, fix2; /* corrections for the means' start at 0 */
};

static struct adam adam_at(float rate, int32_t t) {
    return (struct adam){rate, 1 / (1 - powf(beta1, (float)t)), 1 / (1 - powf(beta2, (float)t))};
}

/* How far a number moves for this gradient. */
static inline float adam_step(struct adam a, float g, float *m, float *v) {
    *m = beta1 * *m + (1 - beta1) * g;
    *v = beta2 * *v + (1 - beta2) * g * g;
    return a.rate * *m * a.fix1 / (sqrtf(*v * a.fix2) + least_gradient);
}

static void adam_vector(struct param *p, const float *grad, struct adam a) {
    for (size_t i = 0; i < p->n; i++)
        p->x[i] -= adam_step(a, grad[i], &p->m[i], &p->v[i]);
}

struct plane_job {
    const struct student_matrix *x;
    const struct student_plane *p;
    const float *grad; /* [N, K] */
    float sign, *w;    /* [N, K] */
    float *row_grad;   /* [N] */
    float *col_part;   /* [blocks, K] */
    struct adam bit;
};

static void plane_add_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct plane_job *j = arg;
    const struct student_plane *p = j->p;
    int32_t k_cols = j->x->k;
    for (int32_t n = task * BLOCK_ROWS; n < block_end(j->x, task); n++) {
        float row = j->sign * expf(p->row.x[p->row.n > 1 ? n : 0]);
        float *w = j->w + (size_t)n * (size_t)k_cols;
        const float *bit = p->bit.x + (size_t)n * (size_t)k_cols;
        for (int32_t k = 0; k < k_cols; k++)
            w[k] += (bit[k] >= 0 ? row : -row) * p->col_scale[k];
    }
}

void plane_add(const struct gemm *g, const struct student_matrix *x, const struct student_plane *p,
               float sign, float *w) {
    struct plane_job j = {.x = x, .p = p, .sign = sign, .w = w};
    pool_run(g->pool, plane_add_task, &j, blocks(x));
}

void plane_columns(const struct student_matrix *x, struct student_plane *p) {
    for (int32_t k = 0; k < x->k; k++)
        p->col_scale[k] = p->col.n ? expf(p->col.x[k]) : 1.0f;
}

void student_set_weights(struct student *s, const struct gemm *g, int32_t i) {
    const struct student_matrix *x = &s->matrix[i];
    struct llama_matrix *w = &s->model.matrix[i];
    size_t k = (size_t)x->k;
    const float *exact = s->teacher->matrix[i].w;
    if (x->kind == STUDENT_DENSE) {
        memcpy(w->w, exact, (size_t)w->n * k * sizeof(float));
        return;
    }
    memcpy(w->w, s->base->matrix[i].w, (size_t)x->n * k * sizeof(float));
    if (x->rank)
        gemm(g, x->n, x->k, x->rank, mat_of(x->b.x, (size_t)x->rank), mat_of(x->a.x, k), w->w, k,
             true);
    for (int32_t p = 0; p < x->n_planes; p++)
        plane_add(g, x, &x->plane[p], 1, w->w);
    for (int32_t r = 0; r < x->n_rows; r++)
        memcpy(w->w + (size_t)x->row_id[r] * k, exact + (size_t)x->row_id[r] * k,
               k * sizeof(float));
}

static void plane_learn_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct plane_job *j = arg;
    const struct student_plane *p = j->p;
    size_t k_cols = (size_t)j->x->k;
    float *col_part = j->col_part + (size_t)task * k_cols;
    memset(col_part, 0, k_cols * sizeof *col_part);
    for (int32_t n = task * BLOCK_ROWS; n < block_end(j->x, task); n++) {
        size_t at = (size_t)n * k_cols;
        const float *grad = j->grad + at;
        float *bit = p->bit.x + at, *m = p->bit.m + at, *v = p->bit.v + at;
        float row = expf(p->row.x[p->row.n > 1 ? n : 0]), sum = 0;
        for (size_t k = 0; k < k_cols; k++) {
            float signed_grad = bit[k] >= 0 ? grad[k] : -grad[k];
            sum += signed_grad * p->col_scale[k];
            col_part[k] += signed_grad * row;
        }
        j->row_grad[n] = sum * row;
        if (j->bit.rate > 0)
            for (size_t k = 0; k < k_cols; k++)
                bit[k] -= adam_step(j->bit, grad[k] * row * p->col_scale[k], &m[k], &v[k]);
    }
}

static void learn_plane(struct student *s, const struct gemm *g, const struct student_matrix *x,
                        struct student_plane *p, const float *grad, const struct student_rates *r) {
    struct adam scale = adam_at(r->scale, r->t);
    struct plane_job j = {.x = x, .p = p, .grad = grad, .bit = adam_at(r->bit, r->t)};
    j.row_grad = s->scratch;
    j.col_part = s->part;
    pool_run(g->pool, plane_learn_task, &j, blocks(x));
    if (p->row.n == 1)
        for (int32_t n = 1; n < x->n; n++)
            j.row_grad[0] += j.row_grad[n];
    float *col_grad = s->part;
    for (int32_t b = 1; b < blocks(x); b++) /* in block order, whoever summed the blocks */
        for (int32_t k = 0; k < x->k; k++)
            col_grad[k] += s->part[(size_t)b * (size_t)x->k + (size_t)k];
    for (int32_t k = 0; k < x->k; k++)
        col_grad[k] *= p->col_scale[k];
    if (r->scale > 0 && r->scale_itself) {
        for (size_t i = 0; i < p->row.n; i++) {
            float size = expf(p->row.x[i]), step;
            step = adam_step(scale, j.row_grad[i] / size, &p->row.m[i], &p->row.v[i]);
            p->row.x[i] = logf(size - step > 1e-9f ? size - step : 1e-9f);
        }
    } else if (r->scale > 0) {
        adam_vector(&p->row, j.row_grad, scale);
        adam_vector(&p->col, col_grad, scale);
        plane_columns(x, p);
    }
}

static float root_mean_square(const struct param *p) {
    double sum = 0;
    for (size_t i = 0; i < p->n; i++)
        sum += (double)p->x[i] * (double)p->x[i];
    return (float)sqrt(sum / (double)p->n);
}

static void learn_pair(struct student *s, const struct gemm *g, struct student_matrix *x,
                       const float *grad, const struct student_rates *r) {
    size_t k = (size_t)x->k, rank = (size_t)x->rank;
    float *da = s->scratch, *db = da + x->a.n; /* [rank, K], [N, rank] */
    gemm(g, x->rank, x->k, x->n, mat_transposed(x->b.x, rank), mat_of(grad, k), da, k, false);
    gemm(g, x->n, x->rank, x->k, mat_of(grad, k), mat_transposed(x->a.x, k), db, rank, false);
    adam_vector(&x->a, da, adam_at(r->low_rank * root_mean_square(&x->a), r->t));
    adam_vector(&x->b, db, adam_at(r->low_rank * root_mean_square(&x->b), r->t));
}

void student_learn(struct student *s, const struct gemm *g, int32_t i, const float *grad,
                   const struct student_rates *r) {
    struct student_matrix *x = &s->matrix[i];
    if (x->kind != STUDENT_PLANES)
        return;
    for (int32_t p = 0; p < x->n_planes; p++)
        learn_plane(s, g, x, &x->plane[p], grad, r);
    if (x->rank && r->low_rank > 0)
        learn_pair(s, g, x, grad, r);
    student_set_weights(s, g, i);
}

void student_learn_norms(struct student *s, const float *grad, const struct student_rates *r) {
    if (r->norm <= 0)
        return;
    adam_vector(&s->norm, grad, adam_at(r->norm, r->t));
    memcpy(s->model.norm, s->norm.x, s->norm.n * sizeof(float));
}
