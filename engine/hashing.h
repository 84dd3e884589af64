/* SHA-256 of many tensors on all cores, and the digest over their lines that names a base (its
 * fingerprint) and a tenant (its content hash). */
#ifndef ENGINE_HASHING_H
#define ENGINE_HASHING_H

#include "config/sha256.h"
#include "engine/safetensors.h"

/* Called now and then by the thread that called hash_tensors, and once at the end. */
typedef void hash_progress_fn(void *arg, uint64_t done_bytes, uint64_t total_bytes);

struct hash_job {
    const struct st_file *file;     /* borrowed */
    const struct st_tensor *tensor; /* borrowed */
    unsigned char digest[SHA256_BYTES];
};

/* Where the bytes go, in pieces of at most WINDOW_BYTES from the start of each tensor: window says
 * where bytes [at, at + n) are to stand, filled that they do (read false: that they could not be
 * read; nothing follows). Called by several threads, each with a tensor of its own; not for empty
 * tensors. */
struct hash_sink {
    err_t (*window)(void *arg, const struct st_tensor *t, uint64_t at, size_t n, void **to);
    err_t (*filled)(void *arg, const struct st_tensor *t, uint64_t at, size_t n, void *from,
                    bool read);
    void *arg;
    bool unhashed; /* the digests are not wanted */
};

/* Reads the tensors and fills the digests, largest first, on up to one thread per core. sink NULL:
 * the bytes are dropped. progress may be NULL. */
err_t hash_tensors(struct hash_job *job, int32_t n, const struct hash_sink *sink,
                   hash_progress_fn *progress, void *arg, struct why *why);

/* Adds the lines "name dtype [d0,d1] hex-digest\\n" of all jobs in name order; sorts the jobs. */
void hash_lines(struct sha256 *sum, struct hash_job *job, int32_t n);

#endif
