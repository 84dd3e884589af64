/* Writing a tenant file (docs/format.md). Tensors are given one by one in file order and go to a
 * nameless spool file beside the target, hashed on the way; the end writes the header, which needs
 * all hashes, and copies the spool behind it. So memory holds one tensor at a time, and the target
 * appears whole or not at all. One thread. */
#ifndef COMPRESS_TENANT_WRITE_H
#define COMPRESS_TENANT_WRITE_H

#include <jansson.h>

#include "engine/tenant_file.h"

struct tenant_writer;

err_t tenant_writer_open(struct tenant_writer **out, const char *path, struct why *why);
/* part: "model.layers.0.self_attn.q_proj", "embed", "head", or "norm" with an empty suffix. */
err_t tenant_writer_tensor(struct tenant_writer *w, const char *part, const char *suffix,
                           enum st_dtype dtype, int32_t n_dims, const int64_t *dim,
                           const void *data, struct why *why);
void tenant_writer_kind(struct tenant_writer *w, const char *part, enum tenant_kind kind);
uint64_t tenant_writer_bytes(const struct tenant_writer *w); /* of tensors so far */

/* Everything that is not a tensor; JSON values are borrowed. */
struct tenant_header {
    const char *base_fingerprint;
    int32_t base_vocab;
    json_t *config, *tokenizer, *generation, *made, *quality;
};
/* Frees w in any case. Hash (may be NULL) receives the content hash. */
err_t tenant_writer_end(struct tenant_writer *w, const struct tenant_header *h,
                        char hash[SHA256_HEX], struct why *why);
void tenant_writer_abort(struct tenant_writer *w); /* NULL is fine */

#endif
