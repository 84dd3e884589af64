#include "engine/hashing.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"

enum {
    MAX_THREADS = 32, /* a disk feeds no more than that */
};

struct work {
    struct hash_job *job;
    int32_t *order; /* [n] largest first, so that no big tensor starts last */
    int32_t n;
    uint64_t total;
    _Atomic int32_t next;
    _Atomic uint64_t done; /* bytes, for progress only: relaxed */
    _Atomic int error;     /* first error; set under lock with its sentence */
    pthread_mutex_t lock;
    struct why *why;
    const struct hash_sink *sink;
    hash_progress_fn *progress; /* used by the calling thread alone */
    void *arg;
};

/* Bytes [at, at + n) of the tensor, read to where they belong. */
static err_t hash_piece(const struct work *w, const struct hash_job *j, uint64_t at, size_t n,
                        unsigned char *chunk, struct sha256 *sum, struct why *why) {
    const struct hash_sink *sink = w->sink;
    void *to = chunk;
    err_t e = sink ? sink->window(sink->arg, j->tensor, at, n, &to) : E_OK;
    if (e)
        return why_set(why, e, "tensor %s: no way into its memory", j->tensor->name);
    e = st_read_part(j->file, j->tensor, at, to, n, why);
    if (!e && !(sink && sink->unhashed))
        sha256_add(sum, to, n);
    if (!sink)
        return e;
    err_t sent = sink->filled(sink->arg, j->tensor, at, n, to, e == E_OK);
    return !e && sent ? why_set(why, sent, "tensor %s: no way into its memory", j->tensor->name)
                      : e;
}

static err_t hash_one(struct work *w, struct hash_job *j, unsigned char *chunk, bool report,
                      struct why *why) {
    struct sha256 sum;
    err_t e = sha256_init(&sum);
    if (e)
        return why_set(why, e, "not enough memory to hash tensor %s", j->tensor->name);
    for (uint64_t at = 0; !e && at < j->tensor->bytes;) {
        uint64_t left = j->tensor->bytes - at;
        size_t step = left < WINDOW_BYTES ? (size_t)left : WINDOW_BYTES;
        e = hash_piece(w, j, at, step, chunk, &sum, why);
        at += step;
        uint64_t done = atomic_fetch_add_explicit(&w->done, step, memory_order_relaxed) + step;
        if (report && w->progress)
            w->progress(w->arg, done, w->total);
    }
    sha256_end(&sum, j->digest);
    return e;
}

static void work_on(struct work *w, bool report) {
    struct why why = {{0}};
    unsigned char *chunk = malloc(w->sink ? 1 : WINDOW_BYTES);
    err_t e = chunk ? E_OK : why_set(&why, E_NOMEM, "not enough memory to hash tensors");
    while (!e && !atomic_load_explicit(&w->error, memory_order_relaxed)) {
        int32_t i = atomic_fetch_add_explicit(&w->next, 1, memory_order_relaxed);
        if (i >= w->n)
            break;
        e = hash_one(w, &w->job[w->order[i]], chunk, report, &why);
    }
    if (e) {
        pthread_mutex_lock(&w->lock);
        if (!atomic_load_explicit(&w->error, memory_order_relaxed)) {
            if (w->why)
                *w->why = why;
            atomic_store_explicit(&w->error, e, memory_order_relaxed);
        }
        pthread_mutex_unlock(&w->lock);
    }
    free(chunk);
}

static void *thread_main(void *arg) {
    work_on(arg, false);
    return NULL;
}

static int larger_first(const void *a, const void *b, void *arg) {
    const struct hash_job *job = arg;
    uint64_t x = job[*(const int32_t *)a].tensor->bytes, y = job[*(const int32_t *)b].tensor->bytes;
    return x > y ? -1 : x < y;
}

err_t hash_tensors(struct hash_job *job, int32_t n, const struct hash_sink *sink,
                   hash_progress_fn *progress, void *arg, struct why *why) {
    struct work w = {
        .job = job, .n = n, .why = why, .sink = sink, .progress = progress, .arg = arg};
    w.order = malloc(((size_t)n + 1) * sizeof *w.order);
    if (!w.order)
        return why_set(why, E_NOMEM, "not enough memory to hash tensors");
    for (int32_t i = 0; i < n; i++) {
        w.order[i] = i;
        w.total += job[i].tensor->bytes;
    }
    qsort_r(w.order, (size_t)n, sizeof *w.order, larger_first, job);
    pthread_mutex_init(&w.lock, NULL);
    pthread_t thread[MAX_THREADS];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int32_t wanted = cores < MAX_THREADS ? (int32_t)cores : MAX_THREADS, started = 0;
    if (wanted > n)
        wanted = n;
    /* This thread works too; fewer helpers than wanted only costs time. */
    while (started < wanted - 1 && pthread_create(&thread[started], NULL, thread_main, &w) == 0)
        started++;
    work_on(&w, true);
    for (int32_t i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    pthread_mutex_destroy(&w.lock);
    free(w.order);
    err_t e = atomic_load(&w.error);
    if (!e && progress)
        progress(arg, w.total, w.total);
    return e;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct hash_job *)a)->tensor->name,
                  ((const struct hash_job *)b)->tensor->name);
}

void hash_lines(struct sha256 *sum, struct hash_job *job, int32_t n) {
    qsort(job, (size_t)n, sizeof *job, by_name);
    for (int32_t i = 0; i < n; i++) {
        const struct st_tensor *t = job[i].tensor;
        char text[SHA256_HEX + 1], dims[ST_MAX_DIMS * 24 + 2] = "[";
        size_t at = 1;
        for (int32_t d = 0; d < t->n_dims; d++)
            at += (size_t)snprintf(dims + at, sizeof dims - at, "%s%lld", d ? "," : "",
                                   (long long)t->dim[d]);
        sha256_add(sum, t->name, strlen(t->name));
        sha256_add(sum, " ", 1);
        sha256_add(sum, st_dtype_name(t->dtype), strlen(st_dtype_name(t->dtype)));
        sha256_add(sum, " ", 1);
        sha256_add(sum, dims, at);
        sha256_hex(job[i].digest, text);
        sha256_add(sum, "] ", 2);
        text[SHA256_HEX - 1] = '\n';
        sha256_add(sum, text, SHA256_HEX);
    }
}
