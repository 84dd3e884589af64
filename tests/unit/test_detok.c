/* Properties: fed id by id, the detokeniser's output is always whole characters and adds up to
 * tokenizer_decode; both equal the library's own decoder where that is defined. */
#include "config/utf8.h"
#include "tests/check.h"
#include "tests/unit/spm_models.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

/* A tokenizer for a bare model file, and the library's own view of it. NULL: it is not here. */
static struct tokenizer *open_model(int which, struct sp **sp) {
    size_t n;
    struct why why = {""};
    struct tokenizer *t;
    const char *dir = spm_model_folder(which);
    if (!dir)
        return NULL;
    char *bytes = spm_model_bytes(which, &n);
    CHECK_OK(sp_open(sp, bytes, n, &why), why);
    CHECK_OK(tokenizer_open(&t, dir, &why), why);
    free(bytes);
    return t;
}

/* Random ids, half of them byte pieces, so that characters come in parts and broken. */
static int32_t random_id(unsigned *seed, int32_t pieces, int32_t first_byte) {
    unsigned r = test_random(seed);
    static const unsigned char tricky[] = {0xf0, 0x9f, 0x99, 0x82, 0xe2, 0x82, 0xac, 0xc3, 0xa9,
                                           0xed, 0xa0, 0x80, 0xf4, 0x90, 0xc0, 'a',  0xff, 0xe0};
    if (r % 2)
        return first_byte + tricky[r / 2 % sizeof tricky];
    return (int32_t)(r / 2 % (unsigned)pieces);
}

static int32_t find_first_byte(const struct tokenizer *t) {
    int32_t id = 0;
    while (!tokenizer_is_byte(t, id))
        CHECK(++id < tokenizer_facts(t)->pieces);
    return id;
}

static size_t stream(const struct tokenizer *t, const int32_t *ids, int n, bool skip, bool inside,
                     char *out) {
    struct detok d;
    size_t used = 0;
    detok_init(&d, t, skip, inside);
    for (int i = 0; i <= n; i++) {
        char part[DETOK_MAX_BYTES];
        size_t length = i < n ? detok_push(&d, ids[i], part) : detok_flush(&d, part);
        CHECK_EQ(utf8_valid_prefix(part, length), length); /* never half a character */
        memcpy(out + used, part, length);
        used += length;
    }
    return used;
}

TEST(detok_adds_up_to_decode_and_to_the_librarys_decoder) {
    for (int m = 0; m < SPM_MODELS; m++) {
        struct sp *sp;
        struct tokenizer *t = open_model(m, &sp);
        if (!t)
            continue;
        int32_t pieces = tokenizer_facts(t)->pieces, first_byte = find_first_byte(t);
        unsigned seed = 7;
        for (int round = 0; round < 3000; round++) {
            int32_t ids[32];
            int n = (int)(test_random(&seed) % 32);
            for (int i = 0; i < n; i++)
                do /* the library prints <unk> as a sign of its own */
                    ids[i] = random_id(&seed, pieces, first_byte);
                while (ids[i] == tokenizer_facts(t)->unk_id);
            char *whole, *library, out[32 * DETOK_MAX_BYTES];
            size_t n_whole, n_library;
            size_t used = stream(t, ids, n, true, false, out);
            CHECK_EQ(tokenizer_decode(t, ids, n, true, &whole, &n_whole), 0);
            CHECK_EQ(used, n_whole);
            CHECK(memcmp(out, whole, used) == 0);
            free(whole);
            /* the library drops control pieces, but lets them break up a character */
            int32_t plain[32];
            size_t n_plain = 0;
            for (int i = 0; i < n; i++)
                if (!tokenizer_is_special(t, ids[i]))
                    plain[n_plain++] = ids[i];
            CHECK_EQ(sp_decode(sp, plain, n_plain, &library, &n_library), 0);
            if (used != n_library || memcmp(out, library, used) != 0)
                test_fail(__FILE__, __LINE__, "round %d: \"%.*s\" is not \"%.*s\"", round,
                          (int)used, out, (int)n_library, library);
            free(library);
        }
        sp_close(sp);
        tokenizer_close(t);
    }
}

TEST(detok_of_encoded_text_is_the_text) {
    static const char *const texts[] = {"Hello world",
                                        "  two  spaces ",
                                        "\n\ttabs\n",
                                        "日本語 🙂 é",
                                        " ",
                                        "",
                                        "a\xef\xbf\xbd"
                                        "b"};
    for (int m = 0; m < SPM_MODELS; m++) {
        struct sp *sp;
        struct tokenizer *t = open_model(m, &sp);
        if (!t)
            continue;
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            int32_t *ids, n;
            struct why why = {""};
            char out[64 * DETOK_MAX_BYTES];
            CHECK_OK(tokenizer_encode(t, texts[i], strlen(texts[i]), 0, 100, 64, &ids, &n, &why),
                     why);
            out[stream(t, ids, n, true, false, out)] = 0;
            CHECK_STR(out, texts[i]);
            free(ids);
        }
        sp_close(sp);
        tokenizer_close(t);
    }
}

TEST(detok_keeps_the_leading_space_where_the_text_continues_a_prompt) {
    struct sp *sp;
    struct tokenizer *t = open_model(SPM_DEMO, &sp);
    int32_t *ids, n;
    struct why why = {""};
    char out[16 * DETOK_MAX_BYTES];
    CHECK_OK(tokenizer_encode(t, "the kernel", 10, 0, 100, 16, &ids, &n, &why), why);
    out[stream(t, ids, n, true, false, out)] = 0;
    CHECK_STR(out, "the kernel");
    out[stream(t, ids, n, true, true, out)] = 0;
    CHECK_STR(out, " the kernel");
    free(ids);
    sp_close(sp);
    tokenizer_close(t);
}

TEST(detok_prints_special_tokens_only_when_they_are_not_skipped) {
    struct sp *sp;
    struct tokenizer *t = open_model(SPM_DEMO, &sp);
    int32_t *ids, n;
    struct why why = {""};
    char out[16 * DETOK_MAX_BYTES];
    CHECK_OK(tokenizer_encode(t, "<s>the</s>", 10, ENCODE_PARSE_SPECIAL, 100, 16, &ids, &n, &why),
             why);
    out[stream(t, ids, n, true, false, out)] = 0;
    CHECK_STR(out, "the");
    out[stream(t, ids, n, false, false, out)] = 0;
    CHECK_STR(out, "<s> the</s>");
    free(ids);
    sp_close(sp);
    tokenizer_close(t);
}
