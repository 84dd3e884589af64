/* Text to token ids and back. Pure functions over read-only vocabularies: any thread.
 *
 * A tokenizer is the base's model, SentencePiece or byte pairs, plus added tokens; a tenant's
 * tokenizer shares the model and has added tokens of its own. Text is UTF-8 with a length (NUL
 * bytes are text). */
#ifndef TOKENIZER_TOKENIZER_H
#define TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

struct tokenizer;

/* Reads tokenizer.model or, where there is none, tokenizer.json of a Hugging Face folder, and
 * tokenizer_config.json, added_tokens.json and special_tokens_map.json (which may be absent). A
 * part of tokenizer.json that is not supported is named. Errors: E_IO, E_FORMAT, E_UNSUPPORTED. */
err_t tokenizer_open(struct tokenizer **out, const char *dir, struct why *why);
/* A tenant's tokenizer: the base's model with the additions in `json` (docs/format.md,
 * "tokenizer"); keys that are left out are the base's. vocab: the tenant's vocabulary size; ids
 * outside it are refused. The base must outlive it. Errors: E_FORMAT, E_WRONG_BASE (made with
 * another model), E_NOMEM. */
err_t tokenizer_extend(struct tokenizer **out, const struct tokenizer *base, const char *json,
                       int32_t vocab, struct why *why);
void tokenizer_close(struct tokenizer *t);

/* The additions of a folder as the JSON that tokenizer_extend reads; malloc'ed. The tool stores it
 * in tenant files. A folder without tokenizer files gives "{}": the base's in everything. */
err_t tokenizer_additions(const char *dir, char **json, struct why *why);
/* SHA-256, hex: of the bytes of tokenizer.model, or of what tokenizer.json says of its model. Two
 * folders share a tokenizer if it is equal. */
const char *tokenizer_model_hash(const struct tokenizer *t);

struct tokenizer_facts {
    int32_t pieces;                         /* ids of the model */
    int32_t bos_id, eos_id, unk_id, pad_id; /* -1: none */
    bool add_bos, add_eos;                  /* ids are put before, after a text */
    const char *chat_template;              /* NULL: none; borrowed */
    const char *chat_error; /* why it cannot be used; NULL: it can, or there is none; borrowed */
};
const struct tokenizer_facts *tokenizer_facts(const struct tokenizer *t);

enum {
    ENCODE_SPECIAL_TOKENS = 1, /* add BOS/EOS as the tokenizer's rules say */
    /* Special tokens in the text (control pieces, added tokens that are special or hold one of
     * <>[]{}|) become their ids. Without it they stay text, whatever a user writes; added tokens
     * that are plain words are vocabulary and become their ids either way. */
    ENCODE_PARSE_SPECIAL = 2,
};
/* *ids: malloc'ed. Texts of more than max_bytes, or that give more than max_ids ids, are refused
 * with E_CONTEXT. About 0.2 us a byte, up to 0.6 us for one character repeated a million times.
 * SentencePiece: spaces before text are those of the slow LlamaTokenizer: with the folder's
 * "legacy" true (the default) every stretch between special tokens gets one, with false the first
 * stretch alone. Errors: E_NOMEM, E_CONTEXT, E_INVAL (not UTF-8). */
err_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                       size_t max_bytes, int32_t max_ids, int32_t **ids, int32_t *n_ids,
                       struct why *why);

/* The same for a text in which some bytes were written by the operator and some by a user: markup
 * is found only where trusted[i] (one for each byte) is not 0 for all of its bytes. Text of both
 * kinds is joined before it is cut into pieces, so the ids are those of the whole text. */
err_t tokenizer_encode_mixed(const struct tokenizer *t, const char *text,
                             const unsigned char *trusted, size_t n, unsigned flags,
                             size_t max_bytes, int32_t max_ids, int32_t **ids, int32_t *n_ids,
                             struct why *why);

/* The bytes one id stands for, for log-probability tables: pieces with U+2581 as space, added
 * tokens by their content, byte pieces as their byte. Returns the length; borrowed; NULL for an
 * unknown id. */
const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *n);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
/* Its bytes are no whole characters. */
bool tokenizer_is_byte(const struct tokenizer *t, int32_t id);
bool tokenizer_is_bytes(const struct tokenizer *t); /* any piece may hold parts of characters */
bool tokenizer_prefixes(const struct tokenizer *t); /* a space before texts is not part of them */
/* The id of a special or added token by content; -1 if there is none. */
int32_t tokenizer_special_id(const struct tokenizer *t, const char *content);
/* All ids to text, as the reference implementation prints them. *text: malloc'ed. */
err_t tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int32_t n, bool skip_special,
                       char **text, size_t *n_text);

/* Streaming: feed generated ids one by one, get whole characters. Never emits part of a UTF-8
 * character; bytes that cannot become one come out as U+FFFD: each of them with SentencePiece, the
 * longest start of a character as one with byte pairs, as the two references print them. */
struct detok {
    const struct tokenizer *t;
    bool skip_special, at_start; /* at_start: the leading space of the first piece is dropped */
    unsigned char pending[4];
    int n_pending;
};
enum {
    DETOK_MAX_BYTES = 3072
}; /* most bytes one push can emit; longer pieces are refused at open */

/* continues_text: the ids continue a prompt, so their leading space is kept. */
void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special, bool continues_text);
size_t detok_push(struct detok *d, int32_t id, char out[DETOK_MAX_BYTES]); /* bytes written */
size_t detok_flush(struct detok *d, char out[DETOK_MAX_BYTES]);

#endif
