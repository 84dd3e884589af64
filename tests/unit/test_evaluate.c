/* The calibration model against the reference implementation, the cached decode against the whole
 * forward pass, the reading of questions, and `bitdelta eval` on real models. */
#include <jansson.h>
#include <math.h>

#include "compress/evaluate.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

struct loaded {
    struct train *t;
    struct checkpoint files;
    struct llama m;
};

static void load_model(struct loaded *l, const char *dir) {
    struct why why = {""};
    CHECK_OK(train_cpu_open(&l->t, 0, &why), why);
    CHECK_OK(checkpoint_open(&l->files, dir, &why), why);
    struct llama_files from = {&l->files, true};
    CHECK_OK(llama_load(&l->m, l->t, &l->files.config, llama_source_files(&from), NULL, &why), why);
}

static void unload(struct loaded *l) {
    llama_free(&l->m);
    checkpoint_close(&l->files);
    l->t->ops->close(l->t);
}

/* log p of every id given those before it, in one forward pass. */
static void log_probs(struct loaded *l, const int32_t *ids, int32_t n, double *out) {
    struct why why = {""};
    int32_t start[2] = {0, n}, vocab = l->m.config.shape.vocab;
    struct llama_batch b = {n, 1, ids, start};
    struct llama_tape *tape;
    float *logits = malloc((size_t)n * (size_t)vocab * sizeof *logits);
    CHECK_OK(llama_tape_open(&tape, &l->m, n, false, &why), why);
    llama_forward(&l->m, &b, tape, logits);
    for (int32_t r = 0; r + 1 < n; r++) {
        const float *x = logits + (size_t)r * (size_t)vocab;
        double top = -INFINITY, sum = 0;
        for (int32_t i = 0; i < vocab; i++)
            top = (double)x[i] > top ? (double)x[i] : top;
        for (int32_t i = 0; i < vocab; i++)
            sum += exp((double)x[i] - top);
        out[r + 1] = (double)x[ids[r + 1]] - top - log(sum);
    }
    free(logits);
    llama_tape_close(tape);
}

static void check_golden(const char *name, const char *folder) {
    json_error_t error;
    json_t *root = json_load_file(test_model("golden.json"), 0, &error);
    CHECK(root != NULL);
    struct loaded l;
    load_model(&l, test_model(folder));
    size_t i, checked = 0;
    json_t *c;
    json_array_foreach(json_object_get(root, name), i, c) {
        json_t *ids = json_object_get(c, "ids"), *want = json_object_get(c, "prompt_logprobs");
        int32_t n = (int32_t)json_array_size(ids), *id = malloc((size_t)n * sizeof *id);
        double *got = malloc((size_t)n * sizeof *got);
        for (int32_t k = 0; k < n; k++)
            id[k] = (int32_t)json_integer_value(json_array_get(ids, (size_t)k));
        log_probs(&l, id, n, got);
        for (int32_t k = 1; k < n; k++, checked++)
            CHECK_NEAR(got[k], json_number_value(json_array_get(want, (size_t)k)), 2e-3, 0);
        free(id), free(got);
    }
    CHECK(checked > 5);
    unload(&l);
    json_decref(root);
}

TEST(llama_gives_the_reference_log_probabilities_of_the_base) {
    check_golden("base", "base");
}
TEST(llama_gives_the_reference_log_probabilities_of_a_wider_vocabulary) {
    check_golden("chat", "chat");
}
TEST(llama_gives_the_reference_log_probabilities_under_scaled_rope) {
    check_golden("long", "long");
}

/* A made model, its greedy continuation, and what the whole forward pass says comes next. */
TEST(sample_decodes_what_the_whole_forward_pass_predicts) {
    struct why why = {""};
    char dir[300];
    snprintf(dir, sizeof dir, "%s/model", test_tmp());
    make_model(dir, (struct make_model){.scale = 0.3f});
    struct loaded l;
    load_model(&l, dir);
    struct corpus prompts = {0};
    struct lesson kept = {0}, read = {0};
    kept.row_bytes = read.row_bytes = (size_t)l.m.config.shape.dim * sizeof(float);
    static const int32_t a[] = {1, 7, 9}, b[] = {1, 3, 4, 5, 6};
    CHECK_EQ(corpus_add(&prompts, a, 3), 0);
    CHECK_EQ(corpus_add(&prompts, b, 5), 0);
    int32_t lengths[] = {12, 9};
    struct sample_options o = {0};
    CHECK_OK(sample_continue(&l.m, &prompts, lengths, &o, &kept, &why), why);
    const struct corpus said = kept.text;
    CHECK_EQ(said.n_seqs, 2);
    int32_t vocab = l.m.config.shape.vocab;
    float *logits = malloc(12 * (size_t)vocab * sizeof *logits);
    struct llama_tape *tape;
    CHECK_OK(llama_tape_open(&tape, &l.m, 12, false, &why), why);
    for (int32_t s = 0; s < 2; s++) {
        int32_t n = corpus_length(&said, s), start[2] = {0, n};
        const int32_t *id = said.id + said.start[s];
        CHECK_EQ(n, lengths[s]);
        llama_forward(&l.m, &(struct llama_batch){n, 1, id, start}, tape, logits);
        for (int32_t r = 0; r < n; r++) {
            if (r < corpus_length(&prompts, s)) {
                CHECK_EQ(id[r], prompts.id[prompts.start[s] + (size_t)r]);
                continue;
            }
            const float *x = logits + (size_t)(r - 1) * (size_t)vocab;
            for (int32_t i = 0; i < vocab; i++)
                CHECK(x[i] <= x[id[r]] + 1e-4f);
        }
    }
    /* What decoding keeps of each row is what reading the text gives. */
    CHECK_OK(lesson_read(&read, &l.m, &said, 12, NULL, &why), why);
    for (int32_t s = 0; s < 2; s++)
        for (size_t i = said.start[s]; i + 1 < said.start[s + 1]; i++)
            for (size_t e = 0; e < read.row_bytes / sizeof(float); e++)
                CHECK_NEAR((double)((float *)(void *)(kept.stream + i * read.row_bytes))[e],
                           (double)((float *)(void *)(read.stream + i * read.row_bytes))[e], 1e-4,
                           1e-4);
    llama_tape_close(tape);
    free(logits);
    corpus_free(&prompts), lesson_free(&kept), lesson_free(&read);
    unload(&l);
}

