#include "engine/kv.h"

#include "tests/check.h"

TEST(kv_pages_are_never_held_twice) {
    enum { PAGES = 40, LISTS = 5, TURNS = 20000 };
    struct kv_pool pool;
    CHECK_EQ(kv_init(&pool, PAGES), E_OK);
    static int32_t pages[LISTS][PAGES];
    int32_t n[LISTS] = {0};
    unsigned random = 7;
    for (int turn = 0; turn < TURNS; turn++) {
        unsigned i = test_random(&random) % LISTS;
        int32_t tokens = (int32_t)(test_random(&random) % (PAGES * KV_PAGE_TOKENS));
        int32_t before = n[i], free_before = pool.n_free;
        if (test_random(&random) % 3 == 0) {
            kv_release(&pool, pages[i], &n[i]);
            CHECK_EQ(pool.n_free, free_before + before);
        } else if (kv_grow(&pool, pages[i], &n[i], tokens)) {
            CHECK(n[i] * KV_PAGE_TOKENS >= tokens);
        } else { /* all or nothing */
            CHECK_EQ(n[i], before);
            CHECK_EQ(pool.n_free, free_before);
            CHECK(kv_pages_for(tokens) - before > free_before);
        }
        int seen[PAGES] = {0};
        for (int l = 0; l < LISTS; l++)
            for (int32_t p = 0; p < n[l]; p++)
                CHECK_EQ(seen[pages[l][p]]++, 0);
        for (int32_t p = 0; p < pool.n_free; p++)
            CHECK_EQ(seen[pool.free[p]]++, 0);
    }
    kv_free(&pool);
}

TEST(kv_pages_for_counts_whole_pages) {
    CHECK_EQ(kv_pages_for(0), 0);
    CHECK_EQ(kv_pages_for(1), 1);
    CHECK_EQ(kv_pages_for(KV_PAGE_TOKENS), 1);
    CHECK_EQ(kv_pages_for(KV_PAGE_TOKENS + 1), 2);
}
