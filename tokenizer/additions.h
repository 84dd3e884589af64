/* Reads what a Hugging Face folder adds to its SentencePiece model: added tokens, special tokens,
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
};

/* The whole of dir/name, with a NUL after it; *data is malloc'ed. An absent file is no error:
 * *data is NULL then. Errors: E_IO, E_FORMAT (more than max bytes), E_NOMEM. */
err_t additions_read_file(const char *dir, const char *name, size_t max, char **data, size_t *n,
                          struct why *why);
/* *out: a new object; {} for a folder without tokenizer files. Keys whose value the folder does not
 * give are left out. Errors: E_IO, E_FORMAT, E_NOMEM. */
err_t additions_read_folder(const char *dir, json_t **out, struct why *why);

#endif
