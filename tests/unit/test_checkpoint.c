#include <fcntl.h>
#include <math.h>
#include <unistd.h>

#include "engine/checkpoint.h"
#include "kernels/f16.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"

static err_t parse(struct model_config *c, const char *more, struct why *why) {
    char text[2048];
    snprintf(text, sizeof text,
             "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4096,"
             "\"intermediate_size\":11008,\"num_hidden_layers\":32,\"num_attention_heads\":32,"
             "\"vocab_size\":32000,\"max_position_embeddings\":4096%s}",
             more);
    return model_config_parse(c, text, strlen(text), why);
}

TEST(config_fills_the_defaults_of_the_llama_class) {
    struct model_config c;
    struct why why;
    CHECK_OK(parse(&c, "", &why), why);
    CHECK_EQ(c.shape.n_kv_heads, 32);
    CHECK_EQ(c.shape.head_dim, 128);
    CHECK_EQ(c.shape.max_vocab, 32000);
    CHECK_EQ(c.bos_id, 1);
    CHECK_EQ(c.n_eos, 1);
    CHECK_EQ(c.eos_id[0], 2);
    CHECK_EQ(c.rope.kind, ROPE_DEFAULT);
    CHECK_NEAR(c.rope.theta, 10000, 0, 0);
    CHECK_NEAR(c.shape.norm_eps, 1e-6, 0, 1e-6);
    CHECK_EQ(c.tied, false);
}

TEST(config_reads_both_spellings_of_rope) {
    struct model_config c;
    struct why why;
    CHECK_OK(parse(&c,
                   ",\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"linear\","
                   "\"factor\":2.0}",
                   &why),
             why);
    CHECK_EQ(c.rope.kind, ROPE_LINEAR);
    CHECK_NEAR(c.rope.theta, 5e5, 0, 0);
    CHECK_NEAR(c.rope.factor, 2, 0, 0);
    CHECK_OK(
        parse(&c, ",\"rope_theta\":1e6,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}", &why),
        why);
    CHECK_EQ(c.rope.kind, ROPE_DYNAMIC);
    CHECK_NEAR(c.rope.theta, 1e6, 0, 0);
    CHECK_EQ(c.rope.original_context, 4096);
    CHECK_OK(parse(&c,
                   ",\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
                   "\"low_freq_factor\":1,\"high_freq_factor\":4,"
                   "\"original_max_position_embeddings\":8192}",
                   &why),
             why);
    CHECK_EQ(c.rope.kind, ROPE_LLAMA3);
    CHECK_NEAR(c.rope.high_freq_factor, 4, 0, 0);
    CHECK_EQ(c.rope.original_context, 8192);
    CHECK_OK(parse(&c, ",\"rope_scaling\":null,\"eos_token_id\":[2,7],\"bos_token_id\":null", &why),
             why);
    CHECK_EQ(c.n_eos, 2);
    CHECK_EQ(c.eos_id[1], 7);
    CHECK_EQ(c.bos_id, -1);
}

