/* Any bytes as tokenizer.json: a refusal with a sentence, or a tokenizer that gives known ids and
 * whole characters. */
#include <stdint.h>

#include "config/json.h"
#include "config/utf8.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"
#include "tokenizer/additions.h"
#include "tokenizer/vocab.h"

void fuzz_tokenizer_json(const uint8_t *data, size_t n);

static void use(const struct vocab *v) {
    static const char text[] = "It's a TEST of 1234  things\r\n\n caf\xc3\xa9 \xe2\x96\x81 "
                               "\xf0\x9f\x99\x82 <s> aaaaaaaaaaaaaaaaaaaaaaaa";
    struct sp_ids ids = {.cap_max = 10000};
    uint64_t work = 0;
    if (bpe_encode(v->bpe, text, sizeof text - 1, true, NULL, &ids, &work))
        abort();
    for (size_t i = 0; i < ids.n; i++)
        if (ids.v[i] < 0 || ids.v[i] >= v->n_pieces || !v->pieces[ids.v[i]].text)
            abort();
    if (work > 100 * sizeof text)
        abort();
    free(ids.v);
}

void fuzz_tokenizer_json(const uint8_t *data, size_t n) {
    struct why why = {{0}};
    json_t *root = NULL, *tokens = json_array(), *out = json_object();
    struct vocab *v = NULL;
    err_t e = json_parse(&root, (const char *)data, n, "fuzz", 32, 20000, &why);
    if (!e && json_is_object(root)) {
        e = vocab_open_json(&v, root, &why);
        if (!e)
            use(v);
        else if (!why.text[0])
            abort();
        why.text[0] = 0;
        if (additions_of_json(root, NULL, tokens, out, &why) && !why.text[0])
            abort();
    } else if (e && !why.text[0]) {
        abort();
    }
    vocab_close(v);
    json_decref(root);
    json_decref(tokens);
    json_decref(out);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_tokenizer_json(data, n);
    return 0;
}
#else
TEST(fuzz_tokenizer_json_refuses_or_keeps_its_promises) {
    static const char *const names[] = {"gpt2", "llama3", "tekken", "metaspace", "llama2"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/golden/tokenizers/%s/tokenizer.json", names[i]);
        fuzz_mutations_of_file("fuzz_tokenizer_json", fuzz_tokenizer_json, path, 400);
    }
}
#endif
