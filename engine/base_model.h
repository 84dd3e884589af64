/* The base model on its way to the device: the checkpoint's matrices, joined as the backend wants
 * them, and the fingerprint that tenants are checked against.
 *
 * Matrices are read and converted by a few threads, one matrix at a time each, and given to the
 * backend, so that the host never holds the model beside the device. The fingerprint takes a pass
 * over all bytes, so a thread of its own computes it behind the first requests; who needs it waits
 * for it. */
#ifndef ENGINE_BASE_MODEL_H
#define ENGINE_BASE_MODEL_H

#include <pthread.h>

#include "engine/checkpoint.h"

struct base_model {
    struct checkpoint checkpoint;
    struct kernels *kernels; /* borrowed */
    void *norm;              /* [2L + 1, D] float, device; owned */
    size_t bytes;            /* of all matrices and norms */

    pthread_t hasher;
    bool hashing;          /* the thread was started and not joined */
    pthread_mutex_t lock;  /* guards the following */
    pthread_cond_t hashed; /* signalled when known */
    bool known;            /* the fingerprint was computed, or failed */
    err_t hash_error;      /* with hash_why */
    struct why hash_why;
    char fingerprint[SHA256_HEX]; /* constant once known */
};

/* Opens the folder: the shape is known, nothing is loaded. Errors: those of checkpoint_open. */
err_t base_model_open(struct base_model *b, const char *dir, struct why *why);
/* Places the weights and starts the fingerprint's thread. threads: 0 is one a core.
 * Errors: E_IO, E_FORMAT, E_NOMEM. */
err_t base_model_load(struct base_model *b, struct kernels *k, int32_t threads, struct why *why);
/* Also after an error of either; the backend must still be open. */
void base_model_close(struct base_model *b);

/* The fingerprint in hex; waits until it is known. Any thread. */
err_t base_model_fingerprint(struct base_model *b, const char **hex, struct why *why);
/* The same without waiting: NULL while it is not known. */
const char *base_model_fingerprint_now(struct base_model *b);

#endif
