/* Whatever bytes stand in a configuration file: values within their bounds, or one sentence that
 * starts with file and line. */
#include <stdint.h>

#include "config/clock.h"
#include "config/option_row.h"
#include "tests/check.h"

void fuzz_options(const uint8_t *data, size_t n);

static void check(bool holds, const char *promise) {
    if (!holds) {
        fprintf(stderr, "broken: %s\n", promise);
        abort();
    }
}

void fuzz_options(const uint8_t *data, size_t n) {
    struct options o;
    struct why why = {""};
    check(options_init(&o, &why) == 0, "the defaults are valid");
    char *text = malloc(n + 1); /* an exact block, so that reading past it is seen */
    check(text != NULL, "memory");
    memcpy(text, data, n);
    err_t e = options_parse_file(&o, "f", text, n, &why);
    free(text);
    check(e == 0 || (e == E_CONFIG && strncmp(why.text, "f:", 2) == 0), "a place in the sentence");
    check(o.max_seqs >= 1 && o.max_seqs <= 4096 && o.threads >= 0 && o.max_body >= 1024 &&
              o.idle_timeout >= 1 && o.log_level <= LOG_LEVEL_DEBUG,
          "values within bounds, also after a fault");
    for (int i = 0; i < OPTION_COUNT; i++)
        check(o.text[i] != NULL, "a text for every option");
    options_free(&o);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_options(data, n);
    return 0;
}
#else
TEST(fuzz_options_survives_damaged_configuration_files) {
    static const char *const parts[] = {
        "\n",      "=",    " = ",   "\"",           "#",    " # ", "\r",    "\t",
        "[",       "1",    "64k",   "99999999999",  "true", "no-", "unix:", "127.0.0.1:80",
        "[::1]:9", "auto", "debug", "\xef\xbb\xbf", "\xff", "x"};
    unsigned seed = 5;
    int64_t end = mono_us() + 700000;
    for (int round = 0; round < 50000 && mono_us() < end; round++) {
        uint8_t text[4096];
        size_t used = 0;
        for (unsigned words = test_random(&seed) % 24; words > 0; words--) {
            const struct option_row *row =
                &option_rows[test_random(&seed) % (unsigned)option_n_rows];
            const char *word = parts[test_random(&seed) % (sizeof parts / sizeof parts[0])];
            if (test_random(&seed) % 2 && row->name)
                word = row->name;
            size_t length = strlen(word);
            memcpy(text + used, word, length);
            used += length;
            if (test_random(&seed) % 16 == 0)
                text[used++] = (uint8_t)test_random(&seed);
        }
        fuzz_options(text, used);
    }
}
#endif
