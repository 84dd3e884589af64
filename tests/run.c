/* Runs the registered tests, each in a process of its own; prints one line per test that did not
 * pass and the closing count. `build/test [NAME-PART ...]` runs those whose name holds a part. */
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "tests/check.h"

enum { EXIT_FAILED = 1, EXIT_SKIPPED = 77 };

static struct test *tests;
static char reason_path[64], tmp_path[64];

void test_register(struct test *t) {
    struct test **at = &tests; /* by file, then name: a stable order whatever the link order */
    while (*at && (strcmp((*at)->file, t->file) < 0 ||
                   (strcmp((*at)->file, t->file) == 0 && strcmp((*at)->name, t->name) < 0)))
        at = &(*at)->next;
    t->next = *at;
    *at = t;
}

static void leave(int code, const char *format, va_list args) {
    FILE *f = fopen(reason_path, "w");
    if (f) {
        vfprintf(f, format, args);
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
    FILE *f = fopen(reason_path, "w");
    if (f) {
        fputs(text, f);
        fclose(f);
    }
    _exit(EXIT_FAILED);
}

void test_skip(const char *format, ...) {
    va_list args;
    va_start(args, format);
    leave(EXIT_SKIPPED, format, args);
    _exit(EXIT_SKIPPED);
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

static int run_one(const struct test *t, char *reason, size_t cap) {
    unlink(reason_path);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0); /* so that what the test starts ends with it */
        signal(SIGPIPE, SIG_IGN);
        log_set_level(LOG_LEVEL_ERROR); /* a test that wants more sets it itself */
        alarm((unsigned)t->limit_s);
        t->run();
        exit(0); /* not _exit: leak checkers report at exit */
    }
    setpgid(pid, pid);
    int status = 0;
    waitpid(pid, &status, 0);
    kill(-pid, SIGKILL);
    nftw(tmp_path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    snprintf(reason, cap, "%s", "");
    FILE *f = fopen(reason_path, "r");
    if (f) {
        size_t n = fread(reason, 1, cap - 1, f);
        reason[n] = 0;
        fclose(f);
    }
    if (WIFSIGNALED(status)) {
        if (WTERMSIG(status) == SIGALRM)
            snprintf(reason, cap, "took more than %d s", t->limit_s);
        else
            snprintf(reason, cap, "killed by signal %d (%s)", WTERMSIG(status),
                     strsignal(WTERMSIG(status)));
        return EXIT_FAILED;
    }
    int code = WEXITSTATUS(status);
    if (code && code != EXIT_SKIPPED && !reason[0])
        snprintf(reason, cap, "exit status %d (see the output above)", code);
    return code;
}

static int wanted(const struct test *t, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strstr(t->name, argv[i]) || strstr(t->file, argv[i]))
            return 1;
    return argc < 2;
}

int main(int argc, char **argv) {
    snprintf(reason_path, sizeof reason_path, "/tmp/bitdelta-test-%d.reason", getpid());
    snprintf(tmp_path, sizeof tmp_path, "/tmp/bitdelta-test-%d", getpid());
    int passed = 0, failed = 0, skipped = 0;
    for (const struct test *t = tests; t; t = t->next) {
        if (!wanted(t, argc, argv))
            continue;
        char reason[2048];
        int64_t start = mono_us();
        int code = run_one(t, reason, sizeof reason);
        double s = (double)(mono_us() - start) / 1e6;
        if (code == 0) {
            passed++;
            if (argc > 1 || s > 5)
                printf("pass  %s (%.1f s)\n", t->name, s);
        } else if (code == EXIT_SKIPPED) {
            skipped++;
            printf("skip  %s: %s\n", t->name, reason);
        } else {
            failed++;
            printf("FAIL  %s: %s\n", t->name, reason);
        }
        fflush(stdout);
    }
    unlink(reason_path);
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed || passed + failed + skipped == 0;
}
