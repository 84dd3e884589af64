/* The `bitdelta` program from outside: what it makes, what it says, how it ends. */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/tenant_file.h"
#include "kernels/f16.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/make_tenant.h"
#include "tests/unit/run_tool.h"

static char base[300], fine[300], out[300], merged[300];

static void places(void) {
    snprintf(base, sizeof base, "%s/base", test_tmp());
    snprintf(fine, sizeof fine, "%s/fine", test_tmp());
    snprintf(out, sizeof out, "%s/t.bitdelta", test_tmp());
    snprintf(merged, sizeof merged, "%s/merged", test_tmp());
}

static void tune(const char *name, float *x, size_t n, void *arg) {
    unsigned seed = 5 + (unsigned)strlen(name);
    for (size_t i = 0; i < n; i++)
        x[i] += *(float *)arg * test_gauss(&seed);
}

/* Only row 7 of the embedding, and nothing else, is another. */
static void one_row(const char *name, float *x, size_t n, void *arg) {
    (void)n;
    if (strcmp(name, "model.embed_tokens.weight") == 0)
        for (int i = 0; i < 40; i++)
            x[7 * 40 + i] += *(float *)arg;
}

TEST(tool_ends_with_the_code_its_help_names) {
    CHECK_EQ(run_tool("--help"), 0);
    CHECK_HAS(tool_output, "Exit codes");
    CHECK_HAS(tool_output, "import-diff");
    CHECK_EQ(run_tool("compress --help"), 0);
    CHECK_HAS(tool_output, "Examples:");
    CHECK_EQ(run_tool("--version"), 0);
    CHECK_EQ(run_tool(" "), 64);
    CHECK_EQ(run_tool("conpress"), 64);
    CHECK_HAS(tool_output, "no command \"conpress\"");
    CHECK_EQ(run_tool("compress --base x"), 64);
    CHECK_HAS(tool_output, "needs --finetuned");
    CHECK_EQ(run_tool("compress --base x --finetuned y -o z --bits 9"), 64);
    CHECK_HAS(tool_output, "--bits must be");
    CHECK_EQ(run_tool("compress --base x --finetuned y -o z --bits nan"), 64);
    CHECK_EQ(run_tool("compress --base x --finetuned y -o z --bits 1.5x"), 64);
    CHECK_HAS(tool_output, "a number in 1..8, not \"1.5x\"");
    CHECK_EQ(run_tool("compress --base x --finetuned y -o z --bits 1.5 --instant"), 64);
    CHECK_HAS(tool_output, "--bits 1 or 2, not 1.5");
    CHECK_EQ(run_tool("compress --base x --base y"), 64);
    CHECK_EQ(run_tool("compress --base"), 64);
    CHECK_EQ(run_tool("inspect a b"), 64);
    CHECK_EQ(run_tool("verify --base /nowhere /nowhere"), 1);
    CHECK_EQ(run_tool("compress --base /nowhere --finetuned /nowhere -o z"), 65);
    CHECK_HAS(tool_output, "/nowhere/config.json");
}

/* Exported weights are FP16(base + sum of planes), whatever the stored dtypes. */
static void round_trip(enum st_dtype base_dtype, enum st_dtype fine_dtype, const char *options) {
    struct tenant_file t;
    float amount = 0.01f;
    places();
    make_model(base, (struct make_model){.dtype = base_dtype, .dim = 72, .heads = 4});
    make_model(fine, (struct make_model){.dtype = fine_dtype,
                                         .dim = 72,
                                         .heads = 4,
                                         .vocab = 48,
                                         .change = tune,
                                         .arg = &amount});
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s %s", base, fine, out, options);
    TOOL_OK("verify --base %s %s", base, out);
    TOOL_OK("export --base %s --tenant %s -o %s", base, out, merged);
    read_tenant(out, &t);
    const struct model_shape *s = &t.meta.config.shape;
    for (int32_t i = 0; i < s->n_layers * N_PARTS; i++) {
        enum part p = (enum part)(i % N_PARTS);
        int32_t n = part_rows(s, p), k = part_cols(s, p);
        char name[160];
        part_name(name, sizeof name, i / N_PARTS, p);
        strcat(name, ".weight");
        float *b = read_tensor(base, name, (size_t)n * (size_t)k),
              *m = read_tensor(merged, name, (size_t)n * (size_t)k);
        for (int32_t r = 0; r < n; r++)
            for (int32_t c = 0; c < k; c++) {
                double sum = half_to_float(half_from_float(b[r * k + c]));
                for (int32_t q = 0; q < t.delta[i].n_planes; q++) {
                    const struct plane *plane = &t.delta[i].plane[q];
                    int bit = plane->bits[plane_word(r, c, k)] >> c % 32 & 1;
                    sum += bit ? plane->row[r] : -plane->row[r];
                }
                CHECK_NEAR(m[r * k + c], sum, 4e-8, 0x1p-11);
            }
        free(b);
        free(m);
    }
    tenant_file_free(&t);
}

