/* Loading is a list of independent matrices and a few threads that take the next one each. */
#include "engine/base_model.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "engine/upload.h"

enum {
    MAX_LOADERS = 8,    /* each holds a matrix; more readers would only queue at the disk */
    PART_NAME_CAP = 96, /* "model.layers.N.self_attn.q_proj.weight" */
};

struct loading {
    struct base_model *base;
    _Atomic int32_t next;
    _Atomic bool failed;
    pthread_mutex_t lock; /* guards error and why */
    err_t error;
    struct why why;
};

err_t base_model_open(struct base_model *b, const char *dir, struct why *why) {
    *b = (struct base_model){0};
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->hashed, NULL);
    return checkpoint_open(&b->checkpoint, dir, why);
}

static const struct model_shape *shape_of(const struct base_model *b) {
    return &b->checkpoint.config.shape;
}

/* ---- one matrix ------------------------------------------------------------------------------ */

/* dst: [N joined, K] fp16 */
static err_t read_linear(const struct base_model *b, int32_t layer, enum linear which,
                         uint16_t *dst, struct why *why) {
    const struct model_shape *s = shape_of(b);
    for (int32_t i = 0; i < linear_n_parts(which); i++) {
        enum part p = (enum part)((int32_t)linear_first_part(which) + i);
        size_t n = (size_t)part_rows(s, p) * (size_t)part_cols(s, p);
        char part[PART_NAME_CAP - 8], name[PART_NAME_CAP];
        part_name(part, sizeof part, layer, p);
        snprintf(name, sizeof name, "%s.weight", part);
        err_t e = checkpoint_read_f16(&b->checkpoint, name, dst, n, why);
        if (e)
            return e;
        dst += n;
    }
    return E_OK;
}

/* dst: [2L + 1, D] */
static err_t read_norms(const struct base_model *b, float *dst, struct why *why) {
    const struct model_shape *s = shape_of(b);
    for (int32_t i = 0; i < 2 * s->n_layers + 1; i++) {
        char name[PART_NAME_CAP];
        norm_name(name, sizeof name, s, i);
        err_t e = checkpoint_read_f32(&b->checkpoint, name, dst + (size_t)i * (size_t)s->dim,
                                      (size_t)s->dim, why);
        if (e)
            return e;
    }
    return E_OK;
}

static err_t read_matrix(const struct base_model *b, int32_t i, void *dst, struct why *why) {
    const struct model_shape *s = shape_of(b);
    if (i < base_embed(s))
        return read_linear(b, i / N_LINEARS, (enum linear)(i % N_LINEARS), dst, why);
    const char *name = i == base_embed(s) ? "model.embed_tokens.weight" : "lm_head.weight";
    return checkpoint_read_f16(&b->checkpoint, name, dst, base_matrix_bytes(s, i) / 2, why);
}

static err_t load_matrix(struct loading *l, int32_t i, struct why *why) {
    struct kernels *k = l->base->kernels;
    size_t bytes = base_matrix_bytes(shape_of(l->base), i);
    void *block = host_block(bytes);
    if (!block)
        return why_set(why, E_NOMEM, "no memory for %zu bytes of the base model", bytes);
    err_t e = read_matrix(l->base, i, block, why);
    if (e) {
        host_block_free(block, bytes);
        return e;
    }
    e = k->ops->place_base(k, i, block);
    return e ? why_set(why, e, "matrix %d of the base model, %zu bytes, could not be placed: %s", i,
                       bytes, err_sentence(e))
             : E_OK;
}

