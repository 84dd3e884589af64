#include <jansson.h>

#include "server/completions.h"
#include "server/reply.h"
#include "server/surface.h"
#include "tests/check.h"

struct fixture {
    struct tokenizer *t;
    struct params p;
    struct reply r;
    int32_t *prompt, n_prompt;
    char streamed[65536]; /* the texts of the chunks, joined */
};

/* A reply to `body` with the base's tokenizer. */
static void open_fixture(struct fixture *f, const char *body) {
    struct why why = {""};
    const char *field;
    memset(f, 0, sizeof *f);
    CHECK_OK(tokenizer_open(&f->t, test_model("base"), &why), why);
    CHECK_OK(params_read(&f->p, &surface_completions, body, strlen(body), &field, &why), why);
    struct prompt *prompt = &f->p.prompt[0];
    for (int i = 0; i < f->p.n_prompts; i++)
        if (f->p.prompt[i].text)
            CHECK_OK(tokenizer_encode(f->t, f->p.prompt[i].text, f->p.prompt[i].n_text,
                                      ENCODE_SPECIAL_TOKENS, 1 << 20, 1 << 20, &f->p.prompt[i].ids,
                                      &f->p.prompt[i].n_ids, &why),
                     why);
    f->prompt = prompt->ids;
    f->n_prompt = prompt->n_ids;
    struct reply_names names = {"cmpl-1", "m", "bd-0-1", 1};
    CHECK_EQ(reply_init(&f->r, &surface_completions, &f->p, f->t, &names), E_OK);
}

static void close_fixture(struct fixture *f) {
    reply_free(&f->r);
    params_free(&f->p);
    tokenizer_close(f->t);
}

static void take_stream(struct fixture *f) {
    struct buf out;
    buf_init(&out, 1 << 20);
    CHECK_EQ(reply_stream(&f->r, 0, &out), E_OK);
    buf_add(&out, "", 1);
    for (char *line = strtok(out.data, "\n"); line; line = strtok(NULL, "\n")) {
        CHECK(strncmp(line, "data: ", 6) == 0);
        json_t *chunk = json_loads(line + 6, 0, NULL);
        const char *text = json_string_value(
            json_object_get(json_array_get(json_object_get(chunk, "choices"), 0), "text"));
        if (text)
            strcat(f->streamed, text);
        json_decref(chunk);
    }
    buf_free(&out);
}

/* Feeds the ids of `text` (as a continuation) one by one, then the end. */
static void generate(struct fixture *f, const int32_t *ids, int32_t n) {
    for (int32_t i = 0; i < n && !f->r.choices[0].done; i++) {
        struct gen_event event = {.kind = GEN_TOKEN,
                                  .token = ids[i],
                                  .logprob = -0.5f,
                                  .n_top = 2,
                                  .top_id = {ids[i], 5},
                                  .top_logprob = {-0.5f, -1.5f}};
        CHECK_EQ(reply_event(&f->r, 0, &event), E_OK);
        if (f->p.stream)
            take_stream(f);
    }
    struct gen_event end = {.kind = GEN_DONE, .finish = GEN_LENGTH, .token = -1};
    if (!f->r.choices[0].done) {
        CHECK_EQ(reply_event(&f->r, 0, &end), E_OK);
        if (f->p.stream)
            take_stream(f);
    }
}

static int32_t encode(const struct fixture *f, const char *text, int32_t **ids) {
    struct why why;
    int32_t n = 0;
    CHECK_OK(tokenizer_encode(f->t, text, strlen(text), 0, 1 << 20, 1 << 20, ids, &n, &why), why);
    return n;
}

static json_t *whole(struct fixture *f) {
    struct buf out;
    buf_init(&out, 1 << 20);
    CHECK_EQ(reply_whole(&f->r, &out), E_OK);
    json_t *tree = json_loadb(out.data, out.n, JSON_REJECT_DUPLICATES, NULL);
    if (!tree)
        test_fail(__FILE__, __LINE__, "not JSON: %.*s", (int)out.n, out.data);
    buf_free(&out);
    return tree;
}

