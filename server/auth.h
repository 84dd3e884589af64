/* Bearer keys. Kept as SHA-256 digests only; a candidate is compared with every key in constant
 * time, so neither which key matched nor how much of it shows in the timing. Read at start by the
 * main thread, afterwards read-only. */
#ifndef SERVER_AUTH_H
#define SERVER_AUTH_H

#include <stdbool.h>

#include "config/sha256.h"

enum { AUTH_MAX_KEYS = 1024 };

struct auth {
    unsigned char (*digest)[SHA256_BYTES]; /* [n_keys], owned */
    int n_keys;                            /* 0: nothing was configured, everybody may */
};

/* One key a line, blank lines and lines that start with '#' skipped. NULL or "": no keys needed. A
 * file without a key is an error, never an open door. Errors: E_CONFIG, E_NOMEM. */
err_t auth_open(struct auth *a, const char *path, struct why *why);
void auth_close(struct auth *a);
/* `header`: the Authorization value or NULL. */
bool auth_allows(const struct auth *a, const char *header);

#endif
