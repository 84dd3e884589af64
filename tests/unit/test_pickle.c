/* Pickles written by hand, opcode by opcode: good ones are read, hostile ones end with a sentence.
 */
#include <zip.h>

#include "compress/pickle.h"
#include "compress/torch_file.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

/* Pieces of a pickle as string literals; NUL bytes inside, so sizes are kept. */
#define HEAD "\x80\x02}q\x00("
#define TAIL "u."
#define KEY "X\x01\x00\x00\x00w"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
/* storage "0" of 6 floats */
#define STORAGE(type, size)                                                                        \
    "((X\x07\x00\x00\x00storagectorch\n" type "\nX\x01\x00\x00\x00"                                \
    "0X\x03\x00\x00\x00"                                                                           \
    "cpuK" size "tQ"
/* offset, sizes (2, 3), strides (3, 1), requires_grad, hooks */
#define SHAPE(offset, d0, d1, s0, s1)                                                              \
    "K" offset "K" d0 "K" d1 "\x86K" s0 "K" s1 "\x86\x89"                                          \
    "ccollections\nOrderedDict\n)RtR"
#define GOOD REBUILD STORAGE("FloatStorage", "\x06") SHAPE("\x00", "\x02", "\x03", "\x03", "\x01")

struct pickle {
    const char *what, *text;
    size_t n;
    const char *named; /* part of the sentence; NULL: it is good */
};
#define P(what, text, named)                                                                       \
    { what, text, sizeof text - 1, named }

