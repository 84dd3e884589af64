/* The CPU's operators of fitting, in every instruction set that runs here, on one thread and more.
 */
#include "kernels/cpu/train_cpu.h"
#include "tests/check.h"
#include "tests/kernels/train_checks.h"

static void check_all(const struct train_isa *isa) {
    if (!isa->runs_here())
        test_skip("this machine has no %s", isa->name);
    for (int32_t threads = 1; threads <= 3; threads += 2)
        for (const struct train_check *c = train_checks; c->name; c++) {
            struct train *t;
            struct why why = {""};
            CHECK_OK(train_cpu_open(&t, threads, &why), why);
            train_cpu(t)->isa = isa;
            c->run(t);
            CHECK_OK(t->ops->settle(t, &why), why);
            t->ops->close(t);
        }
}

TEST(train_operators_match_double_precision_in_plain_c) {
    check_all(&train_isa_c);
}
TEST(train_operators_match_double_precision_with_avx2) {
    check_all(&train_isa_avx2);
}
TEST(train_operators_match_double_precision_with_avx512) {
    check_all(&train_isa_avx512);
}

TEST(train_tells_what_it_runs_on_and_what_is_left) {
    struct train *t;
    struct why why = {""};
    CHECK_OK(train_cpu_open(&t, 2, &why), why);
    CHECK_HAS(t->ops->describe(t), "2 threads");
    CHECK(t->ops->memory_free(t) > 1 << 20);
    CHECK_EQ(t->ops->memory_most(t), 0);
    void *much;
    CHECK_EQ(t->ops->take(t, SIZE_MAX - 7, &much), E_NOMEM);
    CHECK(!much);
    t->ops->give(t, NULL);
    t->ops->close(t);
}
