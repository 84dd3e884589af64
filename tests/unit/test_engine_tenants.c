/* Several tenants through the engine's door: the shipped ones beside their base. The main property:
 * a reply does not depend on what ran beside it. */
#include "engine/engine.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/safetensors.h"
#include "tests/check.h"
#include "tests/drive.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

enum {
    N_TENANTS = 4,
    N_JOBS = DRIVE_SLOW ? 10 : 200,
    MAX_PROMPT = 50,
    MAX_TOKENS = 75,
};
static const char *const tenant_name[N_TENANTS] = {"math", "sql", "kjv", "chat"};
static const int32_t prompt[] = {1, 346, 1455, 303};

static const char *shipped(const char *name) {
    static char path[4][64];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "demo/tenants/%s.bitdelta", name);
    return p;
}

/* Compresses a fine-tune of the base; the path of the tenant file. */
static const char *compressed(const char *fine_tune_dir) {
    static char path[512];
    snprintf(path, sizeof path, "%s/made.bitdelta", test_tmp());
    TOOL_OK("compress --instant --base demo/base --finetuned %s -o %s", fine_tune_dir, path);
    return path;
}

static struct tenant *load(struct engine *e, const char *name) {
    return drive_tenant(e, shipped(name));
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
    bool grows = test_random(random) % 2; /* from one page to four: what preemption comes from */
    int32_t n = 1 + (int32_t)(test_random(random) % (grows ? 8 : MAX_PROMPT));
    for (int32_t i = 0; i < n; i++)
        j->ids[i] = i == 0 ? 1 : 3 + (int32_t)(test_random(random) % 4090);
    j->model = test_random(random) % (N_TENANTS + 1);
    struct gen_request *r = &j->request;
    *r = drive_request(id, j->ids, n,
                       grows ? MAX_TOKENS : (int32_t)(test_random(random) % MAX_TOKENS));
    r->temperature = one_of(random, (float[]){0, 0.7f, 1.3f}, 3);
    r->top_p = one_of(random, (float[]){1, 0.9f}, 2);
    r->min_p = one_of(random, (float[]){0, 0.05f}, 2);
    r->top_k = test_random(random) % 2 ? 0 : 40;
    r->presence = one_of(random, (float[]){0, 0.5f}, 2);
    r->frequency = one_of(random, (float[]){0, 0.3f}, 2);
    r->repetition = one_of(random, (float[]){1, 1.2f}, 2);
    r->seed = test_random(random);
    r->min_tokens = test_random(random) % 2 ? 0 : r->max_tokens / 2;
    r->ignore_eos = grows || test_random(random) % 2;
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
        tenant[i] = load(*e, tenant_name[i]);
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

    struct engine_options o = drive_options("demo/base");
    open_all(&o, &e, tenant);
    for (int32_t i = 0; i < N_JOBS; i++) {
        submit_job(e, &job[i], tenant);
        while (!alone[i].ended)
            drive_poll(e, alone, 1000);
    }
    CHECK_EQ(stats_of(e).preemptions, 0);
    close_all(e, tenant);

