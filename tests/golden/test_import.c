/* Imports of real files, against results that this project's code had no part in. */
#include <fcntl.h>
#include <math.h>
#include <unistd.h>

#include "engine/checkpoint.h"
#include "tests/check.h"
#include "tests/unit/run_tool.h"

/* The fingerprint that PyTorch gives base + coeff * sign, and the file's dense tensors, rounded to
 * FP16: torch.load(diff.pt), masks unpacked as [K/32, N] int32 with bit k % 32, sums in FP32,
 * .half(), then SHA-256 as docs/format.md describes it. */
static void imported_equals(const char *diff, const char *fingerprint) {
    char merged[300], hex[SHA256_HEX];
    struct checkpoint c;
    struct why why;
    unsigned char digest[SHA256_BYTES];
    snprintf(merged, sizeof merged, "%s/merged", test_tmp());
    TOOL_OK("import-diff --base %s -o %s/t.bitdelta %s", test_model("base"), test_tmp(),
            test_model(diff));
    TOOL_OK("verify --base %s %s/t.bitdelta", test_model("base"), test_tmp());
    TOOL_OK("export --base %s --tenant %s/t.bitdelta -o %s", test_model("base"), test_tmp(),
            merged);
    CHECK_OK(checkpoint_open(&c, merged, &why), why);
    CHECK_OK(checkpoint_fingerprint(&c, digest, NULL, NULL, &why), why);
    sha256_hex(digest, hex);
    CHECK_STR(hex, fingerprint);
    checkpoint_close(&c);
}

TEST(import_of_the_published_math_diff_is_bit_exact) {
    imported_equals("diff.pt/math.diff.pt",
                    "e991ea9f11495926606d6ffbf58ab7505160e06f104b27c3916ee691691b1a8e");
}

TEST(import_of_the_published_kjv_diff_is_bit_exact) {
    imported_equals("diff.pt/kjv.diff.pt",
                    "fb4cda6d9a3be505f04109be009d151aa9dc7d608948a846ceabe3502cf5ce44");
}

static float *load(const struct checkpoint *c, const char *name, size_t n) {
    struct why why;
    float *x = malloc(n * sizeof *x);
    CHECK_OK(checkpoint_read_f32(c, name, x, n, &why), why);
    return x;
}

static float *load_adapter(const struct st_file *f, const char *part, char side, size_t n) {
    char name[256];
    struct why why;
    snprintf(name, sizeof name, "base_model.model.%s.lora_%c.weight", part, side);
    const struct st_tensor *t = st_find(f, name);
    CHECK(t != NULL);
    CHECK_EQ(t->bytes, n * st_dtype_bytes(t->dtype));
    void *raw = malloc(t->bytes);
    float *x = malloc(n * sizeof *x);
    CHECK_OK(st_read(f, t, raw, &why), why);
    CHECK_EQ(st_to_f32(t->dtype, raw, x, n), E_OK);
    free(raw);
    return x;
}

TEST(import_of_the_lora_adapter_equals_base_plus_scale_b_a) {
    enum { RANK = 16 };
    char merged[300], path[600];
    struct checkpoint base, c;
    struct st_file f;
    struct why why;
    snprintf(merged, sizeof merged, "%s/merged", test_tmp());
    TOOL_OK("import-lora --base %s -o %s/t.bitdelta %s", test_model("base"), test_tmp(),
            test_model("man-lora"));
    TOOL_OK("export --base %s --tenant %s/t.bitdelta -o %s", test_model("base"), test_tmp(),
            merged);
    CHECK_OK(checkpoint_open(&base, test_model("base"), &why), why);
    CHECK_OK(checkpoint_open(&c, merged, &why), why);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", test_model("man-lora"));
    int fd = open(path, O_RDONLY);
    CHECK_OK(st_open(&f, fd, path, 1 << 24, &why), why);
    for (int32_t i = 0; i < base.config.shape.n_layers * N_PARTS; i++) {
        enum part p = (enum part)(i % N_PARTS);
        size_t n = (size_t)part_rows(&base.config.shape, p),
               k = (size_t)part_cols(&base.config.shape, p);
        char part[128], name[160];
        part_name(part, sizeof part, i / N_PARTS, p);
        snprintf(name, sizeof name, "%s.weight", part);
        float *w = load(&base, name, n * k), *m = load(&c, name, n * k),
              *a = load_adapter(&f, part, 'A', RANK * k),
              *b = load_adapter(&f, part, 'B', n * RANK);
        for (size_t r = 0; r < n; r++)
            for (size_t j = 0; j < k; j++) {
                double sum = w[r * k + j];
                for (size_t q = 0; q < RANK; q++) /* alpha 32 / rank 16 = 2 */
                    sum += 2.0 * b[r * RANK + q] * a[q * k + j];
                CHECK_NEAR(m[r * k + j], sum, 1e-6, 0x1p-11); /* half an FP16 step, and FP32 sums */
            }
        free(w);
        free(m);
        free(a);
        free(b);
    }
    st_close(&f);
    close(fd);
    checkpoint_close(&c);
    checkpoint_close(&base);
}
