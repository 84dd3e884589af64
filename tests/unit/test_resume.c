/* A fit that is interrupted goes on and ends in the same file: the tool is run, stopped by a signal
 * in the middle and run again. */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compress/corpus.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

enum { STEPS = 300 };

static void tune(const char *name, float *x, size_t n, void *arg) {
    (void)arg;
    unsigned seed = 5 + (unsigned)strlen(name);
    for (size_t i = 0; i < n; i++)
        x[i] += 0.03f * test_gauss(&seed);
}

struct folders {
    char base[300], fine[300], out[300], kept[320], fit[330];
};

static void make_pair(struct folders *f, const char *out) {
    snprintf(f->base, sizeof f->base, "%s/base", test_tmp());
    snprintf(f->fine, sizeof f->fine, "%s/fine", test_tmp());
    snprintf(f->out, sizeof f->out, "%s/%s", test_tmp(), out);
    snprintf(f->kept, sizeof f->kept, "%s.partial", f->out);
    snprintf(f->fit, sizeof f->fit, "%s/fit", f->kept);
    make_model(f->base, (struct make_model){.scale = 0.2f});
    make_model(f->fine, (struct make_model){.scale = 0.2f, .change = tune});
}

static bool exists(const char *path) {
    return access(path, F_OK) == 0;
}

