/* Several tenants through the engine's door: real fine-tunes, compressed by the tool, beside their
 * base. The main property: a reply does not depend on what ran beside it. */
#include "engine/engine.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/safetensors.h"
#include "tests/check.h"
#include "tests/drive.h"
#include "tests/unit/run_tool.h"

enum {
    N_TENANTS = 4,
    N_JOBS = DRIVE_SLOW ? 16 : 200,
    MAX_PROMPT = 50,
    MAX_TOKENS = 90,
};
static const char *const fine_tune[N_TENANTS] = {"math", "kjv", "chat", "long"};
static const int32_t prompt[] = {1, 346, 1455, 303};

/* Compresses a fine-tune of the base; the path of the tenant file. */
static const char *tenant_file(const char *fine_tune_dir, const char *name) {
    static char path[8][512];
    static int turn;
    char *p = path[turn++ % 8];
    snprintf(p, sizeof path[0], "%s/%s.bitdelta", test_tmp(), name);
    if (access(p, R_OK) != 0)
        TOOL_OK("compress --base %s --finetuned %s -o %s", test_model("base"), fine_tune_dir, p);
    return p;
}

static struct tenant *load(struct engine *e, const char *name) {
    return drive_tenant(e, tenant_file(test_model(name), name));
}

static err_t try_load(struct engine *e, const char *path, struct tenant **t, struct why *why) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    err_t error = engine_tenant_load(e, fd, "the file", t, why);
    close(fd);
    return error;
}

static struct engine_stats stats_of(struct engine *e) {
    struct engine_stats s;
    engine_stats(e, &s);
    return s;
}

/* ---- a reply alone is the reply in any mix --------------------------------------------------- */

struct job {
    struct gen_request request;
    int32_t ids[MAX_PROMPT];
    struct gen_bias bias[4];
    unsigned model; /* N_TENANTS: the base */
};

static float one_of(unsigned *random, const float *choice, unsigned n) {
    return choice[test_random(random) % n];
}

static void make_job(struct job *j, uint64_t id, unsigned *random) {
    int32_t n = 1 + (int32_t)(test_random(random) % MAX_PROMPT);
    for (int32_t i = 0; i < n; i++)
        j->ids[i] = i == 0 ? 1 : 3 + (int32_t)(test_random(random) % 4090);
    j->model = test_random(random) % (N_TENANTS + 1);
    struct gen_request *r = &j->request;
    *r = drive_request(id, j->ids, n, (int32_t)(test_random(random) % MAX_TOKENS));
    r->temperature = one_of(random, (float[]){0, 0.7f, 1.3f}, 3);
    r->top_p = one_of(random, (float[]){1, 0.9f}, 2);
    r->min_p = one_of(random, (float[]){0, 0.05f}, 2);
    r->top_k = test_random(random) % 2 ? 0 : 40;
    r->presence = one_of(random, (float[]){0, 0.5f}, 2);
    r->frequency = one_of(random, (float[]){0, 0.3f}, 2);
    r->repetition = one_of(random, (float[]){1, 1.2f}, 2);
    r->seed = test_random(random);
    r->min_tokens = test_random(random) % 2 ? 0 : r->max_tokens / 2;
    r->ignore_eos = test_random(random) % 2;
    r->n_top = (int32_t)(test_random(random) % 7) - 1;
    r->prompt_logprobs = test_random(random) % 3 == 0;
    r->n_bias = (int32_t)(test_random(random) % 5);
    for (int32_t i = 0; i < r->n_bias; i++)
        j->bias[i] = (struct gen_bias){(int32_t)(test_random(random) % 4096), (float)i - 1.5f};
    r->bias = j->bias;
}

static void submit_job(struct engine *e, const struct job *j, struct tenant **tenant) {
    struct gen_request r = j->request;
    r.tenant = j->model < N_TENANTS ? tenant[j->model] : NULL;
    drive_submit(e, &r);
}

