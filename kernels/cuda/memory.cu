/* The arena is a sorted list of holes: a few hundred at most (tenants come in pieces of up to 32 MB
 * and leave whole), so every operation is a walk along it. */
#include "kernels/cuda/memory.h"

#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"

enum { ALIGN = 256 };
static const size_t SLAB_BYTES = (size_t)64 << 20; /* least that a growing arena takes */

static size_t aligned(size_t bytes) {
    return bytes ? (bytes + ALIGN - 1) / ALIGN * ALIGN : ALIGN;
}

/* ---- the arena ------------------------------------------------------------------------------- */

err_t arena_open(struct arena *a) {
    *a = {};
    pthread_mutex_init(&a->lock, NULL);
    return E_OK;
}

void arena_close(struct arena *a) {
    for (int32_t i = 0; i < a->n_slabs; i++)
        cudaFree(a->slab[i]);
    free(a->slab);
    free(a->hole);
    pthread_mutex_destroy(&a->lock);
    *a = {};
}

/* Room for every hole that can come to be: one beside each piece and one in each slab. */
static err_t holes_fit(struct arena *a) {
    int32_t most = a->n_taken + a->n_slabs + 2;
    if (most <= a->max_holes)
        return E_OK;
    struct hole *hole = (struct hole *)realloc(a->hole, 2 * (size_t)most * sizeof *hole);
    if (!hole)
        return E_NOMEM;
    a->hole = hole;
    a->max_holes = 2 * most;
    return E_OK;
}

/* holes_fit was called. */
static void add_hole(struct arena *a, char *at, size_t bytes) {
    int32_t i = 0;
    while (i < a->n_holes && a->hole[i].at < at)
        i++;
    bool before = i > 0 && a->hole[i - 1].at + a->hole[i - 1].bytes == at;
    bool after = i < a->n_holes && at + bytes == a->hole[i].at;
    a->free_bytes += bytes;
    if (before && after) {
        a->hole[i - 1].bytes += bytes + a->hole[i].bytes;
        memmove(a->hole + i, a->hole + i + 1, (size_t)(--a->n_holes - i) * sizeof *a->hole);
    } else if (before) {
        a->hole[i - 1].bytes += bytes;
    } else if (after) {
        a->hole[i] = {at, a->hole[i].bytes + bytes};
    } else {
        memmove(a->hole + i + 1, a->hole + i, (size_t)(a->n_holes++ - i) * sizeof *a->hole);
        a->hole[i] = {at, bytes};
    }
}

/* The lock is held. */
static err_t add_slab(struct arena *a, size_t bytes) {
    void **slab = (void **)realloc(a->slab, (size_t)(a->n_slabs + 1) * sizeof *slab), *p;
    if (!slab)
        return E_NOMEM;
    a->slab = slab;
    if (holes_fit(a) || cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError(); /* not enough memory is no broken device */
        return E_NOMEM;
    }
    a->slab[a->n_slabs++] = p;
    a->slab_bytes += bytes;
    add_hole(a, (char *)p, bytes);
    return E_OK;
}

err_t arena_seal(struct arena *a, size_t bytes) {
    pthread_mutex_lock(&a->lock);
    err_t e = bytes ? add_slab(a, bytes / ALIGN * ALIGN) : E_OK;
    a->sealed = true;
    pthread_mutex_unlock(&a->lock);
    return e;
}

static struct hole *smallest_fit(struct arena *a, size_t bytes) {
    struct hole *best = NULL;
    for (int32_t i = 0; i < a->n_holes; i++)
        if (a->hole[i].bytes >= bytes && (!best || a->hole[i].bytes < best->bytes))
            best = &a->hole[i];
    return best;
}

err_t arena_take(struct arena *a, size_t bytes, void **out) {
    bytes = aligned(bytes);
    pthread_mutex_lock(&a->lock);
    struct hole *h = smallest_fit(a, bytes);
    err_t e = h ? holes_fit(a) : E_NOMEM;
    if (!h && !a->sealed)
        e = add_slab(a, bytes > SLAB_BYTES ? bytes : SLAB_BYTES);
    h = e ? NULL : smallest_fit(a, bytes);
    if (h) {
        *out = h->at;
        *h = {h->at + bytes, h->bytes - bytes};
        if (!h->bytes)
            memmove(h, h + 1, (size_t)(a->hole + --a->n_holes - h) * sizeof *h);
        a->free_bytes -= bytes;
        a->n_taken++;
    }
    pthread_mutex_unlock(&a->lock);
    return e;
}