TEST(tool_export_is_base_plus_planes_rounded_once) {
    round_trip(ST_F16, ST_F16, "");
    round_trip(ST_BF16, ST_BF16, "--scale matrix");
    round_trip(ST_F32, ST_BF16, "--bits 3");
}

/* A folder for transformers' LlamaForCausalLM: its state_dict, name by name, and nothing else. */
static void check_state_dict(bool tied) {
    static const struct {
        const char *name;
        int64_t rows, cols;
    } layer[] = {{"input_layernorm", 0, 40},   {"post_attention_layernorm", 0, 40},
                 {"self_attn.q_proj", 40, 40}, {"self_attn.k_proj", 20, 40},
                 {"self_attn.v_proj", 20, 40}, {"self_attn.o_proj", 40, 40},
                 {"mlp.gate_proj", 72, 40},    {"mlp.up_proj", 72, 40},
                 {"mlp.down_proj", 40, 72}};
    static const char *const rest[] = {"model.norm", "model.embed_tokens", "lm_head"};
    struct st_file f;
    struct why why;
    char path[400], name[160];
    snprintf(path, sizeof path, "%s/model.safetensors", merged);
    int fd = open(path, O_RDONLY);
    CHECK_OK(st_open(&f, fd, path, 1 << 20, &why), why);
    CHECK_STR(st_meta(&f, "format"), "pt");
    int n = 0;
    for (int l = 0; l < 2; l++)
        for (size_t i = 0; i < sizeof layer / sizeof *layer; i++, n++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, layer[i].name);
            const struct st_tensor *t = st_find(&f, name);
            CHECK(t && t->dtype == ST_F16 && t->n_dims == (layer[i].rows ? 2 : 1));
            CHECK_EQ(t->dim[t->n_dims - 1], layer[i].cols);
            CHECK(!layer[i].rows || t->dim[0] == layer[i].rows);
        }
    for (int i = 0; i < (tied ? 2 : 3); i++, n++) {
        snprintf(name, sizeof name, "%s.weight", rest[i]);
        const struct st_tensor *t = st_find(&f, name);
        CHECK(t && t->dtype == ST_F16 && t->n_dims == (i ? 2 : 1));
        CHECK(i == 0 || (t->dim[0] == 51 && t->dim[1] == 40));
    }
    CHECK_EQ(f.n_tensors, n);
    st_close(&f);
    close(fd);
    snprintf(path, sizeof path, "%s/config.json", merged);
    json_t *config = json_load_file(path, 0, NULL);
    CHECK_STR(json_string_value(json_object_get(config, "dtype")), "float16");
    CHECK_STR(json_string_value(json_array_get(json_object_get(config, "architectures"), 0)),
              "LlamaForCausalLM");
    CHECK_EQ(json_integer_value(json_object_get(config, "vocab_size")), 51);
    CHECK_EQ(json_is_true(json_object_get(config, "tie_word_embeddings")), tied);
    json_decref(config);
}

TEST(tool_export_is_the_state_dict_that_transformers_loads) {
    float amount = 0.01f;
    for (int tied = 0; tied < 2; tied++) {
        places();
        make_model(base, (struct make_model){.tied = tied, .bare = true});
        make_model(fine,
                   (struct make_model){.tied = tied, .vocab = 51, .change = tune, .arg = &amount});
        TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, fine, out);
        TOOL_OK("export --base %s --tenant %s -o %s", base, out, merged);
        check_state_dict(tied);
    }
}

