#include "server/live.h"
#include "tests/check.h"

TEST(live_ids_are_never_used_twice_and_lead_to_their_owner) {
    struct live live = {0};
    static uint64_t ids[300];
    struct generation *owner = (struct generation *)&live; /* never looked into */
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 300; i++) {
            uint64_t before = ids[i];
            CHECK_EQ(live_add(&live, owner, i, &ids[i]), E_OK);
            CHECK(ids[i] > before);
            CHECK(!before || !live_find(&live, before)); /* an event that came too late */
        }
        for (int i = 0; i < 300; i++)
            CHECK(live_find(&live, ids[i])->i_choice == i && live_find(&live, ids[i])->g == owner);
        CHECK_EQ(live.n, 300);
        for (int i = 299; i >= 0; i -= 1 + round % 2)
            live_remove(&live, ids[i]);
        for (int i = 0; i < 300; i++) /* what was removed already is no trouble */
            live_remove(&live, ids[i]);
        CHECK_EQ(live.n, 0);
    }
    CHECK(!live_find(&live, 0));
    live_free(&live);
}