static const struct pickle pickles[] = {
    P("good", HEAD KEY GOOD TAIL, NULL),
    P("good parameter",
      HEAD KEY "ctorch._utils\n_rebuild_parameter\n(" GOOD "\x88"
               "ccollections\nOrderedDict\n)RtR" TAIL,
      NULL),
    P("good, size as LONG1",
      HEAD KEY REBUILD "((X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x00"
                       "0X\x03\x00\x00\x00"
                       "cpu\x8a\x01\x06tQ" SHAPE("\x00", "\x02", "\x03", "\x03", "\x01") TAIL,
      NULL),
    P("os.system",
      "\x80\x02"
      "cos\nsystem\n(X\x02\x00\x00\x00idtR.",
      "os.system"),
    P("eval",
      "\x80\x02"
      "cbuiltins\neval\n.",
      "builtins.eval"),
    P("torch.load", HEAD KEY "ctorch\nload\n)R" TAIL, "torch.load"),
    P("a name that does not end",
      "\x80\x02"
      "ctorch",
      "does not end"),
    P("STACK_GLOBAL", "\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "0x93"),
    P("INST", "\x80\x02(ios\nsystem\n.", "0x69"),
    P("BUILD", HEAD KEY GOOD "ub.", "0x62"),
    P("EXT1", "\x80\x02\x82\x01.", "0x82"),
    P("protocol 4", "\x80\x04}.", "protocol"),
    P("empty", "", "ends in the middle"),
    P("no STOP", "\x80\x02}", "ends in the middle"),
    P("only STOP", ".", "one value"),
    P("two values", "}}.", "one value"),
    P("a number", "K\x01.", "int where a dict"),
    P("text longer than the file",
      "\x80\x02X\xff\xff\xff\x7f"
      "abc.",
      "ends in the middle"),
    P("huge integer",
      "\x80\x02\x8a\xff"
      "abc.",
      "64 bits"),
    P("memo never set", "\x80\x02h\x07.", "never set"),
    P("memo far out", "\x80\x02}r\xff\xff\xff\xff.", "memo entry out of range"),
    P("memo of nothing", "\x80\x02q\x00.", "memo entry out of range"),
    P("tuple without mark", "\x80\x02t.", "without a mark"),
    P("tuple from an empty stack", "\x80\x02\x87.", "too short"),
    P("tuple over a mark", "\x80\x02(K\x01\x86.", "over a mark"),
    P("odd items", "\x80\x02}(K\x01u.", "pairs"),
    P("items without dict", "\x80\x02K\x01(K\x01K\x02u.", "no dict"),
    P("a key that is a number", "\x80\x02}(K\x01" GOOD "u.", "no tensor name"),
    P("a value that is a number", HEAD KEY "K\x01u.", "\"w\" is not a tensor"),
    P("duplicate", HEAD KEY GOOD KEY GOOD TAIL, "twice"),
    P("calling a storage type", HEAD KEY "ctorch\nIntStorage\n)R" TAIL, "called"),
    P("storage past its end",
      HEAD KEY REBUILD STORAGE("FloatStorage", "\x05") SHAPE("\x00", "\x02", "\x03", "\x03", "\x01")
          TAIL,
      "past the end of its storage"),
    P("offset past the end",
      HEAD KEY REBUILD STORAGE("FloatStorage", "\x06") SHAPE("\x01", "\x02", "\x03", "\x03", "\x01")
          TAIL,
      "past the end of its storage"),
    P("strides past the end",
      HEAD KEY REBUILD STORAGE("FloatStorage", "\x06") SHAPE("\x00", "\x02", "\x03", "\x04", "\x01")
          TAIL,
      "past the end of its storage"),
    P("negative stride",
      HEAD KEY REBUILD STORAGE("FloatStorage",
                               "\x06") "K\x00K\x02\x85J\xff\xff\xff\xff\x85\x89)tR" TAIL,
      "not a whole number"),
    P("stride that overflows",
      HEAD KEY REBUILD STORAGE(
          "FloatStorage",
          "\x06") "K\x00K\xff\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85\x89)tR" TAIL,
      "past the end of memory"),
    P("storage name with a path",
      HEAD KEY REBUILD "((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x04\x00\x00\x00"
                       "../0X\x03\x00\x00\x00"
                       "cpuK\x06tQ" SHAPE("\x00", "\x02", "\x03", "\x03", "\x01") TAIL,
      "does not describe a storage"),
    P("five dimensions",
      HEAD KEY REBUILD STORAGE(
          "FloatStorage",
          "\x06") "K\x00(K\x01K\x01K\x01K\x01K\x01t(K\x01K\x01K\x01K\x01K\x01t\x89)tR" TAIL,
      "4 dimensions"),
};

TEST(pickle_reads_tensors_and_refuses_everything_else) {
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++) {
        const struct pickle *p = &pickles[i];
        struct pt_tensors t;
        struct why why = {{0}};
        /* A heap copy of exact size, so that a sanitizer sees the first byte too far. */
        unsigned char *copy = malloc(p->n + 1);
        memcpy(copy, p->text, p->n);
        copy = realloc(copy, p->n ? p->n : 1);
        err_t e = pickle_read(&t, copy, p->n, "x.pt", &why);
        if (!p->named != !e)
            test_fail(__FILE__, __LINE__, "%s: %d %s", p->what, e, why.text);
        if (p->named && !strstr(why.text, p->named))
            test_fail(__FILE__, __LINE__, "%s: \"%s\" lacks \"%s\"", p->what, why.text, p->named);
        if (!e) {
            CHECK_EQ(t.n, 1);
            CHECK_STR(t.tensor[0].name, "w");
            CHECK_EQ(t.tensor[0].dim[1], 3);
            CHECK_EQ(t.tensor[0].storage_size, 6);
        }
        pt_tensors_free(&t);
        free(copy);
    }
}

TEST(pickle_of_a_million_nested_values_costs_no_stack) {
    enum { DEPTH = 1 << 20 };
    struct pt_tensors t;
    struct why why;
    unsigned char *text = malloc(2 * DEPTH + 3);
    text[0] = ')';
    memset(text + 1, 0x85, DEPTH); /* ((((...),),),) */
    text[DEPTH + 1] = '.';
    CHECK_EQ(pickle_read(&t, text, DEPTH + 2, "x.pt", &why), E_FORMAT);
    CHECK_HAS(why.text, "tuple where a dict");
    pt_tensors_free(&t);
    /* A tuple that doubles each time holds 2^million values in Python, and two indices here. */
    text[0] = ')';
    size_t n = 1;
    for (int i = 0; i < 100000; i++) {
        memcpy(text + n, "q\x00h\x00\x86", 5);
        n += 5;
    }
    text[n++] = '.';
    CHECK_EQ(pickle_read(&t, text, n, "x.pt", &why), E_FORMAT);
    pt_tensors_free(&t);
    free(text);
}

