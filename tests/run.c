/* Runs the registered tests, each in a process of its own; prints one line per test that did not
 * pass, what a failed one printed, and the closing count. `build/test [-jN] [NAME-PART ...]` runs
 * those whose name or file holds a part, N of them at a time, and tells of all. */
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "tests/check.h"

enum { EXIT_FAILED = 1, EXIT_SKIPPED = 77, MAX_JOBS = 16 };

/* A process that runs a test. */
struct job {
    const struct test *test; /* NULL: none */
    pid_t pid;
    int64_t start_us;
};

static struct test *tests;
static struct job jobs[MAX_JOBS];
static int n_jobs = 1, n_passed, n_failed, n_skipped;
static bool tell_all;
/* Of the job at hand; in a test's process, its own. */
static char tmp_path[48], reason_path[64], output_path[64];

static void set_paths(int job) {
    snprintf(tmp_path, sizeof tmp_path, "/tmp/bitdelta-test-%d-%d", getpid(), job);
    snprintf(reason_path, sizeof reason_path, "%s.reason", tmp_path);
    snprintf(output_path, sizeof output_path, "%s.output", tmp_path);
}

void test_register(struct test *t) {
    struct test **at = &tests; /* by file, then name: a stable order whatever the link order */
    while (*at && (strcmp((*at)->file, t->file) < 0 ||
                   (strcmp((*at)->file, t->file) == 0 && strcmp((*at)->name, t->name) < 0)))
        at = &(*at)->next;
    t->next = *at;
    *at = t;
}

static _Noreturn void leave(int code, const char *text) {
    FILE *f = fopen(reason_path, "w");
    if (f) {
        fputs(text, f);
        fclose(f);
    }
    _exit(code);
}

void test_fail(const char *file, int line, const char *format, ...) {
    char text[2048];
    int n = snprintf(text, sizeof text, "%s:%d: ", file, line);
    va_list args;
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    leave(EXIT_FAILED, text);
}

void test_skip(const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    leave(EXIT_SKIPPED, text);
}

const char *test_models(void) {
    const char *dir = getenv("BITDELTA_MODELS");
    if (!dir)
        dir = "../shared/models";
    return access(dir, R_OK) == 0 ? dir : NULL;
}

const char *test_model(const char *name) {
    static char path[4][512];
    static int turn;
    const char *dir = test_models();
    if (!dir && strncmp(name, "base", 4) == 0)
        dir = "demo"; /* the base is shipped */
    if (!dir)
        test_skip("the shared models are not here (set BITDELTA_MODELS to their folder)");
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

const char *test_tmp(void) {
    mkdir(tmp_path, 0700);
    return tmp_path;
}

unsigned test_random(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    unsigned x = *state;
    x ^= x >> 16;
    x *= 0x7feb352du;
    return x ^ x >> 15;
}

float test_gauss(unsigned *state) {
    double u = (test_random(state) + 1.0) / 4294967297.0, v = test_random(state) / 4294967296.0;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static int remove_entry(const char *path, const struct stat *s, int flag, struct FTW *ftw) {
    (void)s, (void)flag, (void)ftw;
    return remove(path);
}

/* What a file holds, up to n - 1 bytes; the file goes. */
static void take_file(const char *path, char *text, size_t n) {
    FILE *f = fopen(path, "r");
    text[f ? fread(text, 1, n - 1, f) : 0] = 0;
    if (f)
        fclose(f);
    unlink(path);
}

static void start(struct job *j, const struct test *t) {
    set_paths((int)(j - jobs));
    fflush(NULL);
    *j = (struct job){.test = t, .start_us = mono_us(), .pid = fork()};
    if (j->pid != 0) {
        setpgid(j->pid, j->pid);
        return;
    }
    setpgid(0, 0); /* so that what the test starts ends with it */
    int output = open(output_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR); /* a test that wants more sets it itself */
    alarm((unsigned)(t->limit_s * n_jobs));
    t->run();
    exit(0); /* not _exit: leak checkers report at exit */
}

/* Counts a job that ended, and tells of it. */
static void finish(struct job *j, int status) {
    static char reason[2048], output[1 << 16];
    const struct test *t = j->test;
    double s = (double)(mono_us() - j->start_us) / 1e6;
    kill(-j->pid, SIGKILL);
    set_paths((int)(j - jobs));
    nftw(tmp_path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    take_file(reason_path, reason, sizeof reason);
    take_file(output_path, output, sizeof output);
    int code = WIFSIGNALED(status) ? EXIT_FAILED : WEXITSTATUS(status);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        snprintf(reason, sizeof reason, "took more than %d s", t->limit_s * n_jobs);
    else if (WIFSIGNALED(status))
        snprintf(reason, sizeof reason, "killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else if (code && !reason[0])
        snprintf(reason, sizeof reason, "exit status %d", code);
    if (code == 0 && (tell_all || s > 5))
        printf("pass  %s (%.1f s)\n", t->name, s);
    else if (code)
        printf("%s  %s: %s\n", code == EXIT_SKIPPED ? "skip" : "FAIL", t->name, reason);
    if (tell_all || (code && code != EXIT_SKIPPED))
        fputs(output, stdout);
    *(code == 0 ? &n_passed : code == EXIT_SKIPPED ? &n_skipped : &n_failed) += 1;
    fflush(stdout);
    j->test = NULL;
}

/* Waits until any job has ended; false: none runs. */
static bool wait_for_one(void) {
    int status;
    pid_t pid = waitpid(-1, &status, 0);
    for (int i = 0; i < n_jobs && pid > 0; i++)
        if (jobs[i].test && jobs[i].pid == pid)
            finish(&jobs[i], status);
    return pid > 0;
}

static struct job *free_job(void) {
    for (;; wait_for_one())
        for (int i = 0; i < n_jobs; i++)
            if (!jobs[i].test)
                return &jobs[i];
}

static bool wanted(const struct test *t, int n, char **part) {
    for (int i = 0; i < n; i++)
        if (strstr(t->name, part[i]) || strstr(t->file, part[i]))
            return true;
    return n == 0;
}

int main(int argc, char **argv) {
    int first = 1;
    if (argc > 1 && strncmp(argv[1], "-j", 2) == 0) {
        n_jobs = atoi(argv[first++] + 2);
        n_jobs = n_jobs < 1 ? 1 : n_jobs > MAX_JOBS ? MAX_JOBS : n_jobs;
    }
    tell_all = first < argc;
    for (const struct test *t = tests; t; t = t->next)
        if (wanted(t, argc - first, argv + first))
            start(free_job(), t);
    while (wait_for_one())
        ;
    printf("%d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed || n_passed + n_failed + n_skipped == 0;
}