static json_t *choice(json_t *tree, const char *name) {
    return json_object_get(json_array_get(json_object_get(tree, "choices"), 0), name);
}

/* Texts that need several byte pieces, and every prefix of a stop string on the way. */
static const char *const texts[] = {
    "The quick brown fox jumps over the lazy dog",
    "h\xc3\xa9llo \xe4\xb8\x96\xe7\x95\x8c \xf0\x9f\x8e\x89 caf\xc3\xa9 na\xc3\xafve",
    "one\ntwo\n\nthree\n\n\nfour",
    "abababababac abab",
};

TEST(reply_streamed_text_equals_whole_text) {
    static const char *const stops[] = {"[]",
                                        "[\"abac\"]",
                                        "[\"\\n\\n\"]",
                                        "[\"fox jumps\"]",
                                        "[\"\\ud83c\\udf89 \"]",
                                        "[\"zz\",\"dog\",\"lazy\"]"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (size_t k = 0; k < sizeof stops / sizeof *stops; k++) {
            char body[512];
            struct fixture a, b;
            int32_t *ids = NULL;
            snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"go\",\"stop\":%s}",
                     stops[k]);
            open_fixture(&a, body);
            int32_t n = encode(&a, texts[i], &ids);
            generate(&a, ids, n);
            snprintf(body, sizeof body,
                     "{\"model\":\"m\",\"prompt\":\"go\",\"stream\":true,\"stop\":%s}", stops[k]);
            open_fixture(&b, body);
            generate(&b, ids, n);
            json_t *tree = whole(&a);
            CHECK_STR(b.streamed, json_string_value(choice(tree, "text")));
            CHECK_STR(json_string_value(choice(tree, "finish_reason")),
                      b.r.choices[0].finish_reason);
            CHECK_EQ(a.r.choices[0].n_completion, b.r.choices[0].n_completion);
            json_decref(tree);
            free(ids);
            close_fixture(&a);
            close_fixture(&b);
        }
}

TEST(reply_cuts_at_the_stop_string_wherever_tokens_end) {
    struct fixture f;
    int32_t *ids = NULL;
    open_fixture(&f, "{\"model\":\"m\",\"prompt\":\"go\",\"stop\":[\"x jumps ov\"]}");
    int32_t n = encode(&f, texts[0], &ids);
    generate(&f, ids, n);
    json_t *tree = whole(&f);
    CHECK_STR(json_string_value(choice(tree, "text")), " The quick brown fo");
    CHECK_STR(json_string_value(choice(tree, "finish_reason")), "stop");
    CHECK_STR(json_string_value(choice(tree, "stop_reason")), "x jumps ov");
    CHECK((int32_t)f.r.choices[0].n_completion < n);
    json_decref(tree);
    close_fixture(&f);

    open_fixture(&f, "{\"model\":\"m\",\"prompt\":\"go\",\"stop\":[\"x jumps ov\"],"
                     "\"include_stop_str_in_output\":true}");
    generate(&f, ids, n);
    tree = whole(&f);
    CHECK_STR(json_string_value(choice(tree, "text")), " The quick brown fox jumps ov");
    json_decref(tree);
    close_fixture(&f);
    free(ids);
}

