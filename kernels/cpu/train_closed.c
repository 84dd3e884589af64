/* The small operators of the closed form: the large ones are products. Rows are spread over the
 * pool; a block's factor is one thread's work. */
#include "kernels/cpu/train_closed.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

enum { BLOCK_ROWS = 16, BLOCK_FLOATS = 1 << 14 };

void closed_cpu_factor(int32_t n, float *a, size_t ld, float damp, float *inverse) {
    double l[FACTOR_ROWS][FACTOR_ROWS], inv[FACTOR_ROWS][FACTOR_ROWS] = {{0}};
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j <= i; j++) {
            double sum = (double)a[(size_t)i * ld + (size_t)j] + (i == j ? (double)damp : 0);
            for (int32_t m = 0; m < j; m++)
                sum -= l[i][m] * l[j][m];
            if (i == j)
                l[i][i] = sqrt(sum > 0 ? sum : (double)damp);
            else
                l[i][j] = sum / l[j][j];
        }
    for (int32_t j = 0; j < n; j++)
        for (int32_t i = j; i < n; i++) {
            double sum = i == j ? 1 : 0;
            for (int32_t m = j; m < i; m++)
                sum -= l[i][m] * inv[m][j];
            inv[i][j] = sum / l[i][i];
        }
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < n; j++) {
            if (j <= i)
                a[(size_t)i * ld + (size_t)j] = (float)l[i][j];
            inverse[i * n + j] = (float)inv[i][j];
        }
}

struct feedback {
    const struct train_delta *x;
    int32_t first, width;
    const float *pushed;               /* [n, k] */
    float *d, *const *value;           /* [n, k] */
    float l[FACTOR_ROWS][FACTOR_ROWS]; /* column by column, over the diagonal's element */
    float col[MAX_PLANES][FACTOR_ROWS];
};

static void feedback_row(const struct feedback *f, int32_t n) {
    const struct train_delta *x = f->x;
    size_t at = (size_t)n * (size_t)x->k + (size_t)f->first;
    float row[MAX_PLANES], *d = f->d + at;
    for (int32_t p = 0; p < x->n_planes; p++)
        row[p] = expf(x->plane[p].row.x[x->plane[p].row.n > 1 ? n : 0]);
    for (int32_t j = f->width - 1; j >= 0; j--) {
        float u = d[j] + f->pushed[at + (size_t)j] * f->l[j][j], stored = 0;
        for (int32_t i = j + 1; i < f->width; i++)
            u += d[i] * f->l[j][i]; /* the errors of the columns before */
        for (int32_t p = 0; p < x->n_planes; p++) {
            float size = row[p] * f->col[p][j], step = u >= 0 ? size : -size;
            f->value[p][at + (size_t)j] = u;
            u -= step, stored += step;
        }
        d[j] -= stored;
    }
}

static void feedback_task(void *arg, int32_t item, int32_t thread) {
    (void)thread;
    const struct feedback *f = arg;
    int32_t end = (item + 1) * BLOCK_ROWS < f->x->n ? (item + 1) * BLOCK_ROWS : f->x->n;
    for (int32_t n = item * BLOCK_ROWS; n < end; n++)
        feedback_row(f, n);
}

void closed_cpu_feedback(struct pool *pool, const struct train_delta *x, int32_t first,
                         int32_t width, const float *l, const float *pushed, float *d,
                         float *const *value) {
    struct feedback f = {.x = x, .first = first, .width = width};
    f.pushed = pushed, f.d = d, f.value = value;
    for (int32_t j = 0; j < width; j++) {
        float diagonal = l[(size_t)(first + j) * (size_t)x->k + (size_t)(first + j)];
        for (int32_t i = j; i < width; i++)
            f.l[j][i] =
                i == j ? 1 / diagonal
                       : l[(size_t)(first + i) * (size_t)x->k + (size_t)(first + j)] / diagonal;
    }
    for (int32_t p = 0; p < x->n_planes; p++)
        for (int32_t j = 0; j < width; j++)
            f.col[p][j] = x->plane[p].col.n ? expf(x->plane[p].col.x[first + j]) : 1;
    pool_run(pool, feedback_task, &f, (x->n + BLOCK_ROWS - 1) / BLOCK_ROWS);
}

struct rows {
    int32_t n, k;
    const float *a, *b;
    float *out;
};

static void row_dots_task(void *arg, int32_t item, int32_t thread) {
    (void)thread;
    const struct rows *r = arg;
    int32_t end = (item + 1) * BLOCK_ROWS < r->n ? (item + 1) * BLOCK_ROWS : r->n;
    for (int32_t n = item * BLOCK_ROWS; n < end; n++) {
        const float *a = r->a + (size_t)n * (size_t)r->k, *b = r->b + (size_t)n * (size_t)r->k;
        double sum = 0;
        for (int32_t k = 0; k < r->k; k++)
            sum += (double)a[k] * (double)b[k];
        r->out[n] = (float)sum;
    }
}

void closed_cpu_row_dots(struct pool *pool, int32_t n, int32_t k, const float *a, const float *b,
                         float *out) {
    struct rows r = {n, k, a, b, out};
    pool_run(pool, row_dots_task, &r, (n + BLOCK_ROWS - 1) / BLOCK_ROWS);
}

struct zeros {
    int32_t n, k;
    const float *x;
    int32_t *out;
};

static void row_zeros_task(void *arg, int32_t item, int32_t thread) {
    (void)thread;
    const struct zeros *z = arg;
    int32_t end = (item + 1) * BLOCK_ROWS < z->n ? (item + 1) * BLOCK_ROWS : z->n;
    for (int32_t n = item * BLOCK_ROWS; n < end; n++) {
        const float *x = z->x + (size_t)n * (size_t)z->k;
        int32_t count = 0;
        for (int32_t k = 0; k < z->k; k++)
            count += x[k] == 0;
        z->out[n] = count;
    }
}

void closed_cpu_row_zeros(struct pool *pool, int32_t n, int32_t k, const float *x, int32_t *out) {
    struct zeros z = {n, k, x, out};
    pool_run(pool, row_zeros_task, &z, (n + BLOCK_ROWS - 1) / BLOCK_ROWS);
}

struct product {
    size_t n;
    const float *y;
    float *x;
};

static void times_task(void *arg, int32_t item, int32_t thread) {
    (void)thread;
    const struct product *p = arg;
    size_t first = (size_t)item * BLOCK_FLOATS, end = first + BLOCK_FLOATS;
    for (size_t i = first; i < end && i < p->n; i++)
        p->x[i] *= p->y[i];
}

void closed_cpu_times(struct pool *pool, size_t n, const float *y, float *x) {
    struct product p = {n, y, x};
    pool_run(pool, times_task, &p, (int32_t)((n + BLOCK_FLOATS - 1) / BLOCK_FLOATS));
}
