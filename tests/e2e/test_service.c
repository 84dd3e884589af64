/* Start and end of the daemon: exit codes, readiness, draining, the service manager's protocol. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "tests/e2e/client.h"

/* Starts a completion of n tokens as a stream and reads its first event. */
static int start_stream(const struct daemon *d, int n_tokens) {
    char body[256];
    snprintf(body, sizeof body,
             "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":%d,\"ignore_eos\":true,"
             "\"stream\":true}",
             n_tokens);
    int fd = client_complete(d, body);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK_EQ(poll(&p, 1, 5000), 1);
    return fd;
}

/* Fills the daemon, so that a drain takes a while: many long streams at one row a step. */
enum { BUSY = 6 };
static void make_busy(const struct daemon *d, int fd[BUSY]) {
    for (int i = 0; i < BUSY; i++)
        fd[i] = start_stream(d, 240);
}

TEST_LIMIT(service_drain_lets_running_requests_finish, 120) {
    struct daemon d = {0};
    int fd[BUSY];
    daemon_start(&d, "--drain-timeout 100 --max-seqs 8 --max-batch-tokens 8");
    make_busy(&d, fd);
    int idle = client_connect(&d);
    client_text(idle, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    struct answer a = client_read(idle, 3000);
    CHECK_EQ(a.status, 200);
    answer_free(&a);
    kill(d.pid, SIGTERM);
    CHECK(daemon_logged(&d, "stage=drain"));
    static const char *const probes[] = {"/health", "/ready"};
    for (size_t i = 0; i < 2; i++) {
        a = client_call(&d, "GET", probes[i], NULL, NULL);
        CHECK_EQ(a.status, 503);
        answer_free(&a);
    }
    a = client_call(&d, "POST", "/v1/completions", NULL, "{\"model\":\"base\",\"prompt\":\"a\"}");
    CHECK_EQ(a.status, 503);
    CHECK_HAS(a.body, "draining");
    answer_free(&a);
    for (int i = 0; i < BUSY; i++) {
        a = client_read(fd[i], 100000);
        CHECK(a.whole);
        struct stream s = client_stream(a.body);
        CHECK_STR(s.finish, "length");
        CHECK(s.done && !s.error);
        stream_free(&s);
        answer_free(&a);
        close(fd[i]);
    }
    CHECK_EQ(daemon_stop(&d, 0, 3000), 0);
}

TEST(service_drain_limit_ends_the_rest_with_an_error_event) {
    struct daemon d = {0};
    int fd[BUSY];
    daemon_start(&d, "--drain-timeout 0 --max-seqs 8 --max-batch-tokens 8");
    make_busy(&d, fd);
    kill(d.pid, SIGTERM);
    int cut = 0;
    for (int i = 0; i < BUSY; i++) {
        struct answer a = client_read(fd[i], 5000);
        CHECK(a.whole);
        struct stream s = client_stream(a.body);
        CHECK(s.done);
        CHECK((s.error != NULL) != (s.finish[0] != 0)); /* one of the two, never silence */
        if (s.error)
            CHECK_STR(json_string_value(json_object_get(s.error, "code")), "draining");
        cut += s.error != NULL;
        stream_free(&s);
        answer_free(&a);
        close(fd[i]);
    }
    CHECK(cut > 0);
    CHECK_EQ(daemon_stop(&d, 0, 3000), 0);
}

TEST(service_second_signal_hurries) {
    struct daemon d = {0};
    int fd[BUSY];
    daemon_start(&d, "--drain-timeout 60 --max-seqs 8 --max-batch-tokens 8");
    make_busy(&d, fd);
    kill(d.pid, SIGTERM);
    CHECK(daemon_logged(&d, "stage=drain"));
    int64_t start = mono_us();
    CHECK_EQ(daemon_stop(&d, SIGINT, 3000), 0);
    CHECK(mono_us() - start < 2000000);
}

TEST(service_idle_daemon_ends_at_once) {
    struct daemon d = {0};
    daemon_start(&d, "--drain-timeout 60");
    int idle = client_connect(&d); /* says nothing */
    usleep(50000);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 2000), 0);
    close(idle);
    CHECK(access(d.admin, F_OK) != 0); /* its socket is gone */
}

/* Receives datagrams until one holds `text`. */
static void expect_notice(int fd, const char *text) {
    char got[512], all[4096] = "";
    for (int64_t until = mono_us() + 10000000; mono_us() < until;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 100) <= 0)
            continue;
        ssize_t n = recv(fd, got, sizeof got - 1, 0);
        got[n > 0 ? n : 0] = 0;
        strncat(all, got, sizeof all - strlen(all) - 1);
        if (strstr(got, text))
            return;
    }
    test_fail(__FILE__, __LINE__, "no notice %s in %s", text, all);
}

TEST(service_manager_hears_of_every_state) {
    struct daemon d = {0};
    struct sockaddr_un at_path = {.sun_family = AF_UNIX};
    snprintf(at_path.sun_path, sizeof at_path.sun_path, "%.90s/notify", test_tmp());
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&at_path, sizeof at_path), 0);
    setenv("NOTIFY_SOCKET", at_path.sun_path, 1);
    setenv("WATCHDOG_USEC", "400000", 1);
    daemon_start(&d, "");
    expect_notice(fd, "READY=1");
    expect_notice(fd, "WATCHDOG=1");
    expect_notice(fd, "WATCHDOG=1");
    kill(d.pid, SIGHUP);
    expect_notice(fd, "RELOADING=1\nMONOTONIC_USEC=");
    expect_notice(fd, "READY=1");
    kill(d.pid, SIGTERM);
    expect_notice(fd, "STOPPING=1");
    CHECK_EQ(daemon_stop(&d, 0, 3000), 0);
    close(fd);
}

