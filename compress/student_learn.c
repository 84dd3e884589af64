/* A step of learning. With G the gradient of a matrix's weights, all its planes see the same G, so
 * they are learnt jointly; and W = .. + b a:  db = G a',  da = b' G. With G = dy' x those are dy'
 * (x a') and (dy b)' x, a tenth of the work. */
#include <math.h>

#include "compress/student.h"

bool student_learns(const struct student *s, int32_t i) {
    return s->matrix[i].kind == STUDENT_PLANES;
}

static void learn_plane(struct student *s, const struct student_matrix *x, struct train_plane *p,
                        const float *grad, const struct student_rates *r) {
    float *row = s->grad, *col = row + x->n;
    /* Signs of several planes that share a gradient turn against one another: only those of the
     * last, the finest, are learnt. Scales of more than two stay ever nearer to where they started:
     * an error in the first is to be small beside the last. */
    bool last = p == &x->plane[x->n_planes - 1];
    struct train_adam bits = train_adam(last ? r->bit : 0, r->t),
                      scale = train_adam(
                          x->n_planes > 2 ? ldexpf(r->scale, 2 - x->n_planes) : r->scale, r->t);
    s->t->ops->plane_back(s->t, p, x->n, x->k, grad, bits, row, col);
    if (r->scale > 0) {
        s->t->ops->adam(s->t, &p->row, row, scale);
        if (p->col.n)
            s->t->ops->adam(s->t, &p->col, col, scale);
    }
}

static void learn_pair(struct student *s, int32_t i, const float *grad,
                       const struct student_flow *f, const struct student_rates *r) {
    struct student_matrix *x = &s->matrix[i];
    size_t k = (size_t)x->k, rank = (size_t)x->rank, ld = (size_t)s->model.matrix[i].n;
    float *da = s->grad, *db = da + x->a.n, *through = db + x->b.n; /* [rank, K], [N, rank], [rows,
                                                                       rank] */
    const struct train_ops *op = s->t->ops;
    struct train_mat a = train_mat_t(x->a.x, k), b = train_mat(x->b.x, rank),
                     part = train_mat(through, rank), part_t = train_mat_t(through, rank);
    if (f->dy) {
        struct train_mat in = train_mat(f->x, k), dy = train_mat(f->dy, ld);
        op->gemm(s->t, f->rows, x->rank, x->k, in, a, through, rank, false);
        op->gemm(s->t, x->n, x->rank, f->rows, train_mat_t(f->dy, ld), part, db, rank, false);
        op->gemm(s->t, f->rows, x->rank, x->n, dy, b, through, rank, false);
        op->gemm(s->t, x->rank, x->k, f->rows, part_t, in, da, k, false);
    } else {
        op->gemm(s->t, x->n, x->rank, x->k, train_mat(grad, k), a, db, rank, false);
        op->gemm(s->t, x->rank, x->k, x->n, train_mat_t(x->b.x, rank), train_mat(grad, k), da, k,
                 false);
    }
    op->adam(s->t, &x->a, da, train_adam(r->low_rank * x->a_size, r->t));
    op->adam(s->t, &x->b, db, train_adam(r->low_rank * x->b_size, r->t));
}

void student_learn(struct student *s, int32_t i, const float *grad, const struct student_flow *flow,
                   const struct student_rates *r) {
    struct student_matrix *x = &s->matrix[i];
    if (x->kind != STUDENT_PLANES)
        return;
    x->is_merged = false;
    for (int32_t p = 0; p < x->n_planes; p++)
        learn_plane(s, x, &x->plane[p], grad, r);
    if (x->rank && r->low_rank > 0)
        learn_pair(s, i, grad, flow, r);
}

void student_learn_norms(struct student *s, const float *grad, const struct student_rates *r) {
    if (r->norm > 0)
        s->t->ops->adam(s->t, &s->norm, grad, train_adam(r->norm, r->t));
}
