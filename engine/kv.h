/* The pool of KV pages: which of the backend's pages are free, and the lists that say which a
 * sequence holds. Numbers only; the keys and values themselves live in the backend. A page belongs
 * to one sequence at a time and is never shared. Engine thread only, once it runs. */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"
#include "kernels/kernels.h"

struct kv_pool {
    int32_t *free; /* [n_pages] owned; the first n_free are free pages, the last is given next */
    int32_t n_free, n_pages;
};

err_t kv_init(struct kv_pool *p, int32_t n_pages); /* E_NOMEM */
void kv_free(struct kv_pool *p);

/* Extends a sequence's list until it covers n_tokens. All or nothing: false, with nothing changed,
 * when the pool has too few pages. pages: room for kv_pages_for(n_tokens). */
bool kv_grow(struct kv_pool *p, int32_t *pages, int32_t *n_pages, int32_t n_tokens);
/* Gives all pages of a list back. */
void kv_release(struct kv_pool *p, int32_t *pages, int32_t *n_pages);

static inline int32_t kv_pages_for(int64_t n_tokens) {
    return (int32_t)((n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
}

#endif
