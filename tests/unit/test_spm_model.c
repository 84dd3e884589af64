/* Properties: a model file with a broken structure is refused with a sentence, wherever it breaks;
 * the rules that stand in a model (prefix, squeezing, unknown characters) are kept. */
#include "tokenizer/spm_model.h"

#include <math.h>

#include "config/utf8.h"
#include "tests/check.h"
#include "tokenizer/vocab.h"

enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE }; /* sentencepiece_model.proto */

struct piece {
    const char *text;
    int type;
    float score;
};

static size_t put_field(unsigned char *out, unsigned char key, const void *data, size_t n) {
    size_t used = 0;
    out[used++] = key;
    for (size_t rest = n; rest > 0 || used == 1; rest >>= 7) { /* varint */
        out[used++] = (unsigned char)((rest & 0x7f) | (rest > 0x7f ? 0x80 : 0));
        if (rest <= 0x7f)
            break;
    }
    memcpy(out + used, data, n);
    return used + n;
}

static size_t put_piece(unsigned char *out, const struct piece *p) {
    unsigned char body[2048];
    size_t n = put_field(body, 0x0a, p->text, strlen(p->text));
    body[n++] = 0x15;
    memcpy(body + n, &p->score, 4);
    n += 4;
    body[n++] = 0x18;
    body[n++] = (unsigned char)p->type;
    return put_field(out, 0x0a, body, n);
}

#define MARK UTF8_SPACE_MARK_TEXT
static const struct piece common[] = {
    {"<unk>", UNKNOWN, 0}, {"<s>", CONTROL, 0}, {"</s>", CONTROL, 0}, {MARK, NORMAL, -3},
    {"a", NORMAL, -4},     {"b", NORMAL, -5},   {"ab", NORMAL, -1},   {MARK "a", NORMAL, -2}};
static const unsigned char bpe_plain[] = {0x12, 2, 0x18, 2, 0x1a, 4, 0x18, 1, 0x20, 0};
static const unsigned char bpe_squeeze[] = {0x12, 2, 0x18, 2, 0x1a, 4, 0x18, 1, 0x20, 1};

/* The common pieces, `more`, then the specs. */
static size_t build(unsigned char *out, const struct piece *more, int n_more,
                    const unsigned char *specs, size_t n_specs) {
    size_t used = 0;
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++)
        used += put_piece(out + used, &common[i]);
    for (int i = 0; i < n_more; i++)
        used += put_piece(out + used, &more[i]);
    memcpy(out + used, specs, n_specs);
    return used + n_specs;
}

TEST(spm_model_cut_at_any_byte_is_refused_or_smaller) {
    static unsigned char model[4096];
    size_t n = build(model, NULL, 0, bpe_plain, sizeof bpe_plain);
    if (!freopen("/dev/null", "w", stderr)) /* the library tells stderr of each refusal */
        test_fail(__FILE__, __LINE__, "no /dev/null");
    for (size_t cut = 0; cut < n; cut++) {
        struct why why = {""};
        struct vocab *v;
        unsigned char *exact = malloc(cut + 1); /* so that reading past it is seen */
        CHECK(exact != NULL);
        memcpy(exact, model, cut);
        err_t e = vocab_open(&v, exact, cut, &why);
        free(exact);
        CHECK(e == 0 || why.text[0]);
        if (!e) {
            CHECK(v->n_pieces > 0 && v->n_pieces <= 8);
            vocab_close(v);
        }
    }
}

TEST(spm_model_with_impossible_pieces_is_refused) {
    static char big[VOCAB_MAX_PIECE_BYTES + 2];
    memset(big, 'x', sizeof big - 1);
    const struct piece cases[] = {
        {"a", NORMAL, 0},             /* twice */
        {"", NORMAL, 0},              /* empty */
        {"<unk2>", UNKNOWN, 0},       /* a second unknown */
        {"\xff", NORMAL, 0},          /* no text */
        {"x\xed\xa0\x80", NORMAL, 0}, /* a surrogate */
        {big, NORMAL, 0},             /* longer than a reply may emit at once */
        {"<0xZZ>", BYTE, 0},          /* no byte */
        {"abc", BYTE, 0},
    };
    static unsigned char model[8192];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct why why = {""};
        struct vocab *v;
        size_t n = build(model, &cases[i], 1, bpe_plain, sizeof bpe_plain);
        err_t e = vocab_open(&v, model, n, &why);
        if (e != E_FORMAT || !why.text[0])
            test_fail(__FILE__, __LINE__, "case %zu gave %d: \"%s\"", i, e, why.text);
    }
}

