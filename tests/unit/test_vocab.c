/* Properties: cutting a long text changes no id; the cost of a text is linear in its length,
 * whatever stands in it. The library's own encoder, given the text whole, is the reference. */
#include "tokenizer/vocab.h"

#include "config/clock.h"
#include "tests/check.h"
#include "tokenizer/additions.h"
#include "config/utf8.h"

static const char *const models[] = {"../tokenizers/tokenizer.model.v1",
                                     "../tokenizers/mistral_instruct_tokenizer_240323.model.v3",
                                     "base/tokenizer.model"};

static struct vocab *open_model(const char *name) {
    struct why why = {""};
    struct vocab *v;
    char *bytes;
    size_t n;
    CHECK_OK(additions_read_file(test_models() ? test_models() : ".", name,
                                 ADDITIONS_MAX_MODEL_BYTES, &bytes, &n, &why),
             why);
    if (!bytes)
        test_skip("%s is not here", test_model(name));
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
    FILE *f = fopen(test_model("eval.txt"), "rb");
    CHECK(f != NULL);
    size_t n = fread(text, 1, 60000, f);
    fclose(f);
    while (n > 0 && ((unsigned char)text[n - 1] & 0xc0) == 0x80)
        n--; /* no half character at the seam */
    n -= (unsigned char)text[n - 1] >= 0x80;
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
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++) {
        struct vocab *v = open_model(models[m]);
        CHECK(v->n_slots > 0);
        for (size_t length = 2040; length < 2060; length++) /* around the first cut */
            check_same(v, text,
                       length < n && ((unsigned char)text[length] & 0xc0) != 0x80 ? length
                                                                                  : length - 1);
        check_same(v, text, n);
        vocab_close(v);
    }
}

TEST(vocab_cost_is_linear_in_the_text) {
    static const char *const patterns[] = {"a",  " ", "\x01",  "ab", "the cat sat on a mat. ",
                                           "\n", "=", "aGFzZQ"};
    struct vocab *v = open_model(models[0]);
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        double ns_per_byte[2];
        for (int big = 0; big < 2; big++) {
            size_t n = big ? 1 << 20 : 1 << 16, length = strlen(patterns[i]);
            char *text = malloc(n);
            CHECK(text != NULL);
            for (size_t at = 0; at < n; at++)
                text[at] = patterns[i][at % length];
            struct sp_ids ids = {.cap_max = n + 16};
            int64_t start = mono_us();
            CHECK_EQ(vocab_encode(v, text, n, true, &ids), 0);
            ns_per_byte[big] = 1e3 * (double)(mono_us() - start) / (double)n;
            free(ids.v);
            free(text);
        }
        if (getenv("BITDELTA_TIMES"))
            printf("%-12.12s %5.0f ns/byte at 64 KB, %5.0f at 1 MB\n", patterns[i], ns_per_byte[0],
                   ns_per_byte[1]);
        /* A quadratic cost would be 16 times as much a byte; caches and a busy machine leave 6. */
        CHECK(ns_per_byte[1] < 6 * ns_per_byte[0] + 100);
    }
    vocab_close(v);
}

TEST(vocab_finds_pieces_by_their_spelling) {
    struct vocab *v = open_model("base/tokenizer.model");
    CHECK_EQ(vocab_find(v, "<s>", 3), 1);
    CHECK_EQ(vocab_find(v, "<nothing>", 9), -1);
    vocab_close(v);
}
