/* Chat templates byte for byte as jinja2 renders them under transformers, for templates of every
 * family, and for what chat_cases.py hands over; what jinja2 refuses is refused. */
#include <jansson.h>
#include <stdlib.h>
#include <time.h>

#include "tests/check.h"
#include "tokenizer/chat.h"

static json_t *load(const char *path) {
    json_t *all = json_load_file(path, 0, NULL);
    if (!all)
        test_skip("%s is not here: run from the repository's root", path);
    return all;
}

static const char *quoted(const char *text, size_t n) {
    return json_dumps(json_stringn(text, n), JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
}

static void check_case(const json_t *templates, const json_t *one) {
    const char *name = json_string_value(json_object_get(one, "template")), *key;
    const json_t *template = json_object_get(templates, name), *want = json_object_get(one, "text");
    struct jinja_variable variables[32];
    struct jinja_limits limits = {1 << 24, 1 << 26, 50000000, time(NULL)};
    struct jinja_text text = {0};
    struct why why = {""};
    struct jinja *j = NULL;
    size_t n = 0;
    json_t *value;
    json_object_foreach(json_object_get(one, "vars"), key, value) {
        variables[n++] = (struct jinja_variable){key, value, strstr(key, "_token") != NULL, "role"};
    }
    err_t e = jinja_compile(&j, json_string_value(template), json_string_length(template), &why);
    if (!e)
        e = jinja_render(j, variables, n, &limits, &text, &why);
    if (e && want)
        test_fail(__FILE__, __LINE__, "%s: %s", name, why.text);
    if (!e && !want)
        test_fail(__FILE__, __LINE__, "%s gave %s where jinja2 says %s", name,
                  quoted(text.text, text.n), json_string_value(json_object_get(one, "error")));
    if (!e && (text.n != json_string_length(want) ||
               memcmp(text.text, json_string_value(want), text.n) != 0))
        test_fail(__FILE__, __LINE__, "%s gave %s, jinja2 %s", name, quoted(text.text, text.n),
                  quoted(json_string_value(want), json_string_length(want)));
    CHECK(e == 0 || why.text[0]);
    jinja_text_free(&text);
    jinja_free(j);
}

static void check_cases(const json_t *all) {
    size_t i;
    json_t *one;
    CHECK(json_array_size(json_object_get(all, "cases")) > 0);
    json_array_foreach(json_object_get(all, "cases"), i, one) {
        check_case(json_object_get(all, "templates"), one);
    }
}

TEST(chat_templates_of_every_family_render_as_jinja2_does) {
    json_t *all = load("tests/golden/chat_cases.json");
    CHECK(json_array_size(json_object_get(all, "cases")) > 100);
    check_cases(all);
    json_decref(all);
}

/* The large comparison: tests/golden/chat_cases.py compare. */
TEST_LIMIT(chat_reference_file, 600) {
    const char *path = getenv("CHAT_CASES");
    if (!path)
        test_skip("run by tests/golden/chat_cases.py compare");
    json_t *all = json_load_file(path, 0, NULL);
    CHECK(all);
    check_cases(all);
    json_decref(all);
}
