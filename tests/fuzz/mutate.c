#include "tests/fuzz/mutate.h"

#include <sys/stat.h>

#include "config/clock.h"
#include "tests/check.h"

static void save(const char *name, const void *seed, size_t n) {
    static int number;
    const char *dir = getenv("FUZZ_SEEDS");
    if (!dir)
        return;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/seed-%d", dir, name, number++);
    FILE *f = fopen(path, "w");
    if (!f || fwrite(seed, 1, n, f) != n || fclose(f) != 0)
        test_fail(__FILE__, __LINE__, "cannot write %s", path);
}

static size_t damage(uint8_t *data, size_t n, size_t cap, unsigned *random) {
    /* Headers come first and decide most: half of the damage goes to the first 2 KiB. */
    size_t span = test_random(random) % 2 && n > 2048 ? 2048 : n;
    size_t at = n ? test_random(random) % span : 0, length = 1 + test_random(random) % 16;
    static const uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff, '"', '{', '[', '9', '-'};
    if (!n)
        return n;
    if (length > n - at)
        length = n - at;
    switch (test_random(random) % 6) {
    case 0:
        data[at] ^= (uint8_t)(1u << test_random(random) % 8);
        return n;
    case 1:
        data[at] = edges[test_random(random) % sizeof edges];
        return n;
    case 2:
        memset(data + at, test_random(random) % 2 ? 0xff : 0, length);
        return n;
    case 3: /* cut out */
        memmove(data + at, data + at + length, n - at - length);
        return n - length;
    case 4: /* twice */
        if (n + length > cap)
            return n;
        memmove(data + at + length, data + at, n - at);
        return n + length;
    default: /* cut off */
        return test_random(random) % 8 ? n : at;
    }
}

void fuzz_mutations(const char *name, fuzz_fn *target, const void *seed, size_t n, int rounds) {
    size_t cap = n + 256;
    unsigned random = 1;
    int64_t end = mono_us() + 1000000;
    save(name, seed, n);
    for (int i = 0; i <= rounds && mono_us() < end; i++) {
        uint8_t *data = malloc(cap);
        size_t left = n;
        memcpy(data, seed, n);
        for (unsigned times = i ? 1 + test_random(&random) % 4 : 0; times; times--)
            left = damage(data, left, cap, &random);
        /* A block of exact size: a sanitizer sees the first byte read too far. */
        data = realloc(data, left ? left : 1);
        target(data, left);
        free(data);
    }
}

void fuzz_mutations_of_file(const char *name, fuzz_fn *target, const char *path, int rounds) {
    FILE *f = fopen(path, "r");
    if (!f)
        test_fail(__FILE__, __LINE__, "cannot open %s", path);
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = malloc(n + 1);
    CHECK_EQ(fread(data, 1, n, f), n);
    fclose(f);
    fuzz_mutations(name, target, data, n, rounds);
    free(data);
}
