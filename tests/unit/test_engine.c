/* The engine through its door, on the shipped base: refusals, cancellation, drain, a slow reader,
 * idleness, memory. What concerns several tenants is in test_engine_tenants.c. */
#include "engine/engine.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "config/clock.h"
#include "engine/loop.h"
#include "tests/check.h"
#include "tests/drive.h"

static const int32_t prompt[] = {1, 346, 1455, 303}; /* "The kernel is" */
enum { N_PROMPT = 4, ANY = 3, MAX_REPLIES = 512 };

static struct reply reply[MAX_REPLIES];

static struct gen_request endless(uint64_t id, int32_t max_tokens) {
    struct gen_request r = drive_request(id, prompt, N_PROMPT, max_tokens);
    r.ignore_eos = true;
    return r;
}

static struct engine_stats stats_of(struct engine *e) {
    struct engine_stats s;
    engine_stats(e, &s);
    return s;
}

/* The engine publishes its numbers after the step that ended the last request. */
static void wait_idle(struct engine *e) {
    for (int i = 0; i < 200; i++) {
        struct engine_stats s = stats_of(e);
        if (s.running + s.waiting == 0)
            return;
        usleep(5000);
    }
    test_fail(__FILE__, __LINE__, "the engine still counts requests as running");
}

static err_t submit_again(struct engine *e, struct gen_request r, struct why *why) {
    int32_t *ids = malloc(sizeof prompt), *given = ids;
    memcpy(ids, prompt, sizeof prompt);
    r.ids = ids;
    why->text[0] = 0;
    err_t error = engine_submit(e, &r, why);
    if (error)
        free(given); /* on failure the ids stay the caller's */
    return error;
}

TEST(engine_open_says_what_is_wrong) {
    struct engine *e;
    struct why why;
    struct engine_options o = drive_options("/nonexistent");
    CHECK(engine_open(&e, &o, &why) != E_OK);
    CHECK_HAS(why.text, "/nonexistent");
    o = drive_options("demo/base");
    o.device = "abacus";
    CHECK_EQ(engine_open(&e, &o, &why), E_CONFIG);
    CHECK_HAS(why.text, "abacus");
    o.device = "cpu";
    o.max_seqs = o.max_batch_tokens + 1;
    CHECK_EQ(engine_open(&e, &o, &why), E_CONFIG);
    CHECK_HAS(why.text, "max_seqs");
}

TEST(engine_base_info_describes_the_base) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    for (int i = 0; i < 300 && !engine_base_info(e)->hash[0]; i++)
        usleep(10000);
    const struct tenant_info *info = engine_base_info(e);
    CHECK_EQ(strlen(info->hash), 64);
    CHECK_EQ(info->vocab, 4096);
    CHECK_EQ(info->context, 512);
    CHECK_EQ(info->bos_id, 1);
    CHECK_EQ(info->n_eos, 1);
    CHECK_EQ(info->eos_id[0], 2);
    CHECK_HAS(info->generation_json, "eos_token_id");
    CHECK(info->bytes > 16700000 && info->bytes < 17000000);
    CHECK(strlen(engine_describe(e)) > 0);
    engine_close(e);
}

TEST(engine_submit_refuses_and_leaves_the_ids_to_the_caller) {
    struct engine_options o = drive_options("demo/base");
    o.kv_tokens = 320; /* less than a context */
    o.max_seqs = 2;
    o.max_queue = 1;
    struct engine *e = drive_open(&o);
    struct why why;
    CHECK_EQ(submit_again(e, endless(0, 510), &why), E_CONTEXT);
    CHECK_HAS(why.text, "512");
    CHECK_EQ(submit_again(e, endless(0, 400), &why), E_CONTEXT);
    CHECK_HAS(why.text, "kv_tokens");
    struct gen_request r = endless(0, 4);
    r.stop_id[r.n_stop_ids++] = 4096;
    CHECK_EQ(submit_again(e, r, &why), E_TOKEN_RANGE);
    for (uint64_t id = 0; id < 3; id++) /* two run, one waits */
        CHECK_OK(submit_again(e, endless(id, 60), &why), why);
    CHECK_EQ(submit_again(e, endless(3, 4), &why), E_BUSY);
    drive_finish(e, reply, 3);
    CHECK_OK(submit_again(e, endless(3, 100), &why), why);
    CHECK_EQ(submit_again(e, endless(3, 4), &why), E_INVAL); /* its id is live */
    drive_finish(e, reply, 4);
    engine_close(e);
    drive_free(reply, MAX_REPLIES);
}

