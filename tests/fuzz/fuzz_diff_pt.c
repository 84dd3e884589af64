/* Any bytes as a diff.pt: first byte 0, as the pickle inside; else as the whole zip archive. */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zip.h>

#include "compress/torch_file.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"

void fuzz_diff_pt(const uint8_t *data, size_t n);

static void check_tensors(const struct pt_tensors *all) {
    for (int32_t i = 0; i < all->n; i++) {
        const struct pt_tensor *t = &all->tensor[i];
        uint64_t last = t->offset;
        bool empty = false;
        for (int32_t d = 0; d < t->n_dims; d++) {
            empty = empty || t->dim[d] == 0;
            last += t->dim[d] ? (uint64_t)(t->dim[d] - 1) * (uint64_t)t->stride[d] : 0;
        }
        if (!empty && last >= t->storage_size)
            abort();
    }
}

static void read_archive(const uint8_t *data, size_t n) {
    struct torch_file f;
    struct why why = {{0}};
    char path[64];
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    err_t e = torch_file_open(&f, path, &why);
    if (e && !why.text[0])
        abort();
    for (int32_t i = 0; !e && i < f.all.n; i++) {
        const struct pt_tensor *t = &f.all.tensor[i];
        uint64_t elements = 1;
        for (int32_t d = 0; d < t->n_dims; d++)
            if (__builtin_mul_overflow(elements, (uint64_t)t->dim[d], &elements))
                elements = UINT64_MAX;
        if (elements > 1 << 16)
            continue;
        float *x = malloc((elements + 1) * sizeof *x);
        if (torch_file_read_f32(&f, t, x, elements, &why) && !why.text[0])
            abort();
        int32_t *bits = malloc((elements + 1) * sizeof *bits);
        if (torch_file_read_i32(&f, t, bits, elements, &why) && !why.text[0])
            abort();
        free(x);
        free(bits);
    }
    torch_file_close(&f);
    close(fd);
}

void fuzz_diff_pt(const uint8_t *data, size_t n) {
    struct pt_tensors t;
    struct why why = {{0}};
    if (!n)
        return;
    if (data[0]) {
        read_archive(data + 1, n - 1);
        return;
    }
    err_t e = pickle_read(&t, data + 1, n - 1, "fuzz", &why);
    if (e && !why.text[0])
        abort();
    if (!e)
        check_tensors(&t);
    pt_tensors_free(&t);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_diff_pt(data, n);
    return 0;
}
#else
/* A mask, a scale and a parameter, as torch.save writes them. */
#define TENSOR(rebuild, type, key, elements, shape, stride)                                        \
    rebuild "((X\x07\x00\x00\x00storagectorch\n" type "\nX\x01\x00\x00\x00" key                    \
            "X\x03\x00\x00\x00"                                                                    \
            "cpuK" elements "tQK\x00" shape stride "\x89"                                          \
            "ccollections\nOrderedDict\n)RtR"
static const char pickle[] =
    "\x00\x80\x02}q\x00(X\x06\x00\x00\x00"
    "a.mask" TENSOR(
        "ctorch._utils\n_rebuild_tensor_v2\nq\x01", "IntStorage", "0", "\x06", "K\x02K\x03\x86",
        "K\x03K\x01\x86") "X\x07\x00\x00\x00"
                          "a.coeff" TENSOR("h\x01", "FloatStorage", "1", "\x01", ")",
                                           ")") "X\x04\x00\x00\x00"
                                                "norm" TENSOR("h\x01", "BFloat16Storage", "2",
                                                              "\x04", "K\x04\x85",
                                                              "K\x01\x85") "u.";

TEST(fuzz_diff_pt_survives_damaged_pickles_and_archives) {
    struct pt_tensors t;
    struct why why;
    const uint8_t *text = (const uint8_t *)pickle;
    size_t n = sizeof pickle - 1;
    static const char data[3][24] = {"012345678901234567890123", "0123", "01234567"};
    static const size_t sizes[3] = {24, 4, 8};
    char path[300];
    CHECK_OK(pickle_read(&t, text + 1, n - 1, "seed", &why), why);
    CHECK_EQ(t.n, 3);
    pt_tensors_free(&t);
    fuzz_mutations("fuzz_diff_pt", fuzz_diff_pt, text, n, 30000);
    snprintf(path, sizeof path, "%s/x.pt", test_tmp());
    zip_t *z = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    CHECK(z != NULL);
    zip_file_add(z, "a/data.pkl", zip_source_buffer(z, text + 1, n - 1, 0), 0);
    for (int i = 0; i < 3; i++) {
        char name[24];
        snprintf(name, sizeof name, "a/data/%d", i);
        zip_file_add(z, name, zip_source_buffer(z, data[i], sizes[i], 0), 0);
    }
    for (zip_uint64_t i = 0; i < 4; i++)
        zip_set_file_compression(z, i, ZIP_CM_STORE, 0);
    CHECK_EQ(zip_close(z), 0);
    static uint8_t archive[1 << 16] = {1};
    FILE *f = fopen(path, "r");
    n = 1 + fread(archive + 1, 1, sizeof archive - 1, f);
    fclose(f);
    fuzz_mutations("fuzz_diff_pt", fuzz_diff_pt, archive, n, 10000);
}
#endif
