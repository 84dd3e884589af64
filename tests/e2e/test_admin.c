/* The admin API: tenants come, change and go while the daemon serves; paths stay confined. */
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/client.h"

/* The deltas directory of a test. */
static const char *deltas(void) {
    static char path[256];
    snprintf(path, sizeof path, "%s/deltas", test_tmp());
    mkdir(path, 0755);
    return path;
}

static void start(struct daemon *d, const char *more) {
    char arguments[512];
    snprintf(arguments, sizeof arguments, "--deltas %s %s", deltas(), more);
    daemon_start(d, arguments);
}

static void put_file(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", deltas(), name);
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
}

static void copy_delta(const char *tenant, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", deltas(), name);
    client_copy(client_delta(tenant), path);
}

static json_t *post(const struct daemon *d, const char *name, const char *path, int status) {
    char body[2048];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"path\":\"%s\"}", name, path);
    struct answer a = client_admin(d, "POST", "/admin/deltas", NULL, body);
    if (a.status != status)
        test_fail(__FILE__, __LINE__, "%s: status %d: %s", body, a.status, a.body);
    json_t *tree = json_loadb(a.body, a.n_body, 0, NULL);
    answer_free(&a);
    return tree;
}

static void refused(const struct daemon *d, const char *name, const char *path, const char *code) {
    json_t *tree = post(d, name, path, 400);
    CHECK_STR(text_at(tree, "error.code"), code);
    CHECK(!strstr(text_at(tree, "error.message"), test_tmp())); /* no paths of ours in it */
    json_decref(tree);
}

