/* A stack of free page numbers: taking and giving back are a few moves, and the page used last is
 * given next, while the caches still know it. */
#include "engine/kv.h"

#include <stdlib.h>

err_t kv_init(struct kv_pool *p, int32_t n_pages) {
    p->free = malloc((size_t)n_pages * sizeof *p->free);
    if (!p->free)
        return E_NOMEM;
    p->n_pages = p->n_free = n_pages;
    for (int32_t i = 0; i < n_pages; i++)
        p->free[i] = n_pages - 1 - i; /* page 0 is given first */
    return E_OK;
}

void kv_free(struct kv_pool *p) {
    free(p->free);
    *p = (struct kv_pool){0};
}

bool kv_grow(struct kv_pool *p, int32_t *pages, int32_t *n_pages, int32_t n_tokens) {
    int32_t want = kv_pages_for(n_tokens);
    if (want - *n_pages > p->n_free)
        return false;
    while (*n_pages < want)
        pages[(*n_pages)++] = p->free[--p->n_free];
    return true;
}

void kv_release(struct kv_pool *p, int32_t *pages, int32_t *n_pages) {
    while (*n_pages > 0)
        p->free[p->n_free++] = pages[--*n_pages];
}
