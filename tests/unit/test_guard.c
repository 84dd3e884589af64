#include "server/guard.h"
#include "tests/check.h"

struct line {
    const char *name, *value;
};

static err_t judge(const char *version, const struct line *lines, struct guard *g) {
    struct why why;
    guard_init(g);
    for (; lines->name; lines++)
        guard_header(g, lines->name, strlen(lines->name), lines->value, strlen(lines->value));
    return guard_end(g, version, &why);
}

TEST(guard_lets_an_ordinary_request_through) {
    struct guard g;
    const struct line lines[] = {{"Host", "a:1"},
                                 {"Content-Length", "17"},
                                 {"content-type", "application/json; charset=utf-8"},
                                 {"Authorization", "Bearer k"},
                                 {"X-Request-Id", "abc-1.2_3"},
                                 {NULL, NULL}};
    CHECK_EQ(judge("HTTP/1.1", lines, &g), E_OK);
    CHECK_EQ(g.length, 17);
    CHECK(g.json);
    CHECK_STR(g.authorization, "Bearer k");
    CHECK_STR(g.request_id, "abc-1.2_3");
}

TEST(guard_refuses_every_way_to_frame_a_request_twice) {
    static const struct {
        struct line lines[4];
        err_t want;
    } cases[] = {
        {{{"Host", "a"}, {"Transfer-Encoding", "chunked"}, {"Content-Length", "3"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "0"}, {"Transfer-Encoding", "chunked"}}, E_HTTP},
        {{{"Host", "a"}, {"Transfer-Encoding", "chunked"}, {"Transfer-Encoding", "chunked"}},
         E_LENGTH_REQUIRED},
        {{{"Host", "a"}, {"Transfer-Encoding", "x"}, {"Transfer-Encoding", "chunked"}},
         E_LENGTH_REQUIRED},
        {{{"Host", "a"}, {"Transfer-Encoding", "chunked "}}, E_LENGTH_REQUIRED},
        {{{"Host", "a"}, {"Transfer-Encoding", "chunked, chunked"}}, E_LENGTH_REQUIRED},
        {{{"Host", "a"}, {"transfer-encoding", "identity"}}, E_LENGTH_REQUIRED},
        {{{"Host", "a"}, {"Transfer-Encoding", "x"}, {"Content-Length", "3"}}, E_LENGTH_REQUIRED},
        {{{"Host", "a"}, {"Transfer-Encoding ", "chunked"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "3"}, {"Content-Length", "3"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "3"}, {"content-length", "40"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "3, 3"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "+3"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "-1"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "0x10"}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", ""}}, E_HTTP},
        {{{"Host", "a"}, {"Content-Length", "99999999999999999999999"}}, E_HTTP},
        {{{"Host", "a"}, {"Host", "a"}}, E_HTTP},
        {{{"X", "y"}}, E_HTTP}, /* no Host */
        {{{"Host", "a"}, {"Authorization", "a"}, {"Authorization", "b"}}, E_HTTP},
        {{{"Host", "a"}, {"A B", "c"}}, E_HTTP},
        {{{"Host", "a"}, {"", "c"}}, E_HTTP},
        {{{"Host", "a"}, {"A\x01", "c"}}, E_HTTP},
        {{{"Host", "a"}, {"A:", "c"}}, E_HTTP},
        {{{"Host", "a"}, {"A", "c\rd"}}, E_HTTP},
        {{{"Host", "a"}, {"A", "c\x7f"}}, E_HTTP},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct guard g;
        err_t e = judge("HTTP/1.1", cases[i].lines, &g);
        if (e != cases[i].want)
            test_fail(__FILE__, __LINE__, "case %zu gives %s, not %s", i, err_code(e),
                      err_code(cases[i].want));
    }
}

TEST(guard_speaks_http_1_only) {
    struct guard g;
    const struct line host[] = {{"Host", "a"}, {NULL, NULL}}, none[] = {{NULL, NULL}};
    CHECK_EQ(judge("HTTP/1.0", none, &g), E_OK);
    CHECK_EQ(judge("HTTP/2.0", host, &g), E_HTTP);
    CHECK_EQ(judge("", host, &g), E_HTTP);
    CHECK_EQ(judge(NULL, host, &g), E_HTTP);
}

TEST(guard_takes_only_harmless_request_ids) {
    static const char *const bad[] = {"", "a b", "a\"b", "\xc3\xa9", "a/b", "a;b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct guard g;
        const struct line lines[] = {{"Host", "a"}, {"x-request-id", bad[i]}, {NULL, NULL}};
        CHECK_EQ(judge("HTTP/1.1", lines, &g), E_OK);
        CHECK_STR(g.request_id, "");
    }
    char text[GUARD_MAX_ID + 2];
    memset(text, 'a', sizeof text);
    struct guard g;
    guard_init(&g);
    guard_header(&g, "X-Request-ID", 12, text, GUARD_MAX_ID + 1);
    CHECK_STR(g.request_id, "");
    guard_header(&g, "X-Request-ID", 12, text, GUARD_MAX_ID);
    CHECK_EQ(strlen(g.request_id), GUARD_MAX_ID);
}

TEST(guard_counts_headers) {
    struct guard g;
    struct why why;
    guard_init(&g);
    guard_header(&g, "Host", 4, "a", 1);
    for (int i = 0; i < GUARD_MAX_HEADERS - 1; i++)
        guard_header(&g, "a", 1, "b", 1);
    CHECK_EQ(guard_end(&g, "HTTP/1.1", &why), E_OK);
    guard_header(&g, "a", 1, NULL, 0);
    CHECK_EQ(guard_end(&g, "HTTP/1.1", &why), E_HEADERS);
}

TEST(guard_judges_addresses) {
    struct why why;
    static const char *const good[] = {"/", "/v1/models/a.b:c-d_e", "/v1/x?y=%20z", "/a..b"};
    static const char *const bad[] = {"",        "x",           "http://a/b", "*",      "/a b",
                                      "/a%00b",  "/a%2Fb",      "/a%2fb",     "/..",    "/a/../b",
                                      "/%2e%2e", "/a\x01",      "/a\x80",     "/a\\b",  "/a%5cb",
                                      "/a\x7f",  "//../../etc", "/a/..",      "/%2E./b"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK_OK(guard_uri(good[i], &why), why);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (guard_uri(bad[i], &why) != E_HTTP)
            test_fail(__FILE__, __LINE__, "'%s' passes", bad[i]);
    char text[GUARD_MAX_URI + 2] = "/";
    memset(text + 1, 'a', GUARD_MAX_URI);
    text[GUARD_MAX_URI + 1] = 0;
    CHECK_EQ(guard_uri(text, &why), E_URI);
}