TEST(admin_paths_stay_in_the_deltas_directory) {
    struct daemon d = {0};
    char path[512], target[512];
    put_file("plain.bitdelta", "not a tenant");
    snprintf(target, sizeof target, "%s/outside.bitdelta", test_tmp());
    FILE *f = fopen(target, "w");
    fputs("secret", f);
    fclose(f);
    snprintf(path, sizeof path, "%s/link.bitdelta", deltas());
    CHECK_EQ(symlink(target, path), 0);
    snprintf(path, sizeof path, "%s/inner.bitdelta", deltas());
    CHECK_EQ(symlink("plain.bitdelta", path), 0);
    snprintf(path, sizeof path, "%s/up", deltas());
    CHECK_EQ(symlink(test_tmp(), path), 0);
    snprintf(path, sizeof path, "%s/fifo.bitdelta", deltas());
    CHECK_EQ(mkfifo(path, 0600), 0);
    snprintf(path, sizeof path, "%s/folder", deltas());
    CHECK_EQ(mkdir(path, 0755), 0);
    start(&d, "--no-autoload");
    refused(&d, "t", "../outside.bitdelta", "bad_path");
    refused(&d, "t", target, "bad_path");
    refused(&d, "t", "folder/../../outside.bitdelta", "bad_path");
    refused(&d, "t", "link.bitdelta", "bad_path");
    refused(&d, "t", "inner.bitdelta", "bad_path");
    refused(&d, "t", "up/outside.bitdelta", "bad_path");
    refused(&d, "t", "fifo.bitdelta", "bad_path");
    refused(&d, "t", "folder", "bad_path");
    refused(&d, "t", ".", "bad_path");
    refused(&d, "t", "/proc/self/exe", "bad_path");
    refused(&d, "t", "none.bitdelta", "io_error");
    refused(&d, "t", "plain.bitdelta", "bad_file");
    refused(&d, "t", "", "invalid_value");
    refused(&d, "t", "a\\u0000b", "invalid_value");
    static const char *const names[] = {
        "",        ".",    "-a",
        "a/b",     "../a", "a b",
        "\\u00e9", "base", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        refused(&d, names[i], "plain.bitdelta", "invalid_value");
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(admin_bad_files_at_start_are_skipped_with_a_sentence) {
    struct daemon d = {0};
    put_file("broken.bitdelta", "garbage");
    put_file("empty.bitdelta", "");
    put_file("other.txt", "ignored");
    start(&d, "");
    CHECK(daemon_logged(&d, "op=load name=broken"));
    CHECK(daemon_logged(&d, "op=load name=empty"));
    struct answer a = client_admin(&d, "GET", "/admin/deltas", NULL, NULL);
    json_t *tree = json_loadb(a.body, a.n_body, 0, NULL);
    CHECK_EQ(json_array_size(at(tree, "data")), 0);
    json_decref(tree);
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

static json_t *complete(const struct daemon *d, const char *model) {
    char body[512];
    snprintf(body, sizeof body,
             "{\"model\":\"%s\",\"prompt\":\"Q: 403 + 743 = ?\\nA:\",\"temperature\":0,"
             "\"max_tokens\":12,\"logprobs\":0}",
             model);
    return client_json(d, "/v1/completions", body);
}

static int status_of(const struct daemon *d, const char *method, const char *path) {
    struct answer a = client_admin(d, method, path, NULL, NULL);
    int status = a.status;
    answer_free(&a);
    return status;
}

TEST_LIMIT(admin_tenants_come_change_and_go, 180) {
    struct daemon d = {0};
    copy_delta("math", "first.bitdelta");
    copy_delta("sql", "second.bitdelta");
    start(&d, "--no-autoload");
    json_t *added = post(&d, "t", "first.bitdelta", 201);
    CHECK_EQ(strlen(text_at(added, "hash")), 64);
    CHECK(json_real_value(at(added, "bits_per_weight")) > 0.9);
    CHECK(at(added, "made") && at(added, "quality") && at(added, "generation"));
    CHECK_EQ(daemon_metric(&d, "bitdeltad_tenant_resident_bytes{tenant=\"t\"}"),
             json_integer_value(at(added, "bytes")));
    json_t *one = complete(&d, "t"), *base = complete(&d, "base");
    CHECK_STR(text_at(one, "model"), "t");
    CHECK(!json_equal(at(one, "choices.0.logprobs"), at(base, "choices.0.logprobs")));
    json_t *replaced = post(&d, "t", "second.bitdelta", 200);
    CHECK(strcmp(text_at(replaced, "hash"), text_at(added, "hash")) != 0);
    json_t *two = complete(&d, "t");
    CHECK(strcmp(text_at(two, "system_fingerprint"), text_at(one, "system_fingerprint")) != 0);
    CHECK(!json_equal(at(one, "choices.0.logprobs"), at(two, "choices.0.logprobs")));
    json_t *other = post(&d, "t:same", "second.bitdelta", 201); /* another name, the same bits */
    CHECK_STR(text_at(other, "fingerprint"), text_at(replaced, "fingerprint"));
    CHECK_EQ(status_of(&d, "GET", "/admin/deltas/t"), 200);
    CHECK_EQ(status_of(&d, "DELETE", "/admin/deltas/t"), 200);
    CHECK_EQ(status_of(&d, "DELETE", "/admin/deltas/t"), 404);
    CHECK_EQ(status_of(&d, "DELETE", "/admin/deltas/base"), 404);
    CHECK_EQ(status_of(&d, "GET", "/admin/deltas/t"), 404);
    struct answer a =
        client_call(&d, "POST", "/v1/completions", NULL, "{\"model\":\"t\",\"prompt\":\"a\"}");
    CHECK_EQ(a.status, 404); /* never the base in its place */
    answer_free(&a);
    json_t *still = complete(&d, "t:same");
    CHECK(json_equal(at(still, "choices"), at(two, "choices")));
    json_t *all[] = {added, one, base, replaced, two, other, still};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        json_decref(all[i]);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(admin_files_in_the_directory_are_served_from_the_start) {
    struct daemon d = {0};
    copy_delta("math", "m1.bitdelta");
    start(&d, "");
    json_t *reply = complete(&d, "m1");
    CHECK_STR(text_at(reply, "model"), "m1");
    json_decref(reply);
    struct answer a = client_call(&d, "GET", "/v1/models", NULL, NULL);
    json_t *tree = json_loadb(a.body, a.n_body, 0, NULL);
    CHECK_STR(text_at(tree, "data.0.id"), "base");
    CHECK_STR(text_at(tree, "data.1.id"), "m1");
    CHECK_STR(text_at(tree, "data.1.root"), "base");
    CHECK(json_integer_value(at(tree, "data.1.max_model_len")) > 0);
    json_decref(tree);
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* Requests run while the name moves between two sets of bits: each reply is wholly of one. */
TEST_LIMIT(admin_replacing_under_load_never_mixes_tenants, 180) {
    struct daemon d = {0};
    enum { ROUNDS = 12, PER_ROUND = 4 };
    copy_delta("math", "a.bitdelta");
    copy_delta("sql", "b.bitdelta");
    start(&d, "--no-autoload");
    json_decref(post(&d, "math", "a.bitdelta", 201));
    json_decref(post(&d, "sql", "b.bitdelta", 201));
    json_t *want[2] = {complete(&d, "math"), complete(&d, "sql")};
    json_decref(post(&d, "t", "a.bitdelta", 201));
    int fd[ROUNDS * PER_ROUND], n = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < PER_ROUND; i++)
            fd[n++] = client_complete(&d, "{\"model\":\"t\",\"prompt\":\"Q: 403 + 743 = ?\\nA:\","
                                          "\"temperature\":0,\"max_tokens\":12,\"logprobs\":0}");
        json_decref(post(&d, "t", round % 2 ? "a.bitdelta" : "b.bitdelta", 200));
    }
    int seen[2] = {0, 0};
    for (int i = 0; i < n; i++) {
        struct answer a = client_read(fd[i], 90000);
        CHECK_EQ(a.status, 200);
        json_t *reply = json_loadb(a.body, a.n_body, 0, NULL);
        int which = strcmp(text_at(reply, "system_fingerprint"),
                           text_at(want[0], "system_fingerprint")) == 0
                        ? 0
                        : 1;
        CHECK_STR(text_at(reply, "system_fingerprint"), text_at(want[which], "system_fingerprint"));
        if (!json_equal(at(reply, "choices"), at(want[which], "choices")))
            test_fail(__FILE__, __LINE__, "reply %d of %s is mixed", i,
                      text_at(reply, "system_fingerprint"));
        seen[which]++;
        json_decref(reply);
        answer_free(&a);
        close(fd[i]);
    }
    CHECK(seen[0] && seen[1]);
    json_decref(want[0]);
    json_decref(want[1]);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
