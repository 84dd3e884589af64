/* PEFT adapters of every kind: what import-lora keeps exactly, what compress merges on the way,
 * what both refuse. The reference is the formula of PEFT's merge, in double precision. */
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compress/fine_tune.h"
#include "engine/tenant_file.h"
#include "kernels/f16.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

enum { D = 40, RANK = 4 };
static char base[300], adapter[300], out[300], merged[300];

static void places(void) {
    snprintf(base, sizeof base, "%s/base", test_tmp());
    snprintf(adapter, sizeof adapter, "%s/adapter", test_tmp());
    snprintf(out, sizeof out, "%s/t.bitdelta", test_tmp());
    snprintf(merged, sizeof merged, "%s/merged", test_tmp());
}

/* A tensor of the adapter, drawn from its name: values that FP16 holds. */
struct piece {
    const char *name;
    int64_t rows, cols; /* rows 0: a vector */
};

static float value(const char *name, size_t i) {
    unsigned seed = 77 + (unsigned)i * 31;
    for (const char *p = name; *p; p++)
        seed = seed * 131 + (unsigned char)*p;
    return half_to_float(half_from_float(0.1f * test_gauss(&seed)));
}

static void make_adapter(const char *config, const struct piece *piece) {
    char path[400], text[1024];
    struct st_writer *w;
    struct why why;
    mkdir(adapter, 0700);
    snprintf(text, sizeof text, "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8%s}", config);
    make_text(adapter, "adapter_config.json", text);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", adapter);
    CHECK_OK(st_writer_open(&w, path, &why), why);
    for (const struct piece *p = piece; p->name; p++)
        st_writer_tensor(w, p->name, ST_F32, p->rows ? 2 : 1,
                         p->rows ? (int64_t[]){p->rows, p->cols} : (int64_t[]){p->cols});
    CHECK_OK(st_writer_header(w, 8, &why), why);
    for (const struct piece *p = piece; p->name; p++)
        for (int64_t i = 0; i < (p->rows ? p->rows : 1) * p->cols; i++) {
            float x = value(p->name, (size_t)i);
            CHECK_OK(st_writer_data(w, &x, sizeof x, &why), why);
        }
    CHECK_OK(st_writer_end(w, &why), why);
}

#define Q1 "base_model.model.model.layers.1.self_attn.q_proj"
#define Q1_PAIR                                                                                    \
    {Q1 ".lora_A.weight", RANK, D}, {                                                              \
        Q1 ".lora_B.weight", D, RANK                                                               \
    }
static const struct piece q1_pair[] = {Q1_PAIR, {0}};

/* The tensor as the tenant, merged, has it. */
static float *exported(const char *name, size_t n) {
    TOOL_OK("export --base %s --tenant %s -o %s", base, out, merged);
    return read_tensor(merged, name, n);
}

TEST(adapter_pairs_are_scaled_as_peft_does) {
    static const struct {
        const char *config;
        double scale;
    } cases[] = {
        {"", 2},
        {",\"use_rslora\":true", 4},
        {",\"bias\":\"all\"", 2}, /* there are none to train */
        {",\"rank_pattern\":{\"q_proj\":4},\"alpha_pattern\":"
         "{\"model.layers.1.self_attn.q_proj\":2}",
         0.5},
        {",\"alpha_pattern\":{\"proj\":2,\"layers.0.self_attn.q_proj\":3}", /* neither is it */
         2},
        {",\"alpha_pattern\":{\"layers\\\\.(0|1)\\\\..*\\\\.(?:q|v)_proj\":6}", 1.5},
        {",\"alpha_pattern\":{\"^model.layers.\\\\d+.mlp.*\":6,\".*attn.[qk]_proj\":3}", 0.75},
    };
    places();
    make_model(base, (struct make_model){0});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tenant_file t;
        make_adapter(cases[i].config, q1_pair);
        TOOL_OK("import-lora --base %s -o %s %s", base, out, adapter);
        read_tenant(out, &t);
        CHECK_EQ(t.meta.part_kind[0], KIND_ABSENT);
        const struct delta *d = &t.delta[N_PARTS + PART_Q];
        CHECK_EQ(d->rank, RANK);
        for (size_t j = 0; j < RANK * D; j++) {
            CHECK_EQ(d->a[j], half_from_float(value(q1_pair[0].name, j)));
            CHECK_NEAR(half_to_float(d->b[j]), cases[i].scale * value(q1_pair[1].name, j), 0,
                       0x1p-11);
        }
        tenant_file_free(&t);
    }
}

