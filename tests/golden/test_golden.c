/* Real models against the reference: the shared ones, each served whole as a base and as tenants
 * imported from the published format, and the shipped base with its tenants. */
#include "tests/check.h"
#include "tests/drive.h"
#include "tests/golden/golden.h"
#include "tests/unit/run_tool.h"

static void check_base(const char *folder, const char *name) {
    struct engine_options o = drive_options(test_model(folder));
    struct engine *e = drive_open(&o);
    golden_check(e, NULL, test_model("golden.json"), name, GOLDEN_TOLERANCE);
    engine_close(e);
}

/* A tenant of the shipped base, or "base": the base itself. */
static void check_demo(const char *name) {
    struct engine_options o = drive_options("demo/base");
    struct engine *e = drive_open(&o);
    struct tenant *tenant = NULL;
    char path[64];
    snprintf(path, sizeof path, "demo/tenants/%s.bitdelta", name);
    if (strcmp(name, "base") != 0)
        tenant = drive_tenant(e, path);
    golden_check(e, tenant, "tests/golden/demo.json", name, GOLDEN_TOLERANCE);
    tenant_unref(tenant);
    engine_close(e);
}

/* A tenant that the tool imported from what others publish: `command` and its source. */
static void check_imported(const char *command, const char *source, const char *name) {
    struct engine_options o = drive_options(test_model("base"));
    char path[512];
    snprintf(path, sizeof path, "%s/imported.bitdelta", test_tmp());
    TOOL_OK("%s --base %s -o %s %s", command, o.base_dir, path, test_model(source));
    struct engine *e = drive_open(&o);
    struct tenant *tenant = drive_tenant(e, path);
    golden_check(e, tenant, test_model("golden.json"), name, GOLDEN_TOLERANCE);
    tenant_unref(tenant);
    engine_close(e);
}

TEST(golden_base) {
    check_base("base", "base");
}
TEST(golden_math_served_whole) {
    check_base("math", "math");
}
TEST(golden_kjv_served_whole) {
    check_base("kjv", "kjv");
}
TEST(golden_chat_served_whole) {
    check_base("chat", "chat");
}
TEST(golden_chat_messages) {
    check_base("chat", "chat_messages");
}
TEST(golden_long_has_its_own_rope) {
    check_base("long", "long");
}
TEST(golden_long_prompt_of_900_ids) {
    check_base("long", "long_900");
}

TEST(golden_demo_base) {
    check_demo("base");
}
TEST(golden_demo_math) {
    check_demo("math");
}
TEST(golden_demo_sql) {
    check_demo("sql");
}
TEST(golden_demo_kjv) {
    check_demo("kjv");
}
TEST(golden_demo_chat) {
    check_demo("chat");
}

TEST(golden_math_diff_pt_imported) {
    check_imported("import-diff", "diff.pt/math.diff.pt", "math-diff.pt");
}
TEST(golden_kjv_diff_pt_imported) {
    check_imported("import-diff", "diff.pt/kjv.diff.pt", "kjv-diff.pt");
}
TEST(golden_man_lora_imported) {
    check_imported("import-lora", "man-lora", "man-lora");
}