TEST(sample_draws_by_seed_and_number_alone_and_by_the_model_s_probabilities) {
    struct why why = {""};
    char dir[300];
    snprintf(dir, sizeof dir, "%s/model", test_tmp());
    make_model(dir, (struct make_model){.vocab = 12, .scale = 0.3f});
    struct loaded l;
    load_model(&l, dir);
    struct lesson one_text = {0}, many_text = {0};
    struct sample_options o = {.temperature = 1, .seed = 5};
    enum { DOCUMENTS = 4000, LENGTH = 2 };
    CHECK_OK(sample_documents(&l.m, 3, LENGTH, &o, &one_text, &why), why);
    CHECK_OK(sample_documents(&l.m, DOCUMENTS, LENGTH, &o, &many_text, &why), why);
    const struct corpus one = one_text.text, many = many_text.text;
    CHECK_EQ(memcmp(one.id, many.id, one.n_ids * sizeof *one.id), 0);
    int32_t count[12] = {0}, first = many.id[0];
    for (int32_t i = 0; i < DOCUMENTS; i++)
        count[many.id[many.start[i] + 1]]++;
    for (int32_t v = 0; v < 12; v++) {
        int32_t pair[] = {first, v};
        double log_p[2];
        log_probs(&l, pair, 2, log_p);
        double p = exp(log_p[1]), spread = sqrt(p * (1 - p) / DOCUMENTS);
        CHECK_NEAR((double)count[v] / DOCUMENTS, p, 5 * spread, 0);
    }
    lesson_free(&one_text), lesson_free(&many_text);
    unload(&l);
}

TEST(eval_reads_questions_of_every_form) {
    struct why why = {""};
    struct tokenizer *t;
    struct task_set set;
    CHECK_OK(tokenizer_open(&t, test_model("chat"), &why), why);
    char path[300];
    snprintf(path, sizeof path, "%s/q.json", test_tmp());
    make_text(test_tmp(), "q.json",
              "[\"Q: 1 + 1 = ?\\nA: 2\", \"only text: here\\nand more\", \"Two?\\t 2 \","
              "{\"prompt\": \"one and\", \"answer\": \" one\"}]");
    CHECK_OK(task_set_read(&set, t, path, 512, 2, 0, &why), why);
    CHECK_EQ(set.n_tasks, 3);
    CHECK_EQ(set.text.n_seqs, 4);
    CHECK_STR(set.task[0].answer, "2");
    CHECK_STR(set.task[1].answer, "2");
    CHECK_STR(set.task[2].answer, "one");
    CHECK_EQ(set.task[1].prompt[1], 4096); /* <|im_start|> as one id, behind BOS */
    CHECK_EQ(set.text.id[set.text.start[1] - 1], 2);
    task_set_free(&set);
    make_text(test_tmp(), "q.json", "[3]");
    CHECK_EQ(task_set_read(&set, t, path, 512, 2, 0, &why), E_FORMAT);
    CHECK_HAS(why.text, "document 0");
    task_set_free(&set);
    make_text(test_tmp(), "q.json", "{\"a\": 1}");
    CHECK_EQ(task_set_read(&set, t, path, 512, 2, 0, &why), E_FORMAT);
    task_set_free(&set);
    tokenizer_close(t);
}

static double number(const json_t *score, const char *what) {
    const json_t *x = json_object_get(score, what);
    if (!json_is_number(x))
        test_fail(__FILE__, __LINE__, "%s lacks %s", tool_output, what);
    return json_number_value(x);
}

