/* Device memory, and the way to and from it through a ring of pinned windows: the copy into the
 * next window runs beside the transfer of the last ones. What lies in the ring keeps the order of
 * the stream, so a put needs no wait and small ones (a batch's ids) cost a memcpy. */
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#include "kernels/cpu/pool.h"
#include "kernels/cuda_train/cuda_train.h"

/* One thread's memcpy is far slower than the bus. */
enum { COPY_THREADS = 8, COPY_BYTES = 256 << 10 };

err_t cuda_train_windows_open(struct cuda_train *c) {
    if (cudaHostAlloc((void **)&c->pinned, (size_t)WINDOWS * PINNED_BYTES, cudaHostAllocDefault) !=
        cudaSuccess)
        return E_NOMEM;
    for (int i = 0; i < WINDOWS; i++) {
        c->window[i].at = c->pinned + (size_t)i * PINNED_BYTES;
        if (cudaEventCreateWithFlags(&c->window[i].passed, cudaEventDisableTiming) != cudaSuccess)
            return E_DEVICE;
    }
    int32_t cores = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    return pool_open(&c->pool, cores < COPY_THREADS ? cores : (int32_t)COPY_THREADS);
}

void cuda_train_windows_close(struct cuda_train *c) {
    if (c->pool)
        pool_close(c->pool);
    for (int i = 0; i < WINDOWS; i++)
        if (c->window[i].passed)
            cudaEventDestroy(c->window[i].passed);
    cudaFreeHost(c->pinned);
}

struct copy_job {
    char *to;
    const char *from;
    size_t bytes;
};
static void copy_task(void *arg, int32_t item, int32_t thread) {
    (void)thread;
    const struct copy_job *j = (const struct copy_job *)arg;
    size_t at = (size_t)item * COPY_BYTES, left = j->bytes - at;
    memcpy(j->to + at, j->from + at, left < COPY_BYTES ? left : (size_t)COPY_BYTES);
}
static void copy_host(struct cuda_train *c, void *to, const void *from, size_t bytes) {
    struct copy_job j = {(char *)to, (const char *)from, bytes};
    if (bytes <= COPY_BYTES)
        memcpy(to, from, bytes);
    else
        pool_run(c->pool, copy_task, &j, (int32_t)blocks_of(bytes, COPY_BYTES));
}

/* The window used longest ago, once its copy is done. */
static struct window *take_window(struct cuda_train *c) {
    struct window *w = &c->window[c->next_window++ % WINDOWS];
    c->next_window %= WINDOWS;
    if (w->used)
        cuda_train_note(c, cudaEventSynchronize(w->passed), "a copy");
    w->used = true;
    return w;
}

/* Keeps account of memory. Without room for it the block is not counted. */
static void count(struct cuda_train *c, void *at, size_t bytes) {
    if (c->n_blocks == c->cap_blocks) {
        size_t cap = c->cap_blocks ? 2 * c->cap_blocks : 1024;
        struct block *more = (struct block *)realloc(c->block, cap * sizeof *more);
        if (!more)
            return;
        c->block = more, c->cap_blocks = cap;
    }
    c->block[c->n_blocks++] = {at, bytes};
    c->taken += bytes;
    c->most = c->taken > c->most ? c->taken : c->most;
}

static void discount(struct cuda_train *c, void *at) {
    for (size_t i = c->n_blocks; i-- > 0;) /* what was taken last is mostly given back first */
        if (c->block[i].at == at) {
            c->taken -= c->block[i].bytes;
            c->block[i] = c->block[--c->n_blocks];
            return;
        }
}

size_t cuda_train_memory_most(const struct train *t) {
    return ((const struct cuda_train *)t)->most;
}

void *cuda_train_scratch(struct cuda_train *c, enum scratch which, size_t bytes) {
    if (c->error)
        return NULL;
    if (bytes <= c->scratch_bytes[which])
        return c->scratch[which];
    cuda_train_note(c, cudaStreamSynchronize(c->stream), "growing scratch");
    discount(c, c->scratch[which]);
    cudaFree(c->scratch[which]);
    c->scratch[which] = NULL;
    c->scratch_bytes[which] = 0;
    if (cudaMalloc(&c->scratch[which], bytes) != cudaSuccess) {
        cudaGetLastError(); /* not enough memory is no broken device */
        cuda_train_fail(c, E_NOMEM, "there is not enough device memory for an operator's scratch");
        return NULL;
    }
    c->scratch_bytes[which] = bytes;
    count(c, c->scratch[which], bytes);
    return c->scratch[which];
}

