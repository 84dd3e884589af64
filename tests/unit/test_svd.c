/* Singular triplets: orthonormal, falling, and the matrix again. */
#include "compress/svd.h"

#include <math.h>

#include "tests/check.h"

static void check_svd(int32_t n, int32_t k, int32_t rank) {
    int32_t r = n < k ? n : k;
    unsigned seed = (unsigned)(n * 31 + k);
    float *d = calloc((size_t)(n * k), 4), *u = malloc((size_t)(n * r) * 4),
          *s = malloc((size_t)r * 4), *v = malloc((size_t)(r * k) * 4);
    for (int32_t t = 0; t < rank; t++) {
        float x[300];
        for (int32_t i = 0; i < n + k; i++)
            x[i] = test_gauss(&seed);
        for (int32_t i = 0; i < n * k; i++)
            d[i] += x[i / k] * x[n + i % k] / (float)(t + 1);
    }
    CHECK_EQ(svd(n, k, d, u, s, v), 0);
    for (int32_t i = 0; i < r; i++) {
        CHECK(i == 0 || s[i] <= s[i - 1]);
        CHECK(i < rank ? s[i] > 0 : s[i] < 1e-3f * s[0]);
        for (int32_t j = 0; j <= i; j++) {
            double a = 0, b = 0;
            for (int32_t l = 0; l < n; l++)
                a += (double)u[l * r + i] * (double)u[l * r + j];
            for (int32_t l = 0; l < k; l++)
                b += (double)v[i * k + l] * (double)v[j * k + l];
            double want = i == j && i < rank;
            if (i < rank && !(fabs(a - want) < 1e-3 && fabs(b - want) < 1e-3))
                test_fail(__FILE__, __LINE__, "[%d, %d]: vectors %d and %d: u %.5f, v %.5f", n, k,
                          i, j, a, b);
        }
    }
    for (int32_t i = 0; i < n * k; i++) {
        double sum = 0;
        for (int32_t t = 0; t < r; t++)
            sum += (double)u[i / k * r + t] * (double)s[t] * (double)v[t * k + i % k];
        CHECK_NEAR(sum, (double)d[i], 1e-4 * (double)s[0], 0);
    }
    free(d), free(u), free(s), free(v);
}

TEST(svd_gives_the_matrix_back_whatever_its_shape_and_rank) {
    check_svd(1, 1, 1);
    check_svd(2, 3, 2);
    check_svd(3, 2, 2);
    check_svd(40, 40, 40);
    check_svd(100, 37, 37);
    check_svd(37, 100, 37);
    check_svd(64, 48, 5);
    check_svd(130, 170, 130);
}

TEST(svd_of_nothing_is_nothing) {
    float d[12] = {0}, u[9], s[3], v[12];
    CHECK_EQ(svd(3, 4, d, u, s, v), 0);
    for (int i = 0; i < 3; i++)
        CHECK(s[i] == 0);
}