/* A zip with members of these names and contents; the method of the data member may differ. */
static void make_zip(const char *path, const char *pickle, size_t n, const char *data,
                     size_t n_data, bool deflate) {
    zip_t *z = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    CHECK(z != NULL);
    zip_int64_t i = zip_file_add(z, "a/data.pkl", zip_source_buffer(z, pickle, n, 0), 0);
    zip_set_file_compression(z, (zip_uint64_t)i, ZIP_CM_STORE, 0);
    if (data) {
        i = zip_file_add(z, "a/data/0", zip_source_buffer(z, data, n_data, 0), 0);
        zip_set_file_compression(z, (zip_uint64_t)i, deflate ? ZIP_CM_DEFLATE : ZIP_CM_STORE, 0);
    }
    CHECK_EQ(zip_close(z), 0);
}

TEST(torch_file_honours_offset_and_strides) {
    /* 2 x 2, offset 1, strides (1, 3) of 1 2 3 4 5 6: 2 5 / 3 6 */
    static const char text[] = HEAD KEY REBUILD STORAGE("FloatStorage", "\x06")
        SHAPE("\x01", "\x02", "\x02", "\x01", "\x03") TAIL;
    static const float data[6] = {1, 2, 3, 4, 5, 6};
    static const float want[4] = {2, 5, 3, 6};
    char path[300];
    struct torch_file f;
    struct why why;
    float got[4];
    int32_t whole[4];
    snprintf(path, sizeof path, "%s/x.pt", test_tmp());
    make_zip(path, text, sizeof text - 1, (const char *)data, sizeof data, false);
    CHECK_OK(torch_file_open(&f, path, &why), why);
    const struct pt_tensor *t = torch_file_find(&f, "w");
    CHECK(t && !torch_file_find(&f, "v") && !torch_file_find(&f, "x"));
    CHECK_OK(torch_file_read_f32(&f, t, got, 4, &why), why);
    CHECK_EQ(memcmp(got, want, sizeof want), 0);
    CHECK_EQ(torch_file_read_f32(&f, t, got, 3, &why), E_FORMAT);
    CHECK_EQ(torch_file_read_i32(&f, t, whole, 4, &why), E_FORMAT);
    CHECK_HAS(why.text, "dtype F32");
    torch_file_close(&f);
}

TEST(torch_file_refuses_what_lies_about_its_data) {
    static const char text[] = HEAD KEY GOOD TAIL;
    static const struct {
        const char *data;
        size_t n;
        bool deflate;
        const char *named;
    } bad[] = {{NULL, 0, false, "is missing"},
               {"0123456789", 10, false, "another size"},
               {"0123456789012345678901234567", 28, false, "more bytes"},
               {"000000000000000000000000", 24, true, "compressed"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[300];
        struct torch_file f;
        struct why why;
        float x[6];
        snprintf(path, sizeof path, "%s/x.pt", test_tmp());
        make_zip(path, text, sizeof text - 1, bad[i].data, bad[i].n, bad[i].deflate);
        CHECK_OK(torch_file_open(&f, path, &why), why);
        CHECK_EQ(torch_file_read_f32(&f, torch_file_find(&f, "w"), x, 6, &why), E_FORMAT);
        CHECK_HAS(why.text, bad[i].named);
        torch_file_close(&f);
    }
}

TEST(import_diff_runs_nothing_and_says_so) {
    static const char text[] = "\x80\x02"
                               "cposix\nsystem\n(X\x0b\x00\x00\x00touch /hackttR.";
    char path[300], base[300];
    snprintf(path, sizeof path, "%s/evil.pt", test_tmp());
    snprintf(base, sizeof base, "%s/base", test_tmp());
    make_model(base, (struct make_model){0});
    make_zip(path, text, sizeof text - 1, NULL, 0, false);
    CHECK_EQ(run_tool("import-diff --base %s -o %s/t %s", base, test_tmp(), path), 65);
    CHECK_HAS(tool_output, "posix.system");
    CHECK_HAS(tool_output, "nothing of it was run");
    make_text(test_tmp(), "evil.pt", "not a zip at all, but long enough to be looked at twice");
    CHECK_EQ(run_tool("import-diff --base %s -o %s/t %s", base, test_tmp(), path), 65);
    CHECK_HAS(tool_output, "zip");
}
