/* What `make bench` prints: the machine's ceilings, then what the CPU backend reaches of them.
 * Every figure is the median of several runs; results are checked before anything is timed. */
#ifndef TESTS_BENCH_BENCH_H
#define TESTS_BENCH_BENCH_H

#include "kernels/cpu/cpu.h"

/* What the machine can do, on all cores together. */
struct ceilings {
    int32_t threads;
    double dram_gbps;  /* reading 1 GiB, far beyond any cache share a tenant of a host gets */
    double cache_gbps; /* reading 12 MiB again and again: the demo model's linears */
    double fma_gflops; /* FP32 FMA on registers, best instruction set */
    double table_gwps; /* 10^9 weights/s of the sign product on one cached tile row */
};

void ceilings_measure(struct ceilings *c);
void ceilings_print(const struct ceilings *c);

/* The linears of a 7B model and of the demo's: bandwidth, tenants, prefill. */
void bench_linears(const struct ceilings *c);

/* Decode, prefill and start of the whole engine on the demo base. */
void bench_engine(void);

/* Median seconds of `runs` calls. */
double bench_median(void (*fn)(void *arg), void *arg, int32_t runs);
double bench_now(void);
double bench_sort_median(double *t, int32_t n);

#endif
