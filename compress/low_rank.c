/* Randomised subspace iteration (Halko, Martinsson, Tropp 2011): a few products with D and D' turn
 * a random subspace into that of the largest singular vectors; a Jacobi rotation of the small Gram
 * matrix then sorts them. */
#include "compress/low_rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EXTRA = 6, ITERATIONS = 4, SWEEPS = 30, MAX_RANK = 256 };

/* Columns of y [n, q] to an orthonormal set (modified Gram-Schmidt, twice for the rounding). */
static void orthonormal(float *y, int32_t n, int32_t q) {
    for (int32_t j = 0; j < q; j++) {
        for (int turn = 0; turn < 2; turn++)
            for (int32_t i = 0; i < j; i++) {
                double dot = 0;
                for (int32_t r = 0; r < n; r++)
                    dot += (double)y[(size_t)r * (size_t)q + (size_t)i] *
                           (double)y[(size_t)r * (size_t)q + (size_t)j];
                for (int32_t r = 0; r < n; r++)
                    y[(size_t)r * (size_t)q + (size_t)j] -=
                        (float)dot * y[(size_t)r * (size_t)q + (size_t)i];
            }
        double norm = 0;
        for (int32_t r = 0; r < n; r++)
            norm += (double)y[(size_t)r * (size_t)q + (size_t)j] *
                    (double)y[(size_t)r * (size_t)q + (size_t)j];
        /* A column inside the span of the others is noise: leave it 0. */
        float inv = norm > 1e-24 ? (float)(1 / sqrt(norm)) : 0;
        for (int32_t r = 0; r < n; r++)
            y[(size_t)r * (size_t)q + (size_t)j] *= inv;
    }
}

/* Eigenvectors of the symmetric m [q, q] into the columns of u; m becomes diagonal. */
static void jacobi(double *m, double *u, int32_t q) {
    for (int32_t i = 0; i < q * q; i++)
        u[i] = i / q == i % q;
    for (int sweep = 0; sweep < SWEEPS; sweep++)
        for (int32_t i = 0; i < q; i++)
            for (int32_t j = i + 1; j < q; j++) {
                double off = m[i * q + j];
                if (fabs(off) < 1e-300)
                    continue;
                double theta = (m[j * q + j] - m[i * q + i]) / (2 * off);
                double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int32_t l = 0; l < q; l++) {
                    double x = m[l * q + i], y = m[l * q + j];
                    m[l * q + i] = c * x - s * y, m[l * q + j] = s * x + c * y;
                    x = u[l * q + i], y = u[l * q + j];
                    u[l * q + i] = c * x - s * y, u[l * q + j] = s * x + c * y;
                }
                for (int32_t l = 0; l < q; l++) {
                    double x = m[i * q + l], y = m[j * q + l];
                    m[i * q + l] = c * x - s * y, m[j * q + l] = s * x + c * y;
                }
            }
}

/* b, a from the subspace: t [q, k] = y' d, y [n, q]. Returns the energy held. */
static double largest(int32_t n, int32_t k, int32_t q, int32_t rank, const float *y, const float *t,
                      double *m, double *u, float *b, float *a) {
    for (int32_t i = 0; i < q; i++)
        for (int32_t j = 0; j < q; j++) {
            double dot = 0;
            for (int32_t l = 0; l < k; l++)
                dot += (double)t[(size_t)i * (size_t)k + (size_t)l] *
                       (double)t[(size_t)j * (size_t)k + (size_t)l];
            m[i * q + j] = dot;
        }
    jacobi(m, u, q);
    double held = 0;
    memset(a, 0, (size_t)rank * (size_t)k * sizeof *a);
    memset(b, 0, (size_t)n * (size_t)rank * sizeof *b);
    for (int32_t r = 0; r < rank; r++) {
        int32_t best = 0; /* the largest eigenvalue that is left */
        for (int32_t i = 1; i < q; i++)
            if (m[i * q + i] > m[best * q + best])
                best = i;
        double value = m[best * q + best] > 0 ? m[best * q + best] : 0, root = sqrt(sqrt(value));
        m[best * q + best] = -1;
        held += value;
        for (int32_t i = 0; i < q; i++) {
            float to_a = root > 0 ? (float)(u[i * q + best] / root) : 0,
                  to_b = (float)(u[i * q + best] * root);
            for (int32_t l = 0; l < k; l++)
                a[(size_t)r * (size_t)k + (size_t)l] += to_a * t[(size_t)i * (size_t)k + (size_t)l];
            for (int32_t l = 0; l < n; l++)
                b[(size_t)l * (size_t)rank + (size_t)r] +=
                    to_b * y[(size_t)l * (size_t)q + (size_t)i];
        }
    }
    return held;
}

err_t low_rank(const struct gemm *g, int32_t n, int32_t k, int32_t rank, const float *d, float *b,
               float *a, double *share) {
    int32_t least = n < k ? n : k, q = rank + EXTRA < least ? rank + EXTRA : least;
    if (rank < 1 || rank > MAX_RANK || rank > least)
        return E_INVAL;
    size_t ny = (size_t)n * (size_t)q, nz = (size_t)k * (size_t)q;
    float *y = malloc((ny + 2 * nz) * sizeof *y), *z = y + ny, *t = z + nz; /* [n,q] [k,q] [q,k] */
    double *m = malloc(2 * (size_t)(q * q) * sizeof *m);
    if (!y || !m) {
        free(y), free(m);
        return E_NOMEM;
    }
    uint32_t state = 1;
    for (size_t i = 0; i < nz; i++) {
        state = state * 1664525u + 1013904223u;
        z[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
    for (int i = 0; i <= ITERATIONS; i++) {
        if (i > 0)
            orthonormal(z, k, q);
        gemm(g, n, q, k, mat_of(d, (size_t)k), mat_of(z, (size_t)q), y, (size_t)q, false);
        orthonormal(y, n, q);
        gemm(g, k, q, n, mat_transposed(d, (size_t)k), mat_of(y, (size_t)q), z, (size_t)q, false);
    }
    for (int32_t i = 0; i < q; i++)
        for (int32_t l = 0; l < k; l++)
            t[(size_t)i * (size_t)k + (size_t)l] = z[(size_t)l * (size_t)q + (size_t)i];
    double energy = 0, held = largest(n, k, q, rank, y, t, m, m + q * q, b, a);
    for (size_t i = 0; i < (size_t)n * (size_t)k; i++)
        energy += (double)d[i] * (double)d[i];
    *share = energy > 0 ? held / energy : 0;
    free(y), free(m);
    return 0;
}