TEST(engine_max_tokens_0_answers_at_once) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    struct gen_request r = drive_request(0, prompt, N_PROMPT, 0);
    drive_submit(e, &r);
    r = drive_request(1, prompt, N_PROMPT, 0);
    r.prompt_logprobs = true;
    drive_submit(e, &r);
    drive_finish(e, reply, 2);
    CHECK_EQ(reply[0].n_events, 1);
    CHECK_EQ(reply[0].event[0].finish, GEN_LENGTH);
    CHECK_EQ(reply[1].n_events, N_PROMPT);
    CHECK_NEAR((double)reply[1].event[0].logprob, -5.247056, 2e-3, 0);
    wait_idle(e);
    CHECK_EQ(stats_of(e).prompt_tokens, 2 * N_PROMPT);
    CHECK_EQ(stats_of(e).finished_length, 2);
    engine_close(e);
    drive_free(reply, 2);
}

TEST(engine_drain_finishes_what_runs) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    struct why why;
    int32_t n = DRIVE_SLOW ? 3 : 20;
    for (uint64_t id = 0; id < (uint64_t)n; id++)
        CHECK_OK(submit_again(e, endless(id, 50), &why), why);
    engine_drain(e);
    CHECK_EQ(submit_again(e, endless(99, 50), &why), E_DRAINING);
    drive_finish(e, reply, n);
    for (int i = 0; i < n; i++)
        CHECK_EQ(reply[i].n_events, 51);
    engine_close(e);
    drive_free(reply, n);
}

TEST(engine_cancel_ends_within_one_step) {
    enum { MOST_TRIES = 8 };
    struct engine_options o = drive_options("demo/base");
    o.max_seqs = 1;
    struct engine *e = drive_open(&o);
    struct gen_request r = endless(0, 500);
    drive_submit(e, &r);
    while (reply[0].n_events < 5)
        drive_poll(e, reply, 100);
    uint64_t id = 0, before, steps = UINT64_MAX;
    /* One step under way, one until we looked, one unpublished. Others run here, too, and we may
     * look late: once is enough. */
    while (steps > 3 && id < MOST_TRIES) {
        r = endless(++id, 500); /* waits, as one runs */
        drive_submit(e, &r);
        engine_cancel(e, id);
        before = stats_of(e).steps;
        while (!reply[id].ended)
            drive_poll(e, reply, 100);
        CHECK_EQ(reply[id].event[0].finish, GEN_CANCELLED);
        steps = stats_of(e).steps - before;
    }
    CHECK(steps <= 3);
    engine_cancel(e, 0);
    engine_cancel(e, 0);
    engine_cancel(e, 77); /* unknown: ignored */
    before = stats_of(e).steps;
    drive_finish(e, reply, 1);
    CHECK_EQ(reply[0].event[reply[0].n_events - 1].finish, GEN_CANCELLED);
    wait_idle(e);
    CHECK(stats_of(e).steps <= before + 3);
    CHECK_EQ(stats_of(e).finished_cancelled, id + 1);
    engine_close(e);
    drive_free(reply, (int32_t)id + 1);
}

TEST_LIMIT(engine_cancel_storm_leaves_no_page, 120) {
    struct engine_options o = drive_options("demo/base");
    o.kv_tokens = 1024; /* some are preempted, some wait, some are in a long prefill */
    o.max_batch_tokens = 32;
    struct engine *e = drive_open(&o);
    static int32_t ids[400];
    unsigned random = 3;
    for (int i = 0; i < 400; i++)
        ids[i] = ANY + i;
    for (int round = 0; round < 3; round++) {
        int32_t n = DRIVE_SLOW ? 20 : 120;
        for (int32_t i = 0; i < n; i++) {
            struct gen_request r =
                drive_request((uint64_t)i, ids, 1 + (int32_t)(test_random(&random) % 400), 60);
            r.ignore_eos = true;
            r.prompt_logprobs = i % 2;
            drive_submit(e, &r);
            if (i % 3 == 0)
                drive_poll(e, reply, 1);
            engine_cancel(e, test_random(&random) % (unsigned)n);
        }
        for (int32_t i = 0; i < n; i++)
            if (i % 7)
                engine_cancel(e, (uint64_t)i);
        drive_finish(e, reply, n);
        for (int32_t i = 0; i < n; i++)
            CHECK(reply[i].event[reply[i].n_events - 1].kind == GEN_DONE);
        drive_free(reply, n);
        wait_idle(e);
        CHECK_EQ(stats_of(e).kv_pages_used, 0);
    }
    CHECK(stats_of(e).finished_cancelled > 20);
    engine_close(e);
}

