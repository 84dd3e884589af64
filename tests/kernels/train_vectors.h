/* Host arrays and their copies on a struct train's device, for the checks of its operators. Nothing
 * is freed: a test is a process. */
#ifndef TESTS_KERNELS_TRAIN_VECTORS_H
#define TESTS_KERNELS_TRAIN_VECTORS_H

#include <math.h>

#include "kernels/f16.h"
#include "kernels/train.h"
#include "tests/check.h"

/* Remembers memory until the process ends, so that none counts as lost. */
static inline void *keep(void *p) {
    static struct kept {
        struct kept *before;
        void *p;
    } * last;
    struct kept *k = malloc(sizeof *k);
    CHECK(p && k);
    *k = (struct kept){last, p};
    last = k;
    return p;
}
static inline void *room(size_t bytes) {
    return keep(calloc(bytes + 1, 1));
}

/* n numbers of about `size`, each an FP16 number. */
static inline float *made(size_t n, float size, unsigned *seed) {
    float *x = room(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = half_to_float(half_from_float(size * test_gauss(seed)));
    return x;
}
static inline void *up(struct train *t, const void *host, size_t bytes) {
    void *device;
    CHECK_EQ(t->ops->take(t, bytes, &device), 0);
    if (host)
        t->ops->put(t, device, host, bytes);
    return keep(device);
}
static inline float *up_floats(struct train *t, const float *host, size_t n) {
    return up(t, host, n * sizeof(float));
}
static inline float *down(struct train *t, const float *device, size_t n) {
    float *x = room(n * sizeof *x);
    t->ops->get(t, x, device, n * sizeof *x);
    struct why why = {""};
    CHECK_OK(t->ops->settle(t, &why), why);
    return x;
}
static inline struct train_weights up_weights(struct train *t, const float *host, int32_t n,
                                              int32_t k) {
    size_t size = (size_t)n * (size_t)k;
    struct train_weights w = {up(t, NULL, size * t->ops->weight_bytes), n, k};
    t->ops->store(t, up_floats(t, host, size), &w);
    return w;
}
/* Of sums of products: FP32, or the backend's narrower operands. */
static inline double product_tolerance(const struct train *t) {
    return t->ops->weight_bytes < sizeof(float) ? 2e-3 : 2e-6;
}
/* got [n] is want [n] within rel of size [n], or of the largest wanted when size is NULL. */
static inline void check_close(const char *what, const float *got, const double *want,
                               const double *size, size_t n, double rel) {
    double largest = 1e-30;
    for (size_t i = 0; i < n; i++)
        largest = fabs(want[i]) > largest ? fabs(want[i]) : largest;
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)got[i] - want[i]), may = rel * (size ? size[i] : largest) + 1e-30;
        if (!(off <= may))
            test_fail(__FILE__, __LINE__, "%s: element %zu is %.8g, not %.8g (off %.3g, may %.3g)",
                      what, i, (double)got[i], want[i], off, may);
    }
}

#endif
