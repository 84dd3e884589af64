#include "server/live.h"

#include <stdlib.h>
#include <string.h>

enum {
    SLOT_BITS = 20, /* engine id = submission number and slot */
    MAX_LIVE = 1 << SLOT_BITS,
};

static err_t grow(struct live *live) {
    uint32_t cap = live->cap ? 2 * live->cap : 64;
    if (cap > MAX_LIVE)
        return E_BUSY;
    struct live_entry *grown = realloc(live->entry, cap * sizeof *grown);
    if (!grown)
        return E_NOMEM;
    memset(grown + live->cap, 0, (cap - live->cap) * sizeof *grown);
    live->entry = grown;
    live->cap = cap;
    return E_OK;
}

err_t live_add(struct live *live, struct generation *g, int i_choice, uint64_t *id) {
    err_t e = live->n == live->cap ? grow(live) : E_OK;
    if (e)
        return e;
    uint32_t slot = (uint32_t)(live->n_submitted % live->cap);
    while (live->entry[slot].engine_id)
        slot = (slot + 1) % live->cap;
    *id = ++live->n_submitted << SLOT_BITS | slot;
    live->entry[slot] = (struct live_entry){*id, g, i_choice};
    live->n++;
    return E_OK;
}

struct live_entry *live_find(const struct live *live, uint64_t id) {
    uint64_t slot = id & (MAX_LIVE - 1);
    struct live_entry *entry = slot < live->cap ? &live->entry[slot] : NULL;
    return id && entry && entry->engine_id == id ? entry : NULL;
}

void live_remove(struct live *live, uint64_t id) {
    struct live_entry *entry = live_find(live, id);
    if (entry) {
        *entry = (struct live_entry){0};
        live->n--;
    }
}

void live_free(struct live *live) {
    free(live->entry);
    *live = (struct live){0};
}
