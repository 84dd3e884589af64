/* Any bytes as config.json (first byte even), or as generation_config.json over a good config. */
#include <stdint.h>

#include "config/json.h"
#include "engine/checkpoint.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"

void fuzz_config(const uint8_t *data, size_t n);

static void check_config(const struct model_config *c) {
    const struct model_shape *s = &c->shape;
    if (s->n_layers < 1 || s->dim < 1 || s->n_kv_heads < 1 || s->n_heads % s->n_kv_heads ||
        s->head_dim < 2 || s->head_dim % 2 || s->vocab < 1 || c->context < 1 || c->n_eos > 8 ||
        s->norm_eps < 0 || c->rope.theta < 1 || c->rope.factor < 1)
        abort();
    for (int32_t i = 0; i < c->n_eos; i++)
        if (c->eos_id[i] < 0 || c->eos_id[i] >= s->vocab)
            abort();
}

void fuzz_config(const uint8_t *data, size_t n) {
    struct model_config c = {
        .shape =
            {.n_layers = 1, .dim = 2, .n_heads = 1, .n_kv_heads = 1, .head_dim = 2, .vocab = 100},
        .context = 1,
        .rope = {.theta = 1, .factor = 1}};
    struct why why = {{0}};
    if (!n)
        return;
    const char *text = (const char *)data + 1;
    err_t e;
    if (data[0] % 2 == 0) {
        e = model_config_parse(&c, text, n - 1, &why);
    } else {
        json_t *root;
        e = json_parse(&root, text, n - 1, "fuzz", 16, 1000, &why);
        if (!e)
            e = model_config_generation(&c, root, "fuzz", &why);
        json_decref(root);
    }
    if (e && !why.text[0])
        abort();
    if (!e)
        check_config(&c);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_config(data, n);
    return 0;
}
#else
TEST(fuzz_config_survives_damaged_files) {
    static const char llama3[] =
        " {\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":64,"
        "\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":2,\"head_dim\":16,\"vocab_size\":100,"
        "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-05,\"tie_word_embeddings\":false,"
        "\"bos_token_id\":1,\"eos_token_id\":[2,3],\"rope_theta\":500000.0,\"rope_scaling\":"
        "{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32}}";
    static const char mistral[] =
        " {\"architectures\":[\"MistralForCausalLM\"],\"hidden_size\":64,\"hidden_act\":\"silu\","
        "\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":2,\"vocab_size\":100,\"max_position_embeddings\":64,"
        "\"sliding_window\":32,\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0,"
        "\"rope_theta\":1e4}}";
    static const char generation[] = "!{\"eos_token_id\":[2,9],\"temperature\":0.6}";
    fuzz_mutations("fuzz_config", fuzz_config, llama3, sizeof llama3 - 1, 20000);
    fuzz_mutations("fuzz_config", fuzz_config, mistral, sizeof mistral - 1, 20000);
    fuzz_mutations("fuzz_config", fuzz_config, generation, sizeof generation - 1, 5000);
}
#endif
