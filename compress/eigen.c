/* Householder reflections to a tridiagonal matrix, then implicit QL (Golub, Van Loan: Matrix
 * Computations, 8.3). */
#include "compress/eigen.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TURNS = 60 };

/* a [n, n] symmetric, destroyed, into diagonal d [n] and off-diagonal e [n] (e[i] joins i and i +
 * 1). q [n, n]: its rows are the orthonormal basis. w [n]: scratch. */
static void tridiagonal(int32_t n, double *a, double *d, double *e, double *q, double *w) {
    size_t ld = (size_t)n;
    for (int32_t k = 0; k + 2 < n; k++) {
        double norm = 0, *v = a + (size_t)k * ld; /* row k, right of the diagonal, is the vector */
        for (int32_t i = k + 1; i < n; i++)
            norm += v[i] * v[i];
        double first = v[k + 1], alpha = first > 0 ? -sqrt(norm) : sqrt(norm),
               beta = norm - alpha * first; /* half the squared length of v - alpha e */
        d[k] = v[k], e[k] = alpha;
        v[k] = beta > 0 ? 1 / beta : 0; /* kept for the basis */
        if (!(beta > 0))
            continue;
        v[k + 1] = first - alpha;
        double dot = 0;
        for (int32_t i = k + 1; i < n; i++) {
            const double *row = a + (size_t)i * ld;
            double sum = 0;
            for (int32_t j = k + 1; j < n; j++)
                sum += row[j] * v[j];
            w[i] = sum / beta;
            dot += w[i] * v[i];
        }
        for (int32_t i = k + 1; i < n; i++)
            w[i] -= 0.5 * dot / beta * v[i];
        for (int32_t i = k + 1; i < n; i++) {
            double *row = a + (size_t)i * ld;
            for (int32_t j = k + 1; j < n; j++)
                row[j] -= v[i] * w[j] + w[i] * v[j];
        }
    }
    for (int32_t k = n > 2 ? n - 2 : 0; k < n; k++) {
        d[k] = a[(size_t)k * ld + (size_t)k];
        e[k] = k + 1 < n ? a[(size_t)k * ld + (size_t)k + 1] : 0;
    }
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < n; j++)
            q[(size_t)i * ld + (size_t)j] = i == j;
    for (int32_t k = n - 3; k >= 0; k--) { /* q := q times the reflection, on rows of q */
        const double *v = a + (size_t)k * ld;
        for (int32_t i = k + 1; i < n && v[k] > 0; i++) {
            double *row = q + (size_t)i * ld, dot = 0;
            for (int32_t j = k + 1; j < n; j++)
                dot += row[j] * v[j];
            for (int32_t j = k + 1; j < n; j++)
                row[j] -= dot * v[k] * v[j];
        }
    }
}

/* Chases the bulge of one shifted step from `end` up to `first`. False: a rotation came out 0 and
 * the problem has split. */
static bool ql_step(int32_t n, int32_t first, int32_t end, double *d, double *e, double *q) {
    double shift = (d[first + 1] - d[first]) / (2 * e[first]), r = hypot(shift, 1), s = 1, c = 1,
           moved = 0, g = d[end] - d[first] + e[first] / (shift + copysign(r, shift));
    for (int32_t i = end - 1; i >= first; i--) {
        double f = s * e[i], b = c * e[i];
        r = hypot(f, g);
        e[i + 1] = r;
        if (!(r > 0)) {
            d[i + 1] -= moved;
            e[end] = 0;
            return false;
        }
        s = f / r, c = g / r;
        g = d[i + 1] - moved;
        r = (d[i] - g) * s + 2 * c * b;
        moved = s * r;
        d[i + 1] = g + moved;
        g = c * r - b;
        double *x = q + (size_t)i * (size_t)n, *y = x + n;
        for (int32_t j = 0; j < n; j++) {
            double z = y[j];
            y[j] = s * x[j] + c * z;
            x[j] = c * x[j] - s * z;
        }
    }
    d[first] -= moved;
    e[first] = g;
    e[end] = 0;
    return true;
}

/* d [n] becomes the eigenvalues; rows of q the eigenvectors. */
static void ql(int32_t n, double *d, double *e, double *q) {
    for (int32_t l = 0; l < n; l++)
        for (int turn = 0; turn < MAX_TURNS; turn++) {
            int32_t end = l;
            while (end + 1 < n && fabs(e[end]) > 1e-15 * (fabs(d[end]) + fabs(d[end + 1])))
                end++;
            if (end == l)
                break;
            ql_step(n, l, end, d, e, q);
        }
}

static void swap_rows(double *x, double *y, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        double z = x[i];
        x[i] = y[i], y[i] = z;
    }
}

err_t eigen(int32_t n, double *a, double *value, double *vector) {
    double *off = malloc(2 * (size_t)n * sizeof *off);
    if (!off)
        return E_NOMEM;
    tridiagonal(n, a, value, off, vector, off + n);
    ql(n, value, off, vector);
    for (int32_t i = 0; i < n; i++) { /* falling */
        int32_t best = i;
        for (int32_t j = i + 1; j < n; j++)
            best = value[j] > value[best] ? j : best;
        if (best != i) {
            swap_rows(value + i, value + best, 1);
            swap_rows(vector + (size_t)i * (size_t)n, vector + (size_t)best * (size_t)n, n);
        }
    }
    free(off);
    return 0;
}
