/* Tenants on the device, and the base as the first of them. A tenant is immutable from load to its
 * end; whoever uses it holds a reference. It is named by its content hash and its generation, never
 * by the name that a server gives it.
 *
 * Loading runs on any thread beside the steps. The last reference may drop on any thread; a thread
 * of the store frees the memory, so that nobody on the way of a request waits for it. */
#ifndef ENGINE_TENANT_H
#define ENGINE_TENANT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "engine/base_model.h"
#include "engine/engine.h"
#include "engine/tenant_file.h"

/* Positions to angles, shared by all tenants whose RoPE settings and context are equal. */
struct rope_table {
    struct rope_config config;
    int32_t context;
    void *device; /* float [context, E/2, 2] */
    size_t bytes;
    int32_t refs;
    struct rope_table *next;
};

struct tenant {
    struct tenant_info info; /* constant */
    struct tenant_weights weights;
    struct tenant_file file; /* its strings and deltas; the tensors are on the device */
    size_t bytes;            /* counted against the store's limit */
    struct rope_table *rope;
    bool bound; /* the backend knows `weights` */
    struct tenant_store *store;
    _Atomic int32_t refs;
    struct tenant *next_dead;
    int32_t n_running; /* engine thread only: its running sequences */
};

enum { MAX_VERIFIED = 1024 };

struct tenant_store {
    struct kernels *kernels; /* borrowed, as is base */
    struct base_model *base;
    size_t max_bytes; /* 0: no limit */
    struct tenant of_base;

    pthread_mutex_t tables_lock; /* held while a table is made */
    struct rope_table *tables;

    pthread_mutex_t lock; /* the following; held for a few instructions only */
    pthread_cond_t changed;
    size_t bytes;        /* of all tenants, those being loaded and freed included */
    uint64_t generation; /* of the last load */
    struct tenant *dead; /* without references, to be freed */
    int32_t n_freeing;   /* dead ones and the one in the keeper's hands */
    bool closing;
    struct stat verified[MAX_VERIFIED]; /* files whose content was hashed; st_ino 0: none */
    uint64_t n_verified;

    pthread_t keeper;
    bool running;
};

/* Makes the base's own tenant, of generation 0, and starts the thread that frees tenants. */
err_t tenant_store_open(struct tenant_store *s, struct base_model *base, size_t max_bytes,
                        struct why *why);
/* Every tenant must be unref'ed. Also after an error of open. */
void tenant_store_close(struct tenant_store *s);

/* engine_tenant_load. */
err_t tenant_load(struct tenant_store *s, int fd, const char *label, struct tenant **out,
                  struct why *why);
size_t tenant_store_bytes(struct tenant_store *s);

#endif
