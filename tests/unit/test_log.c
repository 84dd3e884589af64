/* Properties: one event is one line, whatever stands in it; lines of several threads never mix;
 * what is below the level costs nothing and says nothing. */
#include "config/log.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "tests/check.h"

enum { THREADS = 4, LINES = 200 };

static int saved = -1, out = -1;

/* From here on stderr is a file, and the level is what the daemon starts with. */
static void capture(void) {
    char path[256];
    snprintf(path, sizeof path, "%s/log", test_tmp());
    log_set_level(LOG_LEVEL_INFO);
    saved = dup(2);
    out = open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600);
    CHECK(saved >= 0 && out >= 0 && dup2(out, 2) == 2);
}

static const char *captured(void) {
    static char text[1 << 20];
    ssize_t n = pread(out, text, sizeof text - 1, 0);
    CHECK(dup2(saved, 2) == 2);
    CHECK(n >= 0);
    text[n] = 0;
    return text;
}

TEST(log_line_has_priority_level_and_stage) {
    capture();
    log_error("engine", "step=%d", 7);
    log_warn("sse", "slow=1");
    log_info("http", "x=y");
    log_debug("http", "unseen=1");
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("http", "seen=1");
    log_set_level(LOG_LEVEL_ERROR);
    log_warn("http", "unseen=2");
    CHECK_STR(captured(), "<3>error stage=engine step=7\n<4>warn stage=sse slow=1\n"
                          "<6>info stage=http x=y\n<7>debug stage=http seen=1\n");
}

TEST(log_text_from_outside_cannot_start_a_line_or_drive_a_terminal) {
    capture();
    log_info("http", "path=\"%s\"", "/\r\n<3>error stage=engine forged=1\x1b[2J\x7f\t");
    log_info("http", "name=%s",
             "\xc2\x9b"
             "1m \xff \xe6\x97\xa5 a\\x0ab");
    CHECK_STR(
        captured(),
        "<6>info stage=http path=\"/\\x0d\\x0a<3>error stage=engine forged=1\\x1b[2J\\x7f\\x09\"\n"
        "<6>info stage=http name=\\xc2\\x9b1m \\xff \xe6\x97\xa5 a\\\\x0ab\n");
}

TEST(log_line_too_long_is_cut_and_still_one_line) {
    static char big[8000], wild[8000];
    memset(big, 'a', sizeof big - 1);
    memset(wild, 1, sizeof wild - 1);
    capture();
    log_info("x", "%s", big);
    log_info("x", "%s", wild);
    const char *text = captured(), *second = strchr(text, '\n') + 1;
    CHECK(second - text > 1000 && second - text <= 4096);
    CHECK_HAS(second, "\\x01\\x01");
    CHECK(strlen(second) <= 4096);
    CHECK(strchr(second, '\n') == second + strlen(second) - 1);
}

static void *write_lines(void *number) {
    for (int i = 0; i < LINES; i++)
        log_info("thread", "number=%d line=%d pad=%0200d end=1", *(int *)number, i, 0);
    return NULL;
}

TEST(log_lines_of_threads_do_not_mix) {
    pthread_t threads[THREADS];
    int numbers[THREADS], next[THREADS] = {0};
    capture();
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        CHECK_EQ(pthread_create(&threads[i], NULL, write_lines, &numbers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    const char *at = captured();
    for (int i = 0; i < THREADS * LINES; i++) {
        int number, line, used = 0;
        CHECK_EQ(sscanf(at, "<6>info stage=thread number=%d line=%d pad=%*d end=1%n", &number,
                        &line, &used),
                 2);
        CHECK(used > 0 && at[used] == '\n');
        CHECK(number >= 0 && number < THREADS);
        CHECK_EQ(line, next[number]++); /* and in order within a thread */
        at += used + 1;
    }
    CHECK_EQ(*at, 0);
}
