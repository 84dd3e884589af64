/* A base with a tokenizer.json alone, over a real socket: tokens there and back, whole characters
 * in streams, a chat template that is a file. */
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/client.h"

static void link_into(const char *dir, const char *name, const char *from, const char *file) {
    char path[512], here[256], target[1024];
    CHECK(getcwd(here, sizeof here));
    snprintf(target, sizeof target, "%s/%s/%s", here, from, file);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (access(target, R_OK) != 0)
        test_skip("%s is not here: run from the repository's root", target);
    CHECK_EQ(symlink(target, path), 0);
}

/* The shipped base's weights with the small Llama-3 kind of tokenizer. */
static const char *make_folder(void) {
    static const char *const weights[] = {
        "config.json", "generation_config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json"};
    static char dir[256];
    char path[512];
    snprintf(dir, sizeof dir, "%s/json-base", test_tmp());
    CHECK_EQ(mkdir(dir, 0700), 0);
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        link_into(dir, weights[i], "demo/base", weights[i]);
    link_into(dir, "tokenizer.json", "tests/golden/tokenizers/llama3", "tokenizer.json");
    snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
    FILE *f = fopen(path, "w");
    CHECK(f &&
          fputs("{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\n\n' + m.content "
                "+ '<|eot_id|>' }}{% endfor %}\n",
                f) >= 0 &&
          fclose(f) == 0);
    return dir;
}

TEST(tokens_of_a_base_with_tokenizer_json) {
    struct daemon d = {0};
    char arguments[512], body[512];
    snprintf(arguments, sizeof arguments, "--base %s --name base", make_folder());
    daemon_start(&d, arguments);
    static const char text[] = "It's 12345 caf\\u00e9s \\ud83d\\ude42\\n <|eot_id|>";
    snprintf(body, sizeof body, "{\"prompt\":\"%s\"}", text);
    json_t *tokens = client_json(&d, "/tokenize", body);
    json_t *ids = at(tokens, "tokens"), *back;
    CHECK(json_array_size(ids) > 5);
    char *list = json_dumps(ids, JSON_COMPACT), *reply = malloc(strlen(list) + 64);
    sprintf(reply, "{\"tokens\":%s}", list);
    back = client_json(&d, "/detokenize", reply);
    CHECK_STR(text_at(back, "prompt"),
              "<|begin_of_text|>It's 12345 caf\xc3\xa9s \xf0\x9f\x99\x82\n <|eot_id|>");
    free(reply);
    free(list);
    json_decref(back);
    json_decref(tokens);

    static const char ask[] = "\"model\":\"base\",\"max_tokens\":40,\"temperature\":2,\"seed\":5,"
                              "\"logit_bias\":{},\"prompt\":\"caf\"";
    snprintf(body, sizeof body, "{%s}", ask);
    json_t *whole = client_json(&d, "/v1/completions", body);
    snprintf(body, sizeof body, "{%s,\"stream\":true}", ask);
    struct answer a = client_call(&d, "POST", "/v1/completions", NULL, body);
    struct stream s = client_stream(a.body); /* every event is JSON: no half characters */
    CHECK_STR(s.text, text_at(whole, "choices.0.text"));
    stream_free(&s);
    answer_free(&a);
    json_decref(whole);

    json_t *chat = client_json(&d, "/v1/chat/completions",
                               "{\"model\":\"base\",\"max_tokens\":3,\"return_token_ids\":true,"
                               "\"messages\":[{\"role\":\"user\",\"content\":\"<|eot_id|>\"}]}");
    CHECK(json_array_size(at(chat, "choices.0.prompt_token_ids")) > 5);
    json_decref(chat);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 10000), 0);
}
