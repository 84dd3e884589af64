/* Ids and texts equal to the reference implementations', for one small tokenizer.json of every
 * published family and for what tokenizer_cases.py hands over. */
#include <jansson.h>
#include <stdlib.h>

#include "tests/check.h"
#include "tokenizer/tokenizer.h"

static struct tokenizer *open_folder(const char *dir) {
    struct tokenizer *t;
    struct why why = {""};
    CHECK_OK(tokenizer_open(&t, dir, &why), why);
    return t;
}

/* [text, ids] or [text, ids, decoded] */
static void check_case(const struct tokenizer *t, const json_t *one, const char *folder) {
    const json_t *text = json_array_get(one, 0), *want = json_array_get(one, 1);
    const char *bytes = json_string_value(text);
    int32_t *ids, n;
    struct why why = {""};
    CHECK_OK(tokenizer_encode(t, bytes, json_string_length(text),
                              ENCODE_PARSE_SPECIAL | ENCODE_SPECIAL_TOKENS, 1 << 24, 1 << 24, &ids,
                              &n, &why),
             why);
    for (int32_t i = 0; i < n || i < (int32_t)json_array_size(want); i++) {
        int32_t have = i < n ? ids[i] : -1;
        json_t *w = json_array_get(want, (size_t)i);
        if (!w || json_integer_value(w) != have)
            test_fail(__FILE__, __LINE__, "%s: id %d of %s is %d, not %lld", folder, i,
                      json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII), have,
                      w ? (long long)json_integer_value(w) : -1);
    }
    const json_t *decoded = json_array_get(one, 2);
    char *out;
    size_t n_out;
    CHECK_EQ(tokenizer_decode(t, ids, n, false, &out, &n_out), 0);
    if (decoded && (n_out != json_string_length(decoded) ||
                    memcmp(out, json_string_value(decoded), n_out) != 0))
        test_fail(__FILE__, __LINE__, "%s: the ids of %s decode to %s", folder,
                  json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII),
                  json_dumps(json_stringn(out, n_out), JSON_ENCODE_ANY | JSON_ENSURE_ASCII));
    free(out);
    free(ids);
}

static void check_cases(const char *folder, const json_t *cases) {
    size_t i;
    json_t *one;
    struct tokenizer *t = open_folder(folder);
    CHECK(json_array_size(cases) > 0);
    json_array_foreach(cases, i, one) {
        check_case(t, one, folder);
    }
    tokenizer_close(t);
}

TEST(tokenizer_json_of_every_family_gives_the_reference_ids) {
    json_t *all = json_load_file("tests/golden/tokenizers/cases.json", 0, NULL), *cases;
    const char *name;
    if (!all)
        test_skip("tests/golden/tokenizers/cases.json is not here: run from the repository's root");
    CHECK(json_object_size(all) >= 8);
    json_object_foreach(all, name, cases) {
        char folder[256];
        snprintf(folder, sizeof folder, "tests/golden/tokenizers/%s", name);
        check_cases(folder, cases);
    }
    json_decref(all);
}

/* The large comparison: tests/golden/tokenizer_cases.py compare. */
TEST_LIMIT(tokenizer_reference_file, 600) {
    const char *path = getenv("TOKENIZER_CASES");
    if (!path)
        test_skip("run by tests/golden/tokenizer_cases.py compare");
    json_t *all = json_load_file(path, 0, NULL);
    CHECK(all);
    check_cases(json_string_value(json_object_get(all, "folder")), json_object_get(all, "cases"));
    json_decref(all);
}
