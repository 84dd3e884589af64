#include "config/ring.h"

#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

err_t ring_init(struct ring *r, size_t item_bytes, size_t capacity) {
    memset(r, 0, sizeof *r);
    r->event_fd = -1;
    if (item_bytes == 0 || capacity == 0 || (capacity & (capacity - 1)) != 0)
        return E_INVAL;
    if (capacity > SIZE_MAX / item_bytes)
        return E_NOMEM;
    r->item_bytes = item_bytes;
    r->capacity = capacity;
    r->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (r->event_fd < 0)
        return E_IO;
    r->slots = calloc(capacity, item_bytes);
    if (!r->slots) {
        close(r->event_fd);
        r->event_fd = -1;
        return E_NOMEM;
    }
    return E_OK;
}

void ring_free(struct ring *r) {
    if (!r->slots)
        return;
    free(r->slots);
    r->slots = NULL;
    close(r->event_fd);
    r->event_fd = -1;
}

bool ring_push(struct ring *r, const void *item) {
    size_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    if (head - atomic_load_explicit(&r->tail, memory_order_acquire) == r->capacity)
        return false;
    memcpy(r->slots + (head & (r->capacity - 1)) * r->item_bytes, item, r->item_bytes);
    atomic_store_explicit(&r->head, head + 1, memory_order_release);
    return true;
}

bool ring_pop(struct ring *r, void *item) {
    size_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if (tail == atomic_load_explicit(&r->head, memory_order_acquire))
        return false;
    memcpy(item, r->slots + (tail & (r->capacity - 1)) * r->item_bytes, r->item_bytes);
    atomic_store_explicit(&r->tail, tail + 1, memory_order_release);
    return true;
}

void ring_wake(struct ring *r) {
    uint64_t one = 1;
    ssize_t n = write(r->event_fd, &one, sizeof one);
    (void)n; /* EAGAIN: the counter is full, so the consumer is awake already */
}

void ring_clear(struct ring *r) {
    uint64_t count;
    ssize_t n = read(r->event_fd, &count, sizeof count);
    (void)n; /* EAGAIN: nothing to forget */
}

void ring_wait(struct ring *r, int timeout_ms) {
    struct pollfd p = {.fd = r->event_fd, .events = POLLIN};
    poll(&p, 1, timeout_ms);
}