TEST(tool_keeps_what_equals_the_base_out_of_the_file) {
    struct tenant_file t;
    float amount = 0.25f;
    places();
    make_model(base, (struct make_model){0});
    make_model(fine, (struct make_model){.change = one_row, .arg = &amount});
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, fine, out);
    read_tenant(out, &t);
    for (int i = 0; i < 2 * N_PARTS; i++)
        CHECK_EQ(t.meta.part_kind[i], KIND_ABSENT);
    CHECK_EQ(t.meta.head, KIND_ABSENT);
    CHECK_EQ(t.meta.embed, KIND_ROWS);
    CHECK_EQ(t.embed.n_rows, 1);
    CHECK_EQ(t.embed.row_id[0], 7);
    tenant_file_free(&t);
    /* And the export is the fine-tune, to the last bit. */
    TOOL_OK("export --base %s --tenant %s -o %s", base, out, merged);
    float *x = read_tensor(fine, "model.embed_tokens.weight", 48 * 40),
          *y = read_tensor(merged, "model.embed_tokens.weight", 48 * 40);
    CHECK_EQ(memcmp(x, y, 48 * 40 * sizeof *x), 0);
    free(x);
    free(y);
}

TEST(tool_keeps_rows_beyond_the_base_exactly) {
    struct tenant_file t;
    float amount = 0.01f;
    places();
    make_model(base, (struct make_model){0});
    make_model(fine, (struct make_model){.vocab = 51, .change = tune, .arg = &amount});
    for (int dense = 0; dense < 2; dense++) {
        TOOL_OK("compress --instant --base %s --finetuned %s -o %s %s", base, fine, out,
                dense ? "--embed dense" : "--embed-bits 2");
        read_tenant(out, &t);
        CHECK_EQ(t.meta.embed, dense ? KIND_DENSE : KIND_PLANES);
        CHECK_EQ(t.embed.n_rows, dense ? 0 : 3);
        tenant_file_free(&t);
        TOOL_OK("export --base %s --tenant %s -o %s", base, out, merged);
        float *x = read_tensor(fine, "lm_head.weight", 51 * 40),
              *y = read_tensor(merged, "lm_head.weight", 51 * 40);
        size_t from = dense ? 0 : 48 * 40;
        CHECK_EQ(memcmp(x + from, y + from, (51 * 40 - from) * sizeof *x), 0);
        free(x);
        free(y);
    }
}

TEST(tool_follows_tied_embeddings_on_either_side) {
    static const struct {
        bool base, fine;
        enum tenant_kind head;
    } cases[] = {{true, true, KIND_TIED}, {false, true, KIND_TIED}, {true, false, KIND_PLANES}};
    for (size_t i = 0; i < 3; i++) {
        struct tenant_file t;
        float amount = 0.01f;
        places();
        make_model(base, (struct make_model){.tied = cases[i].base});
        make_model(fine,
                   (struct make_model){.tied = cases[i].fine, .change = tune, .arg = &amount});
        TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, fine, out);
        read_tenant(out, &t);
        CHECK_EQ(t.meta.head, cases[i].head);
        tenant_file_free(&t);
        TOOL_OK("export --base %s --tenant %s -o %s", base, out, merged);
        struct checkpoint c;
        struct why why;
        CHECK_OK(checkpoint_open(&c, merged, &why), why);
        CHECK_EQ(c.config.tied, cases[i].fine);
        checkpoint_close(&c);
    }
}

TEST(tool_takes_a_fine_tune_with_fewer_tokens_and_other_names) {
    float amount = 0.01f;
    places();
    make_model(base, (struct make_model){.dtype = ST_BF16});
    make_model(fine, (struct make_model){.dtype = ST_F32,
                                         .vocab = 45,
                                         .bare = true,
                                         .file = "weights.safetensors",
                                         .extra_config = ",\"rope_theta\":500000.0",
                                         .change = tune,
                                         .arg = &amount});
    for (int dense = 0; dense < 2; dense++) {
        struct tenant_file t;
        TOOL_OK("compress --instant --bits 8 --base %s --finetuned %s -o %s %s", base, fine, out,
                dense ? "--embed dense" : "");
        TOOL_OK("verify --base %s %s", base, out);
        read_tenant(out, &t);
        CHECK_EQ(t.meta.config.shape.vocab, 45);
        CHECK_NEAR(t.meta.config.rope.theta, 500000, 0, 0);
        tenant_file_free(&t);
        TOOL_OK("export --base %s --tenant %s -o %s", base, out, merged);
        float *x = read_tensor(fine, "lm_head.weight", 45 * 40),
              *y = read_tensor(merged, "lm_head.weight", 45 * 40);
        for (int i = 0; i < 45 * 40; i++)
            CHECK_NEAR(x[i], y[i], dense ? 1e-7 : 3e-3, 0x1p-11);
        free(x);
        free(y);
    }
}

