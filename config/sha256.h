/* SHA-256 (FIPS 180-4) through libcrypto, which uses the processor's own instructions. */
#ifndef CONFIG_SHA256_H
#define CONFIG_SHA256_H

#include <stddef.h>

#include "config/err.h"

enum { SHA256_BYTES = 32, SHA256_HEX = 65 };

struct sha256 {
    void *state; /* EVP_MD_CTX, owned */
};

err_t sha256_init(struct sha256 *s); /* E_NOMEM */
void sha256_add(struct sha256 *s, const void *data, size_t n);
void sha256_end(struct sha256 *s, unsigned char out[SHA256_BYTES]); /* also frees */
void sha256_hex(const unsigned char digest[SHA256_BYTES], char out[SHA256_HEX]);
/* One call for one block of bytes. */
void sha256_of(const void *data, size_t n, unsigned char out[SHA256_BYTES]);

#endif
