/* `make bench-http`, or bench-http idle|fast|paced: the HTTP side with an engine that computes
 * nothing. Figures are of this machine at this moment; the client shares its processors. */
#include "tests/bench/http/bench_http.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/json.h"
#include "server/loop.h"
#include "server/server.h"

/* What server/main.c does, without a model. */
static int serve(int port) {
    char listen_at[32];
    struct options o = {0};
    struct why why = {""};
    bool done = false;
    static struct server s;
    snprintf(listen_at, sizeof listen_at, "127.0.0.1:%d", port);
    char *args[] = {"bench-http", "--base",      "demo/base",  "--listen", listen_at,
                    "--admin",    "127.0.0.1:0", "--max-seqs", "4096",     "--max-connections",
                    "20000",      NULL};
    signal(SIGPIPE, SIG_IGN);
    err_t e = options_load(&o, 11, args, &done, &why);
    s.options = &o;
    s.deltas_fd = -1;
    metrics_init(&s.metrics);
    if (!e)
        e = tokenizer_open(&s.tokenizer, o.base, &why);
    if (!e)
        e = engine_open(&s.engine, &(struct engine_options){0}, &why);
    if (!e)
        e = registry_open(&s.registry, "base", engine_base_info(s.engine), s.tokenizer, &why);
    if (!e)
        e = loop_open(&s, &why);
    if (e) {
        printf("the server does not start: %s\n", why.text);
        return 1;
    }
    int null = open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO); /* every request is logged, to nobody */
    loop_run(&s);
    loop_close(&s);
    registry_close(&s.registry);
    engine_close(s.engine);
    tokenizer_close(s.tokenizer);
    metrics_free(&s.metrics);
    options_free(&o);
    return 0;
}

static int free_port(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&a, n) != 0 || getsockname(fd, (struct sockaddr *)&a, &n) != 0)
        exit(1);
    close(fd);
    return ntohs(a.sin_port);
}

static bool wait_for(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)port);
    for (int i = 0; i < 200; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        bool up = connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
        close(fd);
        if (up)
            return true;
        usleep(10000);
    }
    return false;
}

#define PROMPT "\"prompt\":\"The archive\",\"temperature\":0,"

static const struct bench_load loads[] = {
    {"small completions", PROMPT "\"max_tokens\":4", 64, 4, 0, 3},
    {"streams, unpaced", PROMPT "\"max_tokens\":1000,\"stream\":true", 64, 1000, 1, 3},
    {"streams, unpaced", PROMPT "\"max_tokens\":1000,\"stream\":true", 1000, 1000, 1, 3},
};

static void print_load(const struct bench_load *l, const struct bench_result *r) {
    printf("%-20s %5d connections: %8.0f replies/s %9.0f tokens/s, %llu errors; a reply costs the "
           "server %.1f us, a token %.2f us, the client %.1f us of CPU a reply\n",
           l->name, l->connections, (double)r->replies / r->seconds, (double)r->tokens / r->seconds,
           (unsigned long long)r->errors,
           r->server_cpu_s * 1e6 / (double)(r->replies ? r->replies : 1),
           r->server_cpu_s * 1e6 / (double)(r->tokens ? r->tokens : 1),
           r->client_cpu_s * 1e6 / (double)(r->replies ? r->replies : 1));
}

static void run_paced(int port, int pid, int streams, int parts) {
    struct bench_load load = {"streams, paced",
                              PROMPT "\"max_tokens\":80,\"stream\":true,\"logprobs\":0,"
                                     "\"return_token_ids\":true",
                              streams,
                              80,
                              1,
                              4};
    struct bench_result r;
    atomic_store(&bench_shared->step_us, 50000);
    atomic_store(&bench_shared->parts, parts);
    bench_run(&load, port, pid, &r);
    atomic_store(&bench_shared->step_us, 0);
    printf("%-20s %5d connections: %8.0f tokens/s, from engine to client p50 %.2f ms, p99 %.2f ms, "
           "max %.1f ms; server %.0f %% of a core; 50 ms steps, tokens leave in %d parts; %llu "
           "errors\n",
           load.name, streams, (double)r.tokens / r.seconds, r.p50_ms, r.p99_ms, r.max_ms,
           100 * r.server_cpu_s / r.seconds, parts, (unsigned long long)r.errors);
}

static bool wanted(int argc, char **argv, const char *part) {
    return argc < 2 || strcmp(argv[1], part) == 0;
}

int main(int argc, char **argv) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    bench_shared =
        mmap(NULL, sizeof *bench_shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int port = free_port();
    fflush(stdout);
    int pid = fork();
    if (pid == 0)
        exit(serve(port));
    if (bench_shared == MAP_FAILED || pid < 0 || !wait_for(port))
        return 1;
    if (wanted(argc, argv, "idle")) /* first: later, memory of closed connections is reused */
        printf("%-20s %5d connections: %.1f KB each of resident memory\n", "idle", 2000,
               bench_idle_kb(2000, port, pid));
    for (size_t i = 0; wanted(argc, argv, "fast") && i < sizeof loads / sizeof *loads; i++) {
        struct bench_result r;
        bench_run(&loads[i], port, pid, &r);
        print_load(&loads[i], &r);
    }
    if (wanted(argc, argv, "paced")) {
        run_paced(port, pid, 64, 1);
        run_paced(port, pid, 1000, 1);
        run_paced(port, pid, 1000, BENCH_MAX_PARTS);
    }
    kill(pid, SIGTERM);
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
