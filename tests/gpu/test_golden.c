/* Recorded results of independent implementations against the engine on the device: the shipped
 * base with its tenants; of the shared models each fine-tune served whole, and what others publish,
 * imported by the tool that was built beside this binary. */
#include "tests/golden/golden.h"
#include "tests/gpu/gpu.h"
#include "tests/unit/run_tool.h"

/* What the project promises of narrow rows (docs/decisions/0010-gpu-rows.md). */
static const double PROMISED = 4e-3;
/* fp16 weights, activations and GEMMs, as every engine has them. */
static const double WIDE = 5e-2;

static double check(struct engine *e, const char *tenant_file, const char *file, const char *name,
                    double tolerance) {
    struct tenant *t = tenant_file ? drive_tenant(e, tenant_file) : NULL;
    double worst = golden_check(e, t, file, name, tolerance);
    tenant_unref(t);
    return worst;
}

/* Steps of at most `batch` rows: 64 leaves every row narrow. */
static struct engine *open_base(const char *base, int32_t batch) {
    struct engine_options o = gpu_options(base);
    o.max_batch_tokens = batch;
    return drive_open(&o);
}

static void check_demo(int32_t batch) {
    static const char *const tenants[] = {"math", "sql", "kjv", "chat"};
    const char *file = "tests/golden/demo.json";
    gpu_need();
    struct engine *e = open_base("demo/base", batch);
    printf("golden demo, steps of %d rows: base %.1e", batch,
           check(e, NULL, file, "base", PROMISED));
    for (int32_t i = 0; i < 4; i++) {
        char path[64];
        snprintf(path, sizeof path, "demo/tenants/%s.bitdelta", tenants[i]);
        printf(", %s %.1e", tenants[i], check(e, path, file, tenants[i], PROMISED));
    }
    printf("\n");
    fflush(stdout);
    engine_close(e);
}

/* A fine-tune as the base itself. */
static void check_whole(const char *folder, const char *name, int32_t batch, double tolerance) {
    gpu_need();
    struct engine *e = open_base(test_model(folder), batch);
    printf("golden %s, steps of %d rows: %.1e\n", name, batch,
           check(e, NULL, test_model("golden.json"), name, tolerance));
    fflush(stdout);
    engine_close(e);
}

static void check_imported(const char *command, const char *source, const char *name) {
    char path[512];
    gpu_need();
    snprintf(path, sizeof path, "%s/imported.bitdelta", test_tmp());
    TOOL_OK("%s --base demo/base -o %s %s", command, path, test_model(source));
    struct engine *e = open_base("demo/base", 64);
    printf("golden %s, imported: %.1e\n", name,
           check(e, path, test_model("golden.json"), name, PROMISED));
    fflush(stdout);
    engine_close(e);
}

TEST(gpu_golden_demo_in_small_steps) {
    check_demo(64);
}
TEST(gpu_golden_demo_in_large_steps) {
    check_demo(512);
}

TEST(gpu_golden_base) {
    check_whole("base", "base", 64, PROMISED);
}
TEST(gpu_golden_math_served_whole) {
    check_whole("math", "math", 64, PROMISED);
}
TEST(gpu_golden_kjv_served_whole) {
    check_whole("kjv", "kjv", 64, PROMISED);
}
TEST(gpu_golden_chat_served_whole) {
    check_whole("chat", "chat", 64, PROMISED);
}
TEST(gpu_golden_chat_messages) {
    check_whole("chat", "chat_messages", 64, PROMISED);
}
TEST(gpu_golden_long_has_its_own_rope) {
    check_whole("long", "long", 64, PROMISED);
}
TEST(gpu_golden_long_prompt_in_small_steps) {
    check_whole("long", "long_900", 64, PROMISED);
}
TEST(gpu_golden_long_prompt_in_large_steps) {
    check_whole("long", "long_900", 1024, WIDE);
}

TEST(gpu_golden_math_diff_pt_imported) {
    check_imported("import-diff", "diff.pt/math.diff.pt", "math-diff.pt");
}
TEST(gpu_golden_kjv_diff_pt_imported) {
    check_imported("import-diff", "diff.pt/kjv.diff.pt", "kjv-diff.pt");
}
TEST(gpu_golden_man_lora_imported) {
    check_imported("import-lora", "man-lora", "man-lora");
}
