/* What a SentencePiece model file says of itself beyond its pieces: the normaliser's rules, which
 * the library applies but does not tell. The file is a protobuf message; this reads the few fields
 * that matter and can leave out the dummy prefix. */
#ifndef TOKENIZER_SPM_MODEL_H
#define TOKENIZER_SPM_MODEL_H

#include <stdbool.h>
#include <stddef.h>

#include "config/err.h"

struct spm_model {
    bool dummy_prefix;  /* a space is put before every text */
    bool squeeze;       /* leading and repeated spaces are dropped */
    bool rewrites;      /* characters are mapped (NFKC and the like) */
    bool byte_fallback; /* unknown characters become byte pieces, not <unk> */
};

/* Errors: E_FORMAT (not a model, damaged), E_UNSUPPORTED (spaces kept as they are or as suffixes:
 * then a piece does not tell where a space stands). */
err_t spm_model_read(struct spm_model *m, const void *model, size_t n, struct why *why);
/* A copy of the file that puts no space before texts; *out is malloc'ed. Errors: as above, E_NOMEM.
 */
err_t spm_model_without_prefix(const void *model, size_t n, void **out, size_t *n_out,
                               struct why *why);

#endif
