/* The scheduler against sequences that need no model: a step is "played" by moving n_cached and
 * drawing an id. */
#include "engine/sched.h"

#include "engine/tenant.h"
#include "tests/check.h"

enum { MAX_LIVE = 64, ROWS = 64 };

static struct kv_pool pool;
static struct sched sched;
static struct tenant tenant[4];
static uint64_t n_arrived;

static void start(int32_t n_pages, int32_t max_running) {
    CHECK_EQ(kv_init(&pool, n_pages), E_OK);
    CHECK_EQ(sched_init(&sched, &pool, max_running, ROWS, MAX_LIVE), E_OK);
    for (unsigned i = 0; i < 4; i++)
        tenant[i].info.generation = i;
}

static struct seq *submit(int t, int32_t n_prompt, int32_t max_tokens) {
    struct gen_request r = {.id = n_arrived, .n_ids = n_prompt, .max_tokens = max_tokens};
    r.ids = calloc((size_t)n_prompt, sizeof *r.ids);
    struct seq *q = NULL;
    CHECK_EQ(seq_open(&q, &r, &tenant[t], NULL, 0, 10), E_OK);
    q->arrival = n_arrived++;
    sched_add(&sched, q);
    return q;
}

static int32_t n_output(const struct seq *q) {
    return q->n_ids - q->n_prompt;
}

/* Plans a step, checks its laws, plays it; sequences that are done leave and are freed. */
static int32_t play(void) {
    int32_t rows = sched_plan(&sched), sum = 0, decoding = 0;
    for (int32_t i = 0; i < sched.n_running; i++) {
        struct seq *q = sched.running[i];
        sum += q->n_rows;
        decoding += seq_rows_left(q) == 1 && q->n_rows == 0;
        CHECK(q->n_rows <= seq_rows_left(q));
        CHECK(q->n_pages * KV_PAGE_TOKENS >= q->n_cached + q->n_rows);
        if (i > 0)
            CHECK(sched.running[i - 1]->tenant->info.generation <= q->tenant->info.generation);
    }
    CHECK_EQ(rows, sum);
    CHECK(rows <= ROWS);
    CHECK_EQ(decoding, 0); /* every decode has its row */
    for (int32_t i = sched.n_running - 1; i >= 0; i--) {
        struct seq *q = sched.running[i];
        q->n_cached += q->n_rows;
        if (q->n_cached < q->n_ids)
            continue;
        q->ids[q->n_ids++] = 3;
        if (n_output(q) == q->request.max_tokens) {
            sched_remove(&sched, q);
            seq_free(q);
        }
    }
    return rows;
}

TEST(sched_one_tenant_cannot_starve_another) {
    start(1000, 4);
    for (int i = 0; i < 20; i++)
        submit(0, 4, 40);
    play();
    CHECK_EQ(tenant[0].n_running, 4);
    struct seq *late = submit(1, 4, 40);
    submit(2, 4, 40);
    int steps = 0;
    while (late->state == SEQ_WAITING && steps++ < 100)
        play();
    CHECK(steps <= 41); /* in the first slots that came free, before sixteen older requests */
    CHECK_EQ(tenant[1].n_running, 1);
    CHECK_EQ(tenant[2].n_running, 1);
}

TEST(sched_takes_one_tenants_requests_in_order) {
    start(1000, 2);
    struct seq *q[6];
    for (int i = 0; i < 6; i++)
        q[i] = submit(0, 4, 10 + i);
    play();
    CHECK_EQ(q[0]->state, SEQ_RUNNING);
    CHECK_EQ(q[1]->state, SEQ_RUNNING);
    for (int i = 2; i < 6; i++)
        CHECK_EQ(q[i]->state, SEQ_WAITING);
    for (int i = 0; i < 11; i++)
        play();
    CHECK_EQ(q[3]->state, SEQ_RUNNING);
    CHECK_EQ(q[4]->state, SEQ_WAITING);
}

TEST(sched_short_prompt_does_not_wait_behind_a_long_one) {
    start(1000, 8);
    struct seq *longest = submit(0, 64 * ROWS, 1);
    play();
    CHECK_EQ(longest->n_cached, ROWS);
    struct seq *brief = submit(1, 20, 5);
    play();
    CHECK_EQ(n_output(brief), 1);
    CHECK_EQ(longest->n_cached, ROWS + ROWS - 20);
    for (int i = 0; i < 30; i++) { /* and a stream of short ones does not stop the long one */
        int32_t before = longest->n_cached;
        submit(2, ROWS, 1);
        play();
        CHECK(longest->n_cached - before >= (ROWS - 2) / 2);
    }
}

TEST(sched_admits_only_what_finds_its_pages) {
    start(10, 8);
    submit(0, 5 * KV_PAGE_TOKENS, 4);
    struct seq *second = submit(0, 6 * KV_PAGE_TOKENS, 4);
    struct seq *third = submit(0, 1, 4);
    play();
    CHECK_EQ(second->state, SEQ_WAITING);
    CHECK_EQ(third->state, SEQ_WAITING); /* not let past: the second would never fit */
    while (second->state == SEQ_WAITING)
        play();
    CHECK_EQ(sched.preemptions, 0);
}

TEST(sched_preempts_the_youngest_and_all_end) {
    enum { N = 24 };
    start(12, 8);
    for (int i = 0; i < N; i++)
        submit(i % 4, 8 + i * 3, 4 * KV_PAGE_TOKENS);
    struct seq *oldest = sched.waiting[0];
    int steps = 0;
    bool oldest_runs = true;
    while (sched.n_running + sched.n_waiting > 0 && steps++ < 20000) {
        CHECK(play() > 0);
        bool listed = false;
        for (int32_t i = 0; i < sched.n_waiting; i++)
            listed |= sched.waiting[i] == oldest;
        oldest_runs &= !listed;
    }
    CHECK_EQ(sched.n_running + sched.n_waiting, 0);
    CHECK(sched.preemptions > 0);
    CHECK(oldest_runs);
    CHECK_EQ(pool.n_free, pool.n_pages);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(tenant[i].n_running, 0);
}

TEST(sched_removing_any_sequence_gives_its_pages_back) {
    start(40, 4);
    struct seq *q[12];
    for (int i = 0; i < 12; i++)
        q[i] = submit(i % 3, 30 + i, 50);
    play(); /* some run, some are in prefill, some wait */
    play();
    for (int i = 11; i >= 0; i--) {
        sched_remove(&sched, q[i]);
        seq_free(q[i]);
    }
    CHECK_EQ(sched.n_running + sched.n_waiting, 0);
    CHECK_EQ(pool.n_free, pool.n_pages);
    CHECK_EQ(sched_plan(&sched), 0);
}