/* base + scale B A, each row stretched to its magnitude where there is one. */
static void reference(const float *w, const char *a, const char *b, const char *magnitude,
                      double *want, int n, int k) {
    for (int r = 0; r < n; r++) {
        double square = 0;
        for (int c = 0; c < k; c++) {
            double sum = w[r * k + c];
            for (int j = 0; j < RANK; j++)
                sum += 2.0 * value(b, (size_t)(r * RANK + j)) * value(a, (size_t)(j * k + c));
            want[r * k + c] = sum;
            square += sum * sum;
        }
        for (int c = 0; magnitude && c < k; c++)
            want[r * k + c] *= value(magnitude, (size_t)r) / sqrt(square);
    }
}

TEST(adapter_of_dora_is_merged_as_it_is_read_and_refused_as_a_pair) {
    static const char magnitude[] = Q1 ".lora_magnitude_vector";
    static const struct piece pieces[] = {Q1_PAIR, {magnitude, 0, D}, {0}};
    struct checkpoint c;
    struct fine_tune f;
    struct why why;
    places();
    make_model(base, (struct make_model){.dtype = ST_BF16});
    make_adapter(",\"use_dora\":true", pieces);
    CHECK_OK(checkpoint_open(&c, base, &why), why);
    CHECK_OK(fine_tune_open(&f, adapter, &c, &why), why);
    static double want[D * D];
    static float got[D * D], part[D];
    float *w = read_tensor(base, "model.layers.1.self_attn.q_proj.weight", D * D);
    reference(w, pieces[0].name, pieces[1].name, magnitude, want, D, D);
    CHECK_OK(checkpoint_read_f32(&f.checkpoint, "model.layers.1.self_attn.q_proj.weight", got,
                                 D * D, &why),
             why);
    for (int i = 0; i < D * D; i++)
        CHECK_NEAR(got[i], want[i], 1e-7, 1e-5);
    /* A stretch that neither begins nor ends with a row. */
    CHECK_OK(checkpoint_read_f32_rows(&f.checkpoint, "model.layers.1.self_attn.q_proj.weight", part,
                                      3 * D + 7, D, &why),
             why);
    CHECK_EQ(memcmp(part, got + 3 * D + 7, sizeof part), 0);
    /* What the adapter does not name is the base's. */
    CHECK_OK(checkpoint_read_f32(&f.checkpoint, "model.layers.0.self_attn.o_proj.weight", got,
                                 D * D, &why),
             why);
    float *same = read_tensor(base, "model.layers.0.self_attn.o_proj.weight", D * D);
    CHECK_EQ(memcmp(got, same, sizeof got), 0);
    free(same), free(w);
    fine_tune_close(&f);
    checkpoint_close(&c);
    TOOL_OK("compress --instant --bits 8 --base %s --finetuned %s -o %s", base, adapter, out);
    float *kept = exported("model.layers.1.self_attn.q_proj.weight", D * D);
    for (int i = 0; i < D * D; i++)
        CHECK_NEAR(kept[i], want[i], 4e-3, 1e-3);
    free(kept);
    CHECK_EQ(run_tool("import-lora --base %s -o %s %s", base, out, adapter), 65);
    CHECK_HAS(tool_output, "no low-rank pair can express; bitdelta compress --finetuned");
}

TEST(adapter_modules_trained_whole_are_kept_whole) {
    static const char norm[] = "base_model.model.model.layers.0.input_layernorm.weight",
                      up[] = "base_model.model.model.layers.0.mlp.up_proj.weight",
                      head[] = "base_model.model.lm_head.modules_to_save.default.weight";
    static const struct piece pieces[] = {Q1_PAIR, {norm, 0, D}, {up, 72, D}, {head, 48, D}, {0}};
    struct tenant_file t;
    places();
    make_model(base, (struct make_model){0});
    make_adapter(",\"modules_to_save\":[\"lm_head\",\"up_proj\",\"input_layernorm\"]", pieces);
    TOOL_OK("import-lora --base %s -o %s %s", base, out, adapter);
    read_tenant(out, &t);
    CHECK_EQ(t.meta.part_kind[PART_UP], KIND_DENSE);
    CHECK_EQ(t.meta.embed, KIND_ABSENT);
    CHECK_EQ(t.meta.head, KIND_DENSE);
    for (size_t i = 0; i < D; i++)
        CHECK_EQ(t.norm[i], value(norm, i));
    tenant_file_free(&t);
    float *x = exported("lm_head.weight", 48 * D);
    for (size_t i = 0; i < 48 * D; i++)
        CHECK_EQ(x[i], value(head, i));
    free(x);
    x = read_tensor(merged, "model.layers.0.mlp.up_proj.weight", 72 * D);
    for (size_t i = 0; i < 72 * D; i++)
        CHECK_EQ(x[i], value(up, i));
    free(x);
}

