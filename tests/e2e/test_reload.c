/* SIGHUP brings keys and files up to date while the daemon serves; --state keeps over restarts what
 * the admin API changed. */
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/client.h"

static char folder[256], state[300];

static void start(struct daemon *d, const char *more) {
    char arguments[2048];
    snprintf(folder, sizeof folder, "%s/deltas", test_tmp());
    snprintf(state, sizeof state, "%s/state.json", test_tmp());
    mkdir(folder, 0755);
    snprintf(arguments, sizeof arguments, "--name base --deltas %s %s", folder, more);
    daemon_start(d, arguments);
}

static char *in_folder(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/deltas/%s", test_tmp(), name);
    return path;
}

static void put(const char *tenant, const char *file) {
    char path[512];
    snprintf(path, sizeof path, "%s/deltas", test_tmp());
    mkdir(path, 0755);
    client_copy(client_delta(tenant), in_folder(file));
}

static void put_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
}

static void reload(const struct daemon *d, const char *outcome) {
    kill(d->pid, SIGHUP);
    if (!daemon_logged(d, outcome))
        test_fail(__FILE__, __LINE__, "not logged: %s", outcome);
}

static int status_of(struct answer a) {
    int status = a.status;
    answer_free(&a);
    return status;
}

/* The fingerprint that the model answers with, "" if it is not there; without its generation. */
static const char *print_of(const struct daemon *d, const char *model) {
    static char print[4][64];
    static int i;
    char path[512], *out = print[i++ % 4];
    snprintf(path, sizeof path, "/v1/models/%s", model);
    struct answer a = client_call(d, "GET", path, NULL, NULL);
    json_t *tree = a.status == 200 ? json_loadb(a.body, a.n_body, 0, NULL) : NULL;
    const char *is = tree ? text_at(tree, "system_fingerprint") : "";
    snprintf(out, 64, "%.19s", is);
    json_decref(tree);
    answer_free(&a);
    return out;
}

static int admin(const struct daemon *d, const char *method, const char *path, const char *body) {
    return status_of(client_admin(d, method, path, NULL, body));
}

