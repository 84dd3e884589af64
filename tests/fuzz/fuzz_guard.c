/* Fuzzes the checks on a request's head: the first byte string is the address, then come lines
 * "name:value" with any bytes. What passes must hold what the guard promises. */
#include <stdint.h>

#include "server/guard.h"
#include "tests/check.h"

void fuzz_guard(const uint8_t *data, size_t n);

static void check_passed(const struct guard *g) {
    if (g->n_transfer > g->chunked || (g->n_transfer && g->n_length) || g->malformed ||
        g->n_length > 1 || g->n_host > 1 || g->n_authorization > 1 ||
        g->n_headers > GUARD_MAX_HEADERS || strlen(g->request_id) > GUARD_MAX_ID)
        __builtin_trap();
    for (const char *c = g->request_id; *c; c++)
        if (*c <= ' ' || *c == '"' || *c >= 0x7f)
            __builtin_trap();
}

void fuzz_guard(const uint8_t *data, size_t n) {
    char text[4096];
    struct guard g;
    struct why why;
    n = n < sizeof text - 1 ? n : sizeof text - 1;
    memcpy(text, data, n);
    text[n] = 0;
    char *line = text, *end = text + n;
    char *next = memchr(line, '\n', n);
    if (next)
        *next++ = 0;
    if (guard_uri(line, &why) == E_OK &&
        (line[0] != '/' || strstr(line, "/..") || strstr(line, "%00") || strchr(line, ' ')))
        __builtin_trap();
    guard_init(&g);
    while (next && next < end) {
        line = next;
        next = memchr(line, '\n', (size_t)(end - line));
        size_t n_line = next ? (size_t)(next++ - line) : (size_t)(end - line);
        char *colon = memchr(line, ':', n_line);
        size_t n_name = colon ? (size_t)(colon - line) : n_line;
        guard_header(&g, line, n_name, colon ? colon + 1 : NULL, colon ? n_line - n_name - 1 : 0);
    }
    if (guard_end(&g, "HTTP/1.1", &why) == E_OK)
        check_passed(&g);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_guard(data, n);
    return 0;
}
#else
#include "config/clock.h"

TEST(fuzz_guard_survives_mutations) {
    static const char seed[] =
        "/v1/models/a%20b\nHost:x\nContent-Length:12\nTransfer-Encoding:x\n"
        "X-Request-Id:abc\nAuthorization:Bearer k\nContent-Type:application/json";
    unsigned state = 11;
    int64_t until = mono_us() + 500000;
    while (mono_us() < until) {
        uint8_t text[sizeof seed];
        memcpy(text, seed, sizeof seed);
        for (unsigned k = test_random(&state) % 8; k > 0; k--)
            text[test_random(&state) % (sizeof seed - 1)] = (uint8_t)test_random(&state);
        fuzz_guard(text, test_random(&state) % sizeof seed);
    }
}
#endif
