/* Several choices of one request: they are what single requests would have given, come in one
 * reply, and go together. */
#include <signal.h>
#include <unistd.h>

#include "tests/e2e/client.h"

#define RUNNING "vllm:num_requests_running{model_name=\"base\",engine=\"0\"}"
#define PAGES "bitdeltad_kv_pages_used"

static json_t *complete(const struct daemon *d, const char *fields) {
    char body[4096];
    snprintf(body, sizeof body, "{\"model\":\"base\",%s}", fields);
    return client_json(d, "/v1/completions", body);
}

static json_t *choice(json_t *reply, int i) {
    char path[32];
    snprintf(path, sizeof path, "choices.%d", i);
    return at(reply, path);
}

TEST(choices_of_a_list_equal_those_of_single_requests) {
    struct daemon d = {0};
    daemon_start(&d, "");
    static const char *const prompts[] = {"\"The archive\"", "\"In the\"", "\"caf\\u00e9\""};
    const char *rest = "\"max_tokens\":12,\"seed\":5,\"logprobs\":2,\"echo\":true";
    char fields[512];
    snprintf(fields, sizeof fields, "\"prompt\":[%s,%s,%s],\"n\":2,%s", prompts[0], prompts[1],
             prompts[2], rest);
    json_t *all = complete(&d, fields);
    json_int_t prompt_tokens = 0, completion_tokens = 0;
    CHECK_EQ(json_array_size(at(all, "choices")), 6);
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < 2; j++) {
            snprintf(fields, sizeof fields, "\"prompt\":%s,\"max_tokens\":12,\"seed\":%d,%s",
                     prompts[i], 5 + j, "\"logprobs\":2,\"echo\":true");
            json_t *one = complete(&d, fields), *same = choice(all, 2 * i + j);
            CHECK_EQ(json_integer_value(json_object_get(same, "index")), 2 * i + j);
            CHECK_STR(json_string_value(json_object_get(same, "text")),
                      text_at(one, "choices.0.text"));
            CHECK(json_equal(json_object_get(same, "logprobs"), at(one, "choices.0.logprobs")));
            prompt_tokens += j ? 0 : json_integer_value(at(one, "usage.prompt_tokens"));
            completion_tokens += json_integer_value(at(one, "usage.completion_tokens"));
            json_decref(one);
        }
    }
    CHECK_EQ(json_integer_value(at(all, "usage.prompt_tokens")), prompt_tokens);
    CHECK_EQ(json_integer_value(at(all, "usage.completion_tokens")), completion_tokens);
    json_decref(all);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(choices_interleave_in_a_stream_and_equal_the_whole_reply) {
    struct daemon d = {0};
    daemon_start(&d, "");
    const char *fields = "\"prompt\":[\"The archive\",\"In the\"],\"n\":2,\"max_tokens\":10,"
                         "\"seed\":3,\"stop\":\" t\",\"return_token_ids\":true";
    char body[512], text[4][1024] = {""};
    json_t *whole = complete(&d, fields);
    snprintf(body, sizeof body,
             "{\"model\":\"base\",\"stream\":true,\"stream_options\":{\"include_usage\":true},%s}",
             fields);
    struct answer a = client_call(&d, "POST", "/v1/completions", NULL, body);
    CHECK_EQ(a.status, 200);
    int finished = 0, usages = 0, dones = 0;
    json_t *ids[4] = {json_array(), json_array(), json_array(), json_array()};
    char *rest = NULL;
    for (char *line = strtok_r(a.body, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        CHECK(dones == 0 && strncmp(line, "data: ", 6) == 0);
        dones += strcmp(line, "data: [DONE]") == 0;
        json_t *chunk = json_loads(line + 6, 0, NULL), *c = choice(chunk, 0);
        if (c) {
            json_int_t i = json_integer_value(json_object_get(c, "index"));
            CHECK(i >= 0 && i < 4 && !usages);
            strcat(text[i], json_string_value(json_object_get(c, "text")));
            finished += json_is_string(json_object_get(c, "finish_reason"));
            json_array_extend(ids[i], json_object_get(c, "token_ids"));
        } else if (json_is_object(at(chunk, "usage"))) {
            usages++;
            CHECK(json_equal(at(chunk, "usage"), at(whole, "usage")));
        }
        json_decref(chunk);
    }
    CHECK(finished == 4 && usages == 1 && dones == 1);
    for (int i = 0; i < 4; i++) {
        CHECK_STR(text[i], json_string_value(json_object_get(choice(whole, i), "text")));
        CHECK(json_equal(ids[i], json_object_get(choice(whole, i), "token_ids")));
        CHECK(json_array_size(ids[i]) > 0);
        json_decref(ids[i]);
    }
    answer_free(&a);
    json_decref(whole);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

static double mean_logprob(json_t *choice_object) {
    json_t *list = json_object_get(json_object_get(choice_object, "logprobs"), "token_logprobs");
    double sum = 0;
    for (size_t i = 0; i < json_array_size(list); i++)
        sum += json_real_value(json_array_get(list, i));
    return sum / (double)json_array_size(list);
}

TEST(choices_best_of_returns_the_likeliest_draws_first) {
    struct daemon d = {0};
    daemon_start(&d, "");
    const char *rest = "\"prompt\":\"The archive\",\"max_tokens\":8,\"seed\":11,\"logprobs\":0,"
                       "\"ignore_eos\":true";
    char fields[512];
    snprintf(fields, sizeof fields, "%s,\"n\":6", rest);
    json_t *all = complete(&d, fields);
    snprintf(fields, sizeof fields, "%s,\"n\":2,\"best_of\":6", rest);
    json_t *best = complete(&d, fields);
    double first = -1e9, second = -1e9;
    for (int i = 0; i < 6; i++) {
        double score = mean_logprob(choice(all, i));
        second = score > first ? first : score > second ? score : second;
        first = score > first ? score : first;
    }
    CHECK_EQ(json_array_size(at(best, "choices")), 2);
    CHECK_NEAR(mean_logprob(choice(best, 0)), first, 1e-9, 0);
    CHECK_NEAR(mean_logprob(choice(best, 1)), second, 1e-9, 0);
    CHECK_EQ(json_integer_value(at(best, "usage.completion_tokens")), 48);
    json_decref(all);
    json_decref(best);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(choices_report_the_prompts_log_probabilities_and_ids) {
    struct daemon d = {0};
    daemon_start(&d, "");
    json_t *a = complete(&d, "\"prompt\":[1,300,301,302],\"max_tokens\":1,\"prompt_logprobs\":2,"
                             "\"logprobs\":1,\"return_token_ids\":true,\"echo\":true,"
                             "\"return_tokens_as_token_ids\":true");
    json_t *list = at(a, "choices.0.prompt_logprobs");
    CHECK_EQ(json_array_size(list), 4);
    CHECK(json_is_null(json_array_get(list, 0)));
    CHECK_EQ(json_array_size(at(a, "choices.0.prompt_token_ids")), 4);
    for (size_t i = 1; i < 4; i++) {
        char id[16];
        json_int_t token =
            json_integer_value(json_array_get(at(a, "choices.0.prompt_token_ids"), i));
        snprintf(id, sizeof id, "%d", (int)token);
        json_t *entry = json_array_get(list, i), *own = json_object_get(entry, id);
        CHECK(json_object_size(entry) >= 2 && json_object_size(entry) <= 3);
        CHECK(json_equal(json_object_get(own, "logprob"),
                         json_array_get(at(a, "choices.0.logprobs.token_logprobs"), i)));
        CHECK(json_is_string(json_object_get(own, "decoded_token")));
    }
    CHECK_STR(text_at(a, "choices.0.logprobs.tokens.1"), "token_id:300");
    json_decref(a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(choices_beyond_the_limit_are_refused_and_none_is_left_behind) {
    struct daemon d = {0};
    daemon_start(&d, "--max-choices 4 --max-seqs 2 --max-queue 3 --max-batch-tokens 2");
    static const struct {
        const char *body;
        int status;
    } cases[] = {
        {"{\"model\":\"base\",\"prompt\":[\"a\",\"b\"],\"n\":2,\"max_tokens\":1}", 200},
        {"{\"model\":\"base\",\"prompt\":[\"a\",\"b\",\"c\"],\"n\":2,\"max_tokens\":1}", 400},
        {"{\"model\":\"base\",\"prompt\":\"a\",\"best_of\":5,\"max_tokens\":1}", 400},
        {"{\"model\":\"base\",\"prompt\":[[1,2],[3,99999]],\"max_tokens\":1}", 400},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct answer a = client_call(&d, "POST", "/v1/completions", NULL, cases[i].body);
        if (a.status != cases[i].status)
            test_fail(__FILE__, __LINE__, "%s: %d %s", cases[i].body, a.status, a.body);
        answer_free(&a);
    }
    /* The queue has room for one of the two that are asked for: neither stays. */
    int fd = client_complete(&d, "{\"model\":\"base\",\"prompt\":\"a\",\"n\":4,\"max_tokens\":500,"
                                 "\"ignore_eos\":true}");
    daemon_metric_becomes(&d, RUNNING, 2, 2000);
    struct answer a = client_call(&d, "POST", "/v1/completions", NULL,
                                  "{\"model\":\"base\",\"prompt\":\"a\",\"n\":2}");
    CHECK_EQ(a.status, 429);
    answer_free(&a);
    close(fd); /* and one client's leaving ends all four */
    daemon_metric_becomes(&d, RUNNING, 0, 2000);
    daemon_metric_becomes(&d, PAGES, 0, 500);
    daemon_must_serve(&d);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* The end of the daemon is the one failure of running requests that a test can order. */
TEST(choices_of_a_stream_that_fails_end_in_one_error_event) {
    struct daemon d = {0};
    daemon_start(&d, "--drain-timeout 0 --max-seqs 2 --max-batch-tokens 2");
    int fd = client_complete(&d, "{\"model\":\"base\",\"prompt\":\"a\",\"n\":40,\"max_tokens\":500,"
                                 "\"ignore_eos\":true,\"stream\":true}");
    daemon_metric_becomes(&d, RUNNING, 2, 2000);
    kill(d.pid, SIGTERM);
    struct answer a = client_read(fd, 5000);
    CHECK(a.status == 200 && a.whole);
    const char *error = strstr(a.body, "data: {\"error\":");
    CHECK(error && !strstr(error + 15, "\"error\""));
    CHECK_HAS(error, "\"code\":\"draining\"");
    CHECK_HAS(error, "\n\ndata: [DONE]\n\n");
    CHECK(!strstr(error, "\"choices\""));
    answer_free(&a);
    close(fd);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
