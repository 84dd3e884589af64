/* Added tokens: contents that stand for an id of their own wherever a text holds them.
 * Read-only once built: any thread. */
#ifndef TOKENIZER_ADDED_H
#define TOKENIZER_ADDED_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

struct added_token {
    char *content; /* owned; UTF-8, n bytes and a NUL */
    size_t n;
    int32_t id;
    bool special; /* marks structure (turns, end): left out of decoded text */
    bool markup;  /* special or written like markup: found only where parsing was asked for */
    bool lstrip, rstrip; /* white space before, after it belongs to it */
    bool single_word;    /* only between spaces */
    bool normalized;     /* byte-pair tokenizers look for these in what the others leave */
};

struct added {
    struct added_token *tokens; /* [n], by content, ascending bytes; owned */
    int32_t *by_id;             /* [n] indices into tokens, ids ascending; owned */
    int32_t n;
    int32_t first[257]; /* tokens whose content starts with byte b: first[b] .. first[b+1]-1 */
};

/* Takes one token more, before added_seal. Errors: E_FORMAT (empty, too long), E_NOMEM. */
err_t added_put(struct added *a, const struct added_token *token, struct why *why);
/* Reads an array of {"id", "content", "special", ...}. ids must lie in 0 .. vocab-1. */
err_t added_read(struct added *a, const json_t *array, int32_t vocab, struct why *why);
/* Sorts and indexes. Errors: E_FORMAT (an id or a content twice), E_NOMEM. */
err_t added_seal(struct added *a, struct why *why);
void added_free(struct added *a);

const struct added_token *added_by_id(const struct added *a, int32_t id);
const struct added_token *added_by_content(const struct added *a, const char *content, size_t n);

enum { ADDED_RAW = 1, ADDED_NORMALIZED = 2, ADDED_ALL = 3 };

/* Where to look: in text[0..n), for tokens of the kinds `which`. markup: tokens that are markup
 * count, too; with a map, only where trusted[i] is not 0 for all of their bytes. */
struct added_search {
    const char *text;
    size_t n;
    const unsigned char *trusted; /* NULL: no map */
    bool markup;
    unsigned which;
};

/* The first token from `from` on: the leftmost, of those the longest. *at: where it stands. NULL:
 * none. */
const struct added_token *added_find(const struct added *a, const struct added_search *s,
                                     size_t from, size_t *at);

#endif