TEST(tool_refuses_pairs_that_do_not_belong_together) {
    places();
    make_model(base, (struct make_model){0});
    make_model(fine, (struct make_model){.seed = 77});
    CHECK_EQ(run_tool("compress --instant --base %s --finetuned %s -o %s", base, fine, out), 65);
    CHECK_HAS(tool_output, "is not a fine-tune of");
    CHECK_HAS(tool_output, "1.4");
    CHECK_HAS(tool_output, "most in model.layers.");
    make_model(fine, (struct make_model){.layers = 3, .dim = 48});
    CHECK_EQ(run_tool("compress --instant --base %s --finetuned %s -o %s", base, fine, out), 65);
    CHECK_HAS(tool_output, "num_hidden_layers is 3, but the base has 2; hidden_size is 48");
    CHECK_EQ(access(out, F_OK), -1);
}

TEST(tool_verify_names_the_damaged_tensor_and_the_wrong_base) {
    float amount = 0.01f;
    places();
    make_model(base, (struct make_model){0});
    make_model(fine, (struct make_model){.change = tune, .arg = &amount});
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, fine, out);
    CHECK_EQ(run_tool("verify --base %s %s", fine, out), 1);
    CHECK_HAS(tool_output, "made for another base");
    struct st_file f;
    struct why why;
    int fd = open(out, O_RDWR);
    CHECK_OK(st_open(&f, fd, out, TENANT_MAX_HEADER, &why), why);
    const struct st_tensor *t = st_find(&f, "model.layers.1.mlp.gate_proj.plane0.bits");
    unsigned char byte;
    CHECK_EQ(pread(fd, &byte, 1, (off_t)t->offset), 1);
    byte ^= 1;
    CHECK_EQ(pwrite(fd, &byte, 1, (off_t)t->offset), 1);
    st_close(&f);
    close(fd);
    CHECK_EQ(run_tool("verify --json --base %s %s", base, out), 1);
    CHECK_HAS(tool_output, "{"); /* after the sentence on stderr */
    json_t *j = json_loads(strchr(tool_output, '{'), JSON_DISABLE_EOF_CHECK, NULL);
    CHECK(j && json_is_false(json_object_get(j, "ok")));
    CHECK_HAS(json_string_value(json_object_get(j, "error")),
              "model.layers.1.mlp.gate_proj.plane0.bits is damaged");
    json_decref(j);
    CHECK_EQ(run_tool("inspect %s", out), 65);
    char good[300];
    snprintf(good, sizeof good, "%s/good.bitdelta", test_tmp());
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, fine, good);
    TOOL_OK("verify --base %s %s %s", base, good, good);
    CHECK_EQ(run_tool("verify --json --base %s %s %s /nowhere", base, out, good), 1);
    CHECK_HAS(tool_output, "/nowhere: cannot open");
    j = json_loads(strchr(tool_output, '['), JSON_DISABLE_EOF_CHECK, NULL);
    CHECK_EQ(json_array_size(j), 3);
    CHECK(json_is_true(json_object_get(json_array_get(j, 1), "ok")));
    json_decref(j);
}

TEST(tool_prints_json_that_parses) {
    float amount = 0.01f;
    places();
    make_model(base, (struct make_model){0});
    make_model(fine, (struct make_model){.change = tune, .arg = &amount});
    TOOL_OK("compress --instant --json --base %s --finetuned %s -o %s", base, fine, out);
    json_t *j = json_loads(tool_output, 0, NULL);
    const json_t *all = json_object_get(json_object_get(j, "matrices"), "all_linears");
    /* One sign of a Gaussian leaves sqrt(1 - 2/pi) = 0.603 of it. */
    CHECK_NEAR(json_number_value(json_object_get(all, "relative_loss")), 0.603, 0.02, 0);
    json_decref(j);
    TOOL_OK("inspect --json %s", out);
    j = json_loads(tool_output, 0, NULL);
    CHECK_EQ(json_integer_value(json_object_get(j, "vocab")), 48);
    CHECK_EQ(json_integer_value(json_object_get(
                 json_object_get(json_object_get(j, "linears"), "q_proj"), "planes 1")),
             2);
    json_decref(j);
}

