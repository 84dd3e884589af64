#include <jansson.h>

#include "server/completions.h"
#include "server/surface.h"
#include "tests/check.h"

#define MP "\"model\":\"m\",\"prompt\":\"x\""

static err_t read(struct params *p, const char *body, const char **field, struct why *why) {
    return params_read(p, &surface_completions, body, strlen(body), field, why);
}

TEST(params_have_the_documented_defaults) {
    struct params p;
    struct why why;
    const char *field;
    CHECK_OK(read(&p, "{" MP "}", &field, &why), why);
    CHECK_STR(p.model, "m");
    CHECK_STR(p.prompt[0].text, "x");
    CHECK_EQ(p.gen.max_tokens, 16);
    CHECK(p.gen.temperature == 1 && p.gen.top_p == 1 && p.gen.min_p == 0);
    CHECK(p.gen.repetition == 1 && p.gen.presence == 0 && p.gen.frequency == 0);
    CHECK_EQ(p.gen.top_k, 0);
    CHECK_EQ(p.gen.n_top, -1);
    CHECK(p.n == 1 && p.best_of == 1 && p.prompt_logprobs == -1);
    CHECK_EQ(params_choices(&p), 1);
    CHECK(!p.stream && !p.echo && !p.seeded && p.add_special_tokens && p.skip_special_tokens);
    params_free(&p);
}

TEST(params_take_every_field) {
    struct params p;
    struct why why;
    const char *field;
    CHECK_OK(read(&p,
                  "{\"model\":\"a:b\",\"prompt\":[[1,2.0,3]],\"max_tokens\":7,\"min_tokens\":2,"
                  "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":-1,\"min_p\":0.125,\"seed\":-3,"
                  "\"presence_penalty\":-2,\"frequency_penalty\":2,\"repetition_penalty\":1.5,"
                  "\"logit_bias\":{\"5\":-100,\"17\":1.5},\"stop\":[\"a\",\"b\\u00e9c\"],"
                  "\"stop_token_ids\":[9],\"ignore_eos\":true,\"logprobs\":20,\"echo\":true,"
                  "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"new\":1},"
                  "\"add_special_tokens\":false,\"include_stop_str_in_output\":true,"
                  "\"skip_special_tokens\":false,\"user\":\"u\",\"n\":1.0,\"best_of\":1,"
                  "\"suffix\":\"\",\"response_format\":{\"type\":\"text\"},\"priority\":3}",
                  &field, &why),
             why);
    CHECK_EQ(p.prompt[0].n_ids, 3);
    CHECK_EQ(p.prompt[0].ids[1], 2);
    CHECK(p.gen.max_tokens == 7 && p.gen.min_tokens == 2 && p.gen.top_k == -1);
    CHECK(p.gen.temperature == 0.5f && p.gen.top_p == 0.25f && p.gen.min_p == 0.125f);
    CHECK(p.gen.presence == -2 && p.gen.frequency == 2 && p.gen.repetition == 1.5f);
    CHECK(p.seeded && p.gen.seed == (uint64_t)-3);
    CHECK_EQ(p.gen.n_bias, 2);
    CHECK(p.gen.bias[0].id == 5 && p.gen.bias[0].bias == -100);
    CHECK_EQ(p.n_stops, 2);
    CHECK_EQ(p.stop[1].n, 4);
    CHECK(p.gen.n_stop_ids == 1 && p.gen.stop_id[0] == 9);
    CHECK(p.gen.ignore_eos && p.gen.n_top == 20 && p.echo && p.gen.prompt_logprobs);
    CHECK(p.stream && p.include_usage && !p.add_special_tokens && p.include_stop);
    CHECK(!p.skip_special_tokens);
    CHECK_EQ(p.n_unknown, 2); /* priority, stream_options.new */
    CHECK_STR(p.ignored, "priority");
    params_free(&p);
}

TEST(params_left_open_are_the_models_own) {
    struct params p;
    struct why why;
    const char *field;
    json_t *generation = json_loads("{\"temperature\":0.6,\"top_p\":0.9,\"top_k\":50,"
                                    "\"repetition_penalty\":-3,\"do_sample\":true,\"echo\":true}",
                                    0, NULL);
    CHECK_OK(read(&p, "{" MP ",\"top_p\":1.0,\"top_k\":null}", &field, &why), why);
    params_apply_defaults(&p, generation);
    CHECK(p.gen.temperature == 0.6f); /* left open */
    CHECK(p.gen.top_p == 1);          /* asked for */
    CHECK_EQ(p.gen.top_k, 50);        /* null is left open */
    CHECK(p.gen.repetition == 1);     /* nothing a request could ask for */
    CHECK(!p.echo);                   /* no matter of the model's */
    params_apply_defaults(&p, NULL);
    params_free(&p);
    json_decref(generation);
}