TEST(spm_model_with_odd_scores_still_encodes) {
    static unsigned char model[8192];
    static const float scores[] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 0};
    for (size_t i = 0; i < sizeof scores / sizeof scores[0]; i++) {
        const struct piece odd = {"ba", NORMAL, scores[i]};
        struct why why = {""};
        struct vocab *v;
        size_t n = build(model, &odd, 1, bpe_plain, sizeof bpe_plain);
        CHECK_OK(vocab_open(&v, model, n, &why), why);
        struct sp_ids ids = {.cap_max = 100};
        CHECK_EQ(vocab_encode(v, "abababab ba", 11, true, &ids), 0);
        CHECK(ids.n > 0 && ids.n <= 12);
        free(ids.v);
        vocab_close(v);
    }
}

TEST(spm_model_that_writes_spaces_otherwise_is_unsupported) {
    static const unsigned char suffix[] = {0x12, 5, 0x18, 2, 0xc0, 0x01, 1};
    static const unsigned char raw[] = {0x12, 2, 0x18, 2, 0x1a, 2, 0x28, 0};
    static unsigned char model[8192];
    struct why why = {""};
    struct vocab *v;
    size_t n = build(model, NULL, 0, suffix, sizeof suffix);
    CHECK_EQ(vocab_open(&v, model, n, &why), E_UNSUPPORTED);
    CHECK_HAS(why.text, "suffixes");
    n = build(model, NULL, 0, raw, sizeof raw);
    CHECK_EQ(vocab_open(&v, model, n, &why), E_UNSUPPORTED);
    CHECK_HAS(why.text, "escape");
}

static void check_encoded(const struct vocab *v, const char *text, bool prefix,
                          const int32_t *want) {
    struct sp_ids ids = {.cap_max = 10000};
    CHECK_EQ(vocab_encode(v, text, strlen(text), prefix, &ids), 0);
    for (size_t i = 0; i < ids.n; i++)
        CHECK_EQ(ids.v[i], want[i]);
    CHECK_EQ(want[ids.n], -1);
    free(ids.v);
}

TEST(spm_model_rules_of_squeezing_and_prefix_are_kept) {
    static unsigned char model[8192];
    struct why why = {""};
    struct vocab *v;
    size_t n = build(model, NULL, 0, bpe_plain, sizeof bpe_plain);
    CHECK_OK(vocab_open(&v, model, n, &why), why);
    check_encoded(v, "ab", true, (int32_t[]){3, 6, -1});
    check_encoded(v, "ab", false, (int32_t[]){6, -1});
    check_encoded(v, "  a", true, (int32_t[]){3, 3, 7, -1});
    vocab_close(v);
    n = build(model, NULL, 0, bpe_squeeze, sizeof bpe_squeeze);
    CHECK_OK(vocab_open(&v, model, n, &why), why);
    CHECK(v->rules.squeeze && v->n_slots == 0);
    check_encoded(v, "  a   a ", true, (int32_t[]){7, 7, -1});
    check_encoded(v, "  a", false, (int32_t[]){4, -1});
    vocab_close(v);
}

/* Without byte pieces a run of unknown characters is one id, also where a long text is cut. */
TEST(spm_model_without_bytes_has_one_unknown_for_a_run) {
    static unsigned char model[8192];
    static char text[9000];
    struct why why = {""};
    struct vocab *v;
    size_t n = build(model, NULL, 0, bpe_plain, sizeof bpe_plain);
    CHECK_OK(vocab_open(&v, model, n, &why), why);
    memset(text, 'z', sizeof text - 2);
    text[sizeof text - 2] = 'a';
    check_encoded(v, text, false, (int32_t[]){0, 4, -1});
    vocab_close(v);
}
