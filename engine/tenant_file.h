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

enum { TENANT_MAX_HEADER = 16 << 20 };

/* The tenant's own configuration, whole (not a difference against the base). */
struct tenant_meta {
    struct model_config config; /* layers, dims and heads equal the base's; vocab, context, rope,
                                   eps, window, eos may differ */
    char *tokenizer_json;       /* {"added_tokens":[...],"add_bos_token":...,"chat_template":...} */
    char *generation_json;
    char *made_json, *quality_json;
    char hash[SHA256_HEX]; /* content hash */
    char base_fingerprint[SHA256_HEX];
};

/* Tensors of a tenant: pointers into `block`. Scalar row scales are expanded to vectors here, in
 * the same block, so that kernels know one form only. */
struct tenant_file {
    struct tenant_meta meta;
    void *block; /* host_block(block_bytes); owned until taken (set it to NULL then) */
    size_t block_bytes, file_bytes;
    struct delta *delta; /* [L * N_PARTS] owned */
    struct vocab_matrix embed, head;
    const float *norm; /* [2L + 1, D] */
    double bits_per_weight;
};

/* base: the checkpoint's config; fingerprint: of the base, hex. verify_hashes false skips the
 * content (for `inspect`, which then says so). Free with tenant_file_free, also after an error. */
err_t tenant_file_read(struct tenant_file *t, int fd, const char *label,
                       const struct model_config *base, const char *base_fingerprint,
                       bool verify_hashes, struct why *why);
void tenant_file_free(struct tenant_file *t);

/* Adds `by` to every pointer into the block: after the block was placed on a device. */
void tenant_file_move(struct tenant_file *t, const void *new_block);

#endif