TEST(adapter_of_embedding_and_head_stays_a_pair_each) {
    static const char ea[] = "base_model.model.model.embed_tokens.lora_embedding_A",
                      eb[] = "base_model.model.model.embed_tokens.lora_embedding_B.default",
                      ha[] = "base_model.model.lm_head.lora_A.weight",
                      hb[] = "base_model.model.lm_head.lora_B.weight";
    static const struct piece pieces[] = {
        {ea, RANK, 48}, {eb, D, RANK}, {ha, RANK, D}, {hb, 48, RANK}, {0}};
    struct tenant_file t;
    places();
    make_model(base, (struct make_model){0});
    make_adapter("", pieces);
    TOOL_OK("import-lora --base %s -o %s %s", base, out, adapter);
    read_tenant(out, &t);
    CHECK_EQ(t.meta.embed, KIND_PLANES);
    CHECK_EQ(t.embed.delta.rank, RANK);
    CHECK_EQ(t.head.delta.rank, RANK);
    tenant_file_free(&t);
    float *w = read_tensor(base, "model.embed_tokens.weight", 48 * D),
          *x = exported("model.embed_tokens.weight", 48 * D);
    for (int v = 0; v < 48; v++)
        for (int c = 0; c < D; c++) {
            double want = w[v * D + c]; /* row v of A' B' */
            for (int j = 0; j < RANK; j++)
                want += 2.0 * value(ea, (size_t)(j * 48 + v)) * value(eb, (size_t)(c * RANK + j));
            CHECK_NEAR(x[v * D + c], want, 1e-6, 0x1p-11);
        }
    free(w), free(x);
    make_model(base, (struct make_model){.tied = true});
    CHECK_EQ(run_tool("import-lora --base %s -o %s %s", base, out, adapter), 65);
    CHECK_HAS(tool_output, "the base's lm_head is its embedding");
}

TEST(adapter_tokens_and_resized_vocabularies_are_exact) {
    static const char tokens[] =
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                      embed[] = "base_model.model.model.embed_tokens.weight",
                      head[] = "base_model.model.lm_head.weight";
    static const struct piece few[] = {Q1_PAIR, {tokens, 2, D}, {0}};
    static const struct piece wide[] = {Q1_PAIR, {embed, 51, D}, {head, 51, D}, {0}};
    struct tenant_file t;
    places();
    make_model(base, (struct make_model){0});
    make_adapter(",\"trainable_token_indices\":[30,7]", few);
    TOOL_OK("import-lora --base %s -o %s %s", base, out, adapter);
    read_tenant(out, &t);
    CHECK_EQ(t.meta.embed, KIND_ROWS);
    CHECK_EQ(t.embed.n_rows, 2);
    CHECK_EQ(t.embed.row_id[0], 7);
    for (size_t i = 0; i < D; i++)
        CHECK_EQ(half_to_float(t.embed.row[i]), value(tokens, D + i));
    tenant_file_free(&t);
    make_adapter(",\"trainable_token_indices\":[30,48]", few);
    CHECK_EQ(run_tool("import-lora --base %s -o %s %s", base, out, adapter), 65);
    CHECK_HAS(tool_output, "token 48 is beyond its 48 rows");
    make_adapter("", wide);
    for (int i = 0; i < 2; i++) {
        if (i)
            TOOL_OK("compress --instant --embed dense --base %s --finetuned %s -o %s", base,
                    adapter, out);
        else
            TOOL_OK("import-lora --base %s -o %s %s", base, out, adapter);
        read_tenant(out, &t);
        CHECK_EQ(t.meta.config.shape.vocab, 51);
        tenant_file_free(&t);
        float *x = exported("lm_head.weight", 51 * D);
        for (size_t j = 0; j < 51 * D; j++)
            CHECK_EQ(x[j], value(head, j));
        free(x);
    }
}

