/* Signs and scales by least squares under second moments. All that grows with a matrix is products
 * of the device; the host sees one number per row or column. */
#include "compress/closed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/low_rank.h"

static const float least_scale = 1e-12f;

static float *take(struct closed *c, size_t floats, err_t *e) {
    void *p = NULL;
    if (!*e)
        *e = c->t->ops->take(c->t, floats * sizeof(float), &p);
    return p;
}

err_t closed_open(struct closed *c, struct train *t, int32_t n, int32_t k, int32_t n_planes,
                  struct why *why) {
    *c = (struct closed){.t = t, .n = n, .k = k, .n_planes = n_planes};
    size_t longer = (size_t)(n > k ? n : k), block = FACTOR_ROWS * FACTOR_ROWS;
    size_t blocks = ((size_t)k + FACTOR_ROWS - 1) / FACTOR_ROWS, sides = (size_t)n_planes;
    float unit[FACTOR_ROWS * FACTOR_ROWS] = {0};
    err_t e = 0;
    c->factor = take(c, (size_t)k * (size_t)k, &e);
    c->inverse = take(c, blocks * block, &e);
    c->strip = take(c, longer * FACTOR_ROWS, &e);
    c->minus = take(c, longer * FACTOR_ROWS, &e);
    c->x = take(c, longer * (size_t)k, &e);
    c->y = take(c, longer * (size_t)k, &e);
    c->unit = take(c, block, &e);
    c->zero = take(c, longer, &e);
    c->ones = take(c, longer, &e);
    c->dots = take(c, longer, &e);
    for (int32_t p = 0; p < n_planes; p++)
        c->value[p] = take(c, (size_t)n * (size_t)k, &e);
    c->host = malloc((size_t)n * sides * (sides + 1) * sizeof *c->host);
    c->host_row = malloc(2 * longer * sizeof *c->host_row);
    c->longer = longer;
    if (e || !c->host || !c->host_row)
        return why_set(why, E_NOMEM,
                       "There is not enough memory to fit a [%d, %d] matrix by least squares.", n,
                       k);
    for (int32_t i = 0; i < FACTOR_ROWS; i++)
        unit[i * FACTOR_ROWS + i] = 1;
    t->ops->put(t, c->unit, unit, sizeof unit);
    for (size_t i = 0; i < longer; i++)
        c->host_row[i] = 1;
    t->ops->put(t, c->ones, c->host_row, longer * sizeof(float));
    return 0;
}

void closed_close(struct closed *c) {
    if (c->t) {
        void *all[] = {c->factor, c->inverse, c->strip, c->minus, c->x,
                       c->y,      c->unit,    c->zero,  c->ones,  c->dots};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            c->t->ops->give(c->t, all[i]);
        for (int32_t p = 0; p < MAX_PLANES; p++)
            c->t->ops->give(c->t, c->value[p]);
    }
    free(c->host), free(c->host_row);
    *c = (struct closed){0};
}

/* ---- second moments -------------------------------------------------------------------------- */

err_t moments_open(struct moments *m, struct train *t, int32_t k, bool cross, struct why *why) {
    *m = (struct moments){.k = k};
    size_t bytes = (size_t)k * (size_t)k * sizeof(float);
    void *own = NULL, *other = NULL;
    err_t e = t->ops->take(t, bytes, &own);
    if (!e && cross)
        e = t->ops->take(t, bytes, &other);
    m->own = own, m->cross = other;
    return e ? why_set(why, e, "There is not enough memory for the moments of %d inputs.", k) : 0;
}

void moments_close(struct moments *m, struct train *t) {
    t->ops->give(t, m->own), t->ops->give(t, m->cross);
    *m = (struct moments){0};
}

void moments_clear(struct moments *m, struct train *t) {
    size_t bytes = (size_t)m->k * (size_t)m->k * sizeof(float);
    t->ops->zero(t, m->own, bytes);
    if (m->cross)
        t->ops->zero(t, m->cross, bytes);
    m->n_rows = 0;
}

