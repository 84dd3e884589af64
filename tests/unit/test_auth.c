#include "server/auth.h"
#include "tests/check.h"

static const char *key_file(const char *text) {
    static char path[256];
    snprintf(path, sizeof path, "%s/keys", test_tmp());
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    return path;
}

TEST(auth_without_a_file_lets_everybody_in) {
    struct auth a;
    struct why why;
    CHECK_OK(auth_open(&a, "", &why), why);
    CHECK(auth_allows(&a, NULL));
    CHECK(auth_allows(&a, "Bearer "));
    auth_close(&a);
}

TEST(auth_knows_each_of_its_keys_and_nothing_near_them) {
    struct auth a;
    struct why why;
    CHECK_OK(auth_open(&a, key_file("# keys\n\n  first-key-0123456789 \r\nsecond-key-987654321\n"),
                       &why),
             why);
    CHECK_EQ(a.n_keys, 2);
    CHECK(auth_allows(&a, "Bearer first-key-0123456789"));
    CHECK(auth_allows(&a, "bearer  second-key-987654321"));
    static const char *const wrong[] = {"Bearer first-key-012345678",
                                        "Bearer first-key-01234567890",
                                        "first-key-0123456789",
                                        "Basic first-key-0123456789",
                                        "Bearer # keys",
                                        "Bearer",
                                        "Bearer ",
                                        ""};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (auth_allows(&a, wrong[i]))
            test_fail(__FILE__, __LINE__, "'%s' opens", wrong[i]);
    CHECK(!auth_allows(&a, NULL));
    auth_close(&a);
}

TEST(auth_refuses_to_start_on_a_file_without_keys) {
    struct auth a;
    struct why why;
    CHECK_EQ(auth_open(&a, key_file("\n# none yet\n"), &why), E_CONFIG);
    CHECK_HAS(why.text, "holds no key");
    CHECK_EQ(auth_open(&a, "/nonexistent/keys", &why), E_CONFIG);
}