TEST(adapter_that_is_not_base_plus_pairs_is_refused_by_name) {
    static const struct {
        const char *config, *extra, *named;
    } bad[] = {
        {",\"lora_bias\":true", NULL, "lora_bias"},
        {",\"fan_in_fan_out\":true", NULL, "fan_in_fan_out"},
        {",\"layer_replication\":[[0,1]]", NULL, "layer_replication"},
        {",\"init_lora_weights\":\"pissa_niter_16\"", NULL, "a base that PEFT changed first"},
        {",\"init_lora_weights\":\"loftq\"", NULL, "a base that PEFT changed first"},
        {",\"use_dora\":true", NULL, "has no magnitude"},
        {",\"rank_pattern\":{\"q_proj\":8}", NULL, "has rank 4"},
        {",\"alpha_pattern\":{\"(?=q)_proj\":8}", NULL, "regular expression"},
        {",\"alpha_pattern\":{\"((((a+)+)+)+)+\":8}", NULL, "regular expression"},
        {",\"trainable_token_indices\":{\"lm_head\":[-1]}", NULL, "lists of ids"},
        {",\"r\":4", NULL, "duplicate"},
        {"", Q1 ".lora_magnitude_vector", "without use_dora"},
        {"", Q1 ".lora_A.default.weight", "are for the same thing"},
        {"", "base_model.model.model.layers.1.self_attn.q_proj.bias", "is a bias"},
        {"", "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", "is nothing"},
        {"", "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight", "only one"},
        {"", "base_model.model.lm_head.weight", "of the base's 40 columns"},
        {"", "base_model.model.model.norm.weight", "does not have the shape"},
    };
    places();
    make_model(base, (struct make_model){0});
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct piece pieces[4] = {Q1_PAIR, {bad[i].extra, 0, 39}};
        make_adapter(bad[i].config, pieces);
        CHECK_EQ(run_tool("import-lora --base %s -o %s %s", base, out, adapter), 65);
        CHECK_HAS(tool_output, bad[i].named);
        CHECK_EQ(run_tool("compress --base %s --finetuned %s -o %s", base, adapter, out), 65);
        CHECK_HAS(tool_output, bad[i].named);
    }
    make_model(base, (struct make_model){.dim = 48});
    make_adapter("", q1_pair);
    CHECK_EQ(run_tool("import-lora --base %s -o %s %s", base, out, adapter), 65);
    CHECK_HAS(tool_output, "that the base needs");
    static const struct piece high[] = {
        {Q1 ".lora_A.weight", 24, 40}, {Q1 ".lora_B.weight", 40, 24}, {0}};
    make_model(base, (struct make_model){0});
    make_adapter(",\"rank_pattern\":{\"q_proj\":24}", high);
    CHECK_EQ(run_tool("import-lora --base %s -o %s %s", base, out, adapter), 65);
    CHECK_HAS(tool_output, "rank 24 is more than half");
}

/* The tenant's content hash, copied. */
static char *hash_of(const char *path) {
    TOOL_OK("inspect --json %s", path);
    json_t *root = json_loads(tool_output, 0, NULL);
    char *hash = strdup(json_string_value(json_object_get(root, "content_hash")));
    json_decref(root);
    return hash;
}

static void goes_round(const char *base_dir, const char *adapter_dir) {
    TOOL_OK("import-lora --base %s -o %s %s", base_dir, out, adapter_dir);
    char *first = hash_of(out);
    TOOL_OK("export --peft --base %s --tenant %s -o %s", base_dir, out, merged);
    CHECK_EQ(unlink(out), 0);
    TOOL_OK("import-lora --base %s -o %s %s", base_dir, out, merged);
    char *second = hash_of(out);
    CHECK_STR(first, second);
    free(first);
    free(second);
}

TEST(adapter_goes_through_a_tenant_and_comes_out_the_same) {
    places();
    goes_round(test_model("base"), test_model("man-lora"));
}

TEST(adapter_of_mixed_ranks_and_whole_modules_comes_out_the_same) {
    static const struct piece pieces[] = {
        Q1_PAIR,
        {"base_model.model.model.layers.0.mlp.down_proj.lora_A.weight", 6, 72},
        {"base_model.model.model.layers.0.mlp.down_proj.lora_B.weight", D, 6},
        {"base_model.model.model.embed_tokens.lora_embedding_A", RANK, 48},
        {"base_model.model.model.embed_tokens.lora_embedding_B", D, RANK},
        {"base_model.model.lm_head.weight", 48, D},
        {"base_model.model.model.layers.1.mlp.up_proj.weight", 72, D},
        {"base_model.model.model.norm.weight", 0, D},
        {0}};
    places();
    make_model(base, (struct make_model){0});
    make_adapter(",\"rank_pattern\":{\"down_proj\":6},\"alpha_pattern\":{\"down_proj\":6}", pieces);
    goes_round(base, adapter);
    make_adapter("", q1_pair);
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, adapter, out);
    CHECK_EQ(run_tool("export --peft --base %s --tenant %s -o %s", base, out, merged), 65);
    CHECK_HAS(tool_output, "layers.1.self_attn.q_proj.weight has sign planes");
}
