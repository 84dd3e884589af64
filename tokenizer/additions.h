/* Reads what a Hugging Face folder adds to its tokenizer's model: added tokens, special tokens,
 * rules and chat template, from the several files and spellings in use, as one JSON object
 * (docs/format.md, "tokenizer"). */
#ifndef TOKENIZER_ADDITIONS_H
#define TOKENIZER_ADDITIONS_H

#include <jansson.h>
#include <stddef.h>

#include "config/err.h"

enum {
    ADDITIONS_MAX_MODEL_BYTES = 256 << 20, /* of tokenizer.model; real ones have 0.5 to 5 MB */
    ADDITIONS_MAX_DEPTH = 32,              /* of their JSON */
    ADDITIONS_MAX_VALUES = 1 << 20,        /* seven for each added token */
    ADDITIONS_MAX_JSON_BYTES = 256 << 20,  /* of tokenizer.json; real ones have 2 to 20 MB */
    ADDITIONS_MAX_JSON_VALUES = 8 << 20,   /* one a piece, up to three a merge */
};

/* The whole of dir/name, with a NUL after it; *data is malloc'ed. An absent file is no error:
 * *data is NULL then. Errors: E_IO, E_FORMAT (more than max bytes), E_NOMEM. */
err_t additions_read_file(const char *dir, const char *name, size_t max, char **data, size_t *n,
                          struct why *why);
/* *root: the tree of dir/tokenizer.json; NULL if the folder has none, or has a SentencePiece
 * tokenizer.model, which goes before it. Errors: E_IO, E_FORMAT, E_NOMEM. */
err_t additions_read_json(const char *dir, json_t **root, struct why *why);
/* *out: a new object; {} for a folder without tokenizer files. Keys whose value the folder does not
 * give are left out. root: what additions_read_json gave. model_hash is set for tokenizer.model
 * alone. Errors: E_IO, E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
err_t additions_read_folder(const char *dir, const json_t *root, json_t **out, struct why *why);
/* Its part for a tokenizer.json: `tokens` (those of the settings) become all added tokens, and
 * they, the named ones and the ids put before and after a text are set in `out`. config may be
 * NULL. */
err_t additions_of_json(const json_t *root, const json_t *config, json_t *tokens, json_t *out,
                        struct why *why);

#endif
