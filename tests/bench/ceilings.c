/* The ceilings, measured with code that does nothing else. Vector extensions leave the choice of
 * instructions to the compiler; target_clones picks the set at run time, as the backend does. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t words __attribute__((vector_size(64), aligned(8)));
typedef float floats __attribute__((vector_size(64)));

enum { DRAM_BYTES = 1 << 30, CACHE_BYTES = 12 << 20, SLICE = 1 << 18 };

static volatile uint64_t sink;
static volatile float sink_f;

/* ---- reading --------------------------------------------------------------------------------- */

struct read_job {
    struct pool *pool;
    const char *memory;
    size_t bytes;
    int32_t threads;
};

__attribute__((target_clones("avx512f", "avx2", "default"))) static uint64_t
sum_words(const char *p, size_t n) {
    words a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i + 256 <= n; i += 256) {
        const words *w = (const words *)(p + i);
        a += w[0];
        b += w[1];
        c += w[2];
        d += w[3];
    }
    a += b + c + d;
    return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

/* One contiguous share a thread: the same share each time, so that caches can help if they are able
 * to. */
static void read_share(void *arg, int32_t item, int32_t thread) {
    const struct read_job *j = arg;
    size_t each = j->bytes / (size_t)j->threads;
    (void)thread;
    sink += sum_words(j->memory + (size_t)item * each, each);
}

static void read_all(void *arg) {
    struct read_job *j = arg;
    pool_run(j->pool, read_share, j, j->threads);
}

static double read_gbps(struct pool *pool, size_t bytes, int32_t runs) {
    struct read_job j = {pool, host_block(bytes), bytes, pool_threads(pool)};
    if (!j.memory)
        return 0;
    memset((void *)(uintptr_t)j.memory, 1, bytes);
    read_all(&j);
    double s = bench_median(read_all, &j, runs);
    host_block_free((void *)(uintptr_t)j.memory, bytes);
    return (double)bytes / s / 1e9;
}

/* ---- FMA ------------------------------------------------------------------------------------- */

enum { FMA_ROUNDS = 1 << 20, FMA_CHAINS = 12 };

__attribute__((target_clones("avx512f", "arch=haswell", "default"),
               optimize("fp-contract=fast"))) static float
fma_chains(float seed) {
    floats a[FMA_CHAINS], m = seed - (floats){0};
    for (int i = 0; i < FMA_CHAINS; i++)
        a[i] = (float)i - (floats){0};
    for (int r = 0; r < FMA_ROUNDS; r++)
#pragma GCC unroll 12
        for (int i = 0; i < FMA_CHAINS; i++)
            a[i] = a[i] * m + m;
    for (int i = 1; i < FMA_CHAINS; i++)
        a[0] += a[i];
    return a[0][0];
}

static void fma_item(void *arg, int32_t item, int32_t thread) {
    (void)arg, (void)item, (void)thread;
    sink_f = fma_chains(0.5f);
}

static void fma_all(void *arg) {
    pool_run(arg, fma_item, NULL, pool_threads(arg));
}

/* ---- the sign product on data that never leaves the first cache ------------------------------ */

struct table_job {
    struct pool *pool;
    const struct isa *isa;
    struct scratch *scratch;
    int32_t rounds;
};

static void table_item(void *arg, int32_t item, int32_t thread) {
    const struct table_job *j = arg;
    static const uint32_t bits[UNIT_ROWS / TILE_ROWS * TILE_BYTES / 4];
    float x[TILE_COLS] = {1}, acc[UNIT_ROWS] = {0};
    const float *row = x;
    struct delta_args a = {.bits = {bits},
                           .n_planes = 1,
                           .tile_stride = TILE_BYTES / 4,
                           .n_tiles = UNIT_ROWS / TILE_ROWS,
                           .n_x = 1,
                           .n_k = TILE_COLS,
                           .x = &row,
                           .acc = acc};
    (void)item;
    for (int32_t i = 0; i < j->rounds; i++)
        j->isa->delta_block(&a, &j->scratch[thread]);
    sink_f = acc[0];
}

static void table_all(void *arg) {
    struct table_job *j = arg;
    pool_run(j->pool, table_item, j, pool_threads(j->pool));
}

void ceilings_measure(struct ceilings *c) {
    static const struct model_shape shape = {1, 256, 4, 4, 64, 256, 256, 256, 0, 1e-5f, true};
    struct kernels *k;
    struct why why;
    if (kernels_cpu_open(&k, &shape, 1, 0, &why)) {
        fprintf(stderr, "%s\n", why.text);
        exit(1);
    }
    struct cpu *cpu = cpu_of(k);
    c->threads = pool_threads(cpu->pool);
    c->dram_gbps = read_gbps(cpu->pool, DRAM_BYTES, 5);
    c->cache_gbps = read_gbps(cpu->pool, CACHE_BYTES, 31);
    double s = bench_median(fma_all, cpu->pool, 7);
    c->fma_gflops = 2.0 * 16 * FMA_CHAINS * FMA_ROUNDS * c->threads / s / 1e9;
    struct table_job j = {cpu->pool, cpu->isa, cpu->scratch, 2000};
    s = bench_median(table_all, &j, 7);
    c->table_gwps = 2000.0 * UNIT_ROWS * TILE_COLS * c->threads / s / 1e9;
    printf("%s\n\n", k->ops->describe(k));
    k->ops->close(k);
}

void ceilings_print(const struct ceilings *c) {
    printf("ceilings, %d threads together\n", c->threads);
    printf("  read, 1 GiB buffer      %8.1f GB/s\n", c->dram_gbps);
    printf("  read, 12 MiB buffer     %8.1f GB/s\n", c->cache_gbps);
    printf("  FP32 FMA                %8.0f GFLOP/s\n", c->fma_gflops);
    printf("  sign product, in cache  %8.0f Gweights/s\n\n", c->table_gwps);
}
