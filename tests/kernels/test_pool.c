/* The thread pool: every item exactly once, whatever the threads do. */
#include <stdatomic.h>
#include <unistd.h>

#include "kernels/cpu/pool.h"
#include "tests/check.h"

struct count {
    _Atomic int32_t done[500];
    int32_t plain[500]; /* written without atomics: pool_run must order it */
    int32_t threads;
};

static void count_item(void *arg, int32_t item, int32_t thread) {
    struct count *c = arg;
    CHECK(thread >= 0 && thread < c->threads);
    atomic_fetch_add(&c->done[item], 1);
    c->plain[item]++;
}

TEST(pool_runs_every_item_once) {
    for (int32_t threads = 1; threads <= 5; threads++) {
        static struct count c;
        struct pool *p;
        CHECK_EQ(pool_open(&p, threads), 0);
        CHECK_EQ(pool_threads(p), threads);
        memset(&c, 0, sizeof c);
        c.threads = threads;
        int32_t want = 0;
        for (int32_t n = 0; n <= 500; n += 1 + n / 7, want++)
            pool_run(p, count_item, &c, n == 0 ? 0 : 500);
        for (int32_t i = 0; i < 500; i++) {
            CHECK_EQ(atomic_load(&c.done[i]), want - 1);
            CHECK_EQ(c.plain[i], want - 1);
        }
        pool_close(p);
    }
}

TEST(pool_wakes_from_sleep_and_closes_while_idle) {
    static struct count c = {.threads = 3};
    struct pool *p;
    CHECK_EQ(pool_open(&p, 3), 0);
    for (int32_t i = 0; i < 5; i++) {
        usleep(3000); /* longer than the threads spin */
        pool_run(p, count_item, &c, 40);
    }
    for (int32_t i = 0; i < 40; i++)
        CHECK_EQ(c.plain[i], 5);
    usleep(3000);
    pool_close(p);
}