/* Starts the tool without waiting for it. */
static pid_t start(const struct folders *f, int32_t steps) {
    char tool[512], n[16];
    ssize_t length = readlink("/proc/self/exe", tool, sizeof tool - 16);
    CHECK(length > 0);
    tool[length] = 0;
    strcpy(strrchr(tool, '/'), "/bitdelta");
    snprintf(n, sizeof n, "%d", steps);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1), dup2(null, 2);
        execl(tool, tool, "compress", "--base", f->base, "--finetuned", f->fine, "-o", f->out,
              "--steps", n, "--device", "cpu", (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* Whether it has taken SIGTERM into its own hands, as it does while it fits. */
static bool fits(pid_t pid) {
    char path[64], line[256];
    unsigned long long caught = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "SigCgt: %llx", &caught);
    if (f)
        fclose(f);
    return caught >> (SIGTERM - 1) & 1;
}

/* Ends it by a signal in its fit; returns the exit code, 1000 + the signal that ended it. */
static int stop(pid_t pid, int sig) {
    int status;
    for (int i = 0; i < 12000 && !fits(pid); i++)
        usleep(5000);
    CHECK(fits(pid));
    usleep(30000);
    CHECK_EQ(kill(pid, sig), 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void check_same(const char *a, const char *b) {
    struct why why = {""};
    char *x, *y;
    size_t n, m;
    CHECK_OK(corpus_read_file(a, &x, &n, &why), why);
    CHECK_OK(corpus_read_file(b, &y, &m, &why), why);
    CHECK_EQ(n, m);
    CHECK(memcmp(x, y, n) == 0);
    free(x), free(y);
}

TEST_LIMIT(resume_goes_on_after_signals_and_ends_in_the_same_bytes, 300) {
    struct folders whole, cut;
    make_pair(&whole, "whole.bitdelta");
    TOOL_OK("compress --base %s --finetuned %s -o %s --steps %d --device cpu", whole.base,
            whole.fine, whole.out, STEPS);
    CHECK(!exists(whole.kept)); /* nothing is left behind */
    make_pair(&cut, "cut.bitdelta");
    CHECK_EQ(stop(start(&cut, STEPS), SIGTERM), 75);
    CHECK(exists(cut.fit));
    CHECK(!exists(cut.out));
    /* The next one dies without a word, and what was kept is still there. */
    CHECK_EQ(stop(start(&cut, STEPS), SIGKILL), 1000 + SIGKILL);
    CHECK(exists(cut.fit));
    CHECK_EQ(stop(start(&cut, STEPS), SIGINT), 75);
    TOOL_OK("compress --base %s --finetuned %s -o %s --steps %d --device cpu", cut.base, cut.fine,
            cut.out, STEPS);
    CHECK_HAS(tool_output, "Going on after step");
    check_same(whole.out, cut.out);
    CHECK(!exists(cut.kept));
}

TEST_LIMIT(resume_takes_nothing_of_other_options_or_from_a_damaged_file, 300) {
    struct folders whole, cut;
    make_pair(&whole, "whole.bitdelta");
    TOOL_OK("compress --base %s --finetuned %s -o %s --steps %d --device cpu", whole.base,
            whole.fine, whole.out, STEPS);
    make_pair(&cut, "cut.bitdelta");
    CHECK_EQ(stop(start(&cut, 2 * STEPS), SIGTERM), 75);
    CHECK_EQ(stop(start(&cut, STEPS), SIGTERM),
             75); /* other steps: neither fit nor text is taken */
    struct stat st;
    CHECK_EQ(stat(cut.fit, &st), 0);
    int fd = open(cut.fit, O_RDWR);
    char byte;
    CHECK_EQ(pread(fd, &byte, 1, st.st_size / 2), 1);
    byte = (char)(byte ^ 4);
    CHECK_EQ(pwrite(fd, &byte, 1, st.st_size / 2), 1);
    close(fd);
    TOOL_OK("compress --base %s --finetuned %s -o %s --steps %d --device cpu", cut.base, cut.fine,
            cut.out, STEPS);
    CHECK(!strstr(tool_output, "Going on after step"));
    check_same(whole.out, cut.out);
}

/* ---- a search -------------------------------------------------------------------------------- */

/* Starts a search; what it says goes to `says`. */
static pid_t start_search(const struct folders *f, const char *says) {
    char tool[512];
    ssize_t length = readlink("/proc/self/exe", tool, sizeof tool - 16);
    CHECK(length > 0);
    tool[length] = 0;
    strcpy(strrchr(tool, '/'), "/bitdelta");
    int to = open(says, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    pid_t pid = fork();
    CHECK(to >= 0 && pid >= 0);
    if (pid == 0) {
        dup2(to, 1), dup2(to, 2);
        execl(tool, tool, "compress", "--base", f->base, "--finetuned", f->fine, "-o", f->out,
              "--steps", "60", "--quality", "0.9", "--device", "cpu", (char *)NULL);
        _exit(127);
    }
    close(to);
    return pid;
}

static int32_t count(const char *path, const char *what) {
    struct why why = {""};
    char *text;
    size_t n;
    int32_t times = 0;
    CHECK_OK(corpus_read_file(path, &text, &n, &why), why);
    for (const char *p = text; (p = strstr(p, what)); p++)
        times++;
    free(text);
    return times;
}

/* Lets it finish `looks` of its looks and stops it in the fit of the next one; false: there was
 * none. */
static bool stop_in_look(pid_t pid, const char *says, int32_t looks, int sig) {
    int status;
    for (int i = 0; i < 40000; i++) {
        if (waitpid(pid, &status, WNOHANG) == pid) {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            return false;
        }
        if (count(says, "bits a weight go") == looks && fits(pid)) {
            usleep(20000);
            CHECK_EQ(kill(pid, sig), 0);
            CHECK_EQ(waitpid(pid, &status, 0), pid);
            CHECK(sig == SIGKILL ? WIFSIGNALED(status)
                                 : WIFEXITED(status) && WEXITSTATUS(status) == 75);
            return true;
        }
        usleep(2000);
    }
    test_fail(__FILE__, __LINE__, "look %d never came", looks);
}

TEST_LIMIT(resume_of_a_search_knows_what_it_found_and_ends_in_the_same_bytes, 400) {
    struct folders whole, cut;
    char says[300];
    int32_t looks, stopped = 0;
    snprintf(says, sizeof says, "%s/says", test_tmp());
    make_pair(&whole, "whole.bitdelta");
    CHECK(!stop_in_look(start_search(&whole, says), says, -1, SIGKILL)); /* nothing stops it */
    looks = count(says, "bits a weight go");
    CHECK(looks >= 2);
    CHECK(!exists(whole.kept));
    make_pair(&cut, "cut.bitdelta");
    for (; stopped < looks; stopped++) { /* in each look: killed, or asked to stop */
        if (!stop_in_look(start_search(&cut, says), says, stopped, stopped % 2 ? SIGKILL : SIGTERM))
            break;
        CHECK_EQ(count(says, "as was found before"), stopped ? stopped - 1 : 0);
        CHECK(exists(cut.kept) && !exists(cut.out));
    }
    CHECK_EQ(stopped, looks);
    CHECK(!stop_in_look(start_search(&cut, says), says, -1, SIGKILL));
    CHECK_EQ(count(says, "as was found before"), looks - 1);
    check_same(whole.out, cut.out);
    CHECK(!exists(cut.kept));
}