static void shuffle(int32_t *order, int32_t n, unsigned *random) {
    for (int32_t i = 0; i < n; i++)
        order[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t j = (int32_t)(test_random(random) % (unsigned)(i + 1)), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}

static void open_all(const struct engine_options *o, struct engine **e, struct tenant **tenant) {
    *e = drive_open(o);
    for (int i = 0; i < N_TENANTS; i++)
        tenant[i] = load(*e, fine_tune[i]);
}

static void close_all(struct engine *e, struct tenant **tenant) {
    for (int i = 0; i < N_TENANTS; i++)
        tenant_unref(tenant[i]);
    engine_close(e);
}

/* Submits all jobs in a random order and random bursts; each reply must be the one of `alone`.
 * Returns the number of preemptions. */
static uint64_t check_mix(const struct engine_options *o, const struct job *job,
                          const struct reply *alone, unsigned *random) {
    static struct reply mixed[N_JOBS];
    struct engine *e;
    struct tenant *tenant[N_TENANTS];
    int32_t order[N_JOBS];
    open_all(o, &e, tenant);
    shuffle(order, N_JOBS, random);
    for (int32_t i = 0; i < N_JOBS; i++) {
        submit_job(e, &job[order[i]], tenant);
        if (test_random(random) % 4 == 0)
            drive_poll(e, mixed, (int)(test_random(random) % 30));
    }
    drive_finish(e, mixed, N_JOBS);
    for (int32_t i = 0; i < N_JOBS; i++)
        if (!drive_same(&alone[i], &mixed[i]))
            test_fail(__FILE__, __LINE__, "request %d differs: %d events alone, %d in the mix", i,
                      alone[i].n_events, mixed[i].n_events);
    uint64_t preemptions = stats_of(e).preemptions;
    close_all(e, tenant);
    drive_free(mixed, N_JOBS);
    return preemptions;
}

TEST_LIMIT(engine_reply_does_not_depend_on_what_runs_beside_it, 600) {
    static struct job job[N_JOBS];
    static struct reply alone[N_JOBS];
    struct engine *e;
    struct tenant *tenant[N_TENANTS];
    unsigned random = 11;
    for (int32_t i = 0; i < N_JOBS; i++)
        make_job(&job[i], (uint64_t)i, &random);

    struct engine_options o = drive_options(test_model("base"));
    open_all(&o, &e, tenant);
    for (int32_t i = 0; i < N_JOBS; i++) {
        submit_job(e, &job[i], tenant);
        while (!alone[i].ended)
            drive_poll(e, alone, 1000);
    }
    CHECK_EQ(stats_of(e).preemptions, 0);
    close_all(e, tenant);

    o.kv_tokens = 256; /* eight pages; a request takes one or two at first and five at most */
    o.max_batch_tokens = 40;
    o.max_seqs = 12;
    uint64_t preemptions = check_mix(&o, job, alone, &random);
    CHECK(preemptions > 0);
    o.kv_tokens = 4096; /* and many rows of many tenants in one step */
    o.max_batch_tokens = 200;
    o.max_seqs = 32;
    check_mix(&o, job, alone, &random);
    drive_free(alone, N_JOBS);
}

/* ---- coming and going while requests run ----------------------------------------------------- */

struct churn {
    struct engine *engine;
    const char *path;
};

/* A pool thread that loads and drops a tenant again and again. */
static void *churn_thread(void *arg) {
    const struct churn *c = arg;
    for (int i = 0; i < (DRIVE_SLOW ? 3 : 12); i++) {
        struct tenant *t = drive_tenant(c->engine, c->path);
        tenant_unref(t);
    }
    return NULL;
}

static struct gen_request long_request(uint64_t id, struct tenant *t) {
    struct gen_request r = drive_request(id, prompt, 4, DRIVE_SLOW ? 40 : 300);
    r.tenant = t;
    r.ignore_eos = true;
    r.n_top = 0;
    return r;
}

TEST_LIMIT(engine_running_request_ends_on_the_bits_it_started_with, 240) {
    struct engine_options o = drive_options(test_model("base"));
    struct engine *e = drive_open(&o);
    struct reply reply[4] = {0};
    struct tenant *old = load(e, "math"), *new = load(e, "kjv");
    CHECK(tenant_info(new)->generation > tenant_info(old)->generation);
    for (uint64_t id = 0; id < 2; id++) { /* what each says undisturbed */
        struct gen_request r = long_request(id, id ? new : old);
        drive_submit(e, &r);
        drive_finish(e, reply, (int32_t)id + 1);
    }
    CHECK(!drive_same(&reply[0], &reply[1]));
    tenant_unref(new);

    struct gen_request r = long_request(2, old);
    drive_submit(e, &r);
    while (reply[2].n_events < 5)
        drive_poll(e, reply, 100);
    tenant_unref(old); /* removed: only its request holds it now */
    pthread_t thread[2];
    struct churn churn[2];
    for (int i = 0; i < 2; i++) {
        churn[i] = (struct churn){e, tenant_file(test_model(fine_tune[i + 1]), fine_tune[i + 1])};
        CHECK_EQ(pthread_create(&thread[i], NULL, churn_thread, &churn[i]), 0);
    }
    new = load(e, "kjv");
    r = long_request(3, new);
    drive_submit(e, &r);
    drive_finish(e, reply, 4);
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    CHECK(drive_same(&reply[2], &reply[0]));
    CHECK(drive_same(&reply[3], &reply[1]));
    size_t bytes = tenant_info(new)->bytes;
    for (int i = 0; i < 300 && stats_of(e).tenant_bytes != bytes; i++)
        usleep(10000);
    CHECK_EQ(stats_of(e).tenant_bytes, bytes); /* the memory of all others went */
    tenant_unref(new);
    engine_close(e);
    drive_free(reply, 4);
}

/* ---- what a tenant may be -------------------------------------------------------------------- */

TEST(engine_tenant_has_its_own_vocabulary_and_context) {
    struct engine_options o = drive_options(test_model("base"));
    struct engine *e = drive_open(&o);
    struct tenant *chat = load(e, "chat"), *longer = load(e, "long");
    CHECK_EQ(tenant_info(chat)->vocab, 4098);
    CHECK_EQ(tenant_info(longer)->context, 1024);
    CHECK(tenant_info(chat)->bits_per_weight > 0.9 && tenant_info(chat)->bits_per_weight < 1.5);
    CHECK_EQ(strlen(tenant_info(chat)->hash), 64);
    CHECK_HAS(tenant_info(chat)->tokenizer_json, "im_start");
    struct why why;
    int32_t ids[] = {1, 4097, 5};
    struct gen_request r = drive_request(0, ids, 3, 2);
    CHECK_EQ(engine_submit(e, &r, &why), E_TOKEN_RANGE);
    CHECK_HAS(why.text, "4097");
    CHECK_HAS(why.text, "4096");
    struct reply reply[1] = {0};
    r.tenant = chat;
    drive_submit(e, &r);
    drive_finish(e, reply, 1);
    CHECK_EQ(reply[0].event[reply[0].n_events - 1].kind, GEN_DONE);
    drive_free(reply, 1);
    tenant_unref(chat);
    tenant_unref(longer);
    engine_close(e);
}

TEST(engine_refuses_a_tenant_that_does_not_fit) {
    struct engine_options o = drive_options(test_model("base"));
    o.extra_vocab = 0;
    struct engine *e = drive_open(&o);
    struct tenant *math = load(e, "math"), *t = NULL;
    struct why why;
    CHECK_EQ(try_load(e, tenant_file(test_model("chat"), "chat"), &t, &why), E_UNSUPPORTED);
    CHECK_HAS(why.text, "4098");
    CHECK_HAS(why.text, "4096");
    size_t bytes = tenant_info(math)->bytes;
    CHECK_EQ(stats_of(e).tenant_bytes, bytes); /* the refused one left nothing behind */
    tenant_unref(math);
    engine_close(e);

    o.max_tenant_bytes = bytes + bytes / 2;
    e = drive_open(&o);
    math = load(e, "math");
    const char *kjv = tenant_file(test_model("kjv"), "kjv");
    CHECK_EQ(try_load(e, kjv, &t, &why), E_NOMEM);
    CHECK_HAS(why.text, "max_tenant_bytes");
    tenant_unref(math);
    CHECK_OK(try_load(e, kjv, &t, &why), why); /* waits for the memory on its way out */
    tenant_unref(t);
    engine_close(e);

    o.base_dir = test_model("sql");
    e = drive_open(&o);
    CHECK_EQ(try_load(e, kjv, &t, &why), E_WRONG_BASE);
    CHECK_HAS(why.text, "base");
    engine_close(e);
}

/* Copies a model's folder, with a final norm that makes every logit infinite. */
static void make_overflowing(const char *from, const char *to) {
    char path[1024], command[2048];
    struct why why = {""};
    mkdir(to, 0700);
    snprintf(command, sizeof command, "cp %s/*.json %s/tokenizer.model %s", from, from, to);
    CHECK_EQ(system(command), 0);
    snprintf(path, sizeof path, "%s/model.safetensors", from);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    struct st_file f;
    CHECK_OK(st_open(&f, fd, path, 1 << 20, &why), why);
    struct st_writer *w;
    snprintf(path, sizeof path, "%s/model.safetensors", to);
    CHECK_OK(st_writer_open(&w, path, &why), why);
    for (int32_t i = 0; i < f.n_tensors; i++) {
        const struct st_tensor *t = &f.tensor[i];
        bool last = strcmp(t->name, "model.norm.weight") == 0;
        st_writer_tensor(w, t->name, last ? ST_F32 : t->dtype, t->n_dims, t->dim);
    }
    CHECK_OK(st_writer_header(w, 8, &why), why);
    for (int32_t i = 0; i < f.n_tensors; i++) {
        const struct st_tensor *t = &f.tensor[i];
        float *data = malloc(t->bytes * 2);
        CHECK_OK(st_read(&f, t, data, &why), why);
        bool last = strcmp(t->name, "model.norm.weight") == 0;
        for (uint64_t j = 0; last && j < t->bytes / 2; j++)
            data[j] = 3e38f;
        CHECK_OK(st_writer_data(w, data, last ? t->bytes * 2 : t->bytes, &why), why);
        free(data);
    }
    CHECK_OK(st_writer_end(w, &why), why);
    st_close(&f);
    close(fd);
}

TEST(engine_logits_that_overflow_fail_their_request_alone) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s/overflowing", test_tmp());
    make_overflowing(test_model("math"), folder);
    struct engine_options o = drive_options(test_model("base"));
    struct engine *e = drive_open(&o);
    struct tenant *bad = drive_tenant(e, tenant_file(folder, "overflowing"));
    struct reply reply[3] = {0};
    for (uint64_t id = 0; id < 3; id++) {
        struct gen_request r = long_request(id, id == 1 ? bad : NULL);
        r.max_tokens = 20;
        drive_submit(e, &r);
    }
    drive_finish(e, reply, 3);
    CHECK_EQ(reply[1].n_events, 1);
    CHECK_EQ(reply[1].event[0].kind, GEN_FAILED);
    CHECK_EQ(reply[1].event[0].error, E_NONFINITE);
    CHECK_EQ(reply[0].n_events, 21);
    CHECK_EQ(reply[0].event[7].token, reply[2].event[7].token);
    CHECK_EQ(stats_of(e).finished_failed, 1);
    tenant_unref(bad);
    engine_close(e);
    drive_free(reply, 3);
}
