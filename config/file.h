/* Whole small files: configuration, tokenizer descriptions, keys. Never for weights. */
#ifndef CONFIG_FILE_H
#define CONFIG_FILE_H

#include <stddef.h>

#include "config/err.h"

/* Reads a regular file of at most max_bytes. *text is malloc'ed, given to the caller and ends with
 * a NUL that *n does not count. Errors, each with a sentence: E_IO (*text NULL; errno is ENOENT
 * when there is no such file), E_FORMAT (not a regular file, or larger), E_NOMEM. Any thread. */
err_t file_read(const char *path, size_t max_bytes, char **text, size_t *n, struct why *why);
/* The same of dir/name. */
err_t file_read_in(const char *dir, const char *name, size_t max_bytes, char **text, size_t *n,
                   struct why *why);

#endif
