#include "server/auth.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config/log.h"

enum { SHORT_KEY_BYTES = 16 }; /* below this a key can be guessed: 128 bits are the usual floor */

static err_t add_line(struct auth *a, char *line, int i_line, const char *path, struct why *why) {
    char *start = line + strspn(line, " \t");
    size_t n = strcspn(start, "\r\n");
    while (n && (start[n - 1] == ' ' || start[n - 1] == '\t'))
        n--;
    if (n == 0 || *start == '#')
        return E_OK;
    if (a->n_keys == AUTH_MAX_KEYS)
        return why_set(why, E_CONFIG, "%s:%d: more than %d keys", path, i_line, AUTH_MAX_KEYS);
    if (n < SHORT_KEY_BYTES)
        log_warn("auth", "file=%s line=%d note=\"a key of less than %d bytes can be guessed\"",
                 path, i_line, SHORT_KEY_BYTES);
    sha256_of(start, n, a->digest[a->n_keys++]);
    return E_OK;
}

err_t auth_open(struct auth *a, const char *path, struct why *why) {
    *a = (struct auth){0};
    if (!path || !*path)
        return E_OK;
    err_t e = E_OK;
    char line[4096];
    FILE *f = fopen(path, "re");
    if (!f)
        return why_set(why, E_CONFIG, "%s: cannot be read: %s", path, strerror(errno));
    a->digest = calloc(AUTH_MAX_KEYS, sizeof *a->digest);
    if (!a->digest)
        e = E_NOMEM;
    for (int i_line = 1; !e && fgets(line, sizeof line, f); i_line++)
        e = add_line(a, line, i_line, path, why);
    OPENSSL_cleanse(line, sizeof line);
    fclose(f);
    if (!e && a->n_keys == 0)
        e = why_set(why, E_CONFIG, "%s: holds no key", path);
    if (e)
        auth_close(a);
    return e;
}

void auth_close(struct auth *a) {
    free(a->digest);
    *a = (struct auth){0};
}

bool auth_allows(const struct auth *a, const char *header) {
    if (a->n_keys == 0)
        return true;
    static const char scheme[] = "bearer ";
    const char *key = "";
    if (header && strncasecmp(header, scheme, sizeof scheme - 1) == 0) {
        key = header + sizeof scheme - 1;
        key += strspn(key, " ");
    }
    unsigned char digest[SHA256_BYTES];
    sha256_of(key, strlen(key), digest);
    int matches = 0;
    for (int i = 0; i < a->n_keys; i++)
        matches |= CRYPTO_memcmp(digest, a->digest[i], SHA256_BYTES) == 0;
    return matches != 0;
}
