/* A stream as the client reads it: the same answer however the bytes were cut, and sentences for
 * what is no answer. */
#include "client/spoken.h"
#include "tests/check.h"

static const char stream[] =
    ": a comment\r\n"
    "event: message\r\n"
    "data: {\"choices\":[{\"index\":0,\"text\":\" "
    "Hello\"}],\"usage\":{\"completion_tokens\":1}}\r\n"
    "\r\n"
    "data:{\"choices\":[{\"index\":0,\"delta\":{\"content\":\" "
    "w\\u00f6rld\"},\"finish_reason\":null}],\n"
    "data: \"usage\":{\"completion_tokens\":3}}\n"
    "\n"
    "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\n"
    "data: [DONE]\n\n";

struct seen {
    char text[64];
    size_t n;
};

static void see(void *arg, const char *text, size_t n) {
    struct seen *s = arg;
    CHECK(s->n + n < sizeof s->text);
    memcpy(s->text + s->n, text, n);
    s->n += n;
}

TEST(spoken_answer_is_the_same_however_the_bytes_are_cut) {
    for (size_t piece = 1; piece < sizeof stream; piece++) {
        struct seen seen = {.n = 0};
        struct spoken a = {.show = see, .arg = &seen, .sent_us = 1};
        for (size_t at = 0; at < sizeof stream - 1; at += piece) {
            size_t left = sizeof stream - 1 - at;
            CHECK_EQ(spoken_feed(&a, stream + at, left < piece ? left : piece), E_OK);
        }
        CHECK_STR(seen.text, " Hello w\xc3\xb6rld");
        CHECK_EQ(a.text.n, seen.n);
        CHECK_EQ(memcmp(a.text.bytes, seen.text, seen.n), 0);
        CHECK_EQ(a.n_tokens, 4);
        CHECK_STR(a.finish, "stop");
        CHECK(a.whole && a.first_us > 0 && a.first_us <= a.last_us);
        spoken_free(&a);
    }
}

TEST(spoken_tokens_are_counted_where_the_server_does_not) {
    struct spoken a = {.sent_us = 1};
    for (int i = 0; i < 3; i++) {
        static const char event[] = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
        CHECK_EQ(spoken_feed(&a, event, sizeof event - 1), E_OK);
    }
    CHECK_EQ(a.n_tokens, 3);
    CHECK(!a.whole);
    a.sent_us = 1000000, a.first_us = 2000000, a.last_us = 3000000;
    CHECK_EQ(spoken_rate(&a), 2); /* the two after the first, in a second */
    a.first_us = a.last_us;
    CHECK_EQ(10 * spoken_rate(&a), 15);
    spoken_free(&a);
}

TEST(spoken_faults_are_sentences) {
    static const struct {
        const char *bytes, *sentence;
        err_t e;
    } cases[] = {
        {"data: {\"error\":{\"message\":\"The device failed.\"}}\n\n", "The device failed.",
         E_INTERNAL},
        {"data: {\"error\":7}\n\n", "the server failed", E_INTERNAL},
        {"data: {\"choices\":\n\n", "the stream", E_FORMAT},
        {"data: [DONE]x\n\n", "the stream", E_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct spoken a = {.sent_us = 1};
        CHECK_EQ(spoken_feed(&a, cases[i].bytes, strlen(cases[i].bytes)), cases[i].e);
        CHECK_HAS(a.why.text, cases[i].sentence);
        spoken_free(&a);
    }
}

TEST(spoken_events_without_end_are_cut_off) {
    struct spoken a = {.sent_us = 1};
    static char much[1 << 20];
    memset(much, 'x', sizeof much);
    err_t e = spoken_feed(&a, "data: ", 6);
    for (int i = 0; !e && i < 9; i++)
        e = spoken_feed(&a, much, sizeof much);
    CHECK_EQ(e, E_TOO_LARGE);
    CHECK(a.why.text[0]);
    CHECK(a.sse.line.cap <= 3 * (size_t)SSE_MAX_BYTES);
    spoken_free(&a);
}