err_t cuda_train_take(struct train *t, size_t bytes, void **device) {
    struct cuda_train *c = cuda_train_of(t);
    *device = NULL;
    if (cudaMalloc(device, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError();
        *device = NULL;
        return E_NOMEM;
    }
    cuda_train_zero(t, *device, bytes);
    if (c->error) {
        cudaFree(*device);
        *device = NULL;
    } else {
        count(c, *device, bytes);
    }
    return c->error;
}

void cuda_train_give(struct train *t, void *device) {
    struct cuda_train *c = cuda_train_of(t);
    if (!device)
        return;
    discount(c, device); /* what follows waits for the device, so nothing that runs still uses it */
    cuda_train_note(c, cudaFree(device), "give");
}

void cuda_train_put(struct train *t, void *device, const void *host, size_t bytes) {
    struct cuda_train *c = cuda_train_of(t);
    for (size_t at = 0; !c->error && at < bytes; at += PINNED_BYTES) {
        size_t n = bytes - at < PINNED_BYTES ? bytes - at : (size_t)PINNED_BYTES;
        struct window *w = take_window(c);
        copy_host(c, w->at, (const char *)host + at, n);
        cuda_train_note(
            c, cudaMemcpyAsync((char *)device + at, w->at, n, cudaMemcpyHostToDevice, c->stream),
            "put");
        cuda_train_note(c, cudaEventRecord(w->passed, c->stream), "put");
    }
}

/* Copies run up to a ring ahead of the host's reading. After an error the host gets zeros. */
void cuda_train_get(struct train *t, void *host, const void *device, size_t bytes) {
    struct cuda_train *c = cuda_train_of(t);
    struct window *w[WINDOWS];
    size_t windows = (bytes + PINNED_BYTES - 1) / PINNED_BYTES;
    for (size_t i = 0; !c->error && i < windows + WINDOWS; i++) {
        if (i >= WINDOWS && i - WINDOWS < windows) {
            size_t at = (i - WINDOWS) * PINNED_BYTES;
            size_t n = bytes - at < PINNED_BYTES ? bytes - at : (size_t)PINNED_BYTES;
            cuda_train_note(c, cudaEventSynchronize(w[i % WINDOWS]->passed), "get");
            copy_host(c, (char *)host + at, w[i % WINDOWS]->at, n);
        }
        if (i < windows && !c->error) {
            size_t at = i * PINNED_BYTES;
            size_t n = bytes - at < PINNED_BYTES ? bytes - at : (size_t)PINNED_BYTES;
            w[i % WINDOWS] = take_window(c);
            cuda_train_note(c,
                            cudaMemcpyAsync(w[i % WINDOWS]->at, (const char *)device + at, n,
                                            cudaMemcpyDeviceToHost, c->stream),
                            "get");
            cuda_train_note(c, cudaEventRecord(w[i % WINDOWS]->passed, c->stream), "get");
        }
    }
    if (c->error)
        memset(host, 0, bytes);
}

void cuda_train_copy(struct train *t, void *to, const void *from, size_t bytes) {
    struct cuda_train *c = cuda_train_of(t);
    if (!c->error && bytes)
        cuda_train_note(c, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, c->stream),
                        "copy");
}

void cuda_train_zero(struct train *t, void *device, size_t bytes) {
    struct cuda_train *c = cuda_train_of(t);
    if (!c->error && bytes)
        cuda_train_note(c, cudaMemsetAsync(device, 0, bytes, c->stream), "zero");
}

size_t cuda_train_memory_free(const struct train *t) {
    (void)t;
    size_t here = 0, total = 0;
    return cudaMemGetInfo(&here, &total) == cudaSuccess ? here : 0;
}

err_t cuda_train_settle(struct train *t, struct why *why) {
    struct cuda_train *c = cuda_train_of(t);
    cuda_train_note(c, cudaStreamSynchronize(c->stream), "settle");
    return c->error ? why_set(why, c->error, "%s", c->why.text) : E_OK;
}
