/* The engine on the device: replies in any mix, tenants that come and go while others generate,
 * memory that runs out. */
#include <unistd.h>

#include "tests/gpu/gpu.h"

static const char *const tenants[] = {"math", "sql", "kjv", "chat"};
enum { N_TENANTS = 4 };

/* ---- mixes ----------------------------------------------------------------------------------- */

enum { REQUESTS = 15, PROMPT = 20, TOKENS = 40 };

static void submit(struct engine *e, struct tenant *t, uint64_t id, uint64_t kind) {
    int32_t ids[PROMPT];
    for (int32_t i = 0; i < PROMPT; i++)
        ids[i] = i ? 300 + (int32_t)((kind * 131 + (uint64_t)i * 17) % 3000) : 1;
    struct gen_request r = drive_request(id, ids, PROMPT, TOKENS);
    r.tenant = t;
    r.ignore_eos = true;
    r.n_top = 3;
    if (kind % 2) { /* every way of sampling */
        r.temperature = 0.9f;
        r.top_p = 0.95f;
        r.top_k = 40;
        r.repetition = 1.1f;
        r.frequency = 0.2f;
        r.seed = kind;
    }
    drive_submit(e, &r);
}

static struct tenant *load(struct engine *e, int32_t i) {
    char path[64];
    snprintf(path, sizeof path, "demo/tenants/%s.bitdelta", tenants[i]);
    return drive_tenant(e, path);
}

TEST_LIMIT(gpu_replies_do_not_depend_on_what_runs_beside_them, 120) {
    gpu_need();
    struct engine_options o = gpu_options("demo/base");
    struct engine *e = drive_open(&o);
    struct tenant *t[1 + N_TENANTS] = {NULL};
    struct reply alone[REQUESTS] = {0}, mixed[REQUESTS] = {0};
    for (int32_t i = 0; i < N_TENANTS; i++)
        t[1 + i] = load(e, i);
    for (uint64_t i = 0; i < REQUESTS; i++) {
        while (i && !alone[i - 1].ended)
            drive_poll(e, alone, 1000);
        submit(e, t[i % 5], i, i);
    }
    drive_finish(e, alone, REQUESTS);
    for (uint64_t i = 0; i < REQUESTS; i++)
        submit(e, t[i % 5], i, i);
    drive_finish(e, mixed, REQUESTS);
    for (int32_t i = 0; i < REQUESTS; i++)
        if (!drive_same(&alone[i], &mixed[i]))
            test_fail(__FILE__, __LINE__, "request %d differs in the mix", i);
    drive_free(alone, REQUESTS);
    drive_free(mixed, REQUESTS);
    for (int32_t i = 0; i < N_TENANTS; i++)
        tenant_unref(t[1 + i]);
    engine_close(e);
}

/* Tenants are loaded and dropped over and over while others generate: nobody's text changes and
 * the memory comes back. */
TEST_LIMIT(gpu_tenants_come_and_go_while_others_generate, 120) {
    gpu_need();
    struct engine_options o = gpu_options("demo/base");
    struct engine *e = drive_open(&o);
    struct reply before[1] = {0}, during[1] = {0};
    struct engine_stats first, last;
    struct tenant *t = load(e, 0);
    submit(e, t, 0, 7);
    drive_finish(e, before, 1);
    engine_stats(e, &first);
    submit(e, t, 0, 7);
    for (int32_t i = 0; !during[0].ended || i < 40; i++) {
        struct tenant *other = load(e, i % N_TENANTS);
        drive_poll(e, during, 0);
        tenant_unref(other);
    }
    CHECK(drive_same(before, during));
    tenant_unref(load(e, 1)); /* waits for what is being freed, if memory needs it */
    for (int32_t i = 0; i < 100; i++) {
        engine_stats(e, &last);
        if (last.device_bytes == first.device_bytes)
            break;
        usleep(10000);
    }
    CHECK_EQ(last.device_bytes, first.device_bytes);
    tenant_unref(t);
    drive_free(before, 1);
    drive_free(during, 1);
    engine_close(e);
}

TEST(gpu_a_base_or_pool_that_does_not_fit_is_refused_with_its_size) {
    gpu_need();
    struct engine_options o = gpu_options("demo/base");
    struct engine *e = NULL;
    struct why why = {""};
    o.kv_tokens = 1 << 30;
    CHECK_EQ(engine_open(&e, &o, &why), E_NOMEM);
    CHECK_HAS(why.text, "kv_tokens");
    o.kv_tokens = 4096;
    CHECK_OK(engine_open(&e, &o, &why), why); /* the card is as it was */
    engine_close(e);
}
