/* A bounded queue of fixed-size items between one producer thread and one consumer thread, with an
 * eventfd that the consumer can sleep on or watch in an event loop. The only channel between
 * threads.
 *
 * Ordering: the producer publishes `head` with release after writing the slot; the consumer reads
 * it with acquire before reading the slot, and the other way round for `tail`. */
#ifndef CONFIG_RING_H
#define CONFIG_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "config/err.h"

struct ring {
    unsigned char *slots; /* [capacity][item_bytes], owned */
    size_t item_bytes, capacity;
    _Alignas(64) _Atomic size_t head; /* written by the producer */
    _Alignas(64) _Atomic size_t tail; /* written by the consumer */
    int event_fd;
};

/* capacity: a power of two (else E_INVAL). Errors: E_NOMEM, E_IO. */
err_t ring_init(struct ring *r, size_t item_bytes, size_t capacity);
void ring_free(struct ring *r);

bool ring_push(struct ring *r, const void *item); /* producer; false: full */
bool ring_pop(struct ring *r, void *item);        /* consumer; false: empty */

void ring_wake(struct ring *r);  /* any thread: make event_fd readable */
void ring_clear(struct ring *r); /* consumer: forget earlier wakes; call before draining */
void ring_wait(struct ring *r, int timeout_ms); /* consumer: sleep until woken; -1: no limit */

#endif
