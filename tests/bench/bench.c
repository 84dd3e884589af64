/* `make bench`. Arguments: none. Exit 1 when a result is wrong. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_sort_median(double *t, int32_t n) {
    qsort(t, (size_t)n, sizeof *t, by_size);
    return t[n / 2];
}

double bench_median(void (*fn)(void *arg), void *arg, int32_t runs) {
    double t[64];
    runs = runs < 64 ? runs : 64;
    for (int32_t i = 0; i < runs; i++) {
        double start = bench_now();
        fn(arg);
        t[i] = bench_now() - start;
    }
    return bench_sort_median(t, runs);
}

int main(void) {
    struct ceilings c;
    ceilings_measure(&c);
    ceilings_print(&c);
    bench_linears(&c);
    bench_engine();
    return 0;
}
