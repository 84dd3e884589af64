/* Fuzzes the text of --aliases: whatever it says, every alias that came of it has a good name,
 * leads to no other alias, and is found by what it names. */
#include <stdint.h>

#include "server/registry.h"
#include "tests/check.h"

void fuzz_aliases(const uint8_t *data, size_t n);

void fuzz_aliases(const uint8_t *data, size_t n) {
    static const struct tenant_info info = {.hash = "", .vocab = 8, .context = 8};
    struct registry r;
    struct why why = {""};
    char *text = malloc(n + 1);
    if (!text || registry_open(&r, "base", &info, NULL, &why))
        __builtin_trap();
    memcpy(text, data, n);
    text[n] = 0;
    err_t e = registry_read_aliases(&r, text, &why);
    if (e && !why.text[0])
        __builtin_trap();
    for (int i = 0; i < r.n_aliases; i++) {
        const struct alias *a = &r.aliases[i];
        bool sorted = i == 0 || strcmp(r.aliases[i - 1].name, a->name) < 0;
        struct served *found = registry_find(&r, a->name);
        if (!sorted || !registry_name_ok(a->name) || !registry_name_ok(a->target) ||
            (found != NULL) != (strcmp(a->target, "base") == 0))
            __builtin_trap();
    }
    registry_close(&r);
    free(text);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_aliases(data, n);
    return 0;
}
#else
#include "config/clock.h"

TEST(fuzz_aliases_survive_mutations) {
    static const char seed[] = "prod=base, a:1=b.c ,old = math,x=y";
    static const char bytes[] = "=,= ,:.-_aZ9\n\t\x80";
    unsigned state = 3;
    int64_t until = mono_us() + 500000;
    while (mono_us() < until) {
        uint8_t text[128];
        size_t n = sizeof seed - 1;
        memcpy(text, seed, n);
        for (unsigned k = test_random(&state) % 8; k > 0; k--)
            text[test_random(&state) % n] = (uint8_t)bytes[test_random(&state) % sizeof bytes];
        fuzz_aliases(text, n - test_random(&state) % 8);
    }
}

/* The name as it stands goes first: what it names may be gone, and nothing else may take its place.
 */
TEST(registry_alias_of_what_is_gone_is_not_read_as_base_and_tenant) {
    static const struct tenant_info info = {.hash = "", .vocab = 8, .context = 8};
    struct registry r;
    struct why why = {""};
    CHECK_OK(registry_open(&r, "base", &info, NULL, &why), why);
    CHECK_OK(registry_read_aliases(&r, "base:base=gone, x=base", &why), why);
    CHECK(!registry_find(&r, "base:base"));
    CHECK(registry_find(&r, "base:x") == r.base && registry_find(&r, "x") == r.base);
    CHECK(!registry_find(&r, "base:gone") && !registry_find(&r, "base:"));
    registry_close(&r);
}

TEST(registry_says_what_is_wrong_with_an_alias) {
    static const struct tenant_info info = {.hash = "", .vocab = 8, .context = 8};
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"a", "NAME=TARGET"},        {"a=", "NAME=TARGET"},
        {"a=b=c", "NAME=TARGET"},    {"a=b c=d", "NAME="},
        {"a=b,a=c", "twice"},        {"base=b", "already"},
        {"a=b,c=a", "alias"},        {"a=a", "alias"},
        {"-a=b", "letter or digit"}, {"a=b/c", "the base or a tenant"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct registry r;
        struct why why = {""};
        CHECK_OK(registry_open(&r, "base", &info, NULL, &why), why);
        CHECK_EQ(registry_read_aliases(&r, cases[i].text, &why), E_CONFIG);
        CHECK_HAS(why.text, cases[i].says);
        registry_close(&r);
    }
}
#endif
