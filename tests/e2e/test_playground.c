/* The playground's page as HTTP: what it carries, who gets it. tests/page drives it in a browser.
 */
#include <signal.h>

#include "tests/e2e/client.h"

/* The value of a header in `head`, into out. */
static void header(const char *head, const char *name, char out[512]) {
    const char *at = strstr(head, name);
    CHECK(at);
    at += strlen(name);
    snprintf(out, 512, "%.*s", (int)strcspn(at, "\r"), at);
}

TEST(playground_page_comes_with_a_strict_policy_and_is_kept) {
    struct daemon d = {0};
    daemon_start(&d, "");
    struct answer a = client_call(&d, "GET", "/", NULL, NULL);
    CHECK_EQ(a.status, 200);
    CHECK_HAS(a.head, "Content-Type: text/html; charset=utf-8\r\n");
    CHECK_HAS(a.head, "X-Content-Type-Options: nosniff\r\n");
    CHECK_HAS(a.head, "Cache-Control: no-cache\r\n");
    char policy[512], etag[512], line[600];
    header(a.head, "Content-Security-Policy: ", policy);
    CHECK_HAS(policy, "default-src 'none'");
    CHECK_HAS(policy, "frame-ancestors 'none'");
    CHECK(!strstr(policy, "unsafe"));
    CHECK_EQ(strncmp(a.body, "<!doctype html>", 15), 0);
    CHECK_HAS(a.body, "</script>\n</html>\n");
    CHECK(!strstr(a.body, "http://1") && !strstr(a.body, "https://"));
    header(a.head, "ETag: ", etag);
    answer_free(&a);
    snprintf(line, sizeof line, "If-None-Match: W/\"x\", %s\r\n", etag);
    a = client_call(&d, "GET", "/", line, NULL);
    CHECK_EQ(a.status, 304);
    CHECK(!*a.body);
    CHECK_HAS(a.head, etag);
    answer_free(&a);
    a = client_call(&d, "GET", "/", "If-None-Match: \"other\"\r\n", NULL);
    CHECK_EQ(a.status, 200);
    answer_free(&a);
    a = client_call(&d, "POST", "/", NULL, "{}");
    CHECK_EQ(a.status, 405);
    answer_free(&a);
    a = client_admin(&d, "GET", "/", NULL, NULL);
    CHECK_EQ(a.status, 404);
    answer_free(&a);
    a = client_call(&d, "GET", "/index.html", NULL, NULL);
    CHECK_EQ(a.status, 404);
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(playground_page_needs_no_key_but_what_it_asks_for_does) {
    struct daemon d = {0};
    char path[256], options[300];
    snprintf(path, sizeof path, "%s/keys", test_tmp());
    FILE *f = fopen(path, "w");
    fputs("a-key-of-the-public-api\n", f);
    fclose(f);
    snprintf(options, sizeof options, "--api-key-file %s", path);
    daemon_start(&d, options);
    static const struct {
        const char *path;
        int status;
    } calls[] = {{"/", 200}, {"/v1/models", 401}, {"/metrics", 401}, {"/nothing", 401}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct answer a = client_call(&d, "GET", calls[i].path, NULL, NULL);
        CHECK_EQ(a.status, calls[i].status);
        answer_free(&a);
    }
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(playground_can_be_switched_off) {
    struct daemon d = {0};
    daemon_start(&d, "--no-playground");
    struct answer a = client_call(&d, "GET", "/", NULL, NULL);
    CHECK_EQ(a.status, 404);
    CHECK_HAS(a.body, "unknown_url");
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
