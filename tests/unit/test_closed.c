/* The closed form: every stage lowers the error of the outputs that it claims to lower, on inputs
 * whose columns go along with one another, and solves what it says it solves. */
#include "compress/closed.h"

#include <math.h>

#include "tests/check.h"

enum { N = 48, K = 150, ROWS = 700, MOST = 4 };

struct made {
    struct train *t;
    struct closed c;
    struct moments m;
    float x[ROWS * K], fine_x[ROWS * K], d[N * K]; /* host */
    float *dev_d;
    struct train_plane plane[MOST];
    struct train_delta delta;
};

static void *put(struct train *t, const float *x, size_t n) {
    void *p = NULL;
    CHECK_EQ(t->ops->take(t, n * sizeof(float), &p), 0);
    if (x)
        t->ops->put(t, p, x, n * sizeof(float));
    return p;
}

/* Inputs: a few common causes and noise, columns of very different size. fine_x: the same, a little
 * off. */
static void make_inputs(struct made *m) {
    unsigned seed = 11;
    static float mix[12 * K];
    for (size_t i = 0; i < 12 * K; i++)
        mix[i] = test_gauss(&seed);
    for (size_t r = 0; r < ROWS; r++) {
        float cause[12];
        for (size_t i = 0; i < 12; i++)
            cause[i] = test_gauss(&seed);
        for (size_t k = 0; k < K; k++) {
            float sum = 0.7f * test_gauss(&seed), size = 0.3f + 0.2f * (float)(k % 7);
            for (size_t i = 0; i < 12; i++)
                sum += 0.4f * cause[i] * mix[i * K + k];
            m->fine_x[r * K + k] = size * sum;
            m->x[r * K + k] = size * (0.9f * sum + 0.2f * cause[0]);
        }
    }
}

static void open_made(struct made *m, int32_t n_planes, bool cross) {
    struct why why = {""};
    unsigned seed = 3;
    memset(m, 0, sizeof *m);
    CHECK_OK(train_cpu_open(&m->t, 2, &why), why);
    CHECK_OK(closed_open(&m->c, m->t, N, K, n_planes, &why), why);
    CHECK_OK(moments_open(&m->m, m->t, K, cross, &why), why);
    make_inputs(m);
    float *x = put(m->t, m->x, ROWS * K), *fine = put(m->t, m->fine_x, ROWS * K);
    moments_add(&m->m, m->t, 400, x, fine);
    moments_add(&m->m, m->t, ROWS - 400, x + 400 * K, fine + 400 * K);
    CHECK_EQ(m->m.n_rows, ROWS);
    m->t->ops->give(m->t, x), m->t->ops->give(m->t, fine);
    for (size_t i = 0; i < N * K; i++)
        m->d[i] = 0.01f * (0.5f + 0.1f * (float)(i / K % 9)) * test_gauss(&seed);
    m->dev_d = put(m->t, m->d, N * K);
    m->delta = (struct train_delta){.n = N, .k = K, .n_planes = n_planes, .plane = m->plane};
    float *left = put(m->t, m->d, N * K);
    for (int32_t p = 0; p < n_planes; p++) {
        struct train_plane *plane = &m->plane[p];
        plane->row = (struct train_vector){.x = put(m->t, NULL, N), .n = N};
        plane->col = (struct train_vector){.x = put(m->t, NULL, K), .n = K};
        CHECK_EQ(m->t->ops->signs_make(m->t, N, K, &plane->signs), 0);
        m->t->ops->scales_fit(m->t, N, K, left, NULL, 8, plane);
        m->t->ops->signs_set(m->t, plane, N, K, left);
        struct train_delta one = {.n = N, .k = K, .n_planes = 1, .plane = plane};
        m->t->ops->unmerge(m->t, &one, -1, left);
    }
    m->t->ops->give(m->t, left);
}

static void close_made(struct made *m) {
    for (int32_t p = 0; p < m->delta.n_planes; p++) {
        m->t->ops->give(m->t, m->plane[p].row.x), m->t->ops->give(m->t, m->plane[p].col.x);
        m->t->ops->signs_free(m->t, m->plane[p].signs);
    }
    m->t->ops->give(m->t, m->dev_d);
    moments_close(&m->m, m->t);
    closed_close(&m->c);
    m->t->ops->close(m->t);
}

static double error_of(struct made *m) {
    return closed_error(&m->c, &m->m, &m->delta, m->dev_d);
}

/* What the planes add up to, [N, K]. */
static void stored(struct made *m, float *q) {
    float *p = put(m->t, NULL, N * K);
    m->t->ops->unmerge(m->t, &m->delta, 1, p);
    m->t->ops->get(m->t, q, p, N * K * sizeof(float));
    m->t->ops->give(m->t, p);
}

TEST(closed_error_is_that_of_the_outputs) {
    static struct made m;
    static float q[N * K];
    open_made(&m, 2, false);
    stored(&m, q);
    double wrong = 0, all = 0;
    for (size_t r = 0; r < ROWS; r++)
        for (size_t n = 0; n < N; n++) {
            double y = 0, e = 0;
            for (size_t k = 0; k < K; k++) {
                y += (double)m.d[n * K + k] * (double)m.x[r * K + k];
                e += (double)(m.d[n * K + k] - q[n * K + k]) * (double)m.x[r * K + k];
            }
            wrong += e * e, all += y * y;
        }
    CHECK_NEAR(error_of(&m), wrong / all, 0, 1e-3);
    close_made(&m);
}

