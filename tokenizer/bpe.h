/* A byte-pair model read from tokenizer.json: how a stretch of plain text becomes ids, exactly as
 * the reference (Hugging Face tokenizers) does it, in n log n at worst. Added tokens, specials and
 * templates are the caller's. Read-only once opened: any thread. */
#ifndef TOKENIZER_BPE_H
#define TOKENIZER_BPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "config/sha256.h"
#include "tokenizer/sentencepiece.h"
#include "tokenizer/split.h"

enum {
    BPE_MAX_STEPS = 4,       /* pre-tokenizers in a row; published ones have one or two */
    BPE_MAX_PIECES = 1 << 24 /* real ones have up to 262144 */
};

enum bpe_prefix { BPE_PREFIX_NONE, BPE_PREFIX_FIRST, BPE_PREFIX_EVERY };

/* How a model's symbols stand in its pieces: `text` are bytes (byte-level) or UTF-8 with U+2581 for
 * the space. NULL: no piece has this id. */
struct bpe_piece {
    const char *text;
    uint32_t n;
    bool reachable; /* false: holds what no text turns into, so only an added token can give it */
};

struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id, + 1; 0: empty slot */
    int32_t rank, id;
};

struct bpe {
    bool byte_level; /* symbols are bytes; else characters */
    bool byte_fallback, fuse_unk, ignore_merges;
    bool marks;      /* spaces become U+2581 */
    bool keep_space; /* no prefix before a text that starts with a space */
    bool bounded;    /* every id stands for at least one byte: text is never left out */
    bool strips;     /* decoding drops one leading space */
    enum bpe_prefix prefix;
    enum split steps[BPE_MAX_STEPS];
    int n_steps;
    int32_t unk; /* -1: none */

    struct bpe_piece *pieces; /* [n_pieces], texts in `texts` */
    char *texts;
    int32_t n_pieces;
    int32_t byte_id[256]; /* of one byte; -1: none */
    int32_t *slots;       /* [n_slots] hash of reachable pieces: id + 1, 0 empty */
    size_t n_slots;       /* powers of two */
    struct bpe_merge *merges;
    size_t n_merge_slots;
    char hash[SHA256_HEX]; /* of everything above that encoding depends on */
};

/* The two hashes, for the one who fills the tables and the one who asks them. */
static inline size_t bpe_hash(const char *text, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return (size_t)(h ^ h >> 29);
}

static inline uint64_t bpe_pair(int32_t left, int32_t right) {
    return ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
}

static inline size_t bpe_pair_hash(uint64_t pair) {
    return (size_t)(pair * 0x9e3779b97f4a7c15u >> 20);
}

/* root: the tree of tokenizer.json. Errors: E_FORMAT, E_UNSUPPORTED (names the component), E_NOMEM.
 */
err_t bpe_open(struct bpe **out, const json_t *root, struct why *why);
void bpe_close(struct bpe *b);

/* The id whose reachable piece is text[0..n); -1 if there is none. */
int32_t bpe_find(const struct bpe *b, const char *text, size_t n);

/* Appends the ids of text[0..n), valid UTF-8. prefix: the rules put a space before this stretch.
 * closed: a bit for each piece that plain text may not become (NULL: none). work: counts the steps
 * taken (NULL: not wanted), for asserting that they grow with the text alone. Errors: E_NOMEM,
 * E_CONTEXT. */
err_t bpe_encode(const struct bpe *b, const char *text, size_t n, bool prefix,
                 const unsigned char *closed, struct sp_ids *ids, uint64_t *work);

#endif
