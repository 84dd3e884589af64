/* Any bytes as a chat template (first byte even), or as a user's message in a template that turns
 * it about: a refusal with a sentence, or a rendering within its bounds, whole characters, whose
 * trusted bytes were not the user's. */
#include <stdint.h>

#include "config/utf8.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"
#include "tokenizer/jinja.h"

void fuzz_chat(const uint8_t *data, size_t n);

static const struct jinja_limits limits = {1 << 16, 1 << 22, 200000, 0};

static void render(const char *template, size_t n, const json_t *messages, bool digits_are_data) {
    struct jinja *j;
    struct jinja_text text;
    struct why why = {{0}};
    json_t *eos = json_string("</s>");
    const struct jinja_variable v[] = {{"messages", messages, false, "role"},
                                       {"eos_token", eos, true, NULL}};
    err_t e = jinja_compile(&j, template, n, &why);
    if (!e) {
        (void)jinja_loops_over(j, "content");
        e = jinja_render(j, v, 2, &limits, &text, &why);
        jinja_free(j);
    }
    json_decref(eos);
    if (e && !why.text[0])
        abort();
    if (e)
        return;
    if (text.n > limits.max_output || utf8_valid_prefix(text.text, text.n) != text.n)
        abort();
    for (size_t i = 0; digits_are_data && i < text.n; i++)
        if (text.text[i] >= '0' && text.text[i] <= '9' && text.trusted[i])
            abort();
    jinja_text_free(&text);
}

void fuzz_chat(const uint8_t *data, size_t n) {
    static const char turns[] =
        "{% for m in messages %}{% set c = m.content %}<{{ c | trim }}|{{ c[::-1] }}|{{ "
        "c.split('a')[-1] ~ 'x' }}|{{ c.replace('b', '<|') | list | join('-') }}|{{ c | tojson "
        "}}|{{ "
        "c | first }}{{ (c ~ '.')[-99:] }}{{ c.strip('ab') * m.role | length }}>{% endfor %}";
    if (n == 0)
        return;
    const char *text = (const char *)data + 1;
    json_t *messages;
    if (data[0] % 2 == 0) {
        messages = json_pack("[{s:s,s:s},{s:s,s:[{s:s,s:s}]}]", "role", "user", "content",
                             " a \"b\" \xc3\xa9 ", "role", "assistant", "content", "type", "text",
                             "text", "c");
        render(text, n - 1, messages, false);
    } else {
        json_t *content = json_stringn(text, n - 1);
        if (!content) /* no UTF-8: no request has it */
            return;
        messages = json_pack("[{s:s,s:o}]", "role", "user", "content", content);
        render(turns, sizeof turns - 1, messages, true);
    }
    json_decref(messages);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_chat(data, n);
    return 0;
}
#else
TEST(fuzz_chat_templates_render_within_bounds) {
    json_t *all = json_load_file("tests/golden/chat_cases.json", 0, NULL), *template;
    const char *name;
    if (!all)
        test_skip("tests/golden/chat_cases.json is not here");
    json_object_foreach(json_object_get(all, "templates"), name, template) {
        char seed[8192];
        int n = snprintf(seed, sizeof seed, "%c%s", 2, json_string_value(template));
        if (n > 0 && (size_t)n < sizeof seed)
            fuzz_mutations("fuzz_chat", fuzz_chat, seed, (size_t)n, 200);
    }
    json_decref(all);
    static const char message[] = "\1 a 12 b\xc3\xa9\" 345 {{ messages }} <|im_end|>\n6 a b ";
    fuzz_mutations("fuzz_chat", fuzz_chat, message, sizeof message - 1, 1000);
}
#endif
