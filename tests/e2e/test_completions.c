/* Completions over a real socket and a real model. */
#include <signal.h>
#include <unistd.h>

#include "tests/e2e/client.h"

#define GAUGE(name) "vllm:num_requests_" name "{model_name=\"base\",engine=\"0\"}"
#define CANCELLED                                                                                  \
    "vllm:request_success_total{model_name=\"base\",engine=\"0\",finished_reason=\"abort\"}"

static json_t *complete(const struct daemon *d, const char *fields) {
    char body[8192 + 64];
    snprintf(body, sizeof body, "{\"model\":\"base\",%s}", fields);
    return client_json(d, "/v1/completions", body);
}

static struct stream stream(const struct daemon *d, const char *fields) {
    char body[8192 + 64];
    snprintf(body, sizeof body, "{\"model\":\"base\",\"stream\":true,%s}", fields);
    struct answer a = client_call(d, "POST", "/v1/completions", NULL, body);
    if (a.status != 200 || !a.whole)
        test_fail(__FILE__, __LINE__, "%s: status %d: %s", fields, a.status, a.body);
    CHECK_HAS(a.head, "Content-Type: text/event-stream");
    struct stream s = client_stream(a.body);
    CHECK(s.done);
    answer_free(&a);
    return s;
}

/* Sends a completion without reading the reply. */
static int start(const struct daemon *d, const char *fields) {
    char body[8192 + 64];
    snprintf(body, sizeof body, "{\"model\":\"base\",%s}", fields);
    return client_complete(d, body);
}

/* The call must fail with this status, parameter and code. */
static void refused(const struct daemon *d, const char *body, int status, const char *param,
                    const char *code) {
    struct answer a = client_call(d, "POST", "/v1/completions", NULL, body);
    json_t *tree = json_loadb(a.body ? a.body : "", a.n_body, 0, NULL);
    const char *got_param = text_at(tree, "error.param"), *got_code = text_at(tree, "error.code");
    if (a.status != status || !got_code || strcmp(got_code, code) != 0 ||
        (param && (!got_param || strcmp(got_param, param) != 0)))
        test_fail(__FILE__, __LINE__, "%.200s: status %d: %s", body, a.status, a.body);
    json_decref(tree);
    answer_free(&a);
}

