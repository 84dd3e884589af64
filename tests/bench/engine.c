/* The whole engine on the demo base: time to ready, decode and prefill, through its public door as
 * the server uses it. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/engine.h"
#include "tests/bench/bench.h"

enum {
    MAX_TENANTS = 4,
    FEW_TOKENS = 8,
    DECODE_TOKENS = 160,
    PROMPT = 12,
    PREFILL_PROMPT = 400,
    ROUNDS = 5
};

struct engine_bench {
    struct engine *engine;
    struct tenant *tenant[1 + MAX_TENANTS]; /* 0: NULL, the base */
    int32_t n_tenants;
    uint64_t next_id;
};

static const char *first_readable(const char *const *paths) {
    while (*paths && access(*paths, R_OK) != 0)
        paths++;
    return *paths;
}

static void load_tenants(struct engine_bench *b) {
    static const char *const names[MAX_TENANTS] = {"math", "sql", "kjv", "chat"};
    for (int32_t i = 0; i < MAX_TENANTS; i++) {
        char path[128];
        struct why why;
        snprintf(path, sizeof path, "demo/tenants/%s.bitdelta", names[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        double start = bench_now();
        err_t e = engine_tenant_load(b->engine, fd, path, &b->tenant[b->n_tenants + 1], &why);
        close(fd);
        if (e) {
            fprintf(stderr, "%s\n", why.text);
            exit(1);
        }
        b->n_tenants++;
        printf("  tenant %-5s loaded in   %8.1f ms, %.2f MB, %.2f bits a weight\n", names[i],
               (bench_now() - start) * 1e3,
               (double)tenant_info(b->tenant[b->n_tenants])->bytes / 1e6,
               tenant_info(b->tenant[b->n_tenants])->bits_per_weight);
    }
}

static void submit(struct engine_bench *b, struct tenant *tenant, int32_t n_ids, int32_t tokens) {
    struct gen_request r = {.id = ++b->next_id,
                            .tenant = tenant,
                            .n_ids = n_ids,
                            .max_tokens = tokens,
                            .ignore_eos = true,
                            .top_p = 1,
                            .repetition = 1,
                            .n_top = -1};
    struct why why;
    r.ids = malloc((size_t)n_ids * sizeof *r.ids);
    for (int32_t i = 0; r.ids && i < n_ids; i++)
        r.ids[i] = i ? 300 + (int32_t)((b->next_id * 131 + (uint64_t)i * 17) % 3000) : 1;
    if (!r.ids || engine_submit(b->engine, &r, &why)) {
        fprintf(stderr, "a request was refused: %s\n", r.ids ? why.text : "no memory");
        exit(1);
    }
}

/* Seconds from now until `n` requests have ended. */
static double wait_all(struct engine_bench *b, int32_t n, double start) {
    struct gen_event event[64];
    struct pollfd fd = {.fd = engine_event_fd(b->engine), .events = POLLIN};
    for (int32_t done = 0; done < n;) {
        poll(&fd, 1, 1000);
        for (size_t got; (got = engine_poll(b->engine, event, 64)) > 0;)
            for (size_t i = 0; i < got; i++) {
                if (event[i].kind == GEN_FAILED) {
                    fprintf(stderr, "a request failed with %d\n", event[i].error);
                    exit(1);
                }
                done += event[i].kind == GEN_DONE;
            }
    }
    return bench_now() - start;
}

/* Median seconds for `rows` requests at once, dealt out to tenants first .. first + n - 1. */
static double time_requests(struct engine_bench *b, int32_t rows, int32_t first, int32_t n,
                            int32_t prompt, int32_t tokens) {
    double s[ROUNDS];
    for (int32_t i = 0; i < ROUNDS; i++) {
        double start = bench_now();
        for (int32_t r = 0; r < rows; r++)
            submit(b, b->tenant[first + r % n], prompt, tokens);
        s[i] = wait_all(b, rows, start);
    }
    return bench_sort_median(s, ROUNDS);
}

/* Tokens per second of all rows together: long generations less short ones, so that prompts and the
 * way in and out of the engine do not count. */
static double decode_rate(struct engine_bench *b, int32_t rows, int32_t first, int32_t n) {
    double few = time_requests(b, rows, first, n, PROMPT, FEW_TOKENS);
    double many = time_requests(b, rows, first, n, PROMPT, FEW_TOKENS + DECODE_TOKENS);
    return rows * DECODE_TOKENS / (many - few);
}

static double prefill_rate(struct engine_bench *b, int32_t tenant) {
    return PREFILL_PROMPT / time_requests(b, 1, tenant, 1, PREFILL_PROMPT, 1);
}

static void report_decode(struct engine_bench *b) {
    static const int32_t rows[] = {1, 4, 16};
    printf("  decode, tokens/s of all rows together; x: time against the same rows on the base\n");
    printf("    rows     base");
    for (int32_t n = 1; n <= b->n_tenants; n++)
        printf("  %3d tenant%s   x", n, n > 1 ? "s" : " ");
    printf("\n");
    for (int32_t i = 0; i < 3; i++) {
        double base = decode_rate(b, rows[i], 0, 1);
        printf("    %4d %8.0f", rows[i], base);
        for (int32_t n = 1; n <= b->n_tenants && n <= rows[i]; n++) {
            double rate = decode_rate(b, rows[i], 1, n);
            printf("  %8.0f %6.2f", rate, base / rate);
        }
        printf("\n");
    }
}

void bench_engine(void) {
    static const char *const bases[] = {"demo/base", "../shared/models/base", NULL};
    struct engine_bench b = {0};
    struct engine_options options = {.base_dir = first_readable(bases),
                                     .device = "cpu",
                                     .kv_tokens = 16384,
                                     .max_batch_tokens = 256,
                                     .max_seqs = 32,
                                     .max_queue = 64,
                                     .extra_vocab = 64};
    struct why why;
    if (!options.base_dir) {
        printf("engine: neither demo/base nor ../shared/models/base is here; not measured\n");
        return;
    }
    double start = bench_now();
    if (engine_open(&b.engine, &options, &why)) {
        fprintf(stderr, "%s\n", why.text);
        exit(1);
    }
    printf("engine on %s: %s\n", options.base_dir, engine_describe(b.engine));
    printf("  start to ready         %8.1f ms\n", (bench_now() - start) * 1e3);
    load_tenants(&b);
    report_decode(&b);
    printf("  prefill of %d tokens, tokens/s: base %.0f", PREFILL_PROMPT, prefill_rate(&b, 0));
    if (b.n_tenants)
        printf(", one tenant %.0f", prefill_rate(&b, 1));
    printf("\n");
    for (int32_t i = 1; i <= b.n_tenants; i++)
        tenant_unref(b.tenant[i]);
    engine_close(b.engine);
}
