/* Any bytes as a safetensors file. */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/safetensors.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"
#include "tests/unit/make_model.h"

void fuzz_safetensors(const uint8_t *data, size_t n);

void fuzz_safetensors(const uint8_t *data, size_t n) {
    struct st_file f;
    struct why why = {{0}};
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n)
        abort();
    err_t e = st_open(&f, fd, "fuzz", 1 << 20, &why);
    if (e && !why.text[0])
        abort(); /* a refusal without a sentence */
    uint64_t covered = 0;
    for (int32_t i = 0; !e && i < f.n_tensors; i++) {
        const struct st_tensor *t = &f.tensor[i];
        void *bytes = malloc(t->bytes + 1);
        if (st_read(&f, t, bytes, &why) != E_OK || st_find(&f, t->name) != t)
            abort(); /* the header was accepted, so its data is there */
        covered += t->bytes;
        free(bytes);
    }
    if (!e && covered != n - f.data_start)
        abort();
    st_close(&f);
    close(fd);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_safetensors(data, n);
    return 0;
}
#else
TEST(fuzz_safetensors_survives_damaged_files) {
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[12,13]},"
        "\"c\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[13,13]}}";
    uint8_t file[8 + sizeof header - 1 + 13] = {sizeof header - 1};
    char path[300];
    memcpy(file + 8, header, sizeof header - 1);
    fuzz_mutations("fuzz_safetensors", fuzz_safetensors, file, sizeof file, 20000);
    make_model(test_tmp(), (struct make_model){.layers = 1, .dim = 8, .ffn = 8, .vocab = 8});
    snprintf(path, sizeof path, "%s/model.safetensors", test_tmp());
    fuzz_mutations_of_file("fuzz_safetensors", fuzz_safetensors, path, 5000);
}
#endif