void moments_add(struct moments *m, struct train *t, int32_t rows, const float *x,
                 const float *fine) {
    size_t k = (size_t)m->k;
    t->ops->gemm(t, m->k, m->k, rows, train_mat_t(x, k), train_mat(x, k), m->own, k, true);
    if (m->cross)
        t->ops->gemm(t, m->k, m->k, rows, train_mat_t(fine, k), train_mat(x, k), m->cross, k, true);
    m->n_rows += rows;
}

/* Mean of the diagonal of a [k, k]: what its damping is measured in. */
static float mean_diagonal(struct closed *c, int32_t k, const float *a) {
    float sum = 0;
    struct train_mat diagonal = {a, 1, (size_t)k + 1};
    c->t->ops->gemm(c->t, 1, 1, k, diagonal, train_mat(c->ones, 1), c->dots, 1, false);
    c->t->ops->get(c->t, &sum, c->dots, sizeof sum);
    return sum / (float)k;
}

/* ---- the factor and what is solved with it --------------------------------------------------- */

static int32_t width_at(int32_t first, int32_t k) {
    return k - first < FACTOR_ROWS ? k - first : FACTOR_ROWS;
}

static const float *inverse_at(const struct closed *c, int32_t first) {
    return c->inverse + (size_t)(first / FACTOR_ROWS) * FACTOR_ROWS * FACTOR_ROWS;
}

/* strip [n, w] -> columns of x (row stride ld), and its negative into minus. */
static void spread(struct closed *c, int32_t n, int32_t w, float *x, size_t ld) {
    const struct train_ops *o = c->t->ops;
    size_t floats = (size_t)n * (size_t)w;
    o->gemm(c->t, n, w, w, train_mat(c->strip, (size_t)w), train_mat(c->unit, FACTOR_ROWS), x, ld,
            false);
    o->zero(c->t, c->minus, floats * sizeof(float));
    o->axpy(c->t, floats, -1, c->strip, c->minus);
}

/* c->factor [k, k], symmetric, into its lower Cholesky factor; share: of the diagonal's mean, added
 * to it. */
static void factorise(struct closed *c, int32_t k, float share) {
    const struct train_ops *o = c->t->ops;
    size_t ld = (size_t)k;
    float mean = mean_diagonal(c, k, c->factor), damp = mean > 0 ? share * mean : 1;
    for (int32_t j = 0; j < k; j += FACTOR_ROWS) {
        int32_t w = width_at(j, k), rest = k - j - w;
        float *block = c->factor + (size_t)j * ld + (size_t)j, *below = block + (size_t)w * ld,
              *inverse = c->inverse + (size_t)(j / FACTOR_ROWS) * FACTOR_ROWS * FACTOR_ROWS;
        o->factor(c->t, w, block, ld, damp, inverse);
        if (!rest)
            break;
        o->gemm(c->t, rest, w, w, train_mat(below, ld), train_mat_t(inverse, (size_t)w), c->strip,
                (size_t)w, false);
        spread(c, rest, w, below, ld);
        o->gemm(c->t, rest, rest, w, train_mat(c->minus, (size_t)w),
                train_mat_t(c->strip, (size_t)w), below + w, ld, true);
    }
}

/* x [n, k] := x L^-T, from the first block on. */
static void solve_forward(struct closed *c, int32_t k, int32_t n, float *x) {
    const struct train_ops *o = c->t->ops;
    size_t ld = (size_t)k;
    for (int32_t j = 0; j < k; j += FACTOR_ROWS) {
        int32_t w = width_at(j, k), rest = k - j - w;
        o->gemm(c->t, n, w, w, train_mat(x + j, ld), train_mat_t(inverse_at(c, j), (size_t)w),
                c->strip, (size_t)w, false);
        spread(c, n, w, x + j, ld);
        if (rest)
            o->gemm(c->t, n, rest, w, train_mat(c->minus, (size_t)w),
                    train_mat_t(c->factor + (size_t)(j + w) * ld + (size_t)j, ld), x + j + w, ld,
                    true);
    }
}

