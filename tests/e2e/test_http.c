/* The faults of libmicrohttpd 0.9.75 under an external loop, each with its counter-measure, and
 * what hostile or absent-minded clients do to a connection. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config/clock.h"
#include "tests/e2e/client.h"

#define JSON_TYPE "Content-Type: application/json\r\n"

static struct answer exchange(const struct daemon *d, const char *text) {
    int fd = client_connect(d);
    client_text(fd, text);
    struct answer a = client_read(fd, 5000);
    close(fd);
    return a;
}

/* OpenAI's error shape, with our id. */
static void check_error_shape(const struct answer *a, int status) {
    CHECK_EQ(a->status, status);
    CHECK_HAS(a->head, "Content-Type: application/json");
    CHECK_HAS(a->head, "x-request-id: ");
    json_t *tree = json_loadb(a->body, a->n_body, 0, NULL);
    if (!tree)
        test_fail(__FILE__, __LINE__, "not JSON: %s", a->body);
    CHECK(text_at(tree, "error.message") && text_at(tree, "error.type"));
    CHECK(at(tree, "error.param") && at(tree, "error.code"));
    json_decref(tree);
}

/* Every request carries a second one in what a confused parser takes for its rest. */
static const struct {
    const char *text;
    int status;
} smuggling[] = {
#define CHUNKED                                                                                    \
    "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Transfer-Encoding: chunked\r\n\r\n"
#define NEXT "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n"
     "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
     400},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
     415},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
     "Content-Length: 6\r\n\r\n0\r\n\r\n" NEXT,
     400},
    {CHUNKED "0\r\n\r\n" NEXT, 400},
    {CHUNKED "2;a=b\r\n{}\r\n0\r\n\r\n" NEXT, 400},
    {CHUNKED "2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n" NEXT, 400},
    {CHUNKED "2\n{}\n0\n\n" NEXT, 400},
    {CHUNKED "0x2\r\n{}\r\n0\r\n\r\n" NEXT, 0},
    {CHUNKED "-2\r\n{}\r\n0\r\n\r\n" NEXT, 0},
    {CHUNKED "fffffffffffffffff\r\n{}\r\n0\r\n\r\n" NEXT, 0},
    {CHUNKED "2\r\n{}0\r\n\r\n" NEXT, 0},
    {CHUNKED "\r\n{}\r\n0\r\n\r\n" NEXT, 0},
    {"POST /v1/none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT, 404},
    {"GET /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
     "chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" NEXT,
     413},
    {"POST /v1/completions HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
     411},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 60\r\n\r\n"
     "abc" NEXT,
     400},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\nContent-Length: 3\r\n\r\n"
     "abc" NEXT,
     400},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : "
     "chunked\r\n\r\n0\r\n\r\n" NEXT,
     400},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n" NEXT, 411},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n"
     "Content-Length: 3\r\n\r\nabc" NEXT,
     411},
    {"POST /v1/completions HTTP/1.1\r\nHost: "
     "x\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n" NEXT,
     415},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
     "0\r\n\r\n" NEXT,
     411},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\ntransfer-encoding: CHUNKED\r\n\r\n0\r\n\r\n" NEXT,
     415},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 0\r\n\r\n" NEXT, 400},
    {"GET /v1/models HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n" NEXT, 400},
    {"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n" NEXT,
     400},
    {"GET /v1/models HTTP/1.1\r\n\r\n" NEXT, 400}, /* no Host: ours, not libmicrohttpd's HTML */
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE
     "Content-Length: 18446744073709551615\r\n\r\n" NEXT,
     0}, /* libmicrohttpd answers this one itself, or we do; 4xx either way */
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" NEXT, 0},
    {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n" NEXT, 0},
    {"GET http://x/v1/models HTTP/1.1\r\nHost: x\r\n\r\n" NEXT, 400},
    {"GET * HTTP/1.1\r\nHost: x\r\n\r\n" NEXT, 400},
    {"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n" NEXT, 400},
    {"GET /health%00 HTTP/1.1\r\nHost: x\r\n\r\n" NEXT, 400},
    {"GET /v1/models/..%2fx HTTP/1.1\r\nHost: x\r\n\r\n" NEXT, 400},
    {"GET /v1/%2e%2e/health HTTP/1.1\r\nHost: x\r\n\r\n" NEXT, 400},
    {"GET /v1/../health HTTP/1.1\r\nHost: x\r\n\r\n" NEXT, 400},
#undef NEXT
#undef CHUNKED
};

