/* Loading is a list of independent slabs and a few threads that take the next one each. */
#include "engine/base_model.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"

enum {
    MAX_LOADERS = 16,   /* more readers than this only queue at the disk */
    PART_NAME_CAP = 96, /* "model.layers.N.self_attn.q_proj.weight" */
};

struct loading {
    struct base_model *base;
    _Atomic int32_t next;
    _Atomic bool failed;
    pthread_mutex_t lock; /* place() takes one caller at a time; guards error and why as well */
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

/* ---- one slab -------------------------------------------------------------------------------- */

static size_t linear_bytes(const struct model_shape *s, enum linear which) {
    size_t n = 0;
    for (int32_t i = 0; i < linear_n_parts(which); i++) {
        enum part p = (enum part)((int32_t)linear_first_part(which) + i);
        n += (size_t)part_rows(s, p) * (size_t)part_cols(s, p);
    }
    return n * sizeof(uint16_t);
}

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

/* Slabs after the linears. */
enum { SLAB_NORM, SLAB_EMBED, SLAB_HEAD };

static size_t slab_bytes(const struct base_model *b, int32_t i) {
    const struct model_shape *s = shape_of(b);
    int32_t n_linears = s->n_layers * N_LINEARS;
    if (i < n_linears)
        return linear_bytes(s, (enum linear)(i % N_LINEARS));
    if (i == n_linears + SLAB_NORM)
        return (size_t)(2 * s->n_layers + 1) * (size_t)s->dim * sizeof(float);
    return (size_t)s->vocab * (size_t)s->dim * sizeof(uint16_t);
}

static err_t read_slab(const struct base_model *b, int32_t i, void *dst, struct why *why) {
    const struct model_shape *s = shape_of(b);
    int32_t n_linears = s->n_layers * N_LINEARS;
    if (i < n_linears)
        return read_linear(b, i / N_LINEARS, (enum linear)(i % N_LINEARS), dst, why);
    if (i == n_linears + SLAB_NORM)
        return read_norms(b, dst, why);
    const char *name = i == n_linears + SLAB_EMBED ? "model.embed_tokens.weight" : "lm_head.weight";
    return checkpoint_read_f16(&b->checkpoint, name, dst, (size_t)s->vocab * (size_t)s->dim, why);
}

static err_t place_slab(struct loading *l, int32_t i, void *block, size_t bytes, struct why *why) {
    struct base_model *b = l->base;
    pthread_mutex_lock(&l->lock);
    err_t e = b->kernels->ops->place(b->kernels, block, bytes, &b->slab[i].device);
    if (!e) {
        b->slab[i].bytes = bytes;
        b->bytes += bytes;
    }
    pthread_mutex_unlock(&l->lock);
    if (e)
        why_set(why, e, "the base model does not fit the device's memory: placing %zu bytes failed",
                bytes);
    return e;
}

static err_t load_slab(struct loading *l, int32_t i, struct why *why) {
    size_t bytes = slab_bytes(l->base, i);
    void *block = host_block(bytes);
    if (!block)
        return why_set(why, E_NOMEM, "no memory for %zu bytes of the base model", bytes);
    err_t e = read_slab(l->base, i, block, why);
    if (e)
        host_block_free(block, bytes);
    return e ? e : place_slab(l, i, block, bytes, why);
}

/* ---- all of them ----------------------------------------------------------------------------- */

static void *loader_thread(void *arg) {
    struct loading *l = arg;
    for (int32_t i; (i = atomic_fetch_add(&l->next, 1)) < l->base->n_slabs;) {
        struct why why;
        if (atomic_load(&l->failed))
            break;
        err_t e = load_slab(l, i, &why);
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

static err_t load_slabs(struct base_model *b, int32_t threads, struct why *why) {
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

static void bind_weights(struct base_model *b) {
    int32_t n_linears = shape_of(b)->n_layers * N_LINEARS;
    for (int32_t i = 0; i < n_linears; i++)
        b->weights.linear[i] = b->slab[i].device;
    b->norm = b->slab[n_linears + SLAB_NORM].device;
    b->weights.embed = b->slab[n_linears + SLAB_EMBED].device;
    b->weights.head =
        b->checkpoint.config.tied ? b->weights.embed : b->slab[n_linears + SLAB_HEAD].device;
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
    int32_t n_linears = s->n_layers * N_LINEARS;
    b->kernels = k;
    b->n_slabs = n_linears + (b->checkpoint.config.tied ? SLAB_HEAD : SLAB_HEAD + 1);
    b->slab = calloc((size_t)b->n_slabs, sizeof *b->slab);
    b->weights.linear = calloc((size_t)n_linears, sizeof *b->weights.linear);
    if (!b->slab || !b->weights.linear)
        return why_set(why, E_NOMEM, "no memory for the base model's tables");
    err_t e = load_slabs(b, threads, why);
    if (e)
        return e;
    bind_weights(b);
    e = k->ops->bind_base(k, &b->weights);
    if (e)
        return why_set(why, e, "the %s backend did not take the base model", k->ops->name);
    b->hashing = pthread_create(&b->hasher, NULL, hasher_thread, b) == 0;
    return b->hashing ? E_OK : why_set(why, E_NOMEM, "no thread for the base's fingerprint");
}

void base_model_close(struct base_model *b) {
    if (b->hashing)
        pthread_join(b->hasher, NULL);
    for (int32_t i = 0; b->slab && i < b->n_slabs; i++)
        if (b->slab[i].device)
            b->kernels->ops->unplace(b->kernels, b->slab[i].device, b->slab[i].bytes);
    free(b->slab);
    free(b->weights.linear);
    checkpoint_close(&b->checkpoint);
    pthread_cond_destroy(&b->hashed);
    pthread_mutex_destroy(&b->lock);
    *b = (struct base_model){0};
}