/* ---- real models ----------------------------------------------------------------------------- */

TEST(tool_keeps_added_tokens_template_and_rope_of_real_tenants) {
    struct tenant_file t;
    places();
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", test_model("base"),
            test_model("chat"), out);
    read_tenant(out, &t);
    CHECK_EQ(t.meta.config.shape.vocab, 4098);
    CHECK_HAS(t.meta.tokenizer_json, "<|im_end|>");
    CHECK_HAS(t.meta.tokenizer_json, "chat_template");
    CHECK_EQ(t.embed.row_id[t.embed.n_rows - 1], 4097);
    tenant_file_free(&t);
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", test_model("base"),
            test_model("long"), out);
    read_tenant(out, &t);
    CHECK_EQ(t.meta.config.rope.kind, ROPE_LINEAR);
    CHECK_EQ(t.meta.config.context, 1024);
    tenant_file_free(&t);
}

TEST(tool_refuses_a_diff_of_another_base_and_damaged_ones) {
    char path[300];
    places();
    /* Same shape, other weights: sizes of the shared base. */
    make_model(base, (struct make_model){.layers = 8, .dim = 256, .ffn = 768, .vocab = 4096});
    CHECK_EQ(
        run_tool("import-diff --base %s -o %s %s", base, out, test_model("diff.pt/kjv.diff.pt")),
        65);
    CHECK_HAS(tool_output, "does not resemble this base's");
    make_model(base, (struct make_model){.layers = 2, .dim = 256, .ffn = 768, .vocab = 4096});
    CHECK_EQ(
        run_tool("import-diff --base %s -o %s %s", base, out, test_model("diff.pt/kjv.diff.pt")),
        65);
    snprintf(path, sizeof path, "%s/d.pt", test_tmp());
    make_copy(test_model("diff.pt/kjv.diff.pt"), path);
    int fd = open(path, O_RDWR);
    unsigned char byte = 0;
    CHECK_EQ(pread(fd, &byte, 1, 3000000), 1); /* inside a dense tensor */
    byte ^= 0x10;
    CHECK_EQ(pwrite(fd, &byte, 1, 3000000), 1);
    CHECK_EQ(run_tool("import-diff --base %s -o %s %s", test_model("base"), out, path), 65);
    CHECK_HAS(tool_output, "damaged");
    CHECK_EQ(ftruncate(fd, 2000000), 0);
    CHECK_EQ(run_tool("import-diff --base %s -o %s %s", test_model("base"), out, path), 65);
    CHECK_HAS(tool_output, "zip");
    close(fd);
}

static void make_pair(float amount) {
    places();
    make_model(base, (struct make_model){.scale = 0.2f, .dtype = ST_F32});
    make_model(fine,
               (struct make_model){.scale = 0.2f, .change = tune, .arg = &amount, .dtype = ST_F32});
}

static json_t *inspected(const char *key) {
    TOOL_OK("inspect --json %s", out);
    json_t *root = json_loads(tool_output, 0, NULL), *value = json_object_get(root, key);
    json_incref(value);
    json_decref(root);
    return value;
}

TEST_LIMIT(tool_finds_the_bits_that_go_a_share_of_the_way, 240) {
    make_pair(0.04f);
    TOOL_OK("compress --steps 1 --quality 0.75 --base %s --finetuned %s -o %s", base, fine, out);
    CHECK_HAS(tool_output, "1.14 bits a weight go");
    CHECK_HAS(tool_output, "of the way from the base to the fine-tune (1 - sqrt");
    json_t *made = inspected("made"), *quality = inspected("quality");
    double bits = json_number_value(json_object_get(made, "bits")),
           kept = json_number_value(json_object_get(quality, "kept"));
    if (!(bits > 1.2 && bits < 6 && kept >= 0.75 && kept < 0.9))
        test_fail(__FILE__, __LINE__, "%.2f bits go %.3f of the way", bits, kept);
    double kl = json_number_value(json_object_get(json_object_get(quality, "fitted"), "kl")),
           base_kl = json_number_value(json_object_get(json_object_get(quality, "base"), "kl"));
    CHECK_NEAR(kept, 1 - sqrt(kl / base_kl), 1e-9, 0);
    json_decref(made);
    json_decref(quality);
    CHECK_EQ(unlink(out), 0);
    CHECK_EQ(run_tool("compress --steps 1 --quality 0.75 --bits 1.2 --base %s --finetuned %s -o %s",
                      base, fine, out),
             65);
    CHECK_HAS(tool_output, "not the 75 % asked for; about ");
    CHECK_HAS(tool_output, "bits would go 75 % (--bits ");
    CHECK_EQ(access(out, F_OK), -1);
    CHECK_EQ(run_tool("compress --instant --quality 0.75 --base %s --finetuned %s -o %s", base,
                      fine, out),
             64);
    CHECK_EQ(run_tool("compress --steps 0 --quality 0.75 --base %s --finetuned %s -o %s", base,
                      fine, out),
             64);
}