static err_t load_norms(struct base_model *b, struct why *why) {
    const struct model_shape *s = shape_of(b);
    size_t bytes = (size_t)(2 * s->n_layers + 1) * (size_t)s->dim * sizeof(float);
    float *host = malloc(bytes);
    err_t e = host ? read_norms(b, host, why) : why_set(why, E_NOMEM, "no memory for the norms");
    if (!e) {
        e = upload_new(b->kernels, host, bytes, &b->norm);
        if (e)
            why_set(why, e, "no device memory for the norms: %zu bytes", bytes);
        b->bytes += bytes;
    }
    free(host);
    return e;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static void *loader_thread(void *arg) {
    struct loading *l = arg;
    for (int32_t i; (i = atomic_fetch_add(&l->next, 1)) < base_matrices(shape_of(l->base));) {
        struct why why;
        if (atomic_load(&l->failed))
            break;
        err_t e = load_matrix(l, i, &why);
        if (!e)
            continue;
        atomic_store(&l->failed, true);
        pthread_mutex_lock(&l->lock);
        if (!l->error) { /* the first sentence is the one to read */
            l->error = e;
            l->why = why;
        }
        pthread_mutex_unlock(&l->lock);
    }
    return NULL;
}

static err_t load_matrices(struct base_model *b, int32_t threads, struct why *why) {
    struct loading l = {.base = b};
    pthread_t thread[MAX_LOADERS];
    int32_t n = 0, want = threads > 0 ? threads : (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    pthread_mutex_init(&l.lock, NULL);
    while (n < want - 1 && n < MAX_LOADERS &&
           pthread_create(&thread[n], NULL, loader_thread, &l) == 0)
        n++;
    loader_thread(&l); /* this thread is one of them */
    while (n > 0)
        pthread_join(thread[--n], NULL);
    pthread_mutex_destroy(&l.lock);
    if (l.error && why)
        *why = l.why;
    return l.error;
}

/* ---- the fingerprint ------------------------------------------------------------------------- */

static void *hasher_thread(void *arg) {
    struct base_model *b = arg;
    unsigned char digest[SHA256_BYTES];
    struct why why = {""};
    int64_t start = mono_us();
    err_t e = checkpoint_fingerprint(&b->checkpoint, digest, NULL, NULL, &why);
    pthread_mutex_lock(&b->lock);
    if (!e)
        sha256_hex(digest, b->fingerprint);
    b->hash_error = e;
    b->hash_why = why;
    b->known = true;
    pthread_cond_broadcast(&b->hashed);
    pthread_mutex_unlock(&b->lock);
    if (e)
        log_error("base", "fingerprint failed: %s", why.text);
    else
        log_info("base", "fingerprint=%s us=%lld", b->fingerprint, (long long)(mono_us() - start));
    return NULL;
}

err_t base_model_fingerprint(struct base_model *b, const char **hex, struct why *why) {
    pthread_mutex_lock(&b->lock);
    while (!b->known)
        pthread_cond_wait(&b->hashed, &b->lock);
    pthread_mutex_unlock(&b->lock);
    *hex = b->fingerprint;
    if (b->hash_error && why)
        *why = b->hash_why;
    return b->hash_error;
}

const char *base_model_fingerprint_now(struct base_model *b) {
    pthread_mutex_lock(&b->lock);
    bool known = b->known && !b->hash_error;
    pthread_mutex_unlock(&b->lock);
    return known ? b->fingerprint : NULL;
}

/* ---- the door -------------------------------------------------------------------------------- */

err_t base_model_load(struct base_model *b, struct kernels *k, int32_t threads, struct why *why) {
    const struct model_shape *s = shape_of(b);
    int64_t start = mono_us();
    b->kernels = k;
    for (int32_t i = 0; i < base_matrices(s); i++)
        b->bytes += base_matrix_bytes(s, i);
    err_t e = load_norms(b, why);
    if (!e)
        e = load_matrices(b, threads, why);
    if (e)
        return e;
    log_info("base", "loaded bytes=%zu us=%lld", b->bytes, (long long)(mono_us() - start));
    b->hashing = pthread_create(&b->hasher, NULL, hasher_thread, b) == 0;
    return b->hashing ? E_OK : why_set(why, E_NOMEM, "no thread for the base's fingerprint");
}

void base_model_close(struct base_model *b) {
    if (b->hashing)
        pthread_join(b->hasher, NULL);
    if (b->norm)
        b->kernels->ops->release(b->kernels, b->norm,
                                 (size_t)(2 * shape_of(b)->n_layers + 1) *
                                     (size_t)shape_of(b)->dim * sizeof(float));
    checkpoint_close(&b->checkpoint);
    pthread_cond_destroy(&b->hashed);
    pthread_mutex_destroy(&b->lock);
    *b = (struct base_model){0};
}
