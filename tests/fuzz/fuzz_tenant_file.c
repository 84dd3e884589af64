/* Any bytes as a tenant file, read without its base: container, metadata, shapes, hashes, values.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/tenant_file.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"
#include "tests/unit/make_model.h"
#include "tests/unit/make_tenant.h"

void fuzz_tenant_file(const uint8_t *data, size_t n);

void fuzz_tenant_file(const uint8_t *data, size_t n) {
    struct tenant_file t;
    struct why why = {{0}};
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n)
        abort();
    err_t e = tenant_file_read(&t, fd, "fuzz", NULL, NULL, &why);
    if (e && !why.text[0])
        abort(); /* a refusal without a sentence */
    if (!e && (t.file_bytes != n || !t.norm || t.n_extents < 1))
        abort();
    tenant_file_free(&t);
    close(fd);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_tenant_file(data, n);
    return 0;
}
#else
TEST(fuzz_tenant_file_survives_damaged_files) {
    char dir[300], path[300], fingerprint[SHA256_HEX];
    struct checkpoint base;
    struct why why;
    snprintf(dir, sizeof dir, "%s/base", test_tmp());
    snprintf(path, sizeof path, "%s/t.bitdelta", test_tmp());
    make_model(dir, (struct make_model){.layers = 1, .dim = 8, .ffn = 16, .vocab = 16});
    CHECK_OK(checkpoint_open(&base, dir, &why), why);
    make_fingerprint(&base, fingerprint);
    make_tenant(path, &base, fingerprint, FAULT_NONE);
    fuzz_mutations_of_file("fuzz_tenant_file", fuzz_tenant_file, path, 5000);
    for (int i = FAULT_NONE + 1; i < N_FAULTS; i++) { /* whole but wrong: the way past the hashes */
        if (i == FAULT_PADDING_ROW)
            continue;
        make_tenant(path, &base, fingerprint, (enum tenant_fault)i);
        fuzz_mutations_of_file("fuzz_tenant_file", fuzz_tenant_file, path, 50);
    }
    checkpoint_close(&base);
}
#endif