TEST_LIMIT(tool_measures_a_base_that_lacks_the_fine_tune_s_tokens, 240) {
    for (int tied = 0; tied < 2; tied++)
        for (int vocab = tied ? 51 : 48; vocab <= 51; vocab += 3) {
            float amount = 0.04f;
            places();
            make_model(base, (struct make_model){
                                 .scale = 0.2f, .tied = tied, .vocab = 48, .dtype = ST_F32});
            make_model(fine, (struct make_model){.scale = 0.2f,
                                                 .tied = tied,
                                                 .vocab = vocab,
                                                 .change = tune,
                                                 .arg = &amount,
                                                 .dtype = ST_F32});
            TOOL_OK("compress --steps 1 --bits 3 --base %s --finetuned %s -o %s", base, fine, out);
            json_t *quality = inspected("quality");
            const json_t *nothing = json_object_get(quality, "base"),
                         *fitted = json_object_get(quality, "fitted");
            double base_kl = json_number_value(json_object_get(nothing, "kl")),
                   kl = json_number_value(json_object_get(fitted, "kl"));
            CHECK(base_kl > 0.1 && base_kl < 10);
            CHECK(kl > 0 && kl < base_kl / 2);
            json_decref(quality);
        }
}

TEST(tool_refuses_a_tenant_that_goes_nowhere_near_its_fine_tune) {
    make_pair(0.09f);
    TOOL_OK("compress --steps 1 --base %s --finetuned %s -o %s", base, fine, out);
    CHECK_HAS(tool_output, "Note: fine changed too much for 1.14 bits");
    CHECK_EQ(unlink(out), 0);
    make_pair(0.19f);
    CHECK_EQ(
        run_tool("compress --steps 1 --bits 1 --base %s --finetuned %s -o %s", base, fine, out),
        65);
    CHECK_HAS(tool_output, "changed too much for 1 bits a weight");
    CHECK_HAS(tool_output, "which is nowhere (--quality 0.01 to take it); about ");
    CHECK_EQ(access(out, F_OK), -1);
}

TEST(tool_inspect_shows_what_every_matrix_costs) {
    float amount = 0.01f;
    places();
    make_model(base, (struct make_model){0});
    make_model(fine, (struct make_model){.change = tune, .arg = &amount});
    TOOL_OK("compress --instant --bits 2 --base %s --finetuned %s -o %s", base, fine, out);
    TOOL_OK("inspect --layers %s", out);
    CHECK_HAS(tool_output, "not measured");
    CHECK_HAS(tool_output, "method mean");
    json_t *layers;
    TOOL_OK("inspect --layers --json %s", out);
    json_t *root = json_loads(tool_output, 0, NULL);
    layers = json_object_get(root, "layers");
    CHECK_EQ(json_array_size(layers), 2 * N_PARTS);
    double bits = 0, weights = 0;
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const json_t *row = json_array_get(layers, i);
        double bytes = json_number_value(json_object_get(row, "bytes")),
               per_weight = json_number_value(json_object_get(row, "bits_per_weight"));
        CHECK_EQ(json_integer_value(json_object_get(row, "planes")), 2);
        bits += 8 * bytes;
        weights += 8 * bytes / per_weight;
    }
    CHECK_NEAR(bits / weights, json_number_value(json_object_get(root, "bits_per_weight")), 1e-6,
               0);
    json_decref(root);
}
