/* Every way a tenant file can be wrong is refused, with a sentence that names the trouble. */
#include <fcntl.h>
#include <unistd.h>

#include "kernels/f16.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/make_tenant.h"

struct bench {
    struct checkpoint base;
    char fingerprint[SHA256_HEX], path[300];
    unsigned char *bytes; /* [n] of the good file */
    size_t n;
};

static void open_bench(struct bench *b) {
    char dir[300];
    struct why why;
    snprintf(dir, sizeof dir, "%s/base", test_tmp());
    snprintf(b->path, sizeof b->path, "%s/t.bitdelta", test_tmp());
    make_model(dir, (struct make_model){.seed = 3});
    CHECK_OK(checkpoint_open(&b->base, dir, &why), why);
    make_fingerprint(&b->base, b->fingerprint);
    make_tenant(b->path, &b->base, b->fingerprint, FAULT_NONE);
    FILE *f = fopen(b->path, "r");
    b->bytes = malloc(1 << 20);
    b->n = fread(b->bytes, 1, 1 << 20, f);
    fclose(f);
}

static void close_bench(struct bench *b) {
    checkpoint_close(&b->base);
    free(b->bytes);
}

static void put_bytes(const struct bench *b, const unsigned char *bytes, size_t n) {
    FILE *f = fopen(b->path, "w");
    CHECK_EQ(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static err_t read_tenant(const struct bench *b, struct why *why) {
    struct tenant_file t;
    memset(why, 0, sizeof *why);
    int fd = open(b->path, O_RDONLY);
    err_t e = tenant_file_read(&t, fd, "t.bitdelta", &b->base.config, b->fingerprint, why);
    tenant_file_free(&t);
    close(fd);
    return e;
}

/* The file in b->path must be refused with both words in the sentence. */
static void refused(const struct bench *b, const char *what, const char *named) {
    struct why why;
    err_t e = read_tenant(b, &why);
    if (!e)
        test_fail(__FILE__, __LINE__, "accepted: %s", what);
    if (!strstr(why.text, named) || !strstr(why.text, "t.bitdelta"))
        test_fail(__FILE__, __LINE__, "%s: \"%s\" lacks \"%s\"", what, why.text, named);
}

TEST(tenant_with_every_kind_of_tensor_is_read_as_written) {
    struct bench b;
    struct tenant_file t;
    struct why why;
    open_bench(&b);
    int fd = open(b.path, O_RDONLY);
    CHECK_OK(tenant_file_read(&t, fd, b.path, &b.base.config, b.fingerprint, &why), why);
    CHECK_EQ(t.meta.config.shape.vocab, 50);
    CHECK_EQ(t.meta.config.context, 128);
    CHECK_EQ(t.meta.config.eos_id[0], 4);
    CHECK_EQ(t.meta.base_vocab, 48);
    CHECK_EQ(t.delta[0].n_planes, 1);
    CHECK_NEAR(t.delta[0].plane[0].row[39], 0.01, 1e-9, 0); /* a scalar, expanded */
    CHECK_EQ(t.delta[1].n_planes, 2);
    CHECK(t.delta[1].plane[0].col && !t.delta[1].plane[1].col);
    CHECK_EQ(t.delta[2].n_planes, 1);
    CHECK_EQ(t.delta[2].rank, 3);
    CHECK_EQ(t.delta[3].n_planes, 0);
    CHECK_EQ(t.delta[3].rank, 3);
    CHECK(!t.delta[4].n_planes && !t.delta[4].rank && !t.delta[4].dense);
    CHECK(t.delta[5].dense != NULL);
    CHECK_EQ(t.embed.n_rows, 3);
    CHECK_EQ(t.embed.row_id[1], 48);
    CHECK(t.head.dense != NULL);
    for (int i = 0; i < 12; i++) /* all of them start where a vector load may */
        CHECK_EQ((size_t)t.delta[i].plane[0].bits % 256 + (size_t)t.delta[i].a % 256, 0);
    tenant_file_free(&t);
    CHECK_OK(tenant_file_read(&t, fd, b.path, NULL, NULL, &why), why); /* without its base */
    tenant_file_free(&t);
    close(fd);
    close_bench(&b);
}

TEST(tenant_truncated_anywhere_is_refused) {
    struct bench b;
    struct st_file f;
    struct why why;
    open_bench(&b);
    int fd = open(b.path, O_RDONLY);
    CHECK_OK(st_open(&f, fd, b.path, TENANT_MAX_HEADER, &why), why);
    for (int32_t i = 0; i < f.n_tensors; i++) {
        size_t at[3] = {(size_t)f.tensor[i].offset, (size_t)(f.tensor[i].offset + 1),
                        (size_t)(f.tensor[i].offset + f.tensor[i].bytes) - 1};
        for (int j = 0; j < 3; j++) {
            put_bytes(&b, b.bytes, at[j]);
            refused(&b, "truncated in its data", "truncated");
        }
    }
    static const size_t starts[] = {0, 1, 7, 8, 9, 10, 11, 100, 4000};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        put_bytes(&b, b.bytes, starts[i]);
        refused(&b, "truncated in its header", starts[i] < 10 ? "too short" : "truncated");
    }
    b.bytes[b.n] = 0;
    put_bytes(&b, b.bytes, b.n + 1);
    refused(&b, "one byte longer", "belong to no tensor");
    st_close(&f);
    close(fd);
    close_bench(&b);
}

TEST(tenant_with_one_bit_flipped_names_the_damaged_tensor) {
    struct bench b;
    struct st_file f;
    struct why why;
    open_bench(&b);
    int fd = open(b.path, O_RDONLY);
    CHECK_OK(st_open(&f, fd, b.path, TENANT_MAX_HEADER, &why), why);
    for (int32_t i = 0; i < f.n_tensors; i++) {
        size_t at = (size_t)(f.tensor[i].offset + f.tensor[i].bytes / 2);
        b.bytes[at] ^= 4;
        put_bytes(&b, b.bytes, b.n);
        refused(&b, f.tensor[i].name, f.tensor[i].name);
        b.bytes[at] ^= 4;
    }
    st_close(&f);
    close(fd);
    close_bench(&b);
}

/* Replaces text in the header by text of the same length. */
static void replace(struct bench *b, const char *old, const char *new, const char *named) {
    unsigned char *at = memmem(b->bytes, b->n, old, strlen(old));
    CHECK(at != NULL);
    CHECK_EQ(strlen(old), strlen(new));
    memcpy(at, new, strlen(new));
    put_bytes(b, b->bytes, b->n);
    refused(b, new, named);
    memcpy(at, old, strlen(old));
}

TEST(tenant_with_changed_metadata_is_refused) {
    struct bench b;
    open_bench(&b);
    char other[SHA256_HEX];
    memcpy(other, b.fingerprint, sizeof other);
    other[0] = other[0] == '0' ? '1' : '0';
    replace(&b, "\"format\":\"bitdelta\"", "\"format\":\"bitdelty\"", "bitdelty");
    replace(&b, "\"format_version\":\"1\"", "\"format_version\":\"2\"", "format_version");
    replace(&b, "\"m16k256\"", "\"m16k128\"", "m16k128");
    replace(&b, b.fingerprint, other, "made for another base");
    replace(&b, "\\\"max_position_embeddings\\\":128", "\\\"max_position_embeddings\\\":129",
            "metadata is damaged");
    replace(&b, "\"content_hash\":\"", "\"content_hush\":\"", "content_hash");
    replace(&b, "\\\"model.layers.0.self_attn.q_proj\\\":\\\"planes\\\"",
            "\\\"model.layers.0.self_attn.q_proj\\\":\\\"absent\\\"",
            "belongs to nothing that tenant.parts");
    replace(&b, "\"hashes\":\"{", "\"hashes\":\"[", "hashes");
    replace(&b, "\\\"base_vocab\\\":48", "\\\"base_vocab\\\":49", "49");
    close_bench(&b);
}

TEST(tenant_of_another_base_says_which) {
    struct bench b;
    struct why why;
    open_bench(&b);
    char right[SHA256_HEX];
    memcpy(right, b.fingerprint, sizeof right);
    memset(b.fingerprint, 'a', SHA256_HEX - 1);
    CHECK_EQ(read_tenant(&b, &why), E_WRONG_BASE);
    right[8] = 0;
    CHECK_HAS(why.text, right);
    CHECK_HAS(why.text, "wanted aaaaaaaa");
    close_bench(&b);
}

TEST(tenant_that_is_whole_but_wrong_is_refused_with_its_reason) {
    static const char *const named[N_FAULTS] = {
        [FAULT_NAN_SCALE] = "plane0.row: element 0",
        [FAULT_HUGE_SCALE] = "below 10000",
        [FAULT_NAN_COLUMN] = "plane0.col: element 0",
        [FAULT_INFINITE_LORA] = "lora_a",
        [FAULT_INFINITE_DENSE] = ".dense",
        [FAULT_NAN_NORM] = "norm",
        [FAULT_PADDING_ROW] = "padding bits",
        [FAULT_PADDING_COLUMN] = "padding bits",
        [FAULT_IDS_DESCEND] = "ids must ascend",
        [FAULT_ID_PAST_VOCAB] = "below the vocabulary size 50",
        [FAULT_ROW_BEYOND_BASE_MISSING] = "lacks 1 of the rows",
        [FAULT_NO_ROW_SCALE] = "q_proj.plane0.row is missing",
        [FAULT_NO_NORM] = "norm is missing",
        [FAULT_WRONG_SHAPE] = "another dtype or shape",
        [FAULT_PLANE_GAP] = "plane2",
        [FAULT_LORA_A_ALONE] = "lora_b is missing",
        [FAULT_UNKNOWN_TENSOR] = "model.layers.9",
        [FAULT_KIND_MISSING] = "does not say whether model.layers.0.self_attn.q_proj",
        [FAULT_KIND_WITHOUT_TENSORS] = "neither planes nor",
        [FAULT_ABSENT_EMBED_TOO_SMALL] = "embed is absent",
        [FAULT_OTHER_LAYERS] = "num_hidden_layers",
    };
    struct bench b;
    open_bench(&b);
    for (int i = FAULT_NONE + 1; i < N_FAULTS; i++) {
        make_tenant(b.path, &b.base, b.fingerprint, (enum tenant_fault)i);
        refused(&b, named[i], named[i]);
    }
    close_bench(&b);
}

TEST(tenant_that_is_no_file_is_refused) {
    struct bench b;
    struct why why;
    struct tenant_file t;
    open_bench(&b);
    int fd = open(test_tmp(), O_RDONLY);
    CHECK_EQ(tenant_file_read(&t, fd, "t.bitdelta", NULL, NULL, &why), E_FORMAT);
    CHECK_HAS(why.text, "not a regular file");
    tenant_file_free(&t);
    close(fd);
    close_bench(&b);
}