/* x [n, k] := x L^-1, from the last block on. */
static void solve_back(struct closed *c, int32_t k, int32_t n, float *x) {
    const struct train_ops *o = c->t->ops;
    size_t ld = (size_t)k;
    for (int32_t j = (k - 1) / FACTOR_ROWS * FACTOR_ROWS; j >= 0; j -= FACTOR_ROWS) {
        int32_t w = width_at(j, k);
        o->gemm(c->t, n, w, w, train_mat(x + j, ld), train_mat(inverse_at(c, j), (size_t)w),
                c->strip, (size_t)w, false);
        spread(c, n, w, x + j, ld);
        if (j)
            o->gemm(c->t, n, j, w, train_mat(c->minus, (size_t)w),
                    train_mat(c->factor + (size_t)j * ld, ld), x, ld, true);
    }
}

void closed_factor(struct closed *c, const struct moments *m, float damp) {
    c->t->ops->copy(c->t, c->factor, m->own, (size_t)m->k * (size_t)m->k * sizeof(float));
    factorise(c, m->k, damp);
}

void closed_target(struct closed *c, const struct moments *m, const struct train_weights *fine,
                   float *d) {
    const struct train_ops *o = c->t->ops;
    size_t k = (size_t)m->k, floats = k * k;
    if (!m->cross)
        return;
    /* d += W ((C - H) H^-1): the small factor is solved, so the cost does not grow with n. */
    o->copy(c->t, c->x, m->cross, floats * sizeof(float));
    o->axpy(c->t, floats, -1, m->own, c->x);
    solve_forward(c, m->k, m->k, c->x);
    solve_back(c, m->k, m->k, c->x);
    o->load(c->t, fine, c->y);
    o->gemm(c->t, fine->n, m->k, m->k, train_mat(c->y, k), train_mat(c->x, k), d, k, true);
}

/* ---- signs ----------------------------------------------------------------------------------- */

/* c->x [n, k] = d less the pair. */
static void less_pair(struct closed *c, const struct train_delta *x, const float *d) {
    struct train_delta pair = *x;
    pair.n_planes = 0;
    c->t->ops->copy(c->t, c->x, d, (size_t)x->n * (size_t)x->k * sizeof(float));
    if (x->rank)
        c->t->ops->unmerge(c->t, &pair, -1, c->x);
}