TEST(params_treat_null_as_absent) {
    struct params p;
    struct why why;
    const char *field;
    CHECK_OK(read(&p,
                  "{" MP ",\"max_tokens\":null,\"temperature\":null,\"stop\":null,\"seed\":null,"
                  "\"logprobs\":null,\"n\":null,\"suffix\":null,\"stream\":null,"
                  "\"stream_options\":null,\"logit_bias\":null,\"echo\":null,\"user\":null,"
                  "\"allowed_token_ids\":null}",
                  &field, &why),
             why);
    CHECK_EQ(p.gen.max_tokens, 16);
    CHECK_EQ(p.n_unknown, 0);
    params_free(&p);
}

TEST(params_take_one_prompt_in_any_of_its_four_shapes) {
    static const char *const bodies[] = {
        "{\"model\":\"m\",\"prompt\":\"x\"}", "{\"model\":\"m\",\"prompt\":[\"x\"]}",
        "{\"model\":\"m\",\"prompt\":[1]}", "{\"model\":\"m\",\"prompt\":[[1]]}",
        "{\"model\":\"m\",\"prompt\":\"\"}"};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct params p;
        struct why why;
        const char *field;
        CHECK_OK(read(&p, bodies[i], &field, &why), why);
        CHECK_EQ(p.n_prompts, 1);
        CHECK((p.prompt[0].text != NULL) != (p.prompt[0].ids != NULL));
        params_free(&p);
    }
}

TEST(params_name_the_field_that_is_wrong) {
    static const struct {
        const char *body, *field;
        err_t error;
    } cases[] = {
        {"{\"model\":\"\",\"prompt\":\"x\"}", "model", E_INVAL},
        {"{\"model\":5,\"prompt\":\"x\"}", "model", E_INVAL},
        {"{\"model\":\"m\"}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[[]]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":{}}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":7}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[1,\"a\"]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[-1]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[1.5]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[2147483648]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[true]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[\"a\",[1]]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[[1],\"a\"]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[[1],2]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[[1],[]]}", "prompt", E_INVAL},
        {"{\"model\":\"m\",\"prompt\":[\"a\",null]}", "prompt", E_INVAL},
        {"{" MP ",\"max_tokens\":-1}", "max_tokens", E_INVAL},
        {"{" MP ",\"max_tokens\":1.5}", "max_tokens", E_INVAL},
        {"{" MP ",\"max_tokens\":\"5\"}", "max_tokens", E_INVAL},
        {"{" MP ",\"max_tokens\":true}", "max_tokens", E_INVAL},
        {"{" MP ",\"max_tokens\":3000000000}", "max_tokens", E_INVAL},
        {"{" MP ",\"min_tokens\":17}", "min_tokens", E_INVAL},
        {"{" MP ",\"temperature\":-0.1}", "temperature", E_INVAL},
        {"{" MP ",\"temperature\":2.1}", "temperature", E_INVAL},
        {"{" MP ",\"temperature\":\"hot\"}", "temperature", E_INVAL},
        {"{" MP ",\"top_p\":1.1}", "top_p", E_INVAL},
        {"{" MP ",\"top_k\":-2}", "top_k", E_INVAL},
        {"{" MP ",\"min_p\":-1}", "min_p", E_INVAL},
        {"{" MP ",\"presence_penalty\":3}", "presence_penalty", E_INVAL},
        {"{" MP ",\"frequency_penalty\":-3}", "frequency_penalty", E_INVAL},
        {"{" MP ",\"repetition_penalty\":0}", "repetition_penalty", E_INVAL},
        {"{" MP ",\"logit_bias\":[]}", "logit_bias", E_INVAL},
        {"{" MP ",\"logit_bias\":{\"a\":1}}", "logit_bias", E_INVAL},
        {"{" MP ",\"logit_bias\":{\"-1\":1}}", "logit_bias", E_INVAL},
        {"{" MP ",\"logit_bias\":{\"1\":101}}", "logit_bias", E_INVAL},
        {"{" MP ",\"logit_bias\":{\"1\":null}}", "logit_bias", E_INVAL},
        {"{" MP ",\"stop\":\"\"}", "stop", E_INVAL},
        {"{" MP ",\"stop\":[1]}", "stop", E_INVAL},
        {"{" MP ",\"stop\":{}}", "stop", E_INVAL},
        {"{" MP ",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\","
         "\"c\",\"d\",\"e\",\"f\",\"g\",\"h\"]}",
         "stop", E_INVAL},
        {"{" MP ",\"stop_token_ids\":3}", "stop_token_ids", E_INVAL},
        {"{" MP ",\"stop_token_ids\":[-3]}", "stop_token_ids", E_INVAL},
        {"{" MP ",\"logprobs\":-1}", "logprobs", E_INVAL},
        {"{" MP ",\"logprobs\":21}", "logprobs", E_INVAL},
        {"{" MP ",\"logprobs\":true}", "logprobs", E_INVAL},
        {"{" MP ",\"seed\":\"1\"}", "seed", E_INVAL},
        {"{" MP ",\"echo\":1}", "echo", E_INVAL},
        {"{" MP ",\"stream\":\"true\"}", "stream", E_INVAL},
        {"{" MP ",\"stream_options\":{}}", "stream_options", E_INVAL},
        {"{" MP ",\"stream\":true,\"stream_options\":3}", "stream_options", E_INVAL},
        {"{" MP ",\"stream\":true,\"stream_options\":{\"include_usage\":3}}", "stream_options",
         E_INVAL},
        {"{" MP ",\"ignore_eos\":0}", "ignore_eos", E_INVAL},
        {"{" MP ",\"user\":5}", "user", E_INVAL},
        {"{" MP ",\"n\":0}", "n", E_INVAL},
        {"{" MP ",\"n\":129}", "n", E_INVAL},
        {"{" MP ",\"n\":true}", "n", E_INVAL},
        {"{" MP ",\"best_of\":0}", "best_of", E_INVAL},
        {"{" MP ",\"n\":3,\"best_of\":2}", "best_of", E_INVAL},
        {"{" MP ",\"best_of\":2,\"stream\":true}", "best_of", E_INVAL},
        {"{" MP ",\"prompt_logprobs\":1,\"stream\":true}", "prompt_logprobs", E_UNSUPPORTED},
        {"{" MP ",\"prompt_logprobs\":21}", "prompt_logprobs", E_INVAL},
        {"{" MP ",\"suffix\":\"s\"}", "suffix", E_UNSUPPORTED},
        {"{" MP ",\"use_beam_search\":true}", "use_beam_search", E_UNSUPPORTED},
        {"{" MP ",\"response_format\":{\"type\":\"json_object\"}}", "response_format",
         E_UNSUPPORTED},
        {"{" MP ",\"allowed_token_ids\":[1]}", "allowed_token_ids", E_UNSUPPORTED},
        {"{" MP ",\"bad_words\":[\"a\"]}", "bad_words", E_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct params p;
        struct why why = {""};
        const char *field = NULL;
        err_t e = read(&p, cases[i].body, &field, &why);
        if (e != cases[i].error || !field || strcmp(field, cases[i].field) != 0 ||
            !strstr(why.text, cases[i].field))
            test_fail(__FILE__, __LINE__, "%s gives %s, field %s: %s", cases[i].body, err_code(e),
                      field ? field : "(none)", why.text);
    }
}

