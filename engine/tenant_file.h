/* NAME.bitdelta: one tenant in a strict safetensors container. docs/format.md is the specification.
 *
 * Reading checks everything that can be checked against the base (fingerprint, shapes, ranges,
 * finite scales, padding bits) and every hash, and leaves the tensors where kernels use them: in a
 * backend's memory, or in the host's for the tool. Nothing missing falls back to the base
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

/* A run of the file's tensors in memory of its own. */
struct tenant_extent {
    void *device;
    size_t bytes;
    uint64_t offset; /* of its first byte in the file */
};

/* Tensors of a tenant: pointers into its extents. Scalar and FP16 scales are expanded to vectors
 * here, so that kernels know one form only. */
struct tenant_file {
    struct tenant_meta meta;
    struct kernels *kernels;      /* whose memory holds the extents; NULL: the host's */
    struct tenant_extent *extent; /* [n_extents] owned */
    int32_t n_extents;
    size_t bytes, file_bytes; /* of the extents; of the file */
    struct delta *delta;      /* [L * N_PARTS] owned; host memory */
    struct vocab_matrix embed, head;
    const float *norm;      /* [2L + 1, D] */
    double bits_per_weight; /* of the linears, scales included */
};

/* k: where the tensors go, NULL: host memory. trusted: the file was read whole before and is known
 * not to have changed: its content is not hashed again. base: the checkpoint's config;
 * base_fingerprint: hex; or both NULL, to read a file whatever it was made for. fd: borrowed, a
 * regular file, read from its start; label names it in sentences. Free with tenant_file_free, also
 * after an error. Reads on all cores; any thread. */
err_t tenant_file_load(struct tenant_file *t, int fd, const char *label, struct kernels *k,
                       bool trusted, const struct model_config *base, const char *base_fingerprint,
                       struct why *why);
/* Into host memory, hashed. */
err_t tenant_file_read(struct tenant_file *t, int fd, const char *label,
                       const struct model_config *base, const char *base_fingerprint,
                       struct why *why);
void tenant_file_free(struct tenant_file *t);

/* The content hash (docs/format.md) of hashed tensors; sorts the jobs. */
err_t tenant_content_hash(struct hash_job *job, int32_t n, const char *base_fingerprint,
                          const char *tenant_json, char out[SHA256_HEX]);

#endif