TEST_LIMIT(engine_waits_for_a_reader_that_sleeps_and_loses_nothing, 240) {
    struct engine_options o = drive_options("demo/base");
    o.kv_tokens = 16 * 512;
    struct engine *e = drive_open(&o);
    enum { N = 12 };
    static int32_t ids[400]; /* scored, these make more events than the ring holds */
    for (int i = 0; i < 400; i++)
        ids[i] = ANY + i;
    for (uint64_t id = 0; id < N; id++) {
        struct gen_request r = drive_request(id, ids, 400, 1);
        r.prompt_logprobs = true;
        drive_submit(e, &r);
    }
    uint64_t before, now = 0;
    do { /* until it stands still: the ring is full */
        before = now;
        usleep(DRIVE_SLOW ? 2000000 : 300000);
        now = stats_of(e).steps;
    } while (now != before || now == 0);
    CHECK(stats_of(e).finished_length < N);
    drive_finish(e, reply, N);
    for (int i = 0; i < N; i++) {
        CHECK(reply[i].n_events >= 399 + 1);
        for (int32_t j = 0; j < 399; j++)
            CHECK_EQ(reply[i].event[j].token, ids[j + 1]);
    }
    drive_free(reply, N);
    /* and it can be closed while it waits (a second filling takes a sanitizer half a minute) */
    for (uint64_t id = 0; id < N && !DRIVE_SLOW; id++) {
        struct gen_request r = drive_request(id, ids, 400, 1);
        r.prompt_logprobs = true;
        drive_submit(e, &r);
    }
    usleep(DRIVE_SLOW ? 0 : 600000);
    engine_close(e);
}

/* The CPU backend, whose steps fail after a while: engine thread only, once the engine has work. */
static struct kernels_ops failing_ops;
static err_t (*real_end)(struct kernels *k);
static int steps_to_live = 10;

static err_t failing_end(struct kernels *k) {
    err_t error = real_end(k);
    return steps_to_live-- > 0 ? error : E_DEVICE;
}

TEST(engine_that_lost_its_device_fails_every_request) {
    struct engine_options o = drive_options("demo/base");
    o.max_seqs = 2;
    struct engine *e = drive_open(&o);
    struct why why;
    wait_idle(e);
    failing_ops = *e->kernels->ops;
    real_end = failing_ops.end;
    failing_ops.end = failing_end;
    e->kernels->ops = &failing_ops;
    for (uint64_t id = 0; id < 3; id++) /* two run, one waits */
        CHECK_OK(submit_again(e, endless(id, 100), &why), why);
    drive_finish(e, reply, 3);
    for (int i = 0; i < 3; i++) {
        const struct gen_event *last = &reply[i].event[reply[i].n_events - 1];
        CHECK_EQ(last->kind, GEN_FAILED);
        CHECK_EQ(last->error, E_DEVICE);
    }
    CHECK(reply[0].n_events > 5); /* what was said before stays said */
    CHECK_EQ(submit_again(e, endless(3, 4), &why), E_DEVICE);
    wait_idle(e);
    CHECK_EQ(stats_of(e).finished_failed, 3);
    CHECK_EQ(stats_of(e).kv_pages_used, 0);
    engine_close(e);
    drive_free(reply, 3);
}

TEST(engine_idles_without_the_processor_and_beats) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    struct rusage a, b;
    usleep(200000); /* the fingerprint's thread ends */
    getrusage(RUSAGE_SELF, &a);
    usleep(1300000);
    getrusage(RUSAGE_SELF, &b);
    long us =
        (b.ru_utime.tv_sec - a.ru_utime.tv_sec + b.ru_stime.tv_sec - a.ru_stime.tv_sec) * 1000000L +
        b.ru_utime.tv_usec - a.ru_utime.tv_usec + b.ru_stime.tv_usec - a.ru_stime.tv_usec;
    CHECK(us < 20000);
    CHECK(mono_us() - stats_of(e).heartbeat_us < 1200000);
    engine_close(e);
}

static size_t resident_bytes(void) {
    char text[128] = "";
    size_t size = 0, resident = 0;
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    CHECK(n > 0 && sscanf(text, "%zu %zu", &size, &resident) == 2);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

TEST(engine_memory_is_weights_and_kv_and_little_more) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    test_skip("a sanitizer's own memory would be counted");
#endif
    struct engine_options o = drive_options("demo/base");
    o.kv_tokens = 64 * 512;
    o.max_seqs = 64;
    struct engine *e = drive_open(&o);
    size_t kv = 64 * 512 * (size_t)(2 * 8 * 2 * 64 * 4); /* keys, values x L x K x E x float */
    for (int round = 0; round < 2; round++) {
        for (uint64_t id = 0; id < 64; id++) {
            struct gen_request r = endless(id, 100);
            r.n_top = GEN_MAX_TOP;
            drive_submit(e, &r);
        }
        drive_finish(e, reply, 64);
        drive_free(reply, 64);
        size_t limit = engine_base_info(e)->bytes + kv + (64u << 20);
        if (resident_bytes() > limit)
            test_fail(__FILE__, __LINE__, "resident %zu bytes, allowed %zu", resident_bytes(),
                      limit);
    }
    engine_close(e);
}
