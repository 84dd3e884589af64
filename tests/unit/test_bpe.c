/* Properties of tokenizers from tokenizer.json: work that grows with the text alone; parts that are
 * not supported are named; a tenant adds tokens as with SentencePiece; what a user wrote never
 * becomes markup; characters come out whole. */
#include "tokenizer/bpe.h"

#include <sys/stat.h>

#include "config/utf8.h"
#include "tests/check.h"
#include "tokenizer/tokenizer.h"

#define FOLDER "tests/golden/tokenizers/"

static json_t *tree_of(const char *name) {
    char path[256];
    snprintf(path, sizeof path, FOLDER "%s/tokenizer.json", name);
    json_t *root = json_load_file(path, 0, NULL);
    if (!root)
        test_skip("%s is not here: run from the repository's root", path);
    return root;
}

static struct tokenizer *open_family(const char *name) {
    struct tokenizer *t;
    struct why why = {""};
    char path[256];
    json_decref(tree_of(name));
    snprintf(path, sizeof path, FOLDER "%s", name);
    CHECK_OK(tokenizer_open(&t, path, &why), why);
    return t;
}

/* Steps a byte for a pattern repeated to n bytes. */
static double work_of(const struct bpe *b, const char *pattern, size_t n) {
    size_t length = strlen(pattern);
    uint64_t work = 0;
    char *text = malloc(n);
    CHECK(text != NULL);
    n -= n % length;
    for (size_t i = 0; i < n; i++)
        text[i] = pattern[i % length];
    struct sp_ids ids = {.cap_max = 2 * n + 16};
    CHECK_EQ(bpe_encode(b, text, n, true, NULL, &ids, &work), 0);
    free(ids.v);
    free(text);
    return (double)work / (double)n;
}

TEST(bpe_work_grows_with_the_text_however_it_is_made) {
    static const char *const names[] = {"gpt2", "smollm2", "llama3", "tekken", "llama2"};
    static const char *const patterns[] = {"a",
                                           " ",
                                           "ab",
                                           "A",
                                           "aA",
                                           "!",
                                           "\n ",
                                           "\xcc\x81",
                                           "th",
                                           "1",
                                           "the cat sat. ",
                                           "\xf0\x9f\x99\x82"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct bpe *b;
        struct why why = {""};
        json_t *root = tree_of(names[i]);
        CHECK_OK(bpe_open(&b, root, &why), why);
        json_decref(root);
        for (size_t k = 0; k < sizeof patterns / sizeof patterns[0]; k++) {
            double small = work_of(b, patterns[k], 1 << 13), big = work_of(b, patterns[k], 1 << 18);
            /* One word of 32 times the length: log n grows by 5 steps; quadratic, by thousands. */
            if (big > 2 * small + 24)
                test_fail(__FILE__, __LINE__, "%s, '%s' repeated: %.1f steps a byte, %.1f before",
                          names[i], patterns[k], big, small);
        }
        bpe_close(b);
    }
}

/* Opens llama3's tree with one member replaced by JSON. */
static void check_refused(const char *family, const char *member, const char *json,
                          const char *sentence) {
    struct bpe *b;
    struct why why = {""};
    json_t *root = tree_of(family), *part = json_loads(json, JSON_DECODE_ANY, NULL);
    CHECK(part != NULL);
    if (strncmp(member, "model.", 6) == 0)
        json_object_set_new(json_object_get(root, "model"), member + 6, part);
    else
        json_object_set_new(root, member, part);
    err_t e = bpe_open(&b, root, &why);
    CHECK(e == E_UNSUPPORTED || e == E_FORMAT);
    CHECK_HAS(why.text, sentence);
    json_decref(root);
}

TEST(bpe_names_the_component_that_it_does_not_know) {
    check_refused("llama3", "normalizer", "{\"type\": \"NFC\"}", "normalizer 'NFC'");
    check_refused("llama3", "normalizer",
                  "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}",
                  "normalizer 'Lowercase'");
    check_refused("llama3", "pre_tokenizer", "{\"type\": \"Whitespace\"}",
                  "pre-tokenizer 'Whitespace'");
    check_refused("llama3", "pre_tokenizer",
                  "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\w+\"}, \"behavior\": "
                  "\"Isolated\"}",
                  "the pattern '\\w+'");
    check_refused("llama3", "decoder", "{\"type\": \"WordPiece\"}", "decoder 'WordPiece'");
    check_refused("llama3", "decoder", "null", "decoder 'null'");
    check_refused("llama3", "model.type", "\"Unigram\"", "model 'Unigram'");
    check_refused("llama3", "model.dropout", "0.1", "dropout");
    check_refused("llama3", "model.end_of_word_suffix", "\"</w>\"", "end_of_word_suffix");
    check_refused("llama3", "model.merges", "[[\"a\", \"qqq\"]]", "merge 0 ('a' and 'qqq')");
    check_refused("llama3", "model.merges", "[\"a b c\"]", "merge 0 is not a pair");
    check_refused("llama3", "model.vocab", "{\"a\": 0, \"b\": 0}", "two pieces have the id 0");
    check_refused("llama3", "model.vocab", "{\"a\": 0}", "1 of the 256 bytes");
    check_refused("llama3", "model.vocab", "{\"a\": 9999999}", "wide gaps");
    check_refused("llama2", "model.unk_token", "\"none\"", "unk_token 'none'");
}

