#include <fcntl.h>
#include <unistd.h>

#include "engine/safetensors.h"
#include "tests/check.h"

/* Writes a safetensors file from a header and a number of data bytes; returns an open fd. */
static int make(const char *header, size_t header_length, size_t data) {
    char path[256];
    snprintf(path, sizeof path, "%s/x.safetensors", test_tmp());
    FILE *f = fopen(path, "w");
    for (int i = 0; i < 8; i++)
        fputc((int)(header_length >> 8 * i & 255), f);
    fputs(header, f);
    for (size_t i = 0; i < data; i++)
        fputc((int)(i & 255), f);
    fclose(f);
    return open(path, O_RDONLY);
}

TEST(safetensors_every_bad_header_is_refused_with_its_reason) {
    static const struct {
        const char *header;
        size_t data;
        const char *reason;
    } bad[] = {
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}", 7, "truncated"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}", 9,
         "1 bytes after the last tensor"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,6]}}", 6, "need 8 bytes"},
        {"{\"a\":{\"dtype\":\"F17\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
         6, "tensor b overlaps tensor a"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[5,9]}}",
         9, "1 bytes before tensor b"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
         8, "duplicate"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1073741824,1073741824,1073741824],"
         "\"data_offsets\":[0,4]}}",
         4, "more than 2^64"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1073741824,1073741824,4],\"data_offsets\":[0,0]}}",
         0, "need"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-4],\"data_offsets\":[0,4]}}", 4, "outside 0.."},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4.0],\"data_offsets\":[0,4]}}", 4, "outside 0.."},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":4,\"data_offsets\":[0,4]}}", 4, "must be a list"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,0]}}", 4, "ascending"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"x\":1}}", 4,
         "nothing else"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "nothing else"},
        {"{\"a b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "printable"},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "empty"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "not a string"},
        {"{\"__metadata__\":[]}", 0, "not a JSON object"},
        {"{\"a\":[[[[[]]]]]}", 0, "nested deeper"},
        {"{\"a\":", 0, "not valid JSON"},
        {" {}", 0, "does not begin"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct st_file f;
        struct why why = {{0}};
        int fd = make(bad[i].header, strlen(bad[i].header), bad[i].data);
        err_t e = st_open(&f, fd, "x.safetensors", 1 << 20, &why);
        st_close(&f);
        close(fd);
        if (!e)
            test_fail(__FILE__, __LINE__, "accepted: %s", bad[i].header);
        CHECK_HAS(why.text, bad[i].reason);
        CHECK_HAS(why.text, "x.safetensors");
    }
}

TEST(safetensors_header_length_is_bounded_by_file_and_caller) {
    static const size_t lengths[] = {0, 1, 3, 1000, (size_t)1 << 40, ~(size_t)0};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct st_file f;
        struct why why;
        int fd = make("{}", lengths[i], 0);
        CHECK_EQ(st_open(&f, fd, "x", 1 << 20, &why), E_FORMAT);
        CHECK_HAS(why.text, "header length");
        st_close(&f);
        close(fd);
    }
    struct st_file f;
    struct why why;
    int fd = make("{      }", 8, 0);
    CHECK_EQ(st_open(&f, fd, "x", 7, &why), E_FORMAT);
    st_close(&f);
    CHECK_OK(st_open(&f, fd, "x", 8, &why), why);
    CHECK_EQ(f.n_tensors, 0);
    st_close(&f);
    int folder = open(test_tmp(), O_RDONLY);
    CHECK_EQ(st_open(&f, folder, "x", 8, &why), E_FORMAT);
    CHECK_HAS(why.text, "not a regular file");
    st_close(&f);
}

TEST(safetensors_written_file_reads_back_aligned) {
    char path[256];
    struct why why;
    struct st_writer *w;
    snprintf(path, sizeof path, "%s/y.safetensors", test_tmp());
    CHECK_OK(st_writer_open(&w, path, &why), why);
    st_writer_meta(w, "key", "va\"lue\n");
    int64_t dim[2] = {3, 5};
    st_writer_tensor(w, "z", ST_I32, 1, dim);
    st_writer_tensor(w, "a", ST_U8, 2, dim);
    CHECK_OK(st_writer_header(w, 4096, &why), why);
    CHECK_EQ(access(path, F_OK), -1); /* nothing under the final name before the end */
    int32_t z[3] = {1, -2, 3}, z2[3];
    unsigned char a[15] = {7, 8, 9}, a2[15];
    CHECK_OK(st_writer_data(w, z, sizeof z, &why), why);
    CHECK_OK(st_writer_data(w, a, sizeof a, &why), why);
    CHECK_EQ(st_writer_data(w, a, 1, &why), E_INTERNAL);
    CHECK_OK(st_writer_end(w, &why), why);

    struct st_file f;
    int fd = open(path, O_RDONLY);
    CHECK_OK(st_open(&f, fd, path, 1 << 20, &why), why);
    CHECK_EQ(f.data_start % 4096, 0);
    CHECK_EQ(f.n_tensors, 2);
    CHECK_STR(f.tensor[0].name, "a");
    CHECK_STR(st_meta(&f, "key"), "va\"lue\n");
    CHECK(!st_meta(&f, "other"));
    CHECK(!st_find(&f, "b"));
    CHECK_OK(st_read(&f, st_find(&f, "z"), z2, &why), why);
    CHECK_OK(st_read(&f, st_find(&f, "a"), a2, &why), why);
    CHECK_EQ(memcmp(z, z2, sizeof z) | memcmp(a, a2, sizeof a), 0);
    CHECK_EQ(truncate(path, (off_t)f.size - 1), 0); /* the file shrinks under our feet */
    CHECK_EQ(st_read(&f, st_find(&f, "a"), a2, &why), E_IO);
    CHECK_HAS(why.text, "tensor a");
    st_close(&f);
    close(fd);
}
