/* More tenants than the memory holds: all are served, the one not asked for longest makes room. */
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/client.h"

enum { TENANTS = 4 };
static const char *const tenants[TENANTS] = {"math", "sql", "kjv", "chat"};
/* Of the four, of 1.5 MB each, any two fit and no three. */
#define ROOM_FOR_TWO " --tenant-memory 3200000"

static char *in_folder(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/deltas/%s", test_tmp(), name);
    return path;
}

static void start(struct daemon *d, const char *more) {
    char arguments[1024];
    snprintf(arguments, sizeof arguments, "%s/deltas", test_tmp());
    mkdir(arguments, 0755);
    for (int i = 0; i < TENANTS; i++) {
        char file[64];
        snprintf(file, sizeof file, "%s.bitdelta", tenants[i]);
        if (access(in_folder(file), F_OK) != 0)
            client_copy(client_delta(tenants[i]), in_folder(file));
    }
    snprintf(arguments, sizeof arguments, "--deltas %s/deltas %s", test_tmp(), more);
    daemon_start(d, arguments);
}

#define ASK(model)                                                                                 \
    "{\"model\":\"" model "\",\"prompt\":\"Q: 403 + 743 = ?\\nA:\",\"temperature\":0,"             \
    "\"max_tokens\":12,\"logprobs\":0,\"ignore_eos\":true}"

static json_t *ask(const struct daemon *d, const char *model) {
    char body[512];
    snprintf(body, sizeof body, ASK("%s"), model);
    json_t *reply = client_json(d, "/v1/completions", body);
    CHECK_STR(text_at(reply, "model"), model);
    return reply;
}

static bool same(json_t *a, json_t *b) {
    return json_equal(at(a, "choices"), at(b, "choices")) &&
           strcmp(text_at(a, "system_fingerprint"), text_at(b, "system_fingerprint")) == 0;
}

