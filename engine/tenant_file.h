/* NAME.bitdelta: one tenant in a strict safetensors container. docs/format.md is the specification.
 *
 * Reading checks everything that can be checked against the base (fingerprint, shapes, ranges,
 * finite scales, padding bits) and every hash, and leaves one host block whose tensors can be used
 * where they lie or copied to a device in one piece. Nothing missing falls back to the base
 * silently: every part and every other tensor is named in the file, with the kind "absent" if it
 * equals the base. */
#ifndef ENGINE_TENANT_FILE_H
#define ENGINE_TENANT_FILE_H

#include "engine/checkpoint.h"

enum {
    TENANT_MAX_HEADER = 16 << 20,
    TENANT_ALIGN = 256,       /* of every tensor in the file */
    TENANT_DATA_ALIGN = 4096, /* of the first one */
    TENANT_MAX_SCALE = 10000, /* |row|, |col| stay below: real ones are far below 1 */
};

/* Highest rank of a low-rank pair for an [n, k] matrix: beyond about this the pair is no smaller
 * than the matrix, and backends keep A x where an FFN row fits. */
static inline int32_t tenant_max_rank(int32_t n, int32_t k) {
    return (n < k ? n : k) / 2 > 0 ? (n < k ? n : k) / 2 : 1;
}

enum tenant_kind { KIND_ABSENT, KIND_PLANES, KIND_DENSE, KIND_ROWS, KIND_TIED, N_KINDS };
const char *tenant_kind_name(enum tenant_kind k);

/* What the metadata says; the tenant's own configuration is whole, not a difference. */
struct tenant_meta {
    struct model_config config; /* layers, dims and heads equal the base's; vocab, context, rope,
                                   eps, window, eos may differ */
    int32_t base_vocab;
    unsigned char *part_kind; /* [L * N_PARTS] enum tenant_kind; owned, as the strings below */
    enum tenant_kind embed, head;
    char *config_json;    /* the fine-tune's config.json */
    char *tokenizer_json; /* {"added_tokens":[...],"add_bos_token":...,"chat_template":...} */
    char *generation_json;
    char *made_json, *quality_json;
    char hash[SHA256_HEX]; /* content hash as the file claims it */
    char base_fingerprint[SHA256_HEX];
};

/* Reads and checks the metadata of an opened container. base and base_fingerprint (hex): what the
 * file must have been made for, or both NULL: anything. Free with tenant_meta_free, also after an
 * error. Errors: E_WRONG_BASE, E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
err_t tenant_meta_read(struct tenant_meta *m, const struct st_file *f,
                       const struct model_config *base, const char *base_fingerprint,
                       struct why *why);
void tenant_meta_free(struct tenant_meta *m);

/* Tensors of a tenant: pointers into `block`. Scalar row scales are expanded to vectors here, in
 * the same block, so that kernels know one form only. */
struct tenant_file {
    struct tenant_meta meta;
    void *block;        /* host_block(block_bytes); owned until taken (set it to NULL then) */
    const void *origin; /* what the pointers below point into: the block, or where it was moved */
    size_t block_bytes, file_bytes;
    struct delta *delta; /* [L * N_PARTS] owned */
    struct vocab_matrix embed, head;
    const float *norm;      /* [2L + 1, D] */
    double bits_per_weight; /* of the linears, scales included */
};

/* base: the checkpoint's config; base_fingerprint: hex; or both NULL, to read a file whatever it
 * was made for. fd: borrowed, a regular file, read from its start; label names it in sentences.
 * Free with tenant_file_free, also after an error. Hashes on all cores; any thread. */
err_t tenant_file_read(struct tenant_file *t, int fd, const char *label,
                       const struct model_config *base, const char *base_fingerprint,
                       struct why *why);
void tenant_file_free(struct tenant_file *t);

/* Lets every pointer into the block point to the same place in new_block: after the block was
 * copied to a device. */
void tenant_file_move(struct tenant_file *t, const void *new_block);

/* The content hash (docs/format.md) of hashed tensors; sorts the jobs. */
err_t tenant_content_hash(struct hash_job *job, int32_t n, const char *base_fingerprint,
                          const char *tenant_json, char out[SHA256_HEX]);

#endif
