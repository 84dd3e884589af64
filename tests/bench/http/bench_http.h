/* What the HTTP side costs: the daemon's own loop with an engine that computes nothing, and a load
 * client in a process of its own. What both know stands in memory they share. */
#ifndef TESTS_BENCH_HTTP_H
#define TESTS_BENCH_HTTP_H

#include <stdatomic.h>
#include <stdint.h>

enum {
    BENCH_FIRST_ID = 1000, /* the token of step i is BENCH_FIRST_ID + i % BENCH_STAMPS */
    BENCH_STAMPS = 2048,
    BENCH_MAX_LIVE = 4352,
};

struct bench_shared {
    /* 0: a step as soon as the last one is out. Else the time between steps, and in how many parts
     * a step's tokens leave the engine, evenly over that time (1: all at once). */
    _Atomic int64_t step_us;
    _Atomic int parts;
    _Atomic int64_t stamp_us[BENCH_STAMPS * 64]; /* [step % STAMPS][part]: when tokens left */
};
enum { BENCH_MAX_PARTS = 64 };

extern struct bench_shared *bench_shared; /* before any engine_open */

/* One completion of the load: the fields of its body beside the model. */
struct bench_load {
    const char *name;
    const char *fields;
    int connections;
    int tokens; /* of each reply */
    int stream;
    double seconds;
};

struct bench_result {
    double seconds;
    uint64_t replies, tokens, errors;
    double server_cpu_s, client_cpu_s;
    double p50_ms, p99_ms, max_ms; /* of the time from the engine to the client, streams only */
};

/* Runs the load against 127.0.0.1:port; server_pid: whose CPU time is reported. */
void bench_run(const struct bench_load *load, int port, int server_pid, struct bench_result *out);
/* KB of resident memory of the server for each of n idle keep-alive connections. */
double bench_idle_kb(int n, int port, int server_pid);
double bench_now(void);

#endif