TEST_LIMIT(residency_of_two_serves_four, 120) {
    struct daemon d = {0};
    json_t *alone[TENANTS];
    start(&d, "");
    for (int i = 0; i < TENANTS; i++)
        alone[i] = ask(&d, tenants[i]);
    CHECK_EQ(daemon_metric(&d, "bitdeltad_tenant_evictions_total"), 0);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
    start(&d, ROOM_FOR_TWO);
    for (int round = 0; round < 3 * TENANTS; round++) {
        json_t *reply = ask(&d, tenants[round % TENANTS]);
        CHECK(
            same(reply, alone[round % TENANTS])); /* the fingerprint, too: the bits are the same */
        json_decref(reply);
    }
    CHECK(daemon_metric(&d, "bitdeltad_tenant_evictions_total") >= 2 * TENANTS);
    CHECK_EQ(daemon_metric(&d, "bitdeltad_tenants"), TENANTS);
    CHECK(daemon_metric(&d, "bitdeltad_tenant_bytes") <= 3200000);
    struct answer a = client_admin(&d, "GET", "/admin/deltas", NULL, NULL);
    json_t *tree = json_loadb(a.body, a.n_body, 0, NULL), *one;
    size_t i, n_resident = 0;
    json_array_foreach(at(tree, "data"), i, one) n_resident +=
        json_is_true(json_object_get(one, "resident"));
    CHECK_EQ(n_resident, 2);
    json_decref(tree);
    answer_free(&a);
    /* What is asked for stays: two of them go on without a load. */
    json_decref(ask(&d, "math"));
    json_decref(ask(&d, "sql"));
    double loads = daemon_metric(&d, "bitdeltad_tenant_loads_total");
    for (int k = 0; k < 6; k++)
        json_decref(ask(&d, k % 2 ? "math" : "sql"));
    CHECK_EQ(daemon_metric(&d, "bitdeltad_tenant_loads_total"), loads);
    for (int k = 0; k < TENANTS; k++)
        json_decref(alone[k]);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

static int send_ask(const struct daemon *d, const char *model) {
    char body[512], head[256];
    int fd = client_connect(d);
    snprintf(body, sizeof body, ASK("%s"), model);
    snprintf(head, sizeof head,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Connection: close\r\nContent-Length: %zu\r\n\r\n",
             strlen(body));
    client_text(fd, head);
    client_text(fd, body);
    return fd;
}

/* All at once: those without room wait for those that run; some do not wait for their answer. */
TEST_LIMIT(residency_of_two_serves_four_at_the_same_time, 120) {
    enum { REQUESTS = 60 };
    struct daemon d = {0};
    json_t *alone[TENANTS];
    int fd[REQUESTS];
    start(&d, ROOM_FOR_TWO);
    for (int i = 0; i < TENANTS; i++)
        alone[i] = ask(&d, tenants[i]);
    for (int i = 0; i < REQUESTS; i++)
        fd[i] = send_ask(&d, tenants[i * 7 % TENANTS]);
    for (int i = 0; i < REQUESTS; i += 5)
        close(fd[i]);
    for (int i = 0; i < REQUESTS; i++) {
        if (i % 5 == 0)
            continue;
        struct answer a = client_read(fd[i], 60000);
        if (a.status != 200)
            test_fail(__FILE__, __LINE__, "request %d: %d %s", i, a.status, a.body);
        json_t *reply = json_loadb(a.body, a.n_body, 0, NULL);
        CHECK(same(reply, alone[i * 7 % TENANTS]));
        json_decref(reply);
        answer_free(&a);
        close(fd[i]);
    }
    for (int i = 0; i < TENANTS; i++)
        json_decref(alone[i]);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

static int status_of(struct answer a) {
    int status = a.status;
    answer_free(&a);
    return status;
}

TEST_LIMIT(residency_away_minds_what_became_of_the_file, 120) {
    struct daemon d = {0};
    start(&d, ROOM_FOR_TWO);
    json_t *math = ask(&d, "math"), *sql = ask(&d, "sql"), *kjv = ask(&d, "kjv");
    json_decref(ask(&d, "chat")); /* math and sql are away */
    unlink(in_folder("math.bitdelta"));
    struct answer a = client_call(&d, "POST", "/v1/completions", NULL, ASK("math"));
    CHECK_EQ(a.status, 500);
    CHECK_HAS(a.body, "The model 'math' cannot be brought back");
    CHECK(!strstr(a.body, test_tmp()));
    answer_free(&a);
    client_copy(client_delta("math"), in_folder("math.bitdelta"));
    json_t *again = ask(&d, "math");
    CHECK(same(again, math));
    /* Another content in place of what was away is another tenant. */
    client_copy(client_delta("kjv"), in_folder("sql.bitdelta"));
    json_t *other = ask(&d, "sql");
    CHECK(json_equal(at(other, "choices"), at(kjv, "choices")));
    CHECK(strcmp(text_at(other, "system_fingerprint"), text_at(sql, "system_fingerprint")) != 0);
    /* One that is away can be removed; one that is removed is not brought back. */
    json_decref(ask(&d, "chat"));
    json_decref(ask(&d, "math"));
    CHECK_EQ(status_of(client_admin(&d, "DELETE", "/admin/deltas/kjv", NULL, NULL)), 200);
    CHECK_EQ(status_of(client_call(&d, "POST", "/v1/completions", NULL, ASK("kjv"))), 404);
    json_t *all[] = {math, sql, kjv, again, other};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        json_decref(all[i]);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* One that could never fit sends nobody away. */
TEST(residency_is_not_lost_to_what_never_fits) {
    struct daemon d = {0};
    start(&d, "--no-autoload --tenant-memory 1510000");
    /* now larger than all that tenants may take */
    CHECK_EQ(truncate(in_folder("sql.bitdelta"), 4000000), 0);
    CHECK_EQ(status_of(client_admin(&d, "POST", "/admin/deltas", NULL,
                                    "{\"name\":\"math\",\"path\":\"math.bitdelta\"}")),
             201);
    CHECK_EQ(status_of(client_admin(&d, "POST", "/admin/deltas", NULL,
                                    "{\"name\":\"sql\",\"path\":\"sql.bitdelta\"}")),
             503);
    CHECK_EQ(daemon_metric(&d, "bitdeltad_tenant_evictions_total"), 0);
    json_decref(ask(&d, "math"));
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* Its requests and loads wait for each other when the end comes. */
TEST(residency_does_not_hold_up_the_end) {
    struct daemon d = {0};
    int fd[24];
    start(&d, ROOM_FOR_TWO " --drain-timeout 5");
    for (int i = 0; i < 24; i++)
        fd[i] = send_ask(&d, tenants[i % TENANTS]);
    struct answer a = client_read(fd[0], 20000); /* the others are anywhere by now */
    CHECK_EQ(a.status, 200);
    answer_free(&a);
    close(fd[0]);
    kill(d.pid, SIGTERM);
    for (int i = 1; i < 24; i++) {
        a = client_read(fd[i], 20000);
        if (a.status != 200 && a.status != 503)
            test_fail(__FILE__, __LINE__, "request %d: %d %s", i, a.status, a.body);
        answer_free(&a);
        close(fd[i]);
    }
    CHECK_EQ(daemon_stop(&d, 0, 7000), 0);
}

/* As a platform has them: many names, few of them on the device. */
TEST_LIMIT(residency_of_two_hundred_names, 180) {
    struct daemon d = {0};
    start(&d, ROOM_FOR_TWO " --no-autoload");
    for (int i = 0; i < 200; i++) {
        char body[256];
        snprintf(body, sizeof body, "{\"name\":\"t%d\",\"path\":\"%s.bitdelta\"}", i,
                 tenants[i % TENANTS]);
        CHECK_EQ(status_of(client_admin(&d, "POST", "/admin/deltas", NULL, body)), 201);
    }
    CHECK_EQ(daemon_metric(&d, "bitdeltad_tenants"), 200);
    for (int i = 0; i < 200; i += 9) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        json_decref(ask(&d, name));
    }
    CHECK(daemon_metric(&d, "bitdeltad_tenant_bytes") <= 3200000);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