void closed_signs(struct closed *c, const struct train_delta *x, const float *d) {
    const struct train_ops *o = c->t->ops;
    size_t k = (size_t)x->k;
    less_pair(c, x, d);
    o->zero(c->t, c->y, (size_t)x->n * k * sizeof(float));
    for (int32_t j = (x->k - 1) / FACTOR_ROWS * FACTOR_ROWS; j >= 0; j -= FACTOR_ROWS) {
        int32_t w = width_at(j, x->k);
        o->feedback(c->t, x, j, w, c->factor, c->y, c->x, c->value);
        if (j)
            o->gemm(c->t, x->n, j, w, train_mat(c->x + j, k),
                    train_mat(c->factor + (size_t)j * k, k), c->y, k, true);
    }
    for (int32_t p = 0; p < x->n_planes; p++)
        o->signs_set(c->t, &x->plane[p], x->n, x->k, c->value[p]);
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* out [n, k] = S diag(col) of one plane (rows: its row scales, too; columns: not its column's). */
static void plane_alone(struct closed *c, const struct train_delta *x, int32_t p, bool rows,
                        bool columns, float *out) {
    struct train_plane plane = x->plane[p];
    struct train_delta one = {.n = x->n, .k = x->k, .n_planes = 1, .plane = &plane};
    if (!rows)
        plane.row = (struct train_vector){.x = c->zero, .n = 1};
    if (!columns)
        plane.col = (struct train_vector){0};
    c->t->ops->zero(c->t, out, (size_t)x->n * (size_t)x->k * sizeof(float));
    c->t->ops->unmerge(c->t, &one, 1, out);
}

/* Gauss with pivots for n symmetric equations [n, n + 1]; false where they have no one solution. */
static bool solve_small(double *a, int32_t n, double *x) {
    int32_t w = n + 1;
    double size = 0;
    for (int32_t i = 0; i < n; i++)
        size = fabs(a[i * w + i]) > size ? fabs(a[i * w + i]) : size;
    for (int32_t i = 0; i < n; i++) {
        int32_t best = i;
        for (int32_t r = i + 1; r < n; r++)
            if (fabs(a[r * w + i]) > fabs(a[best * w + i]))
                best = r;
        if (!(fabs(a[best * w + i]) > 1e-9 * size))
            return false;
        for (int32_t l = 0; l < w; l++) {
            double swap = a[i * w + l];
            a[i * w + l] = a[best * w + l], a[best * w + l] = swap;
        }
        for (int32_t r = 0; r < n; r++)
            for (int32_t l = n; r != i && l >= i; l--)
                a[r * w + l] -= a[r * w + i] / a[i * w + i] * a[i * w + l];
    }
    for (int32_t i = 0; i < n; i++)
        x[i] = a[i * w + n] / a[i * w + i];
    return true;
}

/* Logarithms of the solutions of every row's system (all rows in one where a plane has one scale).
 */
static void put_rows(struct closed *c, const struct train_delta *x) {
    int32_t n_planes = x->n_planes, w = n_planes + 1;
    size_t system = (size_t)n_planes * (size_t)w, n = x->plane[0].row.n;
    double solved[MAX_PLANES];
    for (size_t r = n; r < (size_t)x->n; r++) /* only when n is 1 */
        for (size_t i = 0; i < system; i++)
            c->host[i] += c->host[r * system + i];
    for (size_t r = 0; r < n; r++) {
        bool good = solve_small(c->host + r * system, n_planes, solved);
        for (int32_t p = 0; p < n_planes; p++)
            good = good && solved[p] > (double)least_scale;
        for (int32_t p = 0; p < n_planes; p++)
            c->host[r * system + (size_t)p] = good ? solved[p] : 0;
    }
    for (int32_t p = 0; p < n_planes; p++) {
        c->t->ops->get(c->t, c->host_row, x->plane[p].row.x, n * sizeof(float));
        for (size_t r = 0; r < n; r++)
            if (c->host[r * system + (size_t)p] > 0)
                c->host_row[r] = (float)log(c->host[r * system + (size_t)p]);
        c->t->ops->put(c->t, x->plane[p].row.x, c->host_row, n * sizeof(float));
    }
}

void closed_rows(struct closed *c, const struct moments *m, const struct train_delta *x,
                 const float *d) {
    const struct train_ops *o = c->t->ops;
    size_t k = (size_t)x->k;
    int32_t n_planes = x->n_planes, w = n_planes + 1;
    less_pair(c, x, d);
    for (int32_t p = 0; p < n_planes; p++)
        plane_alone(c, x, p, false, true, c->value[p]);
    for (int32_t p = 0; p < n_planes; p++) {
        /* y = z_p H: its products with every plane and with the target */
        o->gemm(c->t, x->n, x->k, x->k, train_mat(c->value[p], k), train_mat(m->own, k), c->y, k,
                false);
        for (int32_t q = 0; q <= n_planes; q++) {
            o->row_dots(c->t, x->n, x->k, c->y, q < n_planes ? c->value[q] : c->x, c->dots);
            o->get(c->t, c->host_row, c->dots, (size_t)x->n * sizeof(float));
            for (int32_t r = 0; r < x->n; r++)
                c->host[((size_t)r * (size_t)n_planes + (size_t)p) * (size_t)w + (size_t)q] =
                    (double)c->host_row[r];
        }
    }
    if (n_planes)
        put_rows(c, x);
}

/* c->x = d less all but plane p. */
static void less_others(struct closed *c, const struct train_delta *x, int32_t p, const float *d) {
    const struct train_ops *o = c->t->ops;
    size_t floats = (size_t)x->n * (size_t)x->k;
    o->copy(c->t, c->x, d, floats * sizeof(float));
    o->unmerge(c->t, x, -1, c->x);
    plane_alone(c, x, p, true, true, c->value[0]);
    o->axpy(c->t, floats, 1, c->value[0], c->x);
}

void closed_columns(struct closed *c, const struct moments *m, const struct train_delta *x,
                    const float *d, float damp) {
    const struct train_ops *o = c->t->ops;
    size_t k = (size_t)x->k, floats = (size_t)x->n * k;
    float *z = c->value[0]; /* [n, k] diag(row) S */
    for (int32_t p = 0; p < x->n_planes; p++) {
        const struct train_vector *col = &x->plane[p].col;
        if (!col->n)
            continue;
        less_others(c, x, p, d);
        plane_alone(c, x, p, true, false, z);
        /* sum over rows of z * (target H) = (H * (z' z)) col */
        o->gemm(c->t, x->n, x->k, x->k, train_mat(c->x, k), train_mat(m->own, k), c->y, k, false);
        o->times(c->t, floats, z, c->y);
        o->gemm(c->t, 1, x->k, x->n, train_mat(c->ones, (size_t)x->n), train_mat(c->y, k), c->x, k,
                false);
        o->gemm(c->t, x->k, x->k, x->n, train_mat_t(z, k), train_mat(z, k), c->factor, k, false);
        o->times(c->t, k * k, m->own, c->factor);
        factorise(c, x->k, damp);
        solve_forward(c, x->k, 1, c->x);
        solve_back(c, x->k, 1, c->x);
        float *solved = c->host_row, *logs = solved + c->longer;
        o->get(c->t, solved, c->x, k * sizeof(float));
        o->get(c->t, logs, col->x, k * sizeof(float));
        for (size_t l = 0; l < k; l++)
            logs[l] = solved[l] > least_scale ? logf(solved[l]) : logs[l];
        o->put(c->t, col->x, logs, k * sizeof(float));
    }
}

err_t closed_pair(struct closed *c, const struct moments *m, const struct train_delta *x,
                  const float *d, float *b, float *a) {
    struct train_delta planes = *x;
    planes.rank = 0;
    c->t->ops->copy(c->t, c->x, d, (size_t)x->n * (size_t)x->k * sizeof(float));
    c->t->ops->unmerge(c->t, &planes, -1, c->x);
    return low_rank(c->t, x->n, x->k, x->rank, c->x, m->own, b, a, NULL);
}

double closed_error(struct closed *c, const struct moments *m, const struct train_delta *x,
                    const float *d) {
    const struct train_ops *o = c->t->ops;
    size_t k = (size_t)x->k;
    double sum[2] = {0, 0};
    o->copy(c->t, c->x, d, (size_t)x->n * k * sizeof(float));
    for (int i = 0; i < 2; i++) {
        o->gemm(c->t, x->n, x->k, x->k, train_mat(c->x, k), train_mat(m->own, k), c->y, k, false);
        o->row_dots(c->t, x->n, x->k, c->x, c->y, c->dots);
        o->get(c->t, c->host_row, c->dots, (size_t)x->n * sizeof(float));
        for (int32_t r = 0; r < x->n; r++)
            sum[i] += (double)c->host_row[r];
        if (i == 0)
            o->unmerge(c->t, x, -1, c->x);
    }
    return sum[0] > 0 ? sum[1] / sum[0] : 0;
}
