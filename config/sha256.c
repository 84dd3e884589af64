#include "config/sha256.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>

err_t sha256_init(struct sha256 *s) {
    s->state = EVP_MD_CTX_new();
    if (s->state && EVP_DigestInit_ex(s->state, EVP_sha256(), NULL) == 1)
        return E_OK;
    EVP_MD_CTX_free(s->state);
    return E_NOMEM;
}

void sha256_add(struct sha256 *s, const void *data, size_t n) {
    EVP_DigestUpdate(s->state, data, n);
}

void sha256_end(struct sha256 *s, unsigned char out[SHA256_BYTES]) {
    EVP_DigestFinal_ex(s->state, out, NULL);
    EVP_MD_CTX_free(s->state);
    s->state = NULL;
}

void sha256_hex(const unsigned char digest[SHA256_BYTES], char out[SHA256_HEX]) {
    for (int i = 0; i < SHA256_BYTES; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

void sha256_of(const void *data, size_t n, unsigned char out[SHA256_BYTES]) {
    SHA256(data, n, out);
}
