/* Keys: nothing but the probes answers without one, on either listener. */
#include <signal.h>

#include "server/route.h"
#include "tests/e2e/client.h"

static const char *key_file(const char *name, const char *key) {
    static char path[2][256];
    static int turn;
    char *p = path[turn++ % 2];
    snprintf(p, sizeof path[0], "%s/%s", test_tmp(), name);
    FILE *f = fopen(p, "w");
    fprintf(f, "# of a test\n%s\n", key);
    fclose(f);
    return p;
}

#define PUBLIC "public-key-0123456789"
#define ADMIN "admin-key-0123456789"

static const struct {
    const char *header;
    bool opens_public, opens_admin;
} keys[] = {
    {NULL, false, false},
    {"Authorization: Bearer \r\n", false, false},
    {"Authorization: Bearer wrong-key-0123456789\r\n", false, false},
    {"Authorization: Basic " PUBLIC "\r\n", false, false},
    {"Authorization: " PUBLIC "\r\n", false, false},
    {"Authorization: Bearer " PUBLIC "\r\n", true, false},
    {"authorization: bearer " ADMIN "\r\n", false, true},
};

static void check_route(const struct daemon *d, const struct route *r, bool admin, size_t k) {
    char path[128];
    size_t n = strlen(r->path);
    snprintf(path, sizeof path, "%s%s", r->path, n > 1 && r->path[n - 1] == '/' ? "x" : "");
    const char *body = r->body == BODY_NONE ? NULL : "{}";
    struct answer a = admin ? client_admin(d, r->method, path, keys[k].header, body)
                            : client_call(d, r->method, path, keys[k].header, body);
    bool open = r->key == KEY_NEVER || (r->key == KEY_PUBLIC && admin) ||
                (admin ? keys[k].opens_admin : keys[k].opens_public);
    bool here = r->where & (admin ? ON_ADMIN : ON_PUBLIC);
    if (!here)
        open = admin ? keys[k].opens_admin : keys[k].opens_public;
    if ((a.status == 401) == open || a.status == 0 || (!here && open && a.status != 404))
        test_fail(__FILE__, __LINE__, "%s %s on the %s listener with '%s': status %d", r->method,
                  path, admin ? "admin" : "public", keys[k].header ? keys[k].header : "", a.status);
    if (a.status == 401)
        CHECK_HAS(a.head, "WWW-Authenticate: Bearer");
    answer_free(&a);
}

TEST(keys_guard_every_route_on_both_listeners) {
    struct daemon d = {0};
    char arguments[1024];
    snprintf(arguments, sizeof arguments, "--api-key-file %s --admin-key-file %s",
             key_file("public", PUBLIC), key_file("admin", ADMIN));
    daemon_start(&d, arguments);
    for (int i = 0; i < n_routes; i++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            check_route(&d, &routes[i], false, k);
            check_route(&d, &routes[i], true, k);
        }
    static const char *const methods[] = {"OPTIONS", "PUT", "PATCH", "TRACE", "BREW"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        struct answer a = client_call(&d, methods[i], "/v1/completions", NULL, NULL);
        CHECK_EQ(a.status, 401); /* also the methods and addresses that do not exist */
        answer_free(&a);
        a = client_call(&d, methods[i], "/nothing", NULL, NULL);
        CHECK_EQ(a.status, 401);
        answer_free(&a);
    }
    CHECK(!daemon_logged(&d, PUBLIC));
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(keys_are_asked_for_before_the_body_is_sent) {
    struct daemon d = {0};
    char arguments[512];
    snprintf(arguments, sizeof arguments, "--api-key-file %s", key_file("public", PUBLIC));
    daemon_start(&d, arguments);
    int fd = client_connect(&d);
    client_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    "Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n");
    struct answer a = client_read(fd, 3000);
    CHECK_EQ(a.status, 401);
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
