/* Fuzzes the body of a request for completions or for a chat: any bytes either give valid
 * parameters or an error that names nothing outside its table, and nothing is left behind. */
#include <stdint.h>

#include "server/chat.h"
#include "server/completions.h"
#include "server/surface.h"
#include "tests/check.h"

void fuzz_completions(const uint8_t *data, size_t n);

static void check(const struct params *p, bool chat) {
    const struct gen_request *g = &p->gen;
    for (int i = 0; i < p->n_prompts; i++)
        if (!chat && !p->prompt[i].text && p->prompt[i].n_ids < 1)
            __builtin_trap();
    if (chat && (p->n_prompts != 1 || json_array_size(p->messages) < 1))
        __builtin_trap();
    if (p->n_prompts < 1 || p->n < 1 || p->best_of < p->n || p->best_of > PARAMS_MAX_N ||
        g->max_tokens < (chat ? -1 : 0) || g->n_top < -1 || g->n_top > GEN_MAX_TOP ||
        !(g->temperature >= 0 && g->temperature <= 2) || g->n_stop_ids > GEN_MAX_STOP_IDS ||
        g->n_bias > GEN_MAX_BIAS || p->n_stops > PARAMS_MAX_STOPS)
        __builtin_trap();
}

void fuzz_completions(const uint8_t *data, size_t n) {
    for (int chat = 0; chat < 2; chat++) {
        struct params p;
        struct why why = {""};
        const char *field = NULL;
        err_t e = params_read(&p, chat ? &surface_chat : &surface_completions, (const char *)data,
                              n, &field, &why);
        if (!e) {
            check(&p, chat);
            params_free(&p);
        } else if (!why.text[0] || err_http_status(e) >= 500) {
            __builtin_trap();
        }
    }
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_completions(data, n);
    return 0;
}
#else
#include "config/clock.h"

static const char *const seeds[] = {
    "{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":5,\"stop\":[\"a\",\"b\"],\"stream\":true,"
    "\"stream_options\":{\"include_usage\":true}}",
    "{\"model\":\"m\",\"prompt\":[[1,2,3]],\"logprobs\":1,\"echo\":true,\"seed\":1234,"
    "\"temperature\":0,\"logit_bias\":{\"5\":-1.5},\"stop_token_ids\":[3,4]}",
    "{\"model\":\"m\",\"prompt\":[\"\\ud83c\\udf89 caf\\u00e9\"],\"top_p\":0.5,\"top_k\":40,"
    "\"min_p\":0.1,\"presence_penalty\":1,\"n\":2,\"best_of\":3,\"user\":null,\"min_tokens\":1e0}",
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":"
    "\"x\"}"
    "],\"name\":\"n\"},{\"role\":\"assistant\",\"content\":\"y\"}],\"logprobs\":true,"
    "\"top_logprobs\":2,\"chat_template_kwargs\":{\"a\":[1]},\"max_completion_tokens\":3}",
};

TEST(fuzz_completions_body_survives_mutations) {
    unsigned state = 7;
    int64_t until = mono_us() + 1000000;
    while (mono_us() < until) {
        uint8_t text[1024];
        const char *seed = seeds[test_random(&state) % 4];
        size_t n = strlen(seed);
        memcpy(text, seed, n);
        for (unsigned k = test_random(&state) % 6; k > 0; k--) {
            size_t at = test_random(&state) % n;
            static const char bytes[] = "{}[]\",:0123456789.-e\\u\x80\xff tfn";
            switch (test_random(&state) % 3) {
            case 0:
                text[at] = (uint8_t)bytes[test_random(&state) % (sizeof bytes - 1)];
                break;
            case 1:
                memmove(text + at, text + at + 1, n - at - 1);
                n -= n > 1;
                break;
            default:
                memmove(text + at + 1, text + at, n - at);
                n++;
            }
        }
        fuzz_completions(text, n);
    }
}
#endif