TEST_LIMIT(eval_tells_base_tenant_and_fine_tune_apart, 300) {
    char file[300];
    snprintf(file, sizeof file, "%s/math.bitdelta", test_tmp());
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", test_model("base"),
            test_model("math"), file);
    TOOL_OK("eval --base %s --finetuned %s --tenant %s --tasks %s --limit 20 --json",
            test_model("base"), test_model("math"), file, test_model("math/heldout.json"));
    json_error_t error;
    json_t *root = json_loads(tool_output, 0, &error);
    CHECK(root != NULL);
    const json_t *base = json_object_get(root, "base"), *fine = json_object_get(root, "fine_tune");
    CHECK(number(fine, "exact_match") >= 0.9);
    CHECK(number(base, "exact_match") <= 0.1);
    CHECK_NEAR(number(fine, "kl"), 0, 1e-6, 0);
    const json_t *tenant = json_array_get(json_object_get(root, "tenants"), 0);
    CHECK(number(tenant, "kl") > 0.01);
    CHECK_NEAR(number(tenant, "way"), 1 - sqrt(number(tenant, "kl") / number(base, "kl")), 1e-9, 0);
    CHECK(number(tenant, "kl") < 0.2 * number(base, "kl"));
    CHECK(number(fine, "perplexity") < number(tenant, "perplexity"));
    CHECK(number(tenant, "perplexity") < number(base, "perplexity"));
    json_decref(root);
    TOOL_OK("eval --base %s --tenant %s --text %s --limit 3", test_model("base"), file,
            test_model("eval.txt"));
    CHECK_HAS(tool_output, "perplexity");
    CHECK_EQ(run_tool("eval --base %s --tenant %s", test_model("base"), file), 64);
    CHECK_HAS(tool_output, "--text");
}

static int32_t big_endian(const unsigned char *p) {
    return p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

TEST_LIMIT(eval_draws_several_tenants_as_svg_and_png, 300) {
    char one[300], two[300], path[300];
    snprintf(one, sizeof one, "%s/one.bitdelta", test_tmp());
    snprintf(two, sizeof two, "%s/two.bitdelta", test_tmp());
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", test_model("base"),
            test_model("sql"), one);
    TOOL_OK("compress --instant --bits 2 --base %s --finetuned %s -o %s", test_model("base"),
            test_model("sql"), two);
    snprintf(path, sizeof path, "%s/p.png", test_tmp());
    TOOL_OK("eval --base %s --finetuned %s --tenant %s %s --tasks %s --limit 4 --json --plot %s",
            test_model("base"), test_model("sql"), one, two, test_model("sql/heldout.json"), path);
    json_t *root = json_loads(tool_output, 0, NULL);
    const json_t *list = json_object_get(root, "tenants");
    CHECK_EQ(json_array_size(list), 2);
    CHECK(number(json_array_get(list, 1), "kl") < number(json_array_get(list, 0), "kl"));
    CHECK_NEAR(number(json_array_get(list, 1), "bits_per_weight"), 2.2, 0.05, 0);
    json_decref(root);
    unsigned char head[24] = {0};
    FILE *f = fopen(path, "rb");
    CHECK(f && fread(head, 1, sizeof head, f) == sizeof head);
    fclose(f);
    CHECK_EQ(memcmp(head, "\x89PNG\r\n\x1a\n", 8), 0);
    CHECK(big_endian(head + 16) > 2000); /* three panels: exact match, KL, top-1 */
    snprintf(path, sizeof path, "%s/p.svg", test_tmp());
    TOOL_OK("eval --base %s --tenant=%s --tenant %s --text %s --limit 1 --plot %s",
            test_model("base"), one, two, test_model("eval.txt"), path);
    CHECK_HAS(tool_output, "one.bitdelta");
    CHECK_HAS(tool_output, "two.bitdelta");
    f = fopen(path, "rb");
    CHECK(f && fread(head, 1, sizeof head - 1, f) == sizeof head - 1);
    fclose(f);
    head[sizeof head - 1] = 0;
    CHECK_HAS((char *)head, "<?xml");
    CHECK_EQ(run_tool("eval --base /nowhere --tenant x --text y --plot p.jpg"), 64);
    CHECK_HAS(tool_output, "FILE.svg or FILE.png");
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", test_model("base"),
            test_model("chat"), two);
    CHECK_EQ(run_tool("eval --base %s --tenant %s %s --text %s --limit 1", test_model("base"), one,
                      two, test_model("eval.txt")),
             65);
    CHECK_HAS(tool_output, "has other tokens than");
}

TEST_LIMIT(eval_lets_the_base_read_documents_beyond_its_own_context, 120) {
    char fine[300], text[400], file[300];
    snprintf(fine, sizeof fine, "%s", test_model("long")); /* 1024 tokens, the base's 512 */
    snprintf(text, sizeof text, "%s/../eval.txt", fine);
    snprintf(file, sizeof file, "%s/t.bitdelta", test_tmp());
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", test_model("base"), fine, file);
    TOOL_OK("eval --base %s --finetuned %s --tenant %s --text %s --limit 1 --json",
            test_model("base"), fine, file, text);
    json_t *root = json_loads(tool_output, 0, NULL);
    CHECK(root);
    double base = json_number_value(json_object_get(json_object_get(root, "base"), "perplexity"));
    CHECK(base > 5 && base < 500);
    json_decref(root);
}