void arena_give(struct arena *a, void *p, size_t bytes) {
    if (!p)
        return;
    pthread_mutex_lock(&a->lock);
    add_hole(a, (char *)p, aligned(bytes));
    a->n_taken--;
    pthread_mutex_unlock(&a->lock);
}

size_t arena_free_bytes(struct arena *a) {
    pthread_mutex_lock(&a->lock);
    size_t bytes = a->free_bytes;
    pthread_mutex_unlock(&a->lock);
    return bytes;
}

size_t arena_bytes(struct arena *a) {
    pthread_mutex_lock(&a->lock);
    size_t bytes = a->slab_bytes;
    pthread_mutex_unlock(&a->lock);
    return bytes;
}

/* ---- the windows ----------------------------------------------------------------------------- */

err_t windows_open(struct windows *w) {
    *w = {};
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    if (cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking) != cudaSuccess)
        return E_DEVICE;
    for (int32_t i = 0; i < WINDOWS; i++) /* blocking: who waits leaves its core to the steps */
        if (cudaEventCreateWithFlags(&w->window[i].arrived,
                                     cudaEventDisableTiming | cudaEventBlockingSync) != cudaSuccess)
            return E_DEVICE;
    if (cudaHostAlloc((void **)&w->pinned, (size_t)WINDOWS * WINDOW_BYTES, cudaHostAllocDefault) !=
        cudaSuccess) {
        cudaGetLastError();
        return E_NOMEM;
    }
    return E_OK;
}

void windows_close(struct windows *w) {
    if (w->stream) {
        cudaStreamSynchronize(w->stream);
        cudaStreamDestroy(w->stream);
    }
    for (int32_t i = 0; i < WINDOWS; i++)
        if (w->window[i].arrived)
            cudaEventDestroy(w->window[i].arrived);
    cudaFreeHost(w->pinned);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    *w = {};
}

/* A free window, else the one sent longest ago. The lock is held. */
static struct window *next_window(struct windows *w) {
    struct window *oldest = NULL;
    for (int32_t i = 0; i < WINDOWS; i++) {
        struct window *x = &w->window[i];
        if (x->state == WINDOW_FREE)
            return x;
        if (x->state == WINDOW_SENT && (!oldest || x->order < oldest->order))
            oldest = x;
    }
    return oldest;
}

err_t windows_take(struct windows *w, void **window) {
    struct window *x;
    pthread_mutex_lock(&w->lock);
    while (!(x = next_window(w)))
        pthread_cond_wait(&w->changed, &w->lock);
    bool sent = x->state == WINDOW_SENT;
    x->state = WINDOW_HELD;
    pthread_mutex_unlock(&w->lock);
    *window = w->pinned + (x - w->window) * (size_t)WINDOW_BYTES;
    if (!sent || cudaEventSynchronize(x->arrived) == cudaSuccess)
        return E_OK;
    pthread_mutex_lock(&w->lock);
    x->state = WINDOW_SENT;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return E_DEVICE;
}

err_t windows_send(struct windows *w, void *device, void *window, size_t bytes) {
    struct window *x = &w->window[((char *)window - w->pinned) / WINDOW_BYTES];
    /* One thread at a time: the copy and its event belong together. */
    pthread_mutex_lock(&w->lock);
    bool ok =
        cudaMemcpyAsync(device, window, bytes, cudaMemcpyHostToDevice, w->stream) == cudaSuccess &&
        cudaEventRecord(x->arrived, w->stream) == cudaSuccess;
    x->state = WINDOW_SENT;
    x->order = ++w->n_sent;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return ok ? E_OK : E_DEVICE;
}

err_t windows_settle(struct windows *w) {
    cudaEvent_t all;
    if (cudaEventCreateWithFlags(&all, cudaEventDisableTiming | cudaEventBlockingSync) !=
        cudaSuccess)
        return E_DEVICE;
    bool ok =
        cudaEventRecord(all, w->stream) == cudaSuccess && cudaEventSynchronize(all) == cudaSuccess;
    cudaEventDestroy(all);
    return ok ? E_OK : E_DEVICE;
}

err_t windows_upload(struct windows *w, void *device, const void *data, size_t bytes) {
    err_t e = E_OK;
    for (size_t at = 0; !e && at < bytes; at += WINDOW_BYTES) {
        size_t left = bytes - at, n = left > WINDOW_BYTES ? (size_t)WINDOW_BYTES : left;
        void *window;
        e = windows_take(w, &window);
        if (e)
            break;
        memcpy(window, (const char *)data + at, n);
        e = windows_send(w, (char *)device + at, window, n);
    }
    return e;
}