TEST(config_refuses_by_name_what_would_change_the_result) {
    static const struct {
        const char *more, *named;
    } bad[] = {
        {",\"attention_bias\":true", "attention_bias"},
        {",\"mlp_bias\":true", "mlp_bias"},
        {",\"hidden_act\":\"gelu\"", "gelu"},
        {",\"quantization_config\":{\"bits\":4}", "quantization_config"},
        {",\"model_type\":\"qwen2\"", "qwen2"},
        {",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}", "yarn"},
        {",\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":4}", "longrope"},
        {",\"rope_scaling\":{\"factor\":4}", "rope_type"},
        {",\"rope_scaling\":{\"type\":\"linear\"}", "factor"},
        {",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}", "factor"},
        {",\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
        {",\"num_key_value_heads\":5", "num_key_value_heads"},
        {",\"head_dim\":127", "head_dim"},
        {",\"eos_token_id\":32000", "eos_token_id"},
        {",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", "eos_token_id"},
        {",\"rms_norm_eps\":-1", "rms_norm_eps"},
        {",\"vocab_size\":32001", "vocab_size"}, /* a duplicate key */
        {",\"tie_word_embeddings\":\"yes\"", "tie_word_embeddings"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct model_config c;
        struct why why = {{0}};
        if (!parse(&c, bad[i].more, &why))
            test_fail(__FILE__, __LINE__, "%s was accepted", bad[i].more);
        CHECK_HAS(why.text, bad[i].named);
    }
}

TEST(config_knows_mistral_windows) {
    static const char head[] =
        "{\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\","
        "\"hidden_size\":64,\"intermediate_size\":64,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":32,"
        "\"max_position_embeddings\":4096";
    static const struct {
        const char *more;
        int32_t window;
    } cases[] = {{"}", 4096}, {",\"sliding_window\":null}", 0}, {",\"sliding_window\":16}", 16}};
    for (size_t i = 0; i < 3; i++) {
        char text[1024];
        struct model_config c;
        struct why why;
        snprintf(text, sizeof text, "%s%s", head, cases[i].more);
        CHECK_OK(model_config_parse(&c, text, strlen(text), &why), why);
        CHECK_EQ(c.shape.sliding_window, cases[i].window);
    }
    struct model_config c;
    struct why why;
    CHECK_OK(parse(&c, ",\"sliding_window\":16", &why), why); /* Llama ignores the key */
    CHECK_EQ(c.shape.sliding_window, 0);
}

TEST(checkpoint_wants_exactly_the_tensors_of_its_config) {
    struct checkpoint c;
    struct why why;
    make_model(test_tmp(), (struct make_model){.seed = 1});
    CHECK_OK(checkpoint_open(&c, test_tmp(), &why), why);
    CHECK_EQ(c.config.n_eos, 2); /* generation_config.json wins */
    CHECK_EQ(c.config.eos_id[1], 3);
    checkpoint_close(&c);

    make_model(test_tmp(), (struct make_model){.leave_out = "model.norm.weight"});
    CHECK(checkpoint_open(&c, test_tmp(), &why));
    CHECK_HAS(why.text, "model.norm.weight is missing");
    make_model(test_tmp(), (struct make_model){.add = "model.layers.0.self_attn.q_proj.bias"});
    CHECK(checkpoint_open(&c, test_tmp(), &why));
    CHECK_HAS(why.text, "model.layers.0.self_attn.q_proj.bias is a bias");
    make_model(test_tmp(), (struct make_model){.add = "model.rotary_emb.inv_freq"});
    CHECK_OK(checkpoint_open(&c, test_tmp(), &why), why);
    checkpoint_close(&c);
    make_model(test_tmp(), (struct make_model){.tied = true, .add = "lm_head.weight"});
    CHECK_OK(checkpoint_open(&c, test_tmp(), &why), why);
    checkpoint_close(&c);
    make_model(test_tmp(), (struct make_model){.layers = 1});
    char text[4096];
    snprintf(text, sizeof text, "%s",
             "{\"architectures\":[\"LlamaForCausalLM\"],"
             "\"hidden_size\":40,\"intermediate_size\":80,"
             "\"num_hidden_layers\":1,\"num_attention_heads\":4,"
             "\"num_key_value_heads\":2,\"vocab_size\":48,"
             "\"max_position_embeddings\":64}");
    make_text(test_tmp(), "config.json", text);
    CHECK(checkpoint_open(&c, test_tmp(), &why));
    CHECK_HAS(why.text, "gate_proj.weight has shape [72, 40]; config.json makes it [80, 40]");
}

static void poison(const char *name, float *x, size_t n, void *arg) {
    if (strcmp(name, "lm_head.weight") == 0)
        x[n - 5] = *(float *)arg;
}

static void read_all(const char *dir, float *out, bool tied) {
    struct checkpoint c;
    struct why why;
    CHECK_OK(checkpoint_open(&c, dir, &why), why);
    CHECK_OK(checkpoint_read_f32(&c, "model.embed_tokens.weight", out, 48 * 40, &why), why);
    CHECK_OK(checkpoint_read_f32(&c, "model.layers.1.mlp.down_proj.weight", out + 48 * 40, 40 * 72,
                                 &why),
             why);
    CHECK_EQ(checkpoint_find(&c, "lm_head.weight", NULL) == NULL, tied);
    checkpoint_close(&c);
}

TEST(checkpoint_names_and_files_may_be_those_of_other_writers) {
    static float want[48 * 40 + 40 * 72], got[48 * 40 + 40 * 72];
    for (int tied = 0; tied < 2; tied++) {
        char usual[300], other[300], named[300];
        snprintf(usual, sizeof usual, "%s/usual%d", test_tmp(), tied);
        snprintf(other, sizeof other, "%s/other%d", test_tmp(), tied);
        snprintf(named, sizeof named, "%s/named%d", test_tmp(), tied);
        make_model(usual, (struct make_model){.tied = tied});
        make_model(other, (struct make_model){.tied = tied, .bare = true});
        make_model(named, (struct make_model){.tied = tied, .file = "weights-1.safetensors"});
        read_all(usual, want, tied);
        read_all(other, got, tied);
        CHECK_EQ(memcmp(want, got, sizeof want), 0);
        read_all(named, got, tied);
        CHECK_EQ(memcmp(want, got, sizeof want), 0);
    }
    struct checkpoint c;
    struct why why;
    char dir[300];
    snprintf(dir, sizeof dir, "%s/headless", test_tmp());
    make_model(dir, (struct make_model){.bare = true, .leave_out = "lm_head.weight"});
    CHECK_EQ(checkpoint_open(&c, dir, &why), E_FORMAT);
    CHECK_HAS(why.text, "lm_head.weight is missing");
    make_model(dir, (struct make_model){.add = "model.layers.0.self_attn.q_proj.bias"});
    CHECK_EQ(checkpoint_open(&c, dir, &why), E_UNSUPPORTED);
    CHECK_HAS(why.text, "is a bias");
}

TEST(checkpoint_shards_do_not_need_an_index) {
    static const char *const files[] = {"config.json", "model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors"};
    struct checkpoint c[2];
    struct why why;
    unsigned char digest[2][SHA256_BYTES];
    for (int i = 0; i < 3; i++) {
        char from[300], to[300];
        snprintf(from, sizeof from, "base/%s", files[i]);
        snprintf(to, sizeof to, "%s/%s", test_tmp(), files[i]);
        make_copy(test_model(from), to);
    }
    CHECK_OK(checkpoint_open(&c[0], test_model("base"), &why), why);
    CHECK_OK(checkpoint_open(&c[1], test_tmp(), &why), why);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(checkpoint_fingerprint(&c[i], digest[i], NULL, NULL, &why), why);
        checkpoint_close(&c[i]);
    }
    CHECK_EQ(memcmp(digest[0], digest[1], SHA256_BYTES), 0);
}

TEST(checkpoint_refuses_values_that_fp16_cannot_hold) {
    static const float values[] = {65520, 1e9f, INFINITY, NAN};
    for (size_t i = 0; i < 4; i++)
        for (int d = 0; d < 2; d++) {
            struct checkpoint c;
            struct why why;
            float value = values[i];
            make_model(test_tmp(), (struct make_model){.dtype = d ? ST_BF16 : ST_F32,
                                                       .change = poison,
                                                       .arg = &value});
            CHECK_OK(checkpoint_open(&c, test_tmp(), &why), why);
            static uint16_t half[48 * 40];
            static float wide[48 * 40];
            err_t e = checkpoint_read_f16(&c, "lm_head.weight", half, 48 * 40, &why);
            if (i == 0 && d == 1) { /* 65520 truncates to bfloat16 65280, which fits */
                CHECK_OK(e, why);
            } else {
                CHECK_EQ(e, E_FORMAT);
                CHECK_HAS(why.text, "lm_head.weight: element 1915");
            }
            e = checkpoint_read_f32(&c, "lm_head.weight", wide, 48 * 40, &why);
            CHECK_EQ(e, isfinite(value) ? E_OK : E_FORMAT);
            checkpoint_close(&c);
        }
}

TEST(checkpoint_reads_the_shared_base_and_names_it) {
    struct checkpoint c;
    struct why why;
    CHECK_OK(checkpoint_open(&c, test_model("base"), &why), why);
    CHECK_EQ(c.n_files, 2);
    CHECK_EQ(c.config.shape.n_layers, 8);
    CHECK_EQ(c.config.shape.n_kv_heads, 2);
    unsigned char one[SHA256_BYTES], two[SHA256_BYTES];
    CHECK_OK(checkpoint_fingerprint(&c, one, NULL, NULL, &why), why);
    CHECK_OK(checkpoint_fingerprint(&c, two, NULL, NULL, &why), why);
    CHECK_EQ(memcmp(one, two, sizeof one), 0);
    char hex[SHA256_HEX];
    sha256_hex(one, hex);
    /* Computed by an independent script over the same two files. */
    CHECK_STR(hex, "2d8e92a140b12a8e17808f118f37ea90ff8c89e072a0ca7c65c99d378dc87710");
    checkpoint_close(&c);
}
