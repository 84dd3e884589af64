/* Fuzzes the file of --state: what is taken from it holds good names with texts or nothing. */
#include <stdint.h>

#include "server/kept.h"
#include "server/registry.h"
#include "tests/check.h"

void fuzz_kept(const uint8_t *data, size_t n);

void fuzz_kept(const uint8_t *data, size_t n) {
    struct kept k;
    struct why why = {""};
    if (kept_open(&k, NULL, &why))
        __builtin_trap();
    err_t e = kept_read(&k, (const char *)data, n, &why);
    if (e && !why.text[0])
        __builtin_trap();
    for (int kind = 0; !e && kind < KEPT_KINDS; kind++) {
        const char *name;
        json_t *v;
        json_object_foreach(k.names[kind], name, v) {
            const char *value = kept_get(&k, (enum kept_kind)kind, name);
            if (!registry_name_ok(name) || (value == NULL) != json_is_null(v) ||
                kept_removed(&k, (enum kept_kind)kind, name) != (value == NULL))
                __builtin_trap();
        }
    }
    kept_close(&k);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_kept(data, n);
    return 0;
}
#else
#include "tests/fuzz/mutate.h"

static const char seed[] =
    "{\"format\":1,\"deltas\":{\"a\":\"a.bitdelta\",\"b:1\":null},\"aliases\":{\"live\":\"a\"}}";

TEST(fuzz_kept_survives_mutations) {
    fuzz_mutations("fuzz_kept", fuzz_kept, seed, sizeof seed - 1, 100000);
}

TEST(state_file_with_a_mistake_is_refused_with_a_sentence) {
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "file"},
        {"[]", "not a JSON object"},
        {"{}", "format"},
        {"{\"format\":2}", "format"},
        {"{\"format\":1,\"deltas\":[]}", "\"deltas\" is not an object"},
        {"{\"format\":1,\"deltas\":{\"a/b\":null}}", "name"},
        {"{\"format\":1,\"deltas\":{\"a\":1}}", "neither a text nor null"},
        {"{\"format\":1,\"aliases\":{\"a\":\"\"}}", "neither a text nor null"},
        {"{\"format\":1,\"aliases\":{\"a\":null,\"a\":null}}", "uplicate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct kept k;
        struct why why = {""};
        CHECK_OK(kept_open(&k, NULL, &why), why);
        CHECK_EQ(kept_read(&k, cases[i].text, strlen(cases[i].text), &why), E_CONFIG);
        CHECK_HAS(why.text, cases[i].says);
        kept_close(&k);
    }
    struct kept k;
    struct why why = {""};
    CHECK_OK(kept_open(&k, NULL, &why), why);
    CHECK_OK(kept_read(&k, seed, sizeof seed - 1, &why), why);
    CHECK_STR(kept_get(&k, KEPT_DELTAS, "a"), "a.bitdelta");
    CHECK(kept_removed(&k, KEPT_DELTAS, "b:1") && !kept_get(&k, KEPT_DELTAS, "b:1"));
    CHECK(!kept_removed(&k, KEPT_DELTAS, "none"));
    CHECK_STR(kept_get(&k, KEPT_ALIASES, "live"), "a");
    kept_close(&k);
}
#endif