/* The factor of the moments in double, and the signs that plain feedback chooses with it. */
TEST(closed_signs_are_those_of_feedback_done_one_column_at_a_time) {
    static struct made m;
    static float q[N * K];
    static double h[K][K], l[K][K];
    open_made(&m, 1, false);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < K; i++)
            for (size_t j = 0; j < K; j++)
                h[i][j] += (double)m.x[r * K + i] * (double)m.x[r * K + j];
    double mean = 0;
    for (size_t i = 0; i < K; i++)
        mean += h[i][i] / K;
    for (size_t i = 0; i < K; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = h[i][j] + (i == j ? 0.01 * mean : 0);
            for (size_t k = 0; k < j; k++)
                sum -= l[i][k] * l[j][k];
            l[i][j] = i == j ? sqrt(sum) : sum / l[j][j];
        }
    stored(&m, q); /* its sizes; the signs are found below */
    closed_factor(&m.c, &m.m, 0.01f);
    closed_signs(&m.c, &m.delta, m.dev_d);
    static float now[N * K];
    stored(&m, now);
    int wrong = 0;
    for (size_t n = 0; n < N; n++) {
        double e[K];
        for (size_t j = K; j-- > 0;) {
            double u = (double)m.d[n * K + j];
            for (size_t i = j + 1; i < K; i++)
                u += e[i] * l[i][j] / l[j][j];
            double size = fabs((double)q[n * K + j]);
            wrong += (u >= 0) != (now[n * K + j] >= 0);
            /* go on from what was chosen: a u next to 0 may turn with the rounding */
            e[j] = (double)m.d[n * K + j] - (now[n * K + j] >= 0 ? size : -size);
        }
    }
    CHECK(wrong <= N * K / 1000);
    close_made(&m);
}

TEST(closed_stages_each_lower_the_error) {
    static struct made m;
    for (int32_t planes = 1; planes <= 3; planes++) {
        open_made(&m, planes, false);
        double e[5] = {error_of(&m)};
        closed_rows(&m.c, &m.m, &m.delta, m.dev_d);
        e[1] = error_of(&m);
        closed_columns(&m.c, &m.m, &m.delta, m.dev_d, 1e-4f);
        e[2] = error_of(&m);
        closed_factor(&m.c, &m.m, 0.01f);
        closed_signs(&m.c, &m.delta, m.dev_d);
        e[3] = error_of(&m);
        closed_rows(&m.c, &m.m, &m.delta, m.dev_d);
        e[4] = error_of(&m);
        static const char *const what[] = {"", "row scales", "column scales", "signs",
                                           "row scales again"};
        static const double most[] = {0, 1, 1, 0.6, 1};
        for (int i = 1; i < 5; i++)
            if (!(e[i] < most[i] * e[i - 1]))
                test_fail(__FILE__, __LINE__, "%d planes, %s: the error is %.5f, it was %.5f",
                          planes, what[i], e[i], e[i - 1]);
        close_made(&m);
    }
}

TEST(closed_row_scales_cannot_be_bettered_one_by_one) {
    static struct made m;
    open_made(&m, 2, false);
    closed_rows(&m.c, &m.m, &m.delta, m.dev_d);
    double best = error_of(&m);
    float row[N], other[N];
    for (int32_t p = 0; p < 2; p++) {
        m.t->ops->get(m.t, row, m.plane[p].row.x, sizeof row);
        for (int i = 0; i < 6; i++) {
            memcpy(other, row, sizeof row);
            other[i * 7] += i % 2 ? 0.02f : -0.02f;
            m.t->ops->put(m.t, m.plane[p].row.x, other, sizeof other);
            CHECK(error_of(&m) > best);
        }
        m.t->ops->put(m.t, m.plane[p].row.x, row, sizeof row);
    }
    close_made(&m);
}

/* With the target moved, base + target on the tenant's inputs is as near to the fine-tune on its
 * own inputs as any matrix is: what stays is at right angles to the inputs. */
TEST(closed_target_makes_good_what_the_inputs_have_drifted) {
    static struct made m;
    static float w[N * K], d[N * K];
    unsigned seed = 8;
    open_made(&m, 1, true);
    for (size_t i = 0; i < N * K; i++)
        w[i] = 0.05f * test_gauss(&seed);
    struct train_weights fine = {.n = N, .k = K};
    float *dense = put(m.t, w, N * K);
    CHECK_EQ(m.t->ops->take(m.t, N * K * m.t->ops->weight_bytes, &fine.w), 0);
    m.t->ops->store(m.t, dense, &fine);
    closed_factor(&m.c, &m.m, 1e-6f);
    closed_target(&m.c, &m.m, &fine, m.dev_d);
    m.t->ops->get(m.t, d, m.dev_d, sizeof d);
    double before = 0, after = 0, most = 0;
    for (size_t n = 0; n < N; n++) {
        double against[K] = {0}, length = 0;
        for (size_t r = 0; r < ROWS; r++) {
            double was = 0, is = 0; /* fine-tune's output less the tenant's */
            for (size_t k = 0; k < K; k++) {
                double base = (double)(w[n * K + k] - m.d[n * K + k]), x = (double)m.x[r * K + k],
                       out = (double)w[n * K + k] * (double)m.fine_x[r * K + k];
                was += out - (base + (double)m.d[n * K + k]) * x;
                is += out - (base + (double)d[n * K + k]) * x;
            }
            before += was * was, after += is * is, length += is * is;
            for (size_t k = 0; k < K; k++)
                against[k] += is * (double)m.x[r * K + k];
        }
        for (size_t k = 0; k < K; k++) {
            double size = 0;
            for (size_t r = 0; r < ROWS; r++)
                size += (double)m.x[r * K + k] * (double)m.x[r * K + k];
            double cosine = fabs(against[k]) / sqrt(length * size);
            most = cosine > most ? cosine : most;
        }
    }
    CHECK(after < 0.5 * before);
    CHECK(most < 0.01);
    m.t->ops->give(m.t, dense), m.t->ops->give(m.t, fine.w);
    close_made(&m);
}
