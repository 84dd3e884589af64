#include "server/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t max_bytes) {
    *b = (struct buf){.max_bytes = max_bytes};
}

void buf_free(struct buf *b) {
    free(b->data);
    *b = (struct buf){.max_bytes = b->max_bytes};
}

err_t buf_add(struct buf *b, const void *data, size_t n) {
    if (b->error)
        return b->error;
    if (n > b->max_bytes - b->n)
        return b->error = E_TOO_LARGE;
    if (n > b->cap - b->n) {
        size_t cap = b->cap ? b->cap : 256;
        while (cap < b->n + n)
            cap *= 2;
        char *grown = realloc(b->data, cap);
        if (!grown)
            return b->error = E_NOMEM;
        b->data = grown;
        b->cap = cap;
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
    return E_OK;
}

err_t buf_text(struct buf *b, const char *text) {
    return buf_add(b, text, strlen(text));
}

err_t buf_printf(struct buf *b, const char *format, ...) {
    char text[1024]; /* one line of metrics or one header: longer is our bug */
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text)
        return b->error = E_INTERNAL;
    return buf_add(b, text, (size_t)n);
}

void buf_drop(struct buf *b, size_t n) {
    if (n < b->n)
        memmove(b->data, b->data + n, b->n - n);
    b->n -= n;
}
