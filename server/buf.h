/* A growable run of bytes with a hard maximum. Owned by whoever declared it; one thread at a time.
 */
#ifndef SERVER_BUF_H
#define SERVER_BUF_H

#include <stddef.h>

#include "config/err.h"

struct buf {
    char *data; /* owned; not terminated */
    size_t n, cap, max_bytes;
    err_t error; /* the first append that failed; the later ones fail the same way */
};

void buf_init(struct buf *b, size_t max_bytes);
void buf_free(struct buf *b); /* may be used again */
/* Appends. Errors: E_TOO_LARGE (over the maximum), E_NOMEM; the content is then unchanged. The
 * error stays, so a sequence of appends may be written without looking and checked once at its end.
 */
err_t buf_add(struct buf *b, const void *data, size_t n);
err_t buf_text(struct buf *b, const char *text);
err_t buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_drop(struct buf *b, size_t n); /* forget the first n bytes */

#endif