TEST(completions_streamed_equal_whole) {
    struct daemon d = {0};
    daemon_start(&d, "");
    static const char *const fields[] = {
        "\"prompt\":\"The Debian package\",\"temperature\":0,\"max_tokens\":40",
        "\"prompt\":\"caf\\u00e9 \\ud83c\\udf89\",\"seed\":7,\"max_tokens\":60,\"echo\":true",
        "\"prompt\":\"In the\",\"seed\":8,\"max_tokens\":30,\"logprobs\":3,\"echo\":true",
        "\"prompt\":[1,300,301],\"seed\":9,\"max_tokens\":30,\"logprobs\":0,\"stop\":[\" the\"]",
        "\"prompt\":\"x\",\"seed\":10,\"temperature\":2,\"max_tokens\":80,\"stop\":\"e\"",
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_t *whole = complete(&d, fields[i]);
        struct stream s = stream(&d, fields[i]);
        CHECK_STR(s.text, text_at(whole, "choices.0.text"));
        CHECK_STR(s.finish, text_at(whole, "choices.0.finish_reason"));
        json_t *logprobs = at(whole, "choices.0.logprobs");
        if (json_is_object(logprobs) && !json_equal(logprobs, s.logprobs))
            test_fail(__FILE__, __LINE__, "%s: logprobs differ", fields[i]);
        CHECK(!s.usage && !s.error);
        json_decref(whole);
        stream_free(&s);
    }
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(completions_reply_names_what_was_served) {
    struct daemon d = {0};
    daemon_start(&d, "");
    json_t *a = complete(&d, "\"prompt\":\"a\",\"max_tokens\":3");
    CHECK_STR(text_at(a, "object"), "text_completion");
    CHECK_STR(text_at(a, "model"), "base");
    CHECK_HAS(text_at(a, "id"), "cmpl-");
    CHECK(strncmp(text_at(a, "system_fingerprint"), "bd-", 3) == 0);
    CHECK_EQ(json_integer_value(at(a, "usage.prompt_tokens")) + 3,
             json_integer_value(at(a, "usage.total_tokens")));
    json_decref(a);
    struct stream s = stream(&d, "\"prompt\":\"a\",\"max_tokens\":3,\"ignore_eos\":true,"
                                 "\"stream_options\":{\"include_usage\":true}");
    CHECK_EQ(json_integer_value(at(s.usage, "completion_tokens")), 3);
    stream_free(&s);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* The exact request of lm-evaluation-harness, against the recorded reference. */
TEST(completions_scores_are_those_of_the_reference) {
    struct daemon d = {0};
    json_t *golden = json_load_file(test_model("golden.json"), 0, NULL);
    json_t *list = json_object_get(golden, "base");
    CHECK(json_array_size(list) > 0);
    daemon_start(&d, "");
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *one = json_array_get(list, i), *ids = json_object_get(one, "ids");
        char *prompt = json_dumps(ids, JSON_COMPACT), *fields = malloc(strlen(prompt) + 200);
        sprintf(fields,
                "\"prompt\":[%s],\"temperature\":0,\"max_tokens\":1,\"logprobs\":1,\"seed\":1234,"
                "\"echo\":true",
                prompt);
        json_t *reply = complete(&d, fields);
        json_t *scores = at(reply, "choices.0.logprobs.token_logprobs");
        json_t *top = at(reply, "choices.0.logprobs.top_logprobs");
        json_t *want = json_object_get(one, "prompt_logprobs");
        size_t n = json_array_size(ids);
        CHECK_EQ(json_array_size(scores), n + 1);
        CHECK_EQ(json_array_size(top), n + 1);
        for (size_t k = 1; k < n; k++) {
            size_t at_want = json_array_size(want) == n ? k : k - 1;
            CHECK_NEAR(json_real_value(json_array_get(scores, k)),
                       json_real_value(json_array_get(want, at_want)), 2e-3, 0);
            CHECK(json_object_size(json_array_get(top, k)) >= 1);
        }
        json_decref(reply);
        free(prompt);
        free(fields);
    }
    json_decref(golden);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(completions_prompt_shapes_mean_the_same) {
    struct daemon d = {0};
    daemon_start(&d, "");
    json_t *ids = client_json(&d, "/tokenize", "{\"model\":\"base\",\"prompt\":\"The network\"}");
    char *list = json_dumps(at(ids, "tokens"), JSON_COMPACT), shape[512], fields[1024];
    CHECK_EQ(json_integer_value(at(ids, "count")), json_array_size(at(ids, "tokens")));
    static const char *const shapes[] = {"\"The network\"", "[\"The network\"]", "%s", "[%s]"};
    json_t *first = NULL;
    for (size_t i = 0; i < 4; i++) {
        snprintf(shape, sizeof shape, i < 2 ? "%s" : shapes[i], i < 2 ? shapes[i] : list);
        snprintf(fields, sizeof fields, "\"temperature\":0,\"max_tokens\":12,\"prompt\":%s", shape);
        json_t *a = complete(&d, fields);
        if (first)
            CHECK(json_equal(at(a, "choices"), at(first, "choices")));
        else
            first = json_incref(a);
        json_decref(a);
    }
    json_t *back = client_json(&d, "/detokenize", "{\"tokens\":[]}");
    CHECK_STR(text_at(back, "prompt"), "");
    json_decref(back);
    json_decref(first);
    json_decref(ids);
    free(list);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(completions_stop_string_that_spans_tokens_is_cut_out) {
    struct daemon d = {0};
    daemon_start(&d, "");
    const char *prompt = "\"prompt\":\"The Debian package\",\"temperature\":0,\"max_tokens\":24";
    json_t *whole = complete(&d, prompt);
    const char *text = text_at(whole, "choices.0.text");
    CHECK(strlen(text) > 30);
    char stop[16], fields[512], want[512];
    snprintf(stop, sizeof stop, "%.7s", text + 12); /* starts and ends inside words */
    snprintf(want, sizeof want, "%.*s", (int)(strstr(text, stop) - text), text);
    json_t *stop_json = json_string(stop);
    char *stop_text = json_dumps(stop_json, JSON_ENCODE_ANY);
    snprintf(fields, sizeof fields, "%s,\"stop\":%s", prompt, stop_text);
    json_t *cut = complete(&d, fields);
    CHECK_STR(text_at(cut, "choices.0.text"), want);
    CHECK_STR(text_at(cut, "choices.0.finish_reason"), "stop");
    struct stream s = stream(&d, fields);
    CHECK_STR(s.text, want);
    stream_free(&s);
    snprintf(fields, sizeof fields, "%s,\"stop\":%s,\"min_tokens\":24", prompt, stop_text);
    json_t *late = complete(&d, fields); /* not looked for before min_tokens */
    CHECK(strlen(text_at(late, "choices.0.text")) > strlen(want));
    json_decref(late);
    json_decref(cut);
    json_decref(whole);
    json_decref(stop_json);
    free(stop_text);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* Byte pieces only, so that nearly every token is a part of a character: JSON that is not UTF-8
 * would not be parsed by the client. */
TEST(completions_never_send_half_a_character) {
    struct daemon d = {0};
    daemon_start(&d, "");
    char fields[8192];
    size_t n = (size_t)sprintf(fields, "\"prompt\":\"a\",\"max_tokens\":120,\"logprobs\":2,"
                                       "\"temperature\":2,\"logit_bias\":{");
    for (int id = 3; id < 259; id++)
        n += (size_t)sprintf(fields + n, "%s\"%d\":100", id > 3 ? "," : "", id);
    n += (size_t)sprintf(fields + n, "},\"seed\":");
    for (int seed = 0; seed < 4; seed++) {
        sprintf(fields + n, "%d", seed);
        json_t *whole = complete(&d, fields);
        struct stream s = stream(&d, fields);
        CHECK_STR(s.text, text_at(whole, "choices.0.text"));
        CHECK_HAS(s.text, "\xef\xbf\xbd");
        json_decref(whole);
        stream_free(&s);
    }
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(completions_errors_name_their_parameter) {
    struct daemon d = {0};
    daemon_start(&d, "--max-prompt-bytes 100000");
    refused(&d, "{\"model\":\"none\",\"prompt\":\"a\"}", 404, "model", "model_not_found");
    refused(&d, "{\"model\":\"base \",\"prompt\":\"a\"}", 404, "model", "model_not_found");
    refused(&d, "{\"prompt\":\"a\"}", 400, "model", "invalid_value");
    refused(&d, "{\"model\":\"base\"}", 400, "prompt", "invalid_value");
    refused(&d, "{\"model\":\"base\",\"prompt\":\"a\",\"temperature\":3}", 400, "temperature",
            "invalid_value");
    refused(&d, "{\"model\":\"base\",\"prompt\":\"a\",\"n\":200}", 400, "n", "invalid_value");
    refused(&d, "{\"model\":\"base\",\"prompt\":[1,999999]}", 400, "prompt", "invalid_token");
    refused(&d, "{\"model\":\"base\",\"prompt\":\"a\",\"logit_bias\":{\"99999\":1}}", 400,
            "logit_bias", "invalid_token");
    refused(&d, "{\"model\":\"base\",\"prompt\":\"a\",\"stop_token_ids\":[99999]}", 400,
            "stop_token_ids", "invalid_token");
    refused(&d, "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":100000}", 400, "max_tokens",
            "context_length_exceeded");
    refused(&d, "{\"model\":\"base\",\"prompt\":\"\",\"add_special_tokens\":false}", 400, "prompt",
            "invalid_value");
    refused(&d, "{\"model\":\"base\",\"prompt\":\"a\"", 400, NULL, "invalid_json");
    refused(&d, "[]", 400, NULL, "invalid_json");
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

static void refused_large(const struct daemon *d, const char *head, const char *unit,
                          size_t n_bytes, const char *tail, int status, const char *code) {
    char *body = malloc(n_bytes + strlen(head) + strlen(unit) + strlen(tail) + 1);
    size_t n = (size_t)sprintf(body, "%s", head), n_unit = strlen(unit);
    for (; n < n_bytes; n += n_unit)
        memcpy(body + n, unit, n_unit);
    strcpy(body + n, tail);
    refused(d, body, status, NULL, code);
    free(body);
}

TEST(completions_of_hostile_size_are_refused_and_the_daemon_serves_on) {
    struct daemon d = {0};
    daemon_start(&d, "--max-body 16M");
    const char *head = "{\"model\":\"base\",\"prompt\":\"";
    refused_large(&d, head, "x", 10 << 20, "\"}", 400, "context_length_exceeded");
    refused_large(&d, head, "word ", 900000, "\"}", 400, "context_length_exceeded");
    refused_large(&d, head, "x", 17 << 20, "\"}", 413, "request_too_large");
    refused_large(&d, "{\"a\":[", "{},", 8 << 20, "1]}", 400, "invalid_json");
    refused_large(&d, "{\"a\":", "[", 100000, "", 400, "invalid_json");
    refused_large(&d, "{\"model\":\"base\",\"prompt\":[", "5,", 200000, "5]}", 400,
                  "context_length_exceeded");
    daemon_must_serve(&d);
    json_t *a = complete(&d, "\"prompt\":\"a\",\"max_tokens\":2");
    json_decref(a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* One request at a time in the engine, one row a step: there is time to leave in every phase. */
TEST(completions_clients_that_leave_free_their_place) {
    struct daemon d = {0};
    daemon_start(&d, "--max-seqs 1 --max-batch-tokens 1");
    const char *endless = "\"prompt\":\"a\",\"max_tokens\":500,\"ignore_eos\":true,\"stream\":true";
    char prefill[4096] = "\"max_tokens\":10,\"prompt\":[1";
    for (int i = 0; i < 480; i++)
        strcat(prefill, ",400");
    strcat(prefill, "]");
    int running = start(&d, endless), queued = start(&d, endless);
    struct answer a = client_read(running, 50); /* it has begun */
    answer_free(&a);
    daemon_metric_becomes(&d, GAUGE("waiting"), 1, 2000);
    close(queued); /* leaves the queue while the other one runs */
    daemon_metric_becomes(&d, GAUGE("waiting"), 0, 500);
    close(running); /* leaves its stream */
    daemon_metric_becomes(&d, GAUGE("running"), 0, 500);
    daemon_metric_becomes(&d, CANCELLED, 2, 500);
    int filling = start(&d, prefill);
    daemon_metric_becomes(&d, GAUGE("running"), 1, 2000);
    close(filling);
    daemon_metric_becomes(&d, GAUGE("running"), 0, 500);
    daemon_metric_becomes(&d, CANCELLED, 3, 500);
    daemon_metric_becomes(&d, "bitdeltad_kv_pages_used", 0, 500);
    daemon_metric_becomes(&d, "bitdeltad_http_connections", 1, 2000); /* and their descriptors */
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(completions_over_the_queue_get_429_and_are_told_when_to_retry) {
    struct daemon d = {0};
    daemon_start(&d, "--max-seqs 1 --max-queue 1 --max-batch-tokens 1");
    const char *endless = "\"prompt\":\"a\",\"max_tokens\":500,\"ignore_eos\":true";
    int first = start(&d, endless), second = start(&d, endless);
    daemon_metric_becomes(&d, GAUGE("waiting"), 1, 2000);
    struct answer a =
        client_call(&d, "POST", "/v1/completions", NULL, "{\"model\":\"base\",\"prompt\":\"a\"}");
    CHECK_EQ(a.status, 429);
    CHECK_HAS(a.head, "Retry-After: ");
    CHECK_HAS(a.body, "rate_limit_error");
    answer_free(&a);
    close(first);
    close(second);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST_LIMIT(completions_in_a_crowd_equal_those_alone, 180) {
    struct daemon d = {0};
    enum { N = 24 };
    daemon_start(&d, "--max-seqs 8 --kv-tokens 1024");
    static char fields[N][256];
    int fd[N];
    for (int i = 0; i < N; i++) {
        snprintf(fields[i], sizeof fields[i],
                 "\"prompt\":\"Package %d of the archive\",\"max_tokens\":%d,\"seed\":%d,"
                 "\"temperature\":%s,\"logprobs\":1",
                 i, 20 + 5 * (i % 7), i, i % 3 ? "0.9" : "0");
        fd[i] = start(&d, fields[i]);
    }
    for (int i = 0; i < N; i++) {
        struct answer a = client_read(fd[i], 90000);
        CHECK_EQ(a.status, 200);
        json_t *crowd = json_loadb(a.body, a.n_body, 0, NULL), *alone = complete(&d, fields[i]);
        if (!json_equal(at(crowd, "choices"), at(alone, "choices")))
            test_fail(__FILE__, __LINE__, "request %d: \"%s\" in a crowd, \"%s\" alone", i,
                      text_at(crowd, "choices.0.text"), text_at(alone, "choices.0.text"));
        json_decref(crowd);
        json_decref(alone);
        answer_free(&a);
        close(fd[i]);
    }
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(completions_prompt_alone_can_be_scored_and_echoed) {
    struct daemon d = {0};
    daemon_start(&d, "");
    json_t *a = complete(&d, "\"prompt\":\"The archive\",\"max_tokens\":0,\"echo\":true,"
                             "\"logprobs\":1");
    CHECK_STR(text_at(a, "choices.0.text"), "The archive");
    CHECK_STR(text_at(a, "choices.0.finish_reason"), "length");
    CHECK_EQ(json_array_size(at(a, "choices.0.logprobs.tokens")),
             json_integer_value(at(a, "usage.prompt_tokens")));
    json_decref(a);
    a = complete(&d, "\"prompt\":\"The archive\",\"max_tokens\":0,\"echo\":true");
    CHECK_STR(text_at(a, "choices.0.text"), "The archive");
    CHECK_EQ(json_integer_value(at(a, "usage.completion_tokens")), 0);
    json_decref(a);
    a = complete(&d, "\"prompt\":\"The archive\",\"max_tokens\":0");
    CHECK_STR(text_at(a, "choices.0.text"), "");
    CHECK_STR(text_at(a, "choices.0.finish_reason"), "length");
    json_decref(a);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

#define SUCCESS(reason)                                                                            \
    "vllm:request_success_total{model_name=\"base\",engine=\"0\",finished_reason=\"" reason "\"}"

/* A stop string ends the engine's request early, yet it is a success of its client; tokens count
 * whoever got them. */
TEST(completions_are_counted_by_how_they_ended_for_the_client) {
    struct daemon d = {0};
    daemon_start(&d, "--max-seqs 8 --max-batch-tokens 8");
    json_t *a = complete(&d, "\"prompt\":\"The archive\",\"max_tokens\":40,\"stop\":\" \"");
    CHECK_STR(text_at(a, "choices.0.finish_reason"), "stop");
    json_decref(a);
    json_decref(
        complete(&d, "\"prompt\":\"The archive\",\"max_tokens\":2,\"n\":2,\"ignore_eos\":true"));
    CHECK_EQ(daemon_metric(&d, SUCCESS("stop")), 1);
    CHECK_EQ(daemon_metric(&d, SUCCESS("length")), 2);
    CHECK_EQ(daemon_metric(&d, SUCCESS("abort")), 0);
    double before = daemon_metric(&d, "bitdeltad_tenant_generated_tokens_total{tenant=\"base\"}");
    int fd = start(&d, "\"prompt\":\"The archive\",\"max_tokens\":400,\"ignore_eos\":true,"
                       "\"stream\":true");
    char head[64];
    CHECK(read(fd, head, sizeof head) > 0); /* at least one token is out */
    close(fd);
    daemon_metric_becomes(&d, SUCCESS("abort"), 1, 5000);
    CHECK(daemon_metric(&d, "bitdeltad_tenant_generated_tokens_total{tenant=\"base\"}") > before);
    CHECK(daemon_logged(&d, "finish=client_left"));
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
