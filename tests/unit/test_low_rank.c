/* The nearest matrix of a rank against matrices whose singular values are known because they were
 * made of them. */
#include "compress/low_rank.h"

#include <math.h>

#include "compress/eigen.h"
#include "tests/check.h"

/* x [q, n]: orthonormal rows, by Gram and Schmidt, twice. */
static void make_orthonormal(int32_t n, int32_t q, unsigned seed, double *x) {
    for (int32_t i = 0; i < n * q; i++)
        x[i] = (double)test_gauss(&seed);
    for (int32_t turn = 0; turn < 2 * q; turn++) {
        double *row = x + turn / 2 * n, length = 0;
        for (double *other = x; other < row; other += n) {
            double dot = 0;
            for (int32_t i = 0; i < n; i++)
                dot += row[i] * other[i];
            for (int32_t i = 0; i < n; i++)
                row[i] -= dot * other[i];
        }
        for (int32_t i = 0; i < n; i++)
            length += row[i] * row[i];
        for (int32_t i = 0; i < n; i++)
            row[i] /= sqrt(length);
    }
}

/* d [n, k] with these singular values, min(n, k) of them. */
static float *make_matrix(int32_t n, int32_t k, const double *value) {
    int32_t q = n < k ? n : k;
    double *u = malloc((size_t)(n * q) * sizeof *u), *v = malloc((size_t)(k * q) * sizeof *v);
    float *d = malloc((size_t)(n * k) * sizeof *d);
    make_orthonormal(n, q, 3, u), make_orthonormal(k, q, 4, v);
    double *row = malloc((size_t)k * sizeof *row);
    for (int32_t i = 0; i < n; i++) {
        memset(row, 0, (size_t)k * sizeof *row);
        for (int32_t r = 0; r < q; r++)
            for (int32_t j = 0; j < k; j++)
                row[j] += u[r * n + i] * value[r] * v[r * k + j];
        for (int32_t j = 0; j < k; j++)
            d[i * k + j] = (float)row[j];
    }
    free(u), free(v), free(row);
    return d;
}

/* What is asked of a spectrum: shares of the energy that the best has and the pair may lack, and of
 * a value that it may be off by. */
struct demand {
    const char *name;
    double energy, value;
};

static void check_rank(struct train *t, const struct demand *want, int32_t n, int32_t k,
                       const double *value, const float *d, int32_t rank) {
    struct why why = {""};
    size_t all = (size_t)n * (size_t)k, r = (size_t)rank;
    float *left = malloc(all * sizeof *left), *b = malloc((size_t)n * r * sizeof *b),
          *a = malloc(r * (size_t)k * sizeof *a);
    double *held = malloc(r * sizeof *held), best = 0, found = 0, whole = 0, missed = 0;
    memcpy(left, d, all * sizeof *left);
    CHECK_OK(low_rank(t, n, k, rank, left, NULL, b, a, held), why);
    for (int32_t i = 0; i < rank; i++) {
        best += value[i] * value[i], found += held[i];
        if (!(fabs(sqrt(held[i]) - value[i]) <= want->value * value[i] + 2e-5 * value[0]))
            test_fail(__FILE__, __LINE__, "%s, [%d, %d] rank %d: value %d is %.6g, not %.6g",
                      want->name, n, k, rank, i, sqrt(held[i]), value[i]);
    }
    for (size_t i = 0; i < all; i++) {
        double back = 0;
        for (size_t j = 0; j < r; j++)
            back += (double)b[i / (size_t)k * r + j] * (double)a[j * (size_t)k + i % (size_t)k];
        double lost = (double)d[i] - back;
        whole += (double)d[i] * (double)d[i], missed += lost * lost;
        CHECK_NEAR((double)left[i], lost, 2e-5 * value[0], 0);
    }
    if (!(whole - missed >= best * (1 - want->energy) &&
          fabs(found - (whole - missed)) < 1e-4 * best))
        test_fail(__FILE__, __LINE__, "%s, [%d, %d] rank %d: holds %.8g, says %.8g, could %.8g",
                  want->name, n, k, rank, whole - missed, found, best);
    for (size_t i = 0; i < r; i++) /* a pair each, balanced and at right angles */
        for (size_t j = 0; j <= i; j++) {
            double bb = 0, aa = 0, size = sqrt(sqrt(held[i] * held[j]));
            for (size_t l = 0; l < (size_t)n; l++)
                bb += (double)b[l * r + i] * (double)b[l * r + j];
            for (size_t l = 0; l < (size_t)k; l++)
                aa += (double)a[i * (size_t)k + l] * (double)a[j * (size_t)k + l];
            if (i != j && size > 0.1 * value[0])
                CHECK(fabs(bb) < 1e-3 * size);
            else if (i == j)
                CHECK(fabs(bb - aa) <= 1e-3 * size + 1e-6 * value[0]);
        }
    free(left), free(b), free(a), free(held);
}

