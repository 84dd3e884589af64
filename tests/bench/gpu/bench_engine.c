/* The whole engine on a device with a model of real size: loading, decode steps, prompts, hot loads
 * beside running steps, resident tenants. All through the engine's public door, as the server uses
 * it; weights are random (big.h).
 *
 *     bench-engine DIR [llama-7b|mistral-7b [WHAT [ROWS [CONTEXT]]]]   DIR gets 15 GB, once
 *     WHAT: letters of l(oad) d(ecode) p(rompts) h(ot loads) r(esident); default all
 *           m: only makes the files; t: and 32 different tenants in DIR/tenants, for load.py
 *     ROWS, CONTEXT: decode with so many rows alone (0: 1 to 64) and at this context */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/engine.h"
#include "tests/bench/gpu/big.h"

enum { MAX_TENANTS = 96, MAX_ROWS = 64, DECODE = 64 };

struct bench {
    const struct big_shape *shape;
    char dir[400], tenant_path[512];
    struct engine *engine;
    struct tenant *tenant[MAX_TENANTS];
    int n_tenants;
    uint64_t next_id;
    struct gen_event event[256];
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* ---- driving --------------------------------------------------------------------------------- */

static void open_engine(struct bench *b, int32_t kv_tokens, int32_t batch) {
    struct engine_options o = {.base_dir = b->dir,
                               .device = "cuda",
                               .kv_tokens = kv_tokens,
                               .max_batch_tokens = batch,
                               .max_seqs = MAX_ROWS,
                               .max_queue = 256};
    struct why why = {""};
    double start = now();
    if (engine_open(&b->engine, &o, &why))
        fail(why.text);
    struct engine_stats s;
    engine_stats(b->engine, &s);
    printf("open: %s; ready in %.2f s, %.2f GB on the device, KV pool of %d tokens\n",
           engine_describe(b->engine), now() - start, (double)s.device_bytes / 1e9,
           s.kv_pages * s.page_tokens);
}

static struct tenant *load_one(struct bench *b, double *seconds, struct why *why) {
    struct tenant *t = NULL;
    int fd = open(b->tenant_path, O_RDONLY | O_CLOEXEC);
    double start = now();
    if (fd < 0 || engine_tenant_load(b->engine, fd, "tenant", &t, why))
        t = NULL;
    *seconds = now() - start;
    close(fd);
    return t;
}

static void load_tenants(struct bench *b, int n) {
    struct why why = {""};
    double s;
    while (b->n_tenants < n) {
        b->tenant[b->n_tenants] = load_one(b, &s, &why);
        if (!b->tenant[b->n_tenants++])
            fail(why.text);
    }
}

static void close_engine(struct bench *b) {
    while (b->n_tenants > 0)
        tenant_unref(b->tenant[--b->n_tenants]);
    engine_close(b->engine);
}

static void submit(struct bench *b, struct tenant *t, int prompt, int tokens) {
    struct gen_request r = {.id = ++b->next_id,
                            .tenant = t,
                            .n_ids = prompt,
                            .max_tokens = tokens,
                            .ignore_eos = true,
                            .top_p = 1,
                            .repetition = 1,
                            .n_top = -1};
    struct why why;
    r.ids = malloc((size_t)prompt * sizeof *r.ids);
    for (int i = 0; r.ids && i < prompt; i++)
        r.ids[i] = i ? 10 + (int32_t)((b->next_id * 131 + (uint64_t)i * 17) % 30000) : 1;
    if (!r.ids || engine_submit(b->engine, &r, &why))
        fail(r.ids ? why.text : "no memory");
}

/* What came within one wait: tokens, first tokens, ends. */
struct seen {
    int tokens, first, done;
};
static struct seen look(struct bench *b) {
    struct pollfd p = {.fd = engine_event_fd(b->engine), .events = POLLIN};
    struct seen s = {0};
    poll(&p, 1, 1000);
    for (size_t n; (n = engine_poll(b->engine, b->event, 256)) > 0;)
        for (size_t i = 0; i < n; i++) {
            const struct gen_event *e = &b->event[i];
            if (e->kind == GEN_FAILED)
                fail("a request failed");
            s.tokens += e->kind == GEN_TOKEN;
            s.done += e->kind == GEN_DONE;
        }
    return s;
}

static void wait_done(struct bench *b, int n) {
    for (int done = 0; done < n;)
        done += look(b).done;
}

/* ---- decode ---------------------------------------------------------------------------------- */

struct rate {
    double step_ms, engine, client; /* tokens a second by the engine's step time, and as received */
};

/* `rows` requests of tenants 0 .. n - 1 (n 0: the base), in lockstep once all prompts are done. */
static struct rate decode(struct bench *b, int rows, int n, int prompt) {
    struct engine_stats from, to;
    struct seen s;
    for (int i = 0; i < rows; i++)
        submit(b, n ? b->tenant[i % n] : NULL, prompt, DECODE + 16 + rows);
    do { /* until every row decodes and nothing is prefilled */
        look(b);
        engine_stats(b->engine, &from);
    } while (from.running < rows || from.last_rows != rows);
    look(b);
    engine_stats(b->engine, &from);
    double start = now();
    int tokens = 0;
    while (tokens < rows * (DECODE - 24)) {
        s = look(b);
        tokens += s.tokens;
        if (s.done)
            fail("a request ended early");
    }
    double seconds = now() - start;
    engine_stats(b->engine, &to);
    wait_done(b, rows);
    double us = (double)(to.step_us - from.step_us) / (double)(to.steps - from.steps);
    return (struct rate){us / 1e3, rows * 1e6 / us, tokens / seconds};
}

static void bench_decode(struct bench *b, int only, int context) {
    static const int rows[] = {1, 4, 16, 32, 64};
    int most = 32;
    if (!context)
        context = b->shape->kv_heads < b->shape->heads ? 2048 : 512;
    printf("decode, context about %d; ms a step, tokens/s by step time, as received\n", context);
    for (int i = 0; i < 5; i++) {
        int n = rows[i];
        if (only && n != only)
            continue;
        struct rate base = decode(b, n, 0, context - DECODE / 2);
        struct rate own = decode(b, n, n < most ? n : most, context - DECODE / 2);
        printf("  B=%-2d base %7.3f ms %7.0f %7.0f   %2d tenants %7.3f ms %7.0f %7.0f (%.3fx)\n", n,
               base.step_ms, base.engine, base.client, n < most ? n : most, own.step_ms, own.engine,
               own.client, own.step_ms / base.step_ms);
        fflush(stdout);
    }
}

/* ---- prompts --------------------------------------------------------------------------------- */

static double first_token(struct bench *b, struct tenant *t, int prompt) {
    double best = 1e9;
    for (int i = 0; i < 4; i++) {
        double start = now();
        submit(b, t, prompt, 1);
        wait_done(b, 1);
        best = now() - start < best ? now() - start : best;
    }
    return best;
}

static void bench_prompts(struct bench *b) {
    static const int lengths[] = {32, 64, 512, 2048};
    for (int i = 0; i < 4; i++) {
        double base = first_token(b, NULL, lengths[i]),
               own = first_token(b, b->tenant[0], lengths[i]);
        printf("prompt of %4d: first token after %.2f ms on the base, %.2f ms of a tenant (%.0f "
               "tokens/s)\n",
               lengths[i], base * 1e3, own * 1e3, lengths[i] / own);
    }
}

/* ---- loading --------------------------------------------------------------------------------- */

/* Where a file is new it is hashed: a changed time makes it so. The first load also waits for the
 * base's fingerprint. */
static void bench_load(struct bench *b) {
    struct why why = {""};
    double s;
    printf("load of a tenant of %s from the page cache, ms:", b->shape->name);
    for (int i = 0; i < 10; i++) {
        struct timespec times[2] = {{1700000000 + i, 0}, {1700000000 + i, 0}};
        if (i < 5 && utimensat(AT_FDCWD, b->tenant_path, times, 0))
            fail("cannot touch the tenant");
        struct tenant *t = load_one(b, &s, &why);
        if (!t)
            fail(why.text);
        printf(" %.1f%s", s * 1e3, i == 0 ? " (first)" : i < 5 ? " (hashed)" : "");
        tenant_unref(t);
        usleep(i == 4 ? 2500000 : 50000); /* until what was seen a moment ago counts as known */
    }
    printf("\n");
}

struct loader {
    struct bench *b;
    _Atomic bool stop;
    int loads;
    double seconds;
};
static void *loader_thread(void *arg) {
    struct loader *l = arg;
    struct why why = {""};
    double s;
    while (!atomic_load(&l->stop)) {
        struct tenant *t = load_one(l->b, &s, &why);
        if (!t)
            fail(why.text);
        tenant_unref(t);
        l->loads++;
        l->seconds += s;
    }
    return NULL;
}

static void bench_hot(struct bench *b) {
    pthread_t thread;
    struct loader l = {.b = b};
    struct rate quiet = decode(b, 32, 32, 464);
    if (pthread_create(&thread, NULL, loader_thread, &l))
        fail("no thread");
    struct rate loud = decode(b, 32, 32, 464);
    atomic_store(&l.stop, true);
    pthread_join(thread, NULL);
    printf("32 rows: %.3f ms a step alone, %.3f ms while tenants are loaded and dropped without "
           "pause (%+.1f %%), %d loads of %.1f ms\n",
           quiet.step_ms, loud.step_ms, (loud.step_ms / quiet.step_ms - 1) * 100, l.loads,
           l.seconds * 1e3 / (l.loads ? l.loads : 1));
}

static void bench_resident(struct bench *b) {
    struct why why = {""};
    struct engine_stats s;
    double seconds;
    while (b->n_tenants < MAX_TENANTS &&
           (b->tenant[b->n_tenants] = load_one(b, &seconds, &why)) != NULL)
        b->n_tenants++;
    engine_stats(b->engine, &s);
    printf("resident: %d tenants, %.1f GB on the device; then: %s\n", b->n_tenants,
           (double)s.device_bytes / 1e9, why.text);
}

int main(int argc, char **argv) {
    static struct bench b;
    const char *name = argc > 2 ? argv[2] : "llama-7b", *what = argc > 3 ? argv[3] : "ldphr";
    if (argc < 2)
        fail("usage: bench-engine DIR [llama-7b|mistral-7b [letters of ldphr]]");
    for (b.shape = big_shapes; b.shape->name && strcmp(b.shape->name, name) != 0;)
        b.shape++;
    if (!b.shape->name)
        fail("no such model");
    snprintf(b.dir, sizeof b.dir, "%s/%s", argv[1], name);
    snprintf(b.tenant_path, sizeof b.tenant_path, "%s/tenant.bitdelta", b.dir);
    double start = now();
    big_make(b.dir, b.shape);
    printf("%s made in %.1f s\n", name, now() - start);
    fflush(stdout);
    if (strchr(what, 'm'))
        return 0;
    if (strchr(what, 't')) {
        char tenants[440];
        snprintf(tenants, sizeof tenants, "%.400s/tenants", argv[1]);
        big_make_tenants(tenants, b.dir, 32);
        return 0;
    }
    open_engine(&b, b.shape->kv_heads < b.shape->heads ? 163840 : 45056, 2048);
    if (strchr(what, 'l'))
        bench_load(&b);
    fflush(stdout);
    if (strchr(what, 'd') || strchr(what, 'p') || strchr(what, 'h'))
        load_tenants(&b, 32);
    if (strchr(what, 'p'))
        bench_prompts(&b);
    fflush(stdout);
    if (strchr(what, 'd'))
        bench_decode(&b, argc > 4 ? atoi(argv[4]) : 0, argc > 5 ? atoi(argv[5]) : 0);
    if (strchr(what, 'h'))
        bench_hot(&b);
    fflush(stdout);
    close_engine(&b);
    if (!strchr(what, 'r'))
        return 0;
    open_engine(&b, 32768, 2048); /* 16 GiB of a 7B model's keys and values */
    bench_resident(&b);
    close_engine(&b);
    return 0;
}