TEST(reply_echo_with_logprobs_has_the_shape_that_harnesses_read) {
    struct fixture f;
    open_fixture(&f, "{\"model\":\"m\",\"prompt\":[1,300,400,500],\"echo\":true,\"logprobs\":1,"
                     "\"max_tokens\":1,\"temperature\":0}");
    for (int32_t i = 1; i < f.n_prompt; i++) {
        struct gen_event event = {.kind = GEN_PROMPT,
                                  .token = f.prompt[i],
                                  .n_top = 1,
                                  .logprob = -0.1f * (float)i,
                                  .top_id = {77},
                                  .top_logprob = {-0.05f}};
        CHECK_EQ(reply_event(&f.r, 0, &event), E_OK);
    }
    /* The one token is the end of the text: still exactly one entry. */
    struct gen_event end = {.kind = GEN_DONE,
                            .finish = GEN_STOP,
                            .token = 2,
                            .logprob = -0.3f,
                            .n_top = 1,
                            .top_id = {2},
                            .top_logprob = {-0.3f}};
    CHECK_EQ(reply_event(&f.r, 0, &end), E_OK);
    json_t *tree = whole(&f), *logprobs = choice(tree, "logprobs");
    json_t *token_logprobs = json_object_get(logprobs, "token_logprobs");
    json_t *top = json_object_get(logprobs, "top_logprobs");
    CHECK_EQ(json_array_size(token_logprobs), 5);
    CHECK_EQ(json_array_size(top), 5);
    CHECK_EQ(json_array_size(json_object_get(logprobs, "tokens")), 5);
    CHECK_EQ(json_array_size(json_object_get(logprobs, "text_offset")), 5);
    CHECK(json_is_null(json_array_get(token_logprobs, 0)));
    CHECK(json_is_null(json_array_get(top, 0)));
    for (size_t i = 1; i < 5; i++) {
        double own = json_real_value(json_array_get(token_logprobs, i)), best = -1e9;
        const char *key;
        json_t *v;
        json_object_foreach(json_array_get(top, i), key, v) best =
            json_real_value(v) > best ? json_real_value(v) : best;
        CHECK((own == best) == (i == 4)); /* how harnesses decide "greedy" */
    }
    json_t *usage = json_object_get(tree, "usage");
    CHECK_EQ(json_integer_value(json_object_get(usage, "prompt_tokens")), 4);
    CHECK_EQ(json_integer_value(json_object_get(usage, "completion_tokens")), 1);
    json_decref(tree);
    close_fixture(&f);
}

TEST(reply_writes_minus_infinity_as_a_number) {
    struct fixture f;
    open_fixture(&f, "{\"model\":\"m\",\"prompt\":\"a\",\"logprobs\":0}");
    struct gen_event event = {.kind = GEN_TOKEN, .token = 300, .logprob = -1.0f / 0.0f};
    CHECK_EQ(reply_event(&f.r, 0, &event), E_OK);
    struct gen_event end = {.kind = GEN_DONE, .finish = GEN_LENGTH, .token = -1};
    CHECK_EQ(reply_event(&f.r, 0, &end), E_OK);
    json_t *tree = whole(&f);
    json_t *list = json_object_get(choice(tree, "logprobs"), "token_logprobs");
    CHECK(json_real_value(json_array_get(list, 0)) == -9999.0);
    json_decref(tree);
    close_fixture(&f);
}

TEST(reply_counts_text_offsets_in_characters) {
    struct fixture f;
    int32_t *ids = NULL;
    open_fixture(&f, "{\"model\":\"m\",\"prompt\":\"caf\xc3\xa9\",\"echo\":true,\"logprobs\":0}");
    for (int32_t i = 1; i < f.n_prompt; i++)
        CHECK_EQ(
            reply_event(&f.r, 0, &(struct gen_event){.kind = GEN_PROMPT, .token = f.prompt[i]}),
            E_OK);
    int32_t n = encode(&f, "\xe4\xb8\x96 x", &ids);
    generate(&f, ids, n);
    json_t *tree = whole(&f), *logprobs = choice(tree, "logprobs");
    json_t *offsets = json_object_get(logprobs, "text_offset");
    CHECK_STR(json_string_value(choice(tree, "text")), "caf\xc3\xa9 \xe4\xb8\x96 x");
    CHECK_EQ(json_integer_value(json_array_get(offsets, 0)), 0);
    CHECK_EQ(json_integer_value(json_array_get(offsets, (size_t)f.n_prompt)), 4);
    CHECK_EQ(json_integer_value(json_array_get(offsets, json_array_size(offsets) - 1)), 6);
    json_decref(tree);
    close_fixture(&f);
    free(ids);
}
