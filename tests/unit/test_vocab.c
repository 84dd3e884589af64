/* Properties: cutting a long text changes no id; the cost of a text is linear in its length,
 * whatever stands in it. The library's own encoder, given the text whole, is the reference. */
#include "tokenizer/vocab.h"

#include <time.h>

#include "config/utf8.h"
#include "tests/check.h"
#include "tests/unit/spm_models.h"

/* NULL: that model is not here. */
static struct vocab *open_model(int which) {
    struct why why = {""};
    struct vocab *v;
    size_t n;
    char *bytes = spm_model_bytes(which, &n);
    if (!bytes)
        return NULL;
    CHECK_OK(vocab_open(&v, bytes, n, &why), why);
    free(bytes);
    return v;
}

static void check_same(const struct vocab *v, const char *text, size_t n) {
    struct sp_ids cut = {.cap_max = n + 16}, whole = {.cap_max = n + 16};
    char *marked = malloc(n + 3);
    CHECK(marked != NULL);
    memcpy(marked, UTF8_SPACE_MARK_TEXT, 3);
    memcpy(marked + 3, text, n);
    CHECK_EQ(vocab_encode(v, text, n, true, &cut), 0);
    CHECK_EQ(sp_encode(v->bare, marked, n + 3, &whole), 0);
    CHECK_EQ(cut.n, whole.n);
    for (size_t i = 0; i < cut.n; i++)
        CHECK_EQ(cut.v[i], whole.v[i]);
    free(marked);
    free(cut.v);
    free(whole.v);
}

TEST(vocab_cuts_long_texts_without_changing_an_id) {
    static char text[160000];
    FILE *f = fopen("docs/format.md", "rb"); /* English and code, with wide characters below */
    if (!f)
        test_skip("docs/format.md is not here: run from the repository's root");
    size_t n = fread(text, 1, 4000, f);
    fclose(f);
    for (; n < 60000; n *= 2)
        memcpy(text + n, text, n);
    for (size_t i = 0; i < n; i++) /* no half character at a seam */
        if ((unsigned char)text[i] >= 0x80)
            text[i] = '~';
    unsigned seed = 1;
    while (n < sizeof text - 8) { /* a tail without order: printable bytes, wide characters, runs */
        unsigned r = test_random(&seed);
        static const char *const wide[] = {"\xe6\x97\xa5", "\xc3\xa9", "\xf0\x9f\x99\x82", "  ",
                                           UTF8_SPACE_MARK_TEXT};
        if (r % 8 == 0) {
            size_t length = strlen(wide[r / 8 % 5]);
            memcpy(text + n, wide[r / 8 % 5], length);
            n += length;
        } else {
            text[n++] = (char)(r % 8 == 1 ? '\n' : ' ' + r / 8 % 95);
        }
    }
    for (int m = 0; m < SPM_MODELS; m++) {
        struct vocab *v = open_model(m);
        if (!v)
            continue;
        CHECK(v->n_slots > 0);
        for (size_t length = 2040; length < 2060; length++) /* around the first cut */
            check_same(v, text,
                       length < n && ((unsigned char)text[length] & 0xc0) != 0x80 ? length
                                                                                  : length - 1);
        check_same(v, text, n);
        vocab_close(v);
    }
}

/* Time of this thread alone: other work on the machine does not count. */
static double cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

TEST(vocab_cost_is_linear_in_the_text) {
    static const char *const patterns[] = {"a",  " ", "\x01",  "ab", "the cat sat on a mat. ",
                                           "\n", "=", "aGFzZQ"};
    struct vocab *v = open_model(SPM_DEMO);
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        double ns_per_byte[2];
        for (int big = 0; big < 2; big++) {
            size_t n = big ? 1 << 19 : 1 << 15, length = strlen(patterns[i]);
            char *text = malloc(n);
            CHECK(text != NULL);
            for (size_t at = 0; at < n; at++)
                text[at] = patterns[i][at % length];
            struct sp_ids ids = {.cap_max = n + 16};
            double start = cpu_ns();
            CHECK_EQ(vocab_encode(v, text, n, true, &ids), 0);
            ns_per_byte[big] = (cpu_ns() - start) / (double)n;
            free(ids.v);
            free(text);
        }
        if (getenv("BITDELTA_TIMES"))
            printf("%-12.12s %5.0f ns/byte at 32 KB, %5.0f at 512 KB\n", patterns[i],
                   ns_per_byte[0], ns_per_byte[1]);
        /* A quadratic cost would be 16 times as much a byte; caches leave 6. */
        CHECK(ns_per_byte[1] < 6 * ns_per_byte[0] + 100);
    }
    vocab_close(v);
}

TEST(vocab_finds_pieces_by_their_spelling) {
    struct vocab *v = open_model(SPM_DEMO);
    CHECK_EQ(vocab_find(v, "<s>", 3), 1);
    CHECK_EQ(vocab_find(v, "<nothing>", 9), -1);
    vocab_close(v);
}