TEST(bpe_model_hash_is_of_what_the_file_says_not_of_how) {
    struct bpe *b[3];
    struct why why = {""};
    size_t i;
    json_t *root = tree_of("gpt2"), *merge, *model = json_object_get(root, "model");
    CHECK_OK(bpe_open(&b[0], root, &why), why);
    json_t *pairs = json_array(); /* merges in the other spelling */
    json_array_foreach(json_object_get(model, "merges"), i, merge) {
        const char *text = json_string_value(merge);
        if (!text) {
            char both[64];
            snprintf(both, sizeof both, "%s %s", json_string_value(json_array_get(merge, 0)),
                     json_string_value(json_array_get(merge, 1)));
            json_array_append_new(pairs, json_string(both));
        } else {
            json_array_append_new(
                pairs, json_pack("[s%s]", text, (int)strcspn(text, " "), strchr(text, ' ') + 1));
        }
    }
    json_object_set(model, "merges", pairs);
    CHECK_OK(bpe_open(&b[1], root, &why), why);
    CHECK_STR(b[0]->hash, b[1]->hash);
    json_array_remove(pairs, json_array_size(pairs) - 1);
    CHECK_OK(bpe_open(&b[2], root, &why), why);
    CHECK(strcmp(b[0]->hash, b[2]->hash) != 0);
    for (i = 0; i < 3; i++)
        bpe_close(b[i]);
    json_decref(pairs);
    json_decref(root);
}

static void encode(const struct tokenizer *t, const char *text, const unsigned char *trusted,
                   unsigned flags, int32_t **ids, int32_t *n) {
    struct why why = {""};
    CHECK_OK(tokenizer_encode_mixed(t, text, trusted, strlen(text), flags, 1 << 20, 1 << 20, ids, n,
                                    &why),
             why);
}

static int count_id(const int32_t *ids, int32_t n, int32_t id) {
    int found = 0;
    for (int32_t i = 0; i < n; i++)
        found += ids[i] == id;
    return found;
}

TEST(bpe_tenant_adds_tokens_and_the_base_stays) {
    struct tokenizer *base = open_family("llama3"), *t;
    struct why why = {""};
    int32_t vocab = tokenizer_facts(base)->pieces, *ids, n;
    char json[512];
    snprintf(
        json, sizeof json,
        "{\"added_tokens\": [{\"id\": %d, \"content\": \"<|tenant|>\", \"special\": true}, "
        "{\"id\": %d, \"content\": \"<|begin_of_text|>\", \"special\": true}],"
        " \"eos_token\": \"<|tenant|>\", \"pad_token\": \"<|tenant|>\", \"chat_template\": \"x\"}",
        vocab + 40, tokenizer_special_id(base, "<|begin_of_text|>"));
    CHECK_OK(tokenizer_extend(&t, base, json, vocab + 41, &why), why);
    CHECK_EQ(tokenizer_special_id(t, "<|tenant|>"), vocab + 40);
    CHECK_EQ(tokenizer_special_id(base, "<|tenant|>"), -1);
    CHECK_EQ(tokenizer_facts(t)->eos_id, vocab + 40);
    CHECK_EQ(tokenizer_facts(t)->pad_id, vocab + 40);
    CHECK_EQ(tokenizer_facts(base)->pad_id, -1);
    encode(t, "a<|tenant|>b", NULL, ENCODE_PARSE_SPECIAL, &ids, &n);
    CHECK_EQ(count_id(ids, n, vocab + 40), 1);
    free(ids);
    encode(t, "a<|tenant|>b", NULL, 0, &ids, &n);
    CHECK_EQ(count_id(ids, n, vocab + 40), 0);
    free(ids);
    tokenizer_close(t);
    CHECK_EQ(tokenizer_extend(&t, base, json, vocab + 40, &why), E_FORMAT); /* outside */
    CHECK_EQ(tokenizer_extend(&t, base, "{\"model_hash\": \"00\"}", vocab, &why), E_WRONG_BASE);
    CHECK_HAS(why.text, "another tokenizer model");
    tokenizer_close(base);
}

TEST(bpe_additions_of_a_folder_make_the_same_tenant) {
    struct tokenizer *base = open_family("llama3"), *t;
    struct why why = {""};
    char *json;
    CHECK_OK(tokenizer_additions(FOLDER "llama3", &json, &why), why);
    CHECK_OK(tokenizer_extend(&t, base, json, 1 << 20, &why), why);
    int32_t *ids[2], n[2];
    for (int i = 0; i < 2; i++)
        encode(i ? t : base, "It's <|left|> 12345 <tool>", NULL,
               ENCODE_PARSE_SPECIAL | ENCODE_SPECIAL_TOKENS, &ids[i], &n[i]);
    CHECK_EQ(n[0], n[1]);
    CHECK(memcmp(ids[0], ids[1], (size_t)n[0] * sizeof *ids[0]) == 0);
    CHECK_EQ(ids[0][0], tokenizer_special_id(base, "<|begin_of_text|>"));
    free(ids[0]);
    free(ids[1]);
    tokenizer_close(t);
    free(json);
    CHECK_OK(tokenizer_additions(FOLDER "gpt2", &json, &why), why);
    CHECK_EQ(tokenizer_extend(&t, base, json, 1 << 20, &why), E_WRONG_BASE);
    free(json);
    tokenizer_close(base);
}

