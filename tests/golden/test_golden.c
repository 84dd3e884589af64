/* The real models, each served whole as a base, against the reference implementation. */
#include "tests/check.h"
#include "tests/drive.h"
#include "tests/golden/golden.h"

static void check_base(const char *folder, const char *name) {
    struct engine_options o = drive_options(test_model(folder));
    struct engine *e = drive_open(&o);
    golden_check(e, NULL, name);
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