    /* Eight pages, or five; a request takes one or two at first and five at most. */
    o.kv_tokens = DRIVE_SLOW ? 160 : 256;
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
    struct engine_options o = drive_options("demo/base");
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
        churn[i] =
            (struct churn){e, i ? "demo/tenants/sql.bitdelta" : "demo/tenants/chat.bitdelta"};
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

/* One shard of a checkpoint, copied with another final norm (0: as it is). */
static void copy_shard(const char *from, const char *to, float norm) {
    struct why why = {""};
    struct st_file f;
    struct st_writer *w;
    int fd = open(from, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_OK(st_open(&f, fd, from, 1 << 20, &why), why);
    CHECK_OK(st_writer_open(&w, to, &why), why);
    for (int pass = 0; pass < 2; pass++) { /* declare, then write */
        for (int32_t i = 0; i < f.n_tensors; i++) {
            const struct st_tensor *t = &f.tensor[i];
            bool changed = norm > 0 && strcmp(t->name, "model.norm.weight") == 0;
            if (pass == 0) {
                st_writer_tensor(w, t->name, changed ? ST_F32 : t->dtype, t->n_dims, t->dim);
                continue;
            }
            float *data = malloc(t->bytes * 2);
            CHECK_OK(st_read(&f, t, data, &why), why);
            for (uint64_t j = 0; changed && j < t->bytes / 2; j++)
                data[j] = norm;
            CHECK_OK(st_writer_data(w, data, changed ? t->bytes * 2 : t->bytes, &why), why);
            free(data);
        }
        if (pass == 0)
            CHECK_OK(st_writer_header(w, 8, &why), why);
    }
    CHECK_OK(st_writer_end(w, &why), why);
    st_close(&f);
    close(fd);
}

/* A copy of the shipped base under a name, its config.json edited by a sed script. */
static const char *variant(const char *name, const char *sed, float norm) {
    static char dir[512];
    char from[1024], to[1024], command[4096];
    snprintf(dir, sizeof dir, "%s/%s", test_tmp(), name);
    snprintf(command, sizeof command,
             "mkdir %s && cp demo/base/*.json demo/base/tokenizer.model %s && "
             "sed -i '%s' %s/config.json",
             dir, dir, sed, dir);
    CHECK_EQ(system(command), 0);
    for (int i = 1; i <= 2; i++) {
        snprintf(from, sizeof from, "demo/base/model-0000%d-of-00002.safetensors", i);
        snprintf(to, sizeof to, "%s/model-0000%d-of-00002.safetensors", dir, i);
        copy_shard(from, to, norm);
    }
    return dir;
}

/* A fine-tune that differs in its configuration alone must say, as a tenant, bit for bit what it
 * says when it is served whole: context, RoPE, epsilon and window all come from the tenant. */
TEST(engine_tenant_is_served_by_its_own_configuration) {
    const char *dir =
        variant("other",
                "s/LlamaForCausalLM/MistralForCausalLM/; "
                "s/\"model_type\": \"llama\"/\"model_type\": \"mistral\", "
                "\"sliding_window\": 20/; "
                "s/\"max_position_embeddings\": 512/\"max_position_embeddings\": 640/; "
                "s/\"rope_type\": \"default\"/\"rope_type\": \"linear\", \"factor\": "
                "2.0/; s/\"rms_norm_eps\": 1e-05/\"rms_norm_eps\": 1e-03/",
                0);
    struct reply reply[3] = {0};
    for (uint64_t id = 0; id < 3; id++) { /* whole, as a tenant, and the plain base */
        struct engine_options o = drive_options(id == 0 ? dir : "demo/base");
        struct engine *e = drive_open(&o);
        struct tenant *t = id == 1 ? drive_tenant(e, compressed(dir)) : NULL;
        if (id < 2)
            CHECK_EQ((t ? tenant_info(t) : engine_base_info(e))->context, 640);
        struct gen_request r = drive_request(id, prompt, 4, 60);
        r.tenant = t;
        r.ignore_eos = true;
        r.n_top = 3;
        drive_submit(e, &r);
        while (!reply[id].ended)
            drive_poll(e, reply, 1000);
        tenant_unref(t);
        engine_close(e);
    }
    CHECK(drive_same(&reply[0], &reply[1]));
    CHECK(!drive_same(&reply[0], &reply[2]));
    drive_free(reply, 3);
}

TEST(engine_tenant_has_its_own_vocabulary) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    struct tenant *chat = load(e, "chat");
    const struct tenant_info *info = tenant_info(chat);
    CHECK_EQ(info->vocab, 4098);
    CHECK(info->bits_per_weight > 0.9 && info->bits_per_weight < 8);
    CHECK_EQ(strlen(info->hash), 64);
    CHECK_HAS(info->tokenizer_json, "im_start");
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
    engine_close(e);
}

TEST(engine_refuses_a_tenant_that_does_not_fit) {
    struct engine_options o = drive_options("demo/base");
    o.extra_vocab = 0;
    struct engine *e = drive_open(&o);
    struct tenant *math = load(e, "math"), *t = NULL;
    struct why why;
    CHECK_EQ(try_load(e, shipped("chat"), &t, &why), E_UNSUPPORTED);
    CHECK_HAS(why.text, "4098");
    CHECK_HAS(why.text, "4096");
    size_t bytes = tenant_info(math)->bytes;
    CHECK_EQ(stats_of(e).tenant_bytes, bytes); /* the refused one left nothing behind */
    tenant_unref(math);
    engine_close(e);

    o.max_tenant_bytes = bytes + bytes / 2;
    e = drive_open(&o);
    math = load(e, "math");
    CHECK_EQ(try_load(e, shipped("kjv"), &t, &why), E_NOMEM);
    CHECK_HAS(why.text, "max_tenant_bytes");
    tenant_unref(math);
    CHECK_OK(try_load(e, shipped("kjv"), &t, &why), why); /* waits for memory on its way out */
    tenant_unref(t);
    engine_close(e);
}

/* A file that was hashed is not hashed again; one that was written to is, though its size and its
 * time of modification are what they were. */
TEST(engine_hashes_a_file_again_after_it_was_written_to) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    struct tenant *t = NULL;
    struct why why = {""};
    struct stat st;
    char path[512], byte;
    snprintf(path, sizeof path, "%s/t.bitdelta", test_tmp());
    make_copy(shipped("math"), path);
    usleep(2100000); /* what was written a moment ago is not remembered */
    for (int i = 0; i < 2; i++) {
        CHECK_OK(try_load(e, path, &t, &why), why);
        tenant_unref(t);
    }
    int fd = open(path, O_RDWR);
    CHECK_EQ(fstat(fd, &st), 0);
    off_t at = st.st_size - 4096;
    CHECK_EQ(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    CHECK_EQ(pwrite(fd, &byte, 1, at), 1);
    CHECK_EQ(futimens(fd, (struct timespec[2]){st.st_atim, st.st_mtim}), 0);
    close(fd);
    CHECK_EQ(try_load(e, path, &t, &why), E_FORMAT);
    CHECK_HAS(why.text, "damaged");
    engine_close(e);
}

TEST(engine_refuses_a_tenant_of_another_base) {
    struct engine_options o = drive_options(variant("another", "", 1.5f));
    struct engine *e = drive_open(&o);
    struct tenant *t = NULL;
    struct why why;
    CHECK_EQ(try_load(e, shipped("kjv"), &t, &why), E_WRONG_BASE);
    CHECK_HAS(why.text, "base");
    CHECK_EQ(stats_of(e).tenant_bytes, 0);
    engine_close(e);
}

TEST(engine_logits_that_overflow_fail_their_request_alone) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    struct tenant *bad = drive_tenant(e, compressed(variant("overflowing", "", 3e38f)));
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
    for (int i = 0; i < 21; i++)
        CHECK_EQ(reply[0].event[i].token, reply[2].event[i].token);
    CHECK_EQ(stats_of(e).finished_failed, 1);
    tenant_unref(bad);
    engine_close(e);
    drive_free(reply, 3);
}