TEST(params_refuse_what_is_no_json_object) {
    static const char *const bodies[] = {"",
                                         "[]",
                                         "null",
                                         "\"a\"",
                                         "{",
                                         "{" MP "} x",
                                         "{" MP ",}",
                                         "{'model':1}",
                                         "\xff",
                                         "{\"a\":1e999}",
                                         "{\"model\":\"m\",\"model\":\"n\",\"prompt\":\"x\"}",
                                         "{\"model\":\"\xc3\x28\",\"prompt\":\"x\"}",
                                         "{\"seed\":99999999999999999999}"};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct params p;
        struct why why;
        const char *field;
        if (read(&p, bodies[i], &field, &why) != E_JSON)
            test_fail(__FILE__, __LINE__, "%s passes", bodies[i]);
    }
}

static void check_bomb(const char *unit, size_t n_bytes, const char *head, const char *tail) {
    size_t n = 0, n_unit = strlen(unit);
    char *body = malloc(strlen(head) + n_bytes + n_unit + strlen(tail) + 1);
    n += (size_t)sprintf(body, "%s", head);
    while (n < n_bytes)
        n += (size_t)sprintf(body + n, "%s", unit);
    n += (size_t)sprintf(body + n, "%s", tail);
    struct params p;
    struct why why;
    const char *field;
    err_t e = read(&p, body, &field, &why);
    if (e != E_JSON)
        test_fail(__FILE__, __LINE__, "a bomb of %s gives %s: %s", unit, err_code(e), why.text);
    free(body);
}

TEST(params_stop_json_bombs_before_they_grow) {
    check_bomb("{},", 4 << 20, "{\"a\":[", "1]}");
    check_bomb("[],", 4 << 20, "{\"a\":[", "1]}");
    check_bomb("[", 1 << 20, "{\"a\":", "]}");
    check_bomb("{\"a\":", 1 << 20, "", "1}");
    check_bomb("1,", 4 << 20, "{\"model\":\"m\",\"prompt\":[", "1]}");
}

TEST(params_take_several_prompts_and_answers) {
    static const char *const prompts[] = {"[\"a\",\"\",\"c\"]", "[[1],[2,3],[4.0]]"};
    for (int i = 0; i < 2; i++) {
        char body[256];
        struct params p;
        struct why why;
        const char *field;
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":%s,\"n\":2,\"best_of\":5}",
                 prompts[i]);
        CHECK_OK(read(&p, body, &field, &why), why);
        CHECK_EQ(p.n_prompts, 3);
        CHECK_EQ(params_choices(&p), 15);
        CHECK_EQ(p.gen.n_top, 0); /* to rank by */
        CHECK_EQ(p.n_logprobs, -1);
        CHECK_EQ(p.prompt[1].n_ids, i ? 2 : 0);
        params_free(&p);
    }
}
