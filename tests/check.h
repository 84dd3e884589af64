/* A test is a sentence, a body, and checks that print both sides. A test registers itself:
 *     TEST(sched_one_tenant_cannot_starve_another) { CHECK_EQ(1, 1); }
 * Each test runs in a process of its own with a time limit; the first failed check ends it. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test {
    const char *name, *file;
    void (*run)(void);
    int limit_s;
    struct test *next;
};
void test_register(struct test *t);

#define TEST_LIMIT(test_name, seconds)                                                             \
    static void test_name(void);                                                                   \
    static struct test test_name##_entry = {#test_name, __FILE__, test_name, seconds, NULL};       \
    __attribute__((constructor)) static void test_name##_register(void) {                          \
        test_register(&test_name##_entry);                                                         \
    }                                                                                              \
    static void test_name(void)
#define TEST(test_name) TEST_LIMIT(test_name, 60)

/* Ends the test as failed, with the place and the sentence. */
void test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4), noreturn));
/* Ends the test as skipped: say what is missing. */
void test_skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            test_fail(__FILE__, __LINE__, "%s is false", #condition);                              \
    } while (0)
#define CHECK_EQ(a, b)                                                                             \
    do {                                                                                           \
        long long check_a = (long long)(a), check_b = (long long)(b);                              \
        if (check_a != check_b)                                                                    \
            test_fail(__FILE__, __LINE__, "%s is %lld, %s is %lld", #a, check_a, #b, check_b);     \
    } while (0)
#define CHECK_STR(a, b)                                                                            \
    do {                                                                                           \
        const char *check_a = (a), *check_b = (b);                                                 \
        if (!check_a || !check_b || strcmp(check_a, check_b) != 0)                                 \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", %s is \"%s\"", #a,                        \
                      check_a ? check_a : "(null)", #b, check_b ? check_b : "(null)");             \
    } while (0)
#define CHECK_HAS(text, part)                                                                      \
    do {                                                                                           \
        const char *check_a = (text), *check_b = (part);                                           \
        if (!check_a || !strstr(check_a, check_b))                                                 \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", which lacks \"%s\"", #text,               \
                      check_a ? check_a : "(null)", check_b);                                      \
    } while (0)
/* |a - b| <= abs + rel * |b| */
#define CHECK_NEAR(a, b, abs_tol, rel_tol)                                                         \
    do {                                                                                           \
        double check_a = (a), check_b = (b);                                                       \
        double check_d = check_a > check_b ? check_a - check_b : check_b - check_a;                \
        double check_m = check_b < 0 ? -check_b : check_b;                                         \
        if (!(check_d <= (abs_tol) + (rel_tol)*check_m))                                           \
            test_fail(__FILE__, __LINE__, "%s is %.9g, %s is %.9g, apart by %.3g", #a, check_a,    \
                      #b, check_b, check_d);                                                       \
    } while (0)
/* An err_t and the sentence that came with it. */
#define CHECK_OK(expression, why)                                                                  \
    do {                                                                                           \
        int check_e = (expression);                                                                \
        if (check_e)                                                                               \
            test_fail(__FILE__, __LINE__, "%s gave %d: %s", #expression, check_e, (why).text);     \
    } while (0)

/* Folder of the shared models, or NULL: $BITDELTA_MODELS, else ../shared/models if it is there. */
const char *test_models(void);
/* A path under the models folder; skips the test when the folder is absent, but for the base, which
 * demo/ ships. Static buffer. */
const char *test_model(const char *name);
/* A fresh temporary folder, removed after the test. Static buffer. */
const char *test_tmp(void);
/* Small deterministic generator for test data. */
unsigned test_random(unsigned *state);
float test_gauss(unsigned *state);

#endif