/* Runs the daemon to its end; its exit code. */
static int exit_of(const char *arguments) {
    char command[2048];
    char exe[512];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    *strrchr(exe, '/') = 0;
    snprintf(command, sizeof command, "'%s/bitdeltad' %s >/dev/null 2>%s/stderr", exe, arguments,
             test_tmp());
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST(service_exit_codes_say_what_was_wrong) {
    char arguments[1024], path[256];
    const char *base = client_base();
    CHECK_EQ(exit_of("--no-such-option"), 64);
    CHECK_EQ(exit_of("--base /nonexistent --listen 127.0.0.1:0 --admin 127.0.0.1:0"), 66);
    snprintf(path, sizeof path, "%s/broken", test_tmp());
    snprintf(arguments, sizeof arguments,
             "mkdir -p %s && cp %s/*.json %s/tokenizer.model %s && "
             "for f in %s/*.safetensors; do head -c 3000 $f > %s/$(basename $f); done",
             path, base, base, path, base, path);
    CHECK_EQ(system(arguments), 0);
    snprintf(arguments, sizeof arguments, "--base %s --listen 127.0.0.1:0 --admin 127.0.0.1:0",
             path);
    CHECK_EQ(exit_of(arguments), 65);
    snprintf(arguments, sizeof arguments, "--base %s --listen 256.1.1.1:80 --admin 127.0.0.1:0",
             base);
    CHECK_EQ(exit_of(arguments), 78);
    snprintf(path, sizeof path, "%s/nokeys", test_tmp());
    FILE *f = fopen(path, "w");
    fputs("# nothing\n", f);
    fclose(f);
    snprintf(arguments, sizeof arguments,
             "--base %s --listen 127.0.0.1:0 --admin 127.0.0.1:0 --api-key-file %s", base, path);
    CHECK_EQ(exit_of(arguments), 78);
    snprintf(arguments, sizeof arguments,
             "--base %s --listen 127.0.0.1:0 --admin 127.0.0.1:0 --state %s/none/state", base,
             path);
    CHECK_EQ(exit_of(arguments), 78);
    snprintf(arguments, sizeof arguments,
             "--base %s --listen 127.0.0.1:0 --admin 127.0.0.1:0 --state %s", base, path);
    CHECK_EQ(exit_of(arguments), 78); /* what stands there is no such file: never overwritten */
    CHECK_EQ(access(path, F_OK), 0);
}

/* As it is installed; a misspelt setting would only be logged by the manager, and not hold. */
TEST(service_unit_has_no_setting_that_systemd_does_not_know) {
    char command[2048];
    if (system("command -v systemd-analyze >/dev/null 2>&1") != 0)
        test_skip("there is no systemd-analyze");
    snprintf(
        command, sizeof command,
        "cd %s && mkdir -p bin && printf '#!/bin/sh\n' > bin/bitdeltad && chmod +x bin/bitdeltad "
        "&& sed \"s,@PREFIX@,$PWD,g\" '%s/deploy/bitdeltad.service' > bitdeltad.service && "
        "systemd-analyze verify ./bitdeltad.service > verify.log 2>&1 && ! test -s verify.log",
        test_tmp(), getcwd((char[512]){0}, 512));
    if (access("deploy/bitdeltad.service", R_OK) != 0)
        test_skip("deploy/ is not here: run from the repository's root");
    if (system(command) != 0) {
        snprintf(command, sizeof command, "cat %s/verify.log", test_tmp());
        CHECK_EQ(system(command), 0);
        CHECK(!"systemd-analyze verify is content with the unit");
    }
}

/* Every line is "name{labels} value" or a comment, and a family's TYPE stands before its samples.
 */
TEST(service_metrics_are_prometheus_text) {
    struct daemon d = {0};
    daemon_start(&d, "");
    close(start_stream(&d, 5));
    struct answer a = client_admin(&d, "GET", "/metrics", NULL, NULL);
    CHECK_EQ(a.status, 200);
    CHECK_HAS(a.head, "Content-Type: text/plain; version=0.0.4");
    static const char *const wanted[] = {
        "vllm:num_requests_running{", "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{",  "vllm:time_to_first_token_seconds_bucket{",
        "vllm:cache_config_info{",    "bitdeltad_tenant_requests_total{tenant=\"base\"} 1"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        CHECK_HAS(a.body, wanted[i]);
    char family[128] = "";
    for (char *line = strtok(a.body, "\n"); line; line = strtok(NULL, "\n")) {
        if (sscanf(line, "# TYPE %127s", family) == 1 || strncmp(line, "# HELP ", 7) == 0)
            continue;
        char *space = strrchr(line, ' '), *end = NULL;
        CHECK(space);
        (void)strtod(space + 1, &end);
        size_t n = strcspn(line, "{ ");
        if (*end || strncmp(line, family, strlen(family)) != 0 || n < strlen(family))
            test_fail(__FILE__, __LINE__, "after TYPE %s: %s", family, line);
    }
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
