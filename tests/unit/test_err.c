/* Properties: every error has all that a client needs; a sentence is printable and never too long,
 * whatever it quotes. */
#include "config/err.h"

#include <limits.h>

#include "config/utf8.h"
#include "tests/check.h"

TEST(err_every_row_is_whole) {
    static const char *const names[] = {
#define ERR(name, status, type, code, sentence) #name,
#include "config/err.def"
#undef ERR
    };
    int n = sizeof names / sizeof names[0];
    CHECK_EQ(n, ERR_INDEX_END - 1);
    for (int i = 1; i <= n; i++) {
        CHECK(err_http_status(-i) >= 400 && err_http_status(-i) < 600);
        CHECK(err_type(-i)[0] && err_code(-i)[0]);
        size_t length = strlen(err_sentence(-i));
        CHECK(length > 10 && err_sentence(-i)[length - 1] == '.');
        for (int j = 1; j < i; j++)
            if (strcmp(err_code(-i), err_code(-j)) == 0)
                test_fail(__FILE__, __LINE__, "E_%s and E_%s have one code", names[i - 1],
                          names[j - 1]);
    }
    CHECK_EQ(err_http_status(0), 200);
}

TEST(err_unknown_codes_are_internal_errors) {
    static const int strange[] = {1, INT_MAX, INT_MIN, -ERR_INDEX_END, -1000};
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++) {
        CHECK_EQ(err_http_status(strange[i]), 500);
        CHECK_STR(err_code(strange[i]), err_code(E_INTERNAL));
    }
}

TEST(err_sentence_is_cut_to_its_room_and_stays_text) {
    struct why why;
    char big[2000];
    for (size_t i = 0; i + 3 < sizeof big; i += 3)
        memcpy(big + i, "\xe6\x97\xa5", 3);
    big[1998] = 0;
    for (int lead = 0; lead < 4; lead++) { /* the cut falls on each byte of a character */
        CHECK_EQ(why_set(&why, E_INVAL, "%.*s%s", lead, "abcd", big), E_INVAL);
        CHECK_EQ(strlen(why.text), sizeof why.text - 1);
        CHECK_EQ(utf8_valid_prefix(why.text, strlen(why.text)), strlen(why.text));
        CHECK_EQ(why_prefix(&why, E_IO, "%s", "model.safetensors"), E_IO);
        CHECK(strncmp(why.text, "model.safetensors: ", 19) == 0);
        CHECK_EQ(utf8_valid_prefix(why.text, strlen(why.text)), strlen(why.text));
        for (size_t n = 500; n < 530; n++) { /* prefixes that leave no room */
            why_set(&why, E_INVAL, "tail");
            CHECK_EQ(why_prefix(&why, E_INVAL, "%.*s", (int)n, big), E_INVAL);
            CHECK(strlen(why.text) < sizeof why.text);
            CHECK_EQ(utf8_valid_prefix(why.text, strlen(why.text)), strlen(why.text));
        }
    }
}

TEST(err_sentence_quotes_no_control_bytes) {
    struct why why;
    why_set(&why, E_INVAL, "a%sb", "\n\x1b[2J\x7f\xc2\x9b\xff\xed\xa0\x80\xc3\xa9");
    CHECK_STR(why.text, "a??[2J???????\xc3\xa9"
                        "b");
}

TEST(err_without_a_place_for_the_sentence) {
    CHECK_EQ(why_set(NULL, E_BUSY, "x"), E_BUSY);
    CHECK_EQ(why_prefix(NULL, E_BUSY, "x"), E_BUSY);
}