/* The model of tekken has [INST] among its pieces: with or without merges, text may not become it;
 * nor where half of the marker came from the template and half from a user. */
TEST(bpe_markup_is_found_only_where_all_of_it_is_trusted) {
    static const char *const families[] = {"tekken", "gpt2", "llama2", "llama3"};
    static const char *const markers[] = {"[INST]", "<|endoftext|>", "</s>", "<|eot_id|>"};
    for (size_t f = 0; f < sizeof families / sizeof families[0]; f++) {
        struct tokenizer *t = open_family(families[f]);
        int32_t id = tokenizer_special_id(t, markers[f]), *ids, n;
        char text[128];
        unsigned char trusted[128];
        CHECK(id >= 0);
        snprintf(text, sizeof text, "%sa %s%s", markers[f], markers[f], markers[f]);
        size_t length = strlen(text), marker = strlen(markers[f]);
        for (size_t cut = 0; cut <= marker; cut++) {
            memset(trusted, 1, length);
            memset(trusted + marker, 0, 2 + marker + cut); /* the user's: the second, and more */
            encode(t, text, trusted, ENCODE_PARSE_SPECIAL, &ids, &n);
            CHECK_EQ(count_id(ids, n, id), cut == 0 ? 2 : 1);
            char *out;
            size_t n_out;
            CHECK_EQ(tokenizer_decode(t, ids, n, false, &out, &n_out), 0);
            if (strcmp(families[f], "llama2") != 0) /* there, markup takes a space behind it */
                CHECK_STR(out, text);
            free(out);
            free(ids);
        }
        tokenizer_close(t);
    }
}

/* What is trusted throughout, or benign, has the ids of the text as a whole. */
TEST(bpe_trust_changes_no_id_of_a_benign_text) {
    static const char text[] = "<|eot_id|>\n\nHello wor"
                               "ld, it's 12"
                               "345\n <|eot_id|>";
    struct tokenizer *t = open_family("llama3");
    int32_t *want, *ids, n_want, n;
    unsigned char trusted[sizeof text];
    encode(t, text, NULL, ENCODE_PARSE_SPECIAL, &want, &n_want);
    for (size_t from = 10; from <= sizeof text - 11; from++) {
        memset(trusted, 1, sizeof text);
        memset(trusted + from, 0, sizeof text - 11 - from);
        encode(t, text, trusted, ENCODE_PARSE_SPECIAL, &ids, &n);
        CHECK_EQ(n, n_want);
        CHECK(memcmp(ids, want, (size_t)n * sizeof *ids) == 0);
        free(ids);
    }
    free(want);
    tokenizer_close(t);
}

TEST(bpe_stream_gives_whole_characters_and_one_mark_for_a_broken_one) {
    struct tokenizer *t = open_family("llama3");
    int32_t byte[256], *ids, n;
    for (int32_t id = 0; id < tokenizer_facts(t)->pieces; id++) {
        size_t length;
        const char *piece = tokenizer_piece(t, id, &length);
        if (piece && length == 1)
            byte[(unsigned char)piece[0]] = id;
    }
    static const struct {
        const char *bytes, *want;
    } cases[] = {
        {"\xf0\x9f\x99\x82!", "\xf0\x9f\x99\x82!"},
        {"\xf0\x9f\x99!", UTF8_REPLACEMENT_TEXT "!"}, /* one broken character */
        {"\xf0\x9f\xf0\x9f\x99\x82", UTF8_REPLACEMENT_TEXT "\xf0\x9f\x99\x82"},
        {"\x80\x80"
         "a",
         UTF8_REPLACEMENT_TEXT UTF8_REPLACEMENT_TEXT "a"},
        {"\xe2\x82", UTF8_REPLACEMENT_TEXT},
        {"\xed\xa0\x80", UTF8_REPLACEMENT_TEXT UTF8_REPLACEMENT_TEXT UTF8_REPLACEMENT_TEXT},
        {" a", " a"}, /* no space is dropped */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct detok d;
        char out[8 * DETOK_MAX_BYTES];
        size_t used = 0;
        detok_init(&d, t, true, false);
        for (const char *p = cases[i].bytes; *p; p++) {
            size_t got = detok_push(&d, byte[(unsigned char)*p], out + used);
            CHECK_EQ(utf8_valid_prefix(out + used, got), got);
            used += got;
        }
        used += detok_flush(&d, out + used);
        out[used] = 0;
        CHECK_STR(out, cases[i].want);
    }
    encode(t, "\xf0\x9f\x99\x82", NULL, 0, &ids, &n);
    CHECK(n > 1 && tokenizer_is_byte(t, ids[0]));
    free(ids);
    tokenizer_close(t);
}