/* Spectra by number; `sharp`: what stands apart enough to be found as itself. */
enum { FLAT, SLOW, FAST, STAIRS, NOISE, FEW, N_SPECTRA };
static const struct demand demands[N_SPECTRA] = {
    [FLAT] = {"flat", 1e-4, 1e-4},    [SLOW] = {"slowly falling", 1e-3, 0.02},
    [FAST] = {"falling", 1e-5, 2e-3}, [STAIRS] = {"repeated values", 1e-3, 0.02},
    [NOISE] = {"noise", 1e-3, 0.02},  [FEW] = {"of few", 1e-5, 1e-4},
};
static double value_of(int spectrum, int32_t i, int32_t n) {
    switch (spectrum) {
    case FLAT:
        return 2;
    case SLOW:
        return pow(i + 1, -0.25);
    case FAST:
        return 10 * pow(0.9, i);
    case STAIRS:
        return i < 5 ? 8 : i < 70 ? 1 : i < 140 ? 0.9 : 0.1;
    case NOISE: /* about as those of independent numbers are */
        return 1 - 0.7 * pow((double)i / n, 0.7);
    default:
        return i < 7 ? 3.0 / (i + 1) : 0;
    }
}

static void check_spectrum(int spectrum, int32_t n, int32_t k, const int32_t *rank) {
    struct train *t;
    struct why why = {""};
    double value[400];
    int32_t least = n < k ? n : k;
    for (int32_t i = 0; i < least; i++)
        value[i] = value_of(spectrum, i, least);
    float *d = make_matrix(n, k, value);
    CHECK_OK(train_cpu_open(&t, 2, &why), why);
    for (; *rank; rank++)
        check_rank(t, &demands[spectrum], n, k, value, d, *rank);
    t->ops->close(t);
    free(d);
}

TEST(low_rank_holds_what_the_best_pair_holds_whatever_the_spectrum) {
    for (int s = 0; s < N_SPECTRA; s++) {
        check_spectrum(s, 300, 220, (const int32_t[]){1, 8, 40, 150, 220, 0});
        check_spectrum(s, 200, 260, (const int32_t[]){3, 128, 129, 200, 0});
    }
}

TEST(low_rank_takes_matrices_of_any_shape) {
    for (int s = 0; s < N_SPECTRA; s++) {
        check_spectrum(s, 1, 1, (const int32_t[]){1, 0});
        check_spectrum(s, 1, 9, (const int32_t[]){1, 0});
        check_spectrum(s, 2, 3, (const int32_t[]){1, 2, 0});
        check_spectrum(s, 33, 2, (const int32_t[]){2, 0});
        check_spectrum(s, 40, 40, (const int32_t[]){20, 40, 0});
    }
}

TEST(low_rank_of_nothing_is_nothing) {
    struct train *t;
    struct why why = {""};
    float d[12] = {0}, b[9], a[12];
    double held[3];
    CHECK_OK(train_cpu_open(&t, 1, &why), why);
    CHECK_OK(low_rank(t, 3, 4, 3, d, NULL, b, a, held), why);
    for (int i = 0; i < 12; i++)
        CHECK(a[i] == 0 && d[i] == 0 && b[i % 9] == 0 && held[i % 3] == 0);
    t->ops->close(t);
}

/* With second moments the pair spends its directions on the inputs that come. */
TEST(low_rank_under_second_moments_makes_outputs_nearest) {
    struct train *t;
    struct why why = {""};
    CHECK_OK(train_cpu_open(&t, 1, &why), why);
    enum { N = 24, K = 20, RANK = 3 };
    unsigned seed = 9;
    float from[N * K], d[N * K], h[K * K] = {0}, b[N * RANK], a[RANK * K];
    for (int i = 0; i < N * K; i++)
        from[i] = test_gauss(&seed);
    for (int i = 0; i < K; i++)
        h[i * K + i] = i < 5 ? 100.0f : 0.1f;
    double error[2] = {0};
    for (int with = 0; with < 2; with++) {
        memcpy(d, from, sizeof d);
        CHECK_OK(low_rank(t, N, K, RANK, d, with ? h : NULL, b, a, NULL), why);
        for (int i = 0; i < N * K; i++)
            error[with] += (double)d[i] * (double)d[i] * (double)h[i % K * K + i % K];
    }
    CHECK(error[1] < 0.6 * error[0]);
    t->ops->close(t);
}

TEST(eigen_gives_the_matrix_back_whatever_its_size) {
    for (int32_t n = 1; n < 130; n = n * 2 + 1) {
        double a[127 * 127], m[127 * 127], value[127], x[127 * 127];
        unsigned seed = (unsigned)n;
        for (int32_t i = 0; i < n; i++)
            for (int32_t j = 0; j <= i; j++)
                a[i * n + j] = a[j * n + i] = (double)test_gauss(&seed);
        memcpy(m, a, sizeof m);
        CHECK_EQ(eigen(n, m, value, x), 0);
        for (int32_t i = 0; i < n; i++)
            for (int32_t j = 0; j < n; j++) {
                double sum = 0, dot = 0;
                for (int32_t r = 0; r < n; r++) {
                    sum += value[r] * x[r * n + i] * x[r * n + j];
                    dot += x[i * n + r] * x[j * n + r];
                }
                CHECK(i == 0 || value[i] <= value[i - 1]);
                CHECK_NEAR(sum, a[i * n + j], 1e-9, 0);
                CHECK_NEAR(dot, i == j, 1e-11, 0);
            }
    }
}