TEST_LIMIT(reload_minds_files_that_came_changed_and_went, 120) {
    struct daemon d = {0};
    put("math", "a.bitdelta");
    put("sql", "b.bitdelta");
    start(&d, "");
    char math[64], sql[64];
    snprintf(math, sizeof math, "%s", print_of(&d, "a"));
    snprintf(sql, sizeof sql, "%s", print_of(&d, "b"));
    put("kjv", "c.bitdelta");
    put("sql", "a.bitdelta"); /* in place */
    unlink(in_folder("b.bitdelta"));
    put_text(in_folder(".hidden.bitdelta"), "x");
    reload(&d, "stage=reload added=1 replaced=1 removed=1 failed=0 tenants=2");
    CHECK_STR(print_of(&d, "a"), sql);
    CHECK_STR(print_of(&d, "b"), "");
    CHECK(print_of(&d, "c")[0]);
    reload(&d, "stage=reload added=0 replaced=0 removed=0 failed=0 tenants=2");
    /* A file that turned bad leaves what served. */
    put_text(in_folder("a.bitdelta"), "garbage");
    reload(&d, "stage=reload added=0 replaced=0 removed=0 failed=1 tenants=2");
    CHECK_STR(print_of(&d, "a"), sql);
    /* And is taken when it is good again. */
    put("math", "a.bitdelta");
    reload(&d, "stage=reload added=0 replaced=1 removed=0 failed=0 tenants=2");
    CHECK_STR(print_of(&d, "a"), math);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST_LIMIT(reload_leaves_what_the_admin_api_decided, 120) {
    struct daemon d = {0};
    put("math", "a.bitdelta");
    put("sql", "b.bitdelta");
    start(&d, "");
    char math[64];
    snprintf(math, sizeof math, "%s", print_of(&d, "a"));
    CHECK_EQ(admin(&d, "DELETE", "/admin/deltas/b", NULL), 200);
    CHECK_EQ(admin(&d, "POST", "/admin/deltas", "{\"name\":\"x\",\"path\":\"a.bitdelta\"}"), 201);
    reload(&d, "stage=reload added=0 replaced=0 removed=0 failed=0 tenants=2");
    CHECK_STR(print_of(&d, "b"), "");
    CHECK_STR(print_of(&d, "x"), math);
    /* Both names are of one file: it goes, they go. */
    unlink(in_folder("a.bitdelta"));
    reload(&d, "stage=reload added=0 replaced=0 removed=2 failed=1 tenants=0");
    CHECK_STR(print_of(&d, "x"), "");
    CHECK_EQ(admin(&d, "DELETE", "/admin/deltas/x", NULL), 200); /* it was still known */
    CHECK_EQ(admin(&d, "DELETE", "/admin/deltas/x", NULL), 404);
    CHECK_EQ(admin(&d, "POST", "/admin/deltas", "{\"name\":\"b\",\"path\":\"b.bitdelta\"}"), 201);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

#define NEW_KEY "a-key-of-more-than-sixteen-bytes"
#define OLD_KEY "another-key-that-is-long-enough"
TEST(reload_takes_keys_and_keeps_the_old_ones_if_the_file_is_bad) {
    struct daemon d = {0};
    char keys[300], arguments[512];
    snprintf(keys, sizeof keys, "%s/keys", test_tmp());
    snprintf(arguments, sizeof arguments, "--api-key-file %s", keys);
    put_text(keys, OLD_KEY "\n");
    start(&d, arguments);
    static const char old[] = "Authorization: Bearer " OLD_KEY "\r\n";
    static const char new[] = "Authorization: Bearer " NEW_KEY "\r\n";
    CHECK_EQ(status_of(client_call(&d, "GET", "/v1/models", old, NULL)), 200);
    CHECK_EQ(status_of(client_call(&d, "GET", "/v1/models", new, NULL)), 401);
    put_text(keys, NEW_KEY "\n");
    reload(&d, "stage=reload added=0");
    CHECK_EQ(status_of(client_call(&d, "GET", "/v1/models", old, NULL)), 401);
    CHECK_EQ(status_of(client_call(&d, "GET", "/v1/models", new, NULL)), 200);
    put_text(keys, "# none\n");
    reload(&d, "the keys stay as they were");
    CHECK_EQ(status_of(client_call(&d, "GET", "/v1/models", NULL, NULL)), 401);
    CHECK_EQ(status_of(client_call(&d, "GET", "/v1/models", new, NULL)), 200);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* A hundred of them, while a stream runs: it ends as if there had been none. */
TEST_LIMIT(reload_again_and_again_disturbs_no_request, 120) {
    struct daemon d = {0};
    put("math", "a.bitdelta");
    start(&d, "");
    int fd = client_complete(&d, "{\"model\":\"a\",\"prompt\":\"x\",\"max_tokens\":150,"
                                 "\"ignore_eos\":true,\"stream\":true}");
    for (int i = 0; i < 100; i++) {
        put(i % 2 ? "math" : "sql", "a.bitdelta"); /* torn reads among them are refused */
        kill(d.pid, SIGHUP);
        usleep(2000);
    }
    struct answer a = client_read(fd, 90000);
    struct stream s = client_stream(a.body);
    CHECK(s.done && !s.error);
    CHECK_STR(s.finish, "length");
    stream_free(&s);
    answer_free(&a);
    close(fd);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST_LIMIT(state_survives_a_restart_and_a_crash, 120) {
    struct daemon d = {0};
    char more[512], math[64], sql[64];
    snprintf(more, sizeof more, "--state %s/state.json --aliases live=math,old=math", test_tmp());
    put("math", "math.bitdelta");
    put("sql", "sql.bitdelta");
    start(&d, more);
    snprintf(math, sizeof math, "%s", print_of(&d, "math"));
    snprintf(sql, sizeof sql, "%s", print_of(&d, "sql"));
    CHECK_EQ(admin(&d, "POST", "/admin/deltas", "{\"name\":\"m2\",\"path\":\"math.bitdelta\"}"),
             201);
    CHECK_EQ(admin(&d, "POST", "/admin/deltas", "{\"name\":\"math\",\"path\":\"sql.bitdelta\"}"),
             200);
    CHECK_EQ(admin(&d, "DELETE", "/admin/deltas/sql", NULL), 200);
    CHECK_EQ(admin(&d, "POST", "/admin/aliases", "{\"name\":\"live\",\"target\":\"m2\"}"), 200);
    CHECK_EQ(admin(&d, "POST", "/admin/aliases", "{\"name\":\"new\",\"target\":\"base\"}"), 201);
    CHECK_EQ(admin(&d, "DELETE", "/admin/aliases/old", NULL), 200);
    for (int round = 0; round < 2; round++) {
        /* The answer came, so a crash takes nothing back. */
        CHECK_EQ(daemon_stop(&d, round ? SIGTERM : SIGKILL, 5000), round ? 0 : 1000 + SIGKILL);
        start(&d, more);
        CHECK_STR(print_of(&d, "m2"), math);
        CHECK_STR(print_of(&d, "math"), sql);
        CHECK_STR(print_of(&d, "sql"), "");
        CHECK_STR(print_of(&d, "live"), math);
        CHECK(print_of(&d, "new")[0]);
        CHECK_STR(print_of(&d, "old"), "");
    }
    /* Without the file the start is as it was. */
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
    unlink(state);
    start(&d, more);
    CHECK_STR(print_of(&d, "sql"), sql);
    CHECK_STR(print_of(&d, "old"), math);
    CHECK_STR(print_of(&d, "m2"), "");
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(state_that_cannot_be_written_is_said_to_whoever_asked) {
    struct daemon d = {0};
    char more[512];
    snprintf(more, sizeof more, "--state %s/state.json", test_tmp());
    start(&d, more);
    unlink(state);
    mkdir(state, 0755); /* nothing can be renamed to that */
    struct answer a =
        client_admin(&d, "POST", "/admin/aliases", NULL, "{\"name\":\"x\",\"target\":\"base\"}");
    CHECK_EQ(a.status, 500);
    CHECK_HAS(a.body, "a restart will undo it");
    CHECK(!strstr(a.body, test_tmp()));
    answer_free(&a);
    CHECK(print_of(&d, "x")[0]);
    rmdir(state);
    CHECK_EQ(admin(&d, "POST", "/admin/aliases", "{\"name\":\"x\",\"target\":\"base\"}"), 200);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
    start(&d, more);
    CHECK(print_of(&d, "x")[0]);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
