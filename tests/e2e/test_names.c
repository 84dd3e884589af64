/* The names of a model: the tenant's own, base:tenant, aliases, and the address /t/{name}/... */
#include <signal.h>
#include <sys/stat.h>

#include "tests/e2e/client.h"

static void start(struct daemon *d, const char *more) {
    char path[512], arguments[1024];
    snprintf(path, sizeof path, "%s/deltas", test_tmp());
    mkdir(path, 0755);
    snprintf(arguments, sizeof arguments, "%s/math.bitdelta", path);
    client_copy(client_delta("math"), arguments);
    snprintf(arguments, sizeof arguments, "%s/sql.bitdelta", path);
    client_copy(client_delta("sql"), arguments);
    snprintf(arguments, sizeof arguments, "--name base --deltas %s %s", path, more);
    daemon_start(d, arguments);
}

#define PROMPT "\"prompt\":\"Q: 1 + 1 =\",\"max_tokens\":8,\"temperature\":0"

/* The fingerprint and text of a completion; fails the test unless the reply calls itself `model`.
 */
static void complete(const struct daemon *d, const char *path, const char *fields,
                     const char *model, char out[2048]) {
    char body[1024];
    snprintf(body, sizeof body, "{%s" PROMPT "}", fields);
    json_t *a = client_json(d, path, body);
    CHECK_STR(text_at(a, "model"), model);
    snprintf(out, 2048, "%s %s", text_at(a, "system_fingerprint"), text_at(a, "choices.0.text"));
    json_decref(a);
}

static int status_of(struct answer a) {
    int status = a.status;
    answer_free(&a);
    return status;
}

static int alias(const struct daemon *d, const char *name, const char *target) {
    char body[512];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"target\":\"%s\"}", name, target);
    return status_of(client_admin(d, "POST", "/admin/aliases", NULL, body));
}

TEST(names_that_mean_one_tenant_reach_the_same_bits) {
    struct daemon d = {0};
    char want[2048], got[2048], other[2048];
    start(&d, "--aliases prod=math,old:one=sql");
    const char *path = "/v1/completions";
    complete(&d, path, "\"model\":\"math\",", "math", want);
    complete(&d, path, "\"model\":\"sql\",", "sql", other);
    CHECK(strcmp(want, other) != 0);
    complete(&d, path, "\"model\":\"base:math\",", "base:math", got);
    CHECK_STR(got, want);
    complete(&d, path, "\"model\":\"prod\",", "prod", got);
    CHECK_STR(got, want);
    complete(&d, path, "\"model\":\"base:prod\",", "base:prod", got);
    CHECK_STR(got, want);
    complete(&d, path, "\"model\":\"old:one\",", "old:one", got);
    CHECK_STR(got, other);
    complete(&d, "/t/math/v1/completions", "", "math", got);
    CHECK_STR(got, want);
    complete(&d, "/t/prod/v1/completions", "\"model\":\"sql\",", "prod",
             got); /* the address wins */
    CHECK_STR(got, want);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(names_in_the_address_scope_the_other_calls_too) {
    struct daemon d = {0};
    start(&d, "");
    struct answer a = client_call(&d, "GET", "/t/math/v1/models", NULL, NULL);
    json_t *list = json_loadb(a.body, a.n_body, 0, NULL);
    CHECK_EQ(json_array_size(at(list, "data")), 1);
    CHECK_STR(text_at(list, "data.0.id"), "math");
    json_decref(list);
    answer_free(&a);
    json_t *tokens = client_json(&d, "/t/math/tokenize", "{\"prompt\":\"a b\"}");
    CHECK(json_array_size(at(tokens, "tokens")) > 1);
    json_decref(tokens);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t/math/tokenizer_info", NULL, NULL)), 200);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t/math/health", NULL, NULL)), 200);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t/none/health", NULL, NULL)), 404);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t/math/metrics", NULL, NULL)), 404);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t/math", NULL, NULL)), 404);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t//v1/models", NULL, NULL)), 404);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t/math/t/math/v1/models", NULL, NULL)), 404);
    CHECK_EQ(status_of(client_call(&d, "POST", "/t/none/v1/completions", NULL, "{" PROMPT "}")),
             404);
    CHECK_EQ(status_of(client_call(&d, "GET", "/t/math/v1/completions", NULL, NULL)), 405);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(names_can_be_moved_to_another_tenant_while_serving) {
    struct daemon d = {0};
    char math[2048], sql[2048], got[2048];
    start(&d, "");
    const char *path = "/v1/completions";
    complete(&d, path, "\"model\":\"math\",", "math", math);
    complete(&d, path, "\"model\":\"sql\",", "sql", sql);
    CHECK_EQ(alias(&d, "live", "math"), 201);
    complete(&d, path, "\"model\":\"live\",", "live", got);
    CHECK_STR(got, math);
    CHECK_EQ(alias(&d, "live", "sql"), 200);
    complete(&d, path, "\"model\":\"live\",", "live", got);
    CHECK_STR(got, sql);
    CHECK_EQ(alias(&d, "live", "none"), 404);
    CHECK_EQ(alias(&d, "other", "live"), 404); /* no chains */
    CHECK_EQ(alias(&d, "math", "sql"), 400);   /* a tenant's name */
    CHECK_EQ(alias(&d, "base", "sql"), 400);
    CHECK_EQ(alias(&d, "a/b", "sql"), 400);
    CHECK_EQ(status_of(client_admin(&d, "POST", "/admin/deltas", NULL,
                                    "{\"name\":\"live\",\"path\":\"sql.bitdelta\"}")),
             400);
    struct answer a = client_call(&d, "GET", "/v1/models", NULL, NULL);
    json_t *list = json_loadb(a.body, a.n_body, 0, NULL);
    CHECK_STR(text_at(list, "data.3.id"), "live");
    json_decref(list);
    answer_free(&a);
    /* An alias of what is gone names nothing. */
    CHECK_EQ(status_of(client_admin(&d, "DELETE", "/admin/deltas/sql", NULL, NULL)), 200);
    CHECK_EQ(status_of(client_call(&d, "POST", path, NULL, "{\"model\":\"live\"," PROMPT "}")),
             404);
    CHECK_EQ(status_of(client_admin(&d, "DELETE", "/admin/aliases/live", NULL, NULL)), 200);
    CHECK_EQ(status_of(client_admin(&d, "DELETE", "/admin/aliases/live", NULL, NULL)), 404);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(names_of_ignored_fields_are_told_to_the_client) {
    struct daemon d = {0};
    daemon_start(&d, "");
    struct answer a =
        client_call(&d, "POST", "/v1/completions", NULL,
                    "{\"model\":\"base\",\"prompt\":\"a\\u0000b\",\"max_tokens\":1,\"priority\":1,"
                    "\"x\\r\\ny\":2,\"metadata\":{}}");
    CHECK_EQ(a.status, 200);
    CHECK_HAS(a.head, "x-ignored-fields: priority, metadata\r\n");
    answer_free(&a);
    a = client_call(&d, "POST", "/tokenize", NULL,
                    "{\"prompt\":\"a caf\\u00e9\",\"return_token_strs\":true,\"content\":1}");
    CHECK_EQ(a.status, 200);
    CHECK_HAS(a.head, "x-ignored-fields: content\r\n");
    CHECK_HAS(a.body, "\"token_strs\":[\"<s>\",");
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
