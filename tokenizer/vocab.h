/* The part of a tokenizer that a base and its tenants share: the SentencePiece or byte-pair model,
 * the bytes that each piece prints, and encoding of plain text (no added tokens) by SentencePiece
 * at a cost linear in it (bpe.h encodes by byte pairs). Read-only once opened: any thread. */
#ifndef TOKENIZER_VOCAB_H
#define TOKENIZER_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/sha256.h"
#include "tokenizer/bpe.h"
#include "tokenizer/sentencepiece.h"
#include "tokenizer/spm_model.h"

enum { VOCAB_MAX_PIECE_BYTES = 1000 }; /* what a streaming detokeniser can emit at once */

struct vocab_piece {
    const char *text; /* what the id prints: spaces as spaces, byte pieces as their byte; NULL: a
                         gap in a byte-pair vocabulary */
    uint32_t n;
    enum sp_kind kind;
};

struct vocab {
    struct bpe *bpe;  /* NULL: SentencePiece */
    struct sp *bare;  /* puts no space before a text */
    struct sp *whole; /* the model as it is; NULL if bare with a space mark in front is the same */
    struct spm_model rules;
    char model_hash[SHA256_HEX];
    int32_t n_pieces;
    struct vocab_piece *pieces; /* [n_pieces], texts in `texts` */
    char *texts;
    uint64_t *pairs; /* [n_slots] hash set of the character pairs that occur inside pieces */
    size_t n_slots;  /* a power of two; 0: texts of this model may not be cut */
    size_t longest;  /* bytes of the longest piece, as an upper bound on bytes per id */
};

/* model: bytes of tokenizer.model. Errors: E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
err_t vocab_open(struct vocab **out, const void *model, size_t n, struct why *why);
/* root: the tree of tokenizer.json. Errors as bpe_open. */
err_t vocab_open_json(struct vocab **out, const json_t *root, struct why *why);
void vocab_close(struct vocab *v);

/* SentencePiece: appends the ids of `text` (valid UTF-8). prefix: a space is put before it, as the
 * model's own rule would. Errors as sp_encode. */
err_t vocab_encode(const struct vocab *v, const char *text, size_t n, bool prefix,
                   struct sp_ids *ids);
/* The id whose piece stands in the model as `content`; -1 if there is none. */
int32_t vocab_find(const struct vocab *v, const char *content, size_t n);
/* SHA-256 over all pieces as they stand in the model: equal for a SentencePiece model and the
 * tokenizer.json made of it. Errors: E_NOMEM. */
err_t vocab_pieces_hash(const struct vocab *v, char hex[SHA256_HEX]);

#endif
