/* Device memory that comes and goes while steps run: an arena for weights and tables of tenants,
 * and the pinned windows through which host data reaches it.
 *
 * cudaMalloc and cudaFree wait for running kernels, so neither is called once the arena is full
 * grown (arena_seal): what is taken later comes out of slabs that were taken at boot. Any thread.
 */
#ifndef KERNELS_CUDA_MEMORY_H
#define KERNELS_CUDA_MEMORY_H

#include <cuda_runtime.h>
#include <pthread.h>
#include <stdint.h>

#include "config/err.h"

/* ---- the arena ------------------------------------------------------------------------------- */

struct hole {
    char *at;
    size_t bytes;
};
struct arena {
    pthread_mutex_t lock; /* guards all that follows */
    void **slab;          /* [n_slabs] owned, as is hole */
    int32_t n_slabs;
    bool sealed;
    struct hole *hole; /* [n_holes] by address, never two that touch */
    int32_t n_holes, max_holes, n_taken;
    size_t free_bytes, slab_bytes;
};

err_t arena_open(struct arena *a);
void arena_close(struct arena *a); /* frees the slabs, whatever is taken */
/* Adds a last slab of `bytes`; from now on the arena does not grow. E_NOMEM. */
err_t arena_seal(struct arena *a, size_t bytes);
/* From the smallest hole that fits; aligned to 256 bytes. Before arena_seal a new slab is made when
 * none does. E_NOMEM. */
err_t arena_take(struct arena *a, size_t bytes, void **out);
void arena_give(struct arena *a, void *p, size_t bytes); /* NULL: nothing */
size_t arena_free_bytes(struct arena *a);
size_t arena_bytes(struct arena *a); /* of all slabs */

/* ---- the windows ----------------------------------------------------------------------------- */

enum { WINDOWS = 48 };

enum window_state { WINDOW_FREE, WINDOW_HELD, WINDOW_SENT };
struct window {
    enum window_state state;
    uint64_t order; /* of being sent */
    cudaEvent_t arrived;
};
struct windows {
    cudaStream_t stream; /* copies go here, beside the steps'; owned */
    char *pinned;        /* [WINDOWS][WINDOW_BYTES] owned */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a window was sent */
    struct window window[WINDOWS];
    uint64_t n_sent;
};

err_t windows_open(struct windows *w);
void windows_close(struct windows *w); /* waits for copies; also after an error of open */
/* kernels_ops.stage, commit, settle. */
err_t windows_take(struct windows *w, void **window);
err_t windows_send(struct windows *w, void *device, void *window, size_t bytes);
err_t windows_settle(struct windows *w);
/* All of a block, without waiting for its arrival: the block may go, its bytes are on their way. */
err_t windows_upload(struct windows *w, void *device, const void *data, size_t bytes);

#endif