TEST(http_smuggled_requests_are_never_run) {
    struct daemon d = {0};
    daemon_start(&d, "--log-level debug");
    for (size_t i = 0; i < sizeof smuggling / sizeof *smuggling; i++) {
        int fd = client_connect(&d);
        client_text(fd, smuggling[i].text);
        struct answer a = client_read(fd, 5000);
        bool fits = smuggling[i].status ? a.status == smuggling[i].status
                                        : a.status >= 400 && a.status < 500;
        if (!fits)
            test_fail(__FILE__, __LINE__, "case %zu: status %d: %s", i, a.status,
                      smuggling[i].text);
        if (smuggling[i].status)
            check_error_shape(&a, smuggling[i].status);
        answer_free(&a);
        a = client_read(fd, 3000); /* nothing follows, and the connection ends */
        if (a.status == 404 || a.status == 200 || !a.closed)
            test_fail(__FILE__, __LINE__, "case %zu: the connection went on", i);
        answer_free(&a);
        close(fd);
    }
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(http_unknown_methods_and_addresses_get_openai_errors) {
    struct daemon d = {0};
    daemon_start(&d, "");
    static const struct {
        const char *method, *path;
        int status;
    } cases[] = {{"GET", "/nothing", 404},
                 {"GET", "/v1/completions", 405},
                 {"OPTIONS", "/v1/completions", 405},
                 {"TRACE", "/v1/models", 405},
                 {"BREW", "/v1/models", 405},
                 {"DELETE", "/health", 405},
                 {"GET", "/v1/models/none", 404},
                 {"GET", "/admin/deltas", 404},
                 {"GET", "/v1/models/", 404},
                 {"PUT", "/", 405},
                 {"PUT", "/x", 404},
                 {"AVERYVERYLONGMETHODNAME", "/v1/models", 405}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct answer a = client_call(&d, cases[i].method, cases[i].path, NULL, NULL);
        check_error_shape(&a, cases[i].status);
        if (cases[i].status == 405 && strlen(cases[i].method) < 16)
            CHECK_HAS(a.head, "Allow: ");
        answer_free(&a);
    }
    struct answer a = exchange(&d, "HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    CHECK_EQ(a.status, 200);
    CHECK_EQ(a.n_body, 0);
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(http_request_ids_are_on_every_reply_and_only_harmless_ones_are_echoed) {
    struct daemon d = {0};
    daemon_start(&d, "");
    struct answer a = client_call(&d, "GET", "/v1/models", "X-Request-Id: abc.1-2_3\r\n", NULL);
    CHECK_HAS(a.head, "x-request-id: abc.1-2_3\r\n");
    answer_free(&a);
    a = client_call(&d, "GET", "/nothing", "X-Request-Id: a b\"c\r\n", NULL);
    CHECK_HAS(a.head, "x-request-id: req-");
    answer_free(&a);
    a = exchange(&d, "GET /a%00 HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK_HAS(a.head, "x-request-id: req-");
    answer_free(&a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(http_media_types_and_encodings_other_than_plain_json_are_refused) {
    struct daemon d = {0};
    daemon_start(&d, "");
    static const char *const heads[] = {
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
        "Content-Length: 2\r\n\r\n{}",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE
        "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    };
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        struct answer a = exchange(&d, heads[i]);
        check_error_shape(&a, 415);
        answer_free(&a);
    }
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(http_connection_stays_usable_after_refusals_and_pipelined_requests) {
    struct daemon d = {0};
    daemon_start(&d, "");
    int fd = client_connect(&d);
    for (int i = 0; i < 3; i++) {
        client_text(fd, "POST /nothing HTTP/1.1\r\nHost: x\r\n" JSON_TYPE
                        "Content-Length: 5\r\n\r\n{\"a\":");
        struct answer a = client_read(fd, 3000);
        check_error_shape(&a, 404);
        CHECK(!a.closed);
        answer_free(&a);
    }
    client_text(fd, "GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n"
                    "Connection: close\r\n\r\n");
    struct answer a = client_read(fd, 3000);
    CHECK_EQ(a.status, 200);
    answer_free(&a);
    close(fd);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* A reply that comes while the client still writes is lost by many clients. */
TEST(http_too_large_bodies_get_their_413_after_they_were_read) {
    struct daemon d = {0};
    daemon_start(&d, "--max-body 65536");
    size_t n = 10 << 20;
    char *body = malloc(n), head[256];
    memset(body, 'x', n);
    int fd = client_connect(&d);
    snprintf(head, sizeof head,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Content-Length: %zu\r\n\r\n",
             n);
    client_text(fd, head);
    client_send(fd, body, n);
    struct answer a = client_read(fd, 5000);
    check_error_shape(&a, 413);
    answer_free(&a);
    close(fd);
    /* One that waits for leave gets its refusal instead of "100 Continue". */
    fd = client_connect(&d);
    snprintf(head, sizeof head,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE
             "Expect: 100-continue\r\nContent-Length: %zu\r\n\r\n",
             n);
    client_text(fd, head);
    a = client_read(fd, 5000);
    check_error_shape(&a, 413);
    answer_free(&a);
    close(fd);
    free(body);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* Whether the peer ends the connection within the limit; *status: of the last words, if any. */
static bool closes_within(int fd, int limit_ms, int *status) {
    struct answer a = client_read(fd, limit_ms);
    *status = a.status;
    bool closed = a.closed;
    if (a.status && !closed) {
        struct answer rest = client_read(fd, limit_ms);
        closed = rest.closed;
        answer_free(&rest);
    }
    answer_free(&a);
    return closed;
}

/* A byte every 200 ms would restart libmicrohttpd's own timeout for ever. */
static int drip(const struct daemon *d, const char *start, int limit_ms) {
    int fd = client_connect(d), status = 0;
    client_text(fd, start);
    int64_t begin = mono_us();
    while (mono_us() - begin < limit_ms * 1000LL) {
        client_text(fd, "a");
        struct answer a = client_read(fd, 200);
        status = a.status ? a.status : status;
        bool closed = a.closed;
        answer_free(&a);
        if (closed) {
            close(fd);
            return status;
        }
    }
    test_fail(__FILE__, __LINE__, "a slow client is still connected after %d ms", limit_ms);
}

TEST(http_slow_heads_and_bodies_are_cut_at_absolute_deadlines) {
    struct daemon d = {0};
    daemon_start(&d, "--header-timeout 1 --body-timeout 1 --idle-timeout 1");
    drip(&d, "GET /health HTTP/1.1\r\nHost: x\r\nX: ", 3000);
    drip(&d, "GET /hea", 3000);
    int status = 0; /* the last words can be lost to the client's own next byte, so: thrice */
    for (int i = 0; i < 3 && status != 408; i++)
        status = drip(&d,
                      "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE
                      "Content-Length: 4000\r\n\r\n",
                      3000);
    CHECK_EQ(status, 408);
    int fd = client_connect(&d);
    CHECK(closes_within(fd, 2500, &status)); /* says nothing at all */
    CHECK_EQ(status, 0);
    close(fd);
    fd = client_connect(&d);
    client_text(fd, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK(closes_within(fd, 2500, &status)); /* idle after a reply */
    CHECK_EQ(status, 200);
    close(fd);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* The end arrives with the last bytes: one edge for both, of which libmicrohttpd sees the bytes. */
TEST(http_clients_that_end_in_the_middle_are_noticed_before_their_deadline) {
    struct daemon d = {0};
    daemon_start(&d, "");
    static const char *const starts[] = {
        "GET /health HTTP/1.1\r\nHost: x\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE
        "Content-Length: 500\r\n\r\n{\"model\":",
        "POST /nothing HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Content-Length: 500\r\n\r\n{",
        "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    };
    for (int round = 0; round < 5; round++)
        for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
            int fd = client_connect(&d);
            client_text(fd, starts[i]);
            close(fd);
        }
    daemon_metric_becomes(&d, "bitdeltad_http_connections", 1, 3000);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* libmicrohttpd at its limit leaves clients in the backlog, and its listener can stall there. */
TEST(http_clients_above_the_limit_get_503_and_none_hangs) {
    struct daemon d = {0};
    daemon_start(&d, "--max-connections 4");
    for (int round = 0; round < 4; round++) {
        int held[4];
        for (int i = 0; i < 4; i++)
            held[i] = client_connect(&d);
        usleep(50000);
        for (int i = 0; i < 4; i++) {
            struct answer a = client_call(&d, "GET", "/v1/models", NULL, NULL);
            check_error_shape(&a, 503);
            CHECK_HAS(a.head, "Retry-After: ");
            answer_free(&a);
        }
        int extra[40];
        for (int i = 0; i < 40; i++) /* over libmicrohttpd's own limit too */
            extra[i] = client_connect(&d);
        for (int i = 0; i < 40; i++)
            close(extra[i]);
        for (int i = 0; i < 4; i++)
            close(held[i]);
        /* The backlog's dead connections are taken and dropped; then there is room again. */
        int status = 0;
        for (int i = 0; i < 100 && status != 200; i++, usleep(20000)) {
            struct answer a = client_call(&d, "GET", "/v1/models", NULL, NULL);
            status = a.status;
            answer_free(&a);
        }
        CHECK_EQ(status, 200);
    }
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(http_running_out_of_descriptors_is_survived) {
    struct daemon d = {.files_limit = 48};
    daemon_start(&d, "--header-timeout 2");
    int held[100];
    for (int i = 0; i < 100; i++)
        held[i] = client_connect(&d);
    usleep(300000);
    CHECK(daemon_lives(&d));
    for (int i = 0; i < 100; i++)
        close(held[i]);
    usleep(300000);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(http_client_that_stops_reading_is_cut_and_hurts_nobody) {
    struct daemon d = {0};
    daemon_start(&d, "--write-timeout 1");
    size_t n = 900000;
    char *body = malloc(n + 64), head[256];
    size_t at_byte = (size_t)sprintf(body, "{\"prompt\":\"");
    while (at_byte < n)
        at_byte += (size_t)sprintf(body + at_byte, "a b c d ");
    at_byte += (size_t)sprintf(body + at_byte, "\"}");
    int fd = client_connect(&d), small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    snprintf(head, sizeof head,
             "POST /tokenize HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Content-Length: %zu\r\n\r\n",
             at_byte);
    client_text(fd, head);
    client_send(fd, body, at_byte);
    struct answer a = client_call(&d, "GET", "/health", NULL, NULL);
    CHECK_EQ(a.status, 200);
    answer_free(&a);
    daemon_metric_becomes(&d, "bitdeltad_rejected_total{reason=\"timeout\"}", 1, 8000);
    daemon_metric_becomes(&d, "bitdeltad_http_connections", 1, 3000);
    close(fd);
    free(body);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* Clients that do everything clients do, at random, for a while: afterwards nothing is left. */
static int descriptors(const struct daemon *d) {
    char path[64];
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)d->pid, fd);
        n += access(path, F_OK) == 0;
    }
    return n;
}

TEST_LIMIT(http_random_clients_leave_nothing_behind, 120) {
    struct daemon d = {0};
    enum { CLIENTS = 24 };
    static const char *const says[] = {
        "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Content-Length: 86\r\n\r\n"
        "{\"model\":\"base\",\"prompt\":\"a b\",\"max_tokens\":40,\"ignore_eos\":true,"
        "\"stream\":true       }",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Content-Length: 65\r\n\r\n"
        "{\"model\":\"base\",\"prompt\":\"a b\",\"max_tokens\":20,\"ignore_eos\":true}",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Content-Length: 500\r\n\r\n{",
        "POST /tokenize HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Content-Length: 16\r\n\r\n"
        "{\"prompt\":\"a b\"}",
        "BAD\r\n\r\n",
    };
    daemon_start(&d, "--max-connections 16 --max-seqs 4 --max-queue 6");
    int before = descriptors(&d), fd[CLIENTS], n_requests = 0;
    unsigned state = 5;
    for (int i = 0; i < CLIENTS; i++)
        fd[i] = -1;
    for (int64_t until = mono_us() + 3000000; mono_us() < until;) {
        unsigned i = test_random(&state) % CLIENTS, what = test_random(&state) % 4;
        if (fd[i] < 0) {
            fd[i] = client_connect(&d);
        } else if (what < 2) {
            client_text(fd[i], says[test_random(&state) % (sizeof says / sizeof *says)]);
            n_requests++;
        } else if (what == 2) {
            char some[256];
            (void)!recv(fd[i], some, sizeof some, MSG_DONTWAIT);
        } else {
            if (test_random(&state) % 2)
                shutdown(fd[i], SHUT_WR);
            close(fd[i]);
            fd[i] = -1;
        }
        usleep(200);
    }
    for (int i = 0; i < CLIENTS; i++)
        if (fd[i] >= 0)
            close(fd[i]);
    CHECK(n_requests > 100);
    daemon_metric_becomes(&d, "bitdeltad_http_connections", 1, 5000);
    daemon_metric_becomes(&d, "vllm:num_requests_running{model_name=\"base\",engine=\"0\"}", 0,
                          2000);
    daemon_metric_becomes(&d, "bitdeltad_kv_pages_used", 0, 2000);
    CHECK_EQ((long long)daemon_metric(&d, "bitdeltad_http_body_bytes"), 0);
    usleep(100000);
    CHECK_EQ(descriptors(&d), before);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* The sentence says what to do, the log has the same for whoever is asked about it. */
TEST(http_refusals_say_what_is_wrong_and_are_logged) {
    static const struct {
        const char *method, *path, *body, *says;
        int status;
    } cases[] = {
        {"POST", "/completions", "{}", "nothing at /completions; did you mean /v1/completions?",
         404},
        {"GET", "/models", NULL, "did you mean /v1/models?", 404},
        {"POST", "/v1/embeddings", "{}", "nothing at /v1/embeddings.", 404},
        {"DELETE", "/v1/models/base", NULL,
         "DELETE cannot be used on /v1/models/base, which has GET.", 405},
        {"POST", "/v1/completions", "", "empty", 400},
        {"POST", "/v1/completions", "{\"model\":\"base\",\"messages\":[]}",
         "'messages' is not supported: conversations go to /v1/chat/completions.", 400},
        {"POST", "/v1/completions", "{\"model\":\"base\",\"prompt\":\"\",\"response_format\":{}}",
         "only {\\\"type\\\":\\\"text\\\"} is accepted.", 400},
    };
    struct daemon d = {0};
    daemon_start(&d, "--max-body 2000");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct answer a = client_call(&d, cases[i].method, cases[i].path, NULL, cases[i].body);
        CHECK_EQ(a.status, cases[i].status);
        CHECK_HAS(a.body, cases[i].says);
        answer_free(&a);
    }
    char large[3000];
    memset(large, ' ', sizeof large - 1);
    large[sizeof large - 1] = 0;
    struct answer a = client_call(&d, "POST", "/v1/completions", "X-Request-ID: mine\r\n", large);
    CHECK_EQ(a.status, 413);
    CHECK_HAS(a.body, "The body has 2999 bytes; at most 2000 are taken here.");
    answer_free(&a);
    CHECK(daemon_logged(&d, "stage=refused req=mine route=/v1/completions status=413 "
                            "code=request_too_large param=none"));
    CHECK(daemon_logged(&d, "status=400 code=unsupported param=response_format"));
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* Some clients and gateways do not say how long their body is. */
TEST(http_bodies_may_come_in_chunks) {
    static const char head[] =
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" JSON_TYPE "Transfer-Encoding: chunked\r\n";
    static const char *const parts[] = {"\r\n5\r\n{\"mod",
                                        "\r\n1\r\ne\r",
                                        "\n32\r\nl\":\"base\",\"prompt\"",
                                        ":\"The archive\",\"max_tokens\":2}  \r\n",
                                        "0\r\n",
                                        "X-Trailer: y\r\n\r\n"};
    struct daemon d = {0};
    daemon_start(&d, "--max-body 2000");
    json_t *want = client_json(&d, "/v1/completions",
                               "{\"model\":\"base\",\"prompt\":\"The archive\",\"max_tokens\":2}");
    int fd = client_connect(&d);
    client_text(fd, head);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        usleep(20000);
        client_text(fd, parts[i]);
    }
    struct answer a = client_read(fd, 5000);
    if (a.status != 200)
        test_fail(__FILE__, __LINE__, "status %d: %s", a.status, a.body);
    CHECK_HAS(a.head, "Connection: close\r\n");
    json_t *got = json_loadb(a.body, a.n_body, 0, NULL);
    CHECK(json_equal(at(got, "usage"), at(want, "usage")));
    json_decref(got);
    json_decref(want);
    answer_free(&a);
    close(fd);

    /* More than is taken: said once all has been read, so that nobody loses the reply. */
    fd = client_connect(&d);
    client_text(fd, head);
    client_text(fd, "\r\n");
    char chunk[1010];
    snprintf(chunk, sizeof chunk, "3e8\r\n%1000s\r\n", "");
    for (int i = 0; i < 30; i++)
        client_text(fd, chunk);
    client_text(fd, "0\r\n\r\n");
    a = client_read(fd, 5000);
    check_error_shape(&a, 413);
    CHECK_HAS(a.body, "more than the 2000 bytes");
    answer_free(&a);
    close(fd);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_metric(&d, "bitdeltad_http_body_bytes"), 0);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* A wrong address or key costs nobody the connection. */
TEST(http_refusals_without_a_body_keep_the_connection) {
    struct daemon d = {0};
    daemon_start(&d, "");
    int fd = client_connect(&d);
    static const char *const calls[] = {"GET /none", "DELETE /v1/models/base",
                                        "GET /v1/models/none", "GET /health"};
    static const int status[] = {404, 405, 404, 200};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        char text[128];
        snprintf(text, sizeof text, "%s HTTP/1.1\r\nHost: x\r\n\r\n", calls[i]);
        client_text(fd, text);
        struct answer a = client_read(fd, 3000);
        CHECK_EQ(a.status, status[i]);
        CHECK(a.whole && !a.closed);
        answer_free(&a);
    }
    close(fd);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
