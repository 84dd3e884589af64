/* What a user of `bitdelta` meets on a bad day: one clear sentence, the right exit code, and never
 * half a file under the final name. */
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/tenant_file.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

static char base[300], fine[300], out[300], merged[300];

static void tune(const char *name, float *x, size_t n, void *arg) {
    const char *only = arg;
    unsigned seed = 5 + (unsigned)strlen(name);
    if (!only || strstr(name, only))
        for (size_t i = 0; i < n; i++)
            x[i] += 0.03f * test_gauss(&seed);
}

/* A pair that differs in the tensors whose names hold `only`; NULL: in all. */
static void make_pair(const char *only) {
    snprintf(base, sizeof base, "%s/base", test_tmp());
    snprintf(fine, sizeof fine, "%s/fine", test_tmp());
    snprintf(out, sizeof out, "%s/t.bitdelta", test_tmp());
    snprintf(merged, sizeof merged, "%s/merged", test_tmp());
    make_model(base, (struct make_model){.scale = 0.2f});
    make_model(fine, (struct make_model){.scale = 0.2f, .change = tune, .arg = (void *)only});
}

static bool exists(const char *path) {
    return access(path, F_OK) == 0;
}

/* One sentence, and it names what is wrong. */
static void check_says(const char *part) {
    const char *says = strstr(tool_output, "bitdelta ");
    CHECK_HAS(tool_output, part);
    CHECK(says && strchr(says, '\n') == strrchr(says, '\n'));
}

/* Nothing in the folder but base, fine-tune and what stands in `allowed`. */
static void check_folder_is_clean(void) {
    CHECK(!exists(out));
    char command[700];
    snprintf(command, sizeof command, "test -z \"$(ls -A %s | grep -v -e '^base$' -e '^fine$')\"",
             test_tmp());
    CHECK_EQ(system(command), 0);
}

TEST(mishap_output_that_cannot_be_written_is_said_before_the_work) {
    make_pair(NULL);
    static const char *const how[] = {"--instant", "--steps 100000", "--method svd"};
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        CHECK_EQ(run_tool("compress %s --base %s --finetuned %s -o /nowhere/t.bitdelta", how[i],
                          base, fine),
                 65);
        check_says("/nowhere/t.bitdelta cannot be written: No such file or directory");
        CHECK_EQ(mkdir(out, 0700), 0);
        CHECK_EQ(run_tool("compress %s --base %s --finetuned %s -o %s", how[i], base, fine, out),
                 65);
        check_says("is a folder; name a file to write");
        CHECK_EQ(rmdir(out), 0);
        CHECK_EQ(run_tool("compress %s --base %s --finetuned %s -o /proc/t.bitdelta", how[i], base,
                          fine),
                 65);
        check_says("/proc/t.bitdelta cannot be written: ");
        check_folder_is_clean();
    }
}

/* Runs with files of at most so many KiB: what is beyond fails like a full disk, or ends the
 * process in the middle of a write. */
static int run_short(bool dies, int kib, const char *rest) {
    char limit[64];
    snprintf(limit, sizeof limit, "%s ulimit -f %d; exec", dies ? "" : "trap '' XFSZ;", 2 * kib);
    return run_tool_after(limit, rest);
}

TEST(mishap_full_disk_and_death_while_writing_leave_the_old_file) {
    char line[1400];
    struct stat before, after;
    make_pair(NULL);
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, fine, out);
    CHECK_EQ(stat(out, &before), 0);
    int whole = (int)(before.st_size / 1024);
    snprintf(line, sizeof line, "compress --instant --bits 2 --base %s --finetuned %s -o %s", base,
             fine, out);
    for (int kib = 4; kib < whole; kib += whole / 4) { /* while spooling, header and copying */
        CHECK_EQ(run_short(false, kib, line), 65);
        check_says("cannot write: File too large");
        CHECK(run_short(true, kib, line) != 0);
        CHECK_EQ(stat(out, &after), 0);
        CHECK_EQ(after.st_ino, before.st_ino);
        TOOL_OK("verify --base %s %s", base, out);
    }
    snprintf(line, sizeof line, "export --base %s --tenant %s -o %s", base, out, merged);
    CHECK_EQ(run_short(false, 16, line), 65);
    check_says("File too large");
    CHECK(run_short(true, 16, line) != 0);
    char weights[400];
    snprintf(weights, sizeof weights, "%s/model.safetensors", merged);
    CHECK(!exists(weights));
}

TEST(mishap_base_with_a_missing_shard_is_named) {
    char shard[400];
    make_pair(NULL);
    make_shards(base);
    snprintf(shard, sizeof shard, "%s/model-00002-of-00002.safetensors", base);
    CHECK_EQ(unlink(shard), 0);
    CHECK_EQ(run_tool("compress --instant --base %s --finetuned %s -o %s", base, fine, out), 65);
    check_says("model-00002-of-00002.safetensors");
    check_folder_is_clean();
}

static void poison(const char *name, float *x, size_t n, void *arg) {
    tune(name, x, n, NULL);
    if (strcmp(name, "model.layers.1.mlp.down_proj.weight") == 0)
        x[n / 2] = *(float *)arg;
}

TEST(mishap_weights_that_are_not_finite_are_named) {
    static const char *const how[] = {"--instant", "--steps 1", "--method svd",
                                      "--method delta-come", "--method bitdelta --steps 0"};
    static const float bad[] = {NAN, INFINITY};
    make_pair(NULL);
    for (size_t i = 0; i < 10; i++) {
        float value = bad[i % 2];
        bool of_base = i >= 8;
        make_model(
            of_base ? base : fine,
            (struct make_model){.scale = 0.2f, .dtype = ST_F32, .change = poison, .arg = &value});
        CHECK_EQ(
            run_tool("compress %s --base %s --finetuned %s -o %s", how[i / 2 % 5], base, fine, out),
            65);
        check_says("model.layers.1.mlp.down_proj");
        CHECK(!exists(out));
    }
}

TEST(mishap_fine_tune_that_is_its_base_is_said_and_taken) {
    make_pair("nothing");
    static const char *const how[] = {"--instant", "--steps 2", "--method svd",
                                      "--quality 0.99 --steps 2"};
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        TOOL_OK("compress %s --base %s --finetuned %s -o %s", how[i], base, fine, out);
        CHECK_HAS(tool_output, "fine changes nothing in the base");
        TOOL_OK("verify --base %s %s", base, out);
    }
}

TEST_LIMIT(mishap_few_changed_matrices_are_no_mishap, 120) {
    static const char *const only[] = {"layernorm", "embed_tokens", "layers.1.self_attn.v_proj",
                                       "lm_head"};
    static const char *const how[] = {"--instant", "--steps 2", "--method svd --bits 4"};
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < (i % 2 ? 1 : 3); j++) { /* fits take their time */
            make_pair(only[i]);
            TOOL_OK("compress %s --base %s --finetuned %s -o %s", how[j], base, fine, out);
            CHECK(!strstr(tool_output, "changes nothing"));
            TOOL_OK("verify --base %s %s", base, out);
        }
}

TEST_LIMIT(mishap_texts_and_questions_that_are_none, 240) {
    static const struct {
        const char *text, *option, *says;
    } bad[] = {
        {"", "--text", "holds no text"},
        {"\n \n", "--text", "holds no text"},
        {"", "--tasks", "is not a JSON array of documents"},
        {"what is 1 + 1?", "--tasks", "is not a JSON array of documents"},
        {"{\"prompt\": \"1\"}", "--tasks", "is not a JSON array of documents"},
        {"[]", "--tasks", "holds no documents"},
        {"[\"a\", 5]", "--tasks", "document 1: A document must be a string"},
    };
    snprintf(out, sizeof out, "%s/t.bitdelta", test_tmp());
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", test_model("base"),
            test_model("math"), out);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        make_text(test_tmp(), "words", bad[i].text);
        CHECK_EQ(run_tool("eval --device cpu --base %s --tenant %s %s %s/words", test_model("base"),
                          out, bad[i].option, test_tmp()),
                 65);
        check_says(bad[i].says);
    }
    CHECK_EQ(run_tool("eval --base %s --tenant %s --text /nowhere", test_model("base"), out), 65);
    check_says("/nowhere cannot be read: No such file or directory");
    char *text = malloc(1 << 16);
    strcpy(text, "[\"1 + 1 = ?\\nA: 2\", \"");
    for (int i = 0; i < 4000; i++)
        strcat(text, "long ");
    strcat(text, "\\nA: 3\"]");
    make_text(test_tmp(), "words", text);
    free(text);
    TOOL_OK("eval --device cpu --base %s --tenant %s --tasks %s/words", test_model("base"), out,
            test_tmp());
    CHECK_HAS(tool_output, "Note: 1 of the questions in ");
    CHECK_HAS(tool_output, "do not fit the context of 512 tokens");
    CHECK_HAS(tool_output, " of    1");
}

TEST(mishap_folders_and_files_that_are_not_what_they_should_be) {
    make_pair(NULL);
    make_text(test_tmp(), "file", "");
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s", base, fine,
            out); /* no tokenizer */
    CHECK_EQ(run_tool("export --base %s --tenant %s -o %s/file", base, out, test_tmp()), 65);
    check_says("/file");
    CHECK_EQ(run_tool("export --base %s --tenant %s -o /nowhere/x", base, out), 65);
    check_says("/nowhere/x: cannot make the folder: No such file or directory");
    CHECK_EQ(run_tool("export --base %s --tenant %s/file -o %s", base, test_tmp(), merged), 65);
    check_says("too short to be a safetensors file");
    CHECK(!exists(merged));
    CHECK_EQ(run_tool("import-lora %s --base %s -o %s.new", fine, base, out), 65);
    check_says("adapter_config.json: cannot open");
    CHECK_EQ(run_tool("import-diff %s/file --base %s -o %s.new", test_tmp(), base, out), 65);
    check_says("/file: cannot be opened as a zip archive");
    CHECK_EQ(run_tool("compress --instant --base %s --finetuned %s/file -o %s.new", base,
                      test_tmp(), out),
             65);
    check_says("/file/config.json: cannot open");
    make_text(fine, "config.json", "{");
    CHECK_EQ(run_tool("compress --instant --base %s --finetuned %s -o %s.new", base, fine, out),
             65);
    check_says("config.json: not valid JSON at byte");
    char made[400];
    snprintf(made, sizeof made, "%s.new", out);
    CHECK(!exists(made));
}
