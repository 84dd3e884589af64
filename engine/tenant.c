/* Loading: wait for the base's fingerprint, count the file against the limit, read and check it,
 * place it, point the weights at it. Freeing runs the other way on the keeper's thread. */
#include "engine/tenant.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "engine/rope.h"
#include "engine/upload.h"

/* ---- tables of angles ------------------------------------------------------------------------ */

static struct rope_table *find_table(const struct tenant_store *s, const struct model_config *c) {
    struct rope_table *t = s->tables;
    while (t && !(t->context == c->context && rope_equal(&t->config, &c->rope)))
        t = t->next;
    return t;
}

/* tables_lock held. */
static err_t make_table(struct tenant_store *s, const struct model_config *c,
                        struct rope_table **out) {
    struct rope_table *t = calloc(1, sizeof *t);
    if (!t)
        return E_NOMEM;
    t->config = c->rope;
    t->context = c->context;
    t->bytes = rope_floats(c->context, c->shape.head_dim) * sizeof(float);
    float *host = malloc(t->bytes);
    err_t e = host ? E_OK : E_NOMEM;
    if (!e) {
        rope_fill(host, &c->rope, c->context, c->shape.head_dim);
        e = upload_new(s->kernels, host, t->bytes, &t->device);
    }
    free(host);
    if (e) {
        free(t);
        return e;
    }
    t->next = s->tables;
    s->tables = t;
    *out = t;
    return E_OK;
}

/* tables_lock held. */
static err_t take_table(struct tenant_store *s, const struct model_config *c,
                        struct rope_table **out) {
    *out = find_table(s, c);
    err_t e = *out ? E_OK : make_table(s, c, out);
    if (!e)
        (*out)->refs++;
    return e;
}

/* tables_lock held. */
static void drop_table(struct tenant_store *s, struct rope_table *t) {
    if (!t || --t->refs > 0)
        return;
    struct rope_table **at = &s->tables;
    while (*at != t)
        at = &(*at)->next;
    *at = t->next;
    s->kernels->ops->release(s->kernels, t->device, t->bytes);
    free(t);
}

/* ---- memory: the limit, and the thread that frees -------------------------------------------- */

/* Counts `bytes` more, instead of `before` counted already. Waits for tenants on their way out
 * before it says no, and without a limit in any case: the device would. */
static err_t reserve(struct tenant_store *s, size_t before, size_t bytes, const char *label,
                     struct why *why) {
    err_t e = E_OK;
    pthread_mutex_lock(&s->lock);
    while (s->n_freeing > 0 && (!s->max_bytes || s->bytes - before + bytes > s->max_bytes))
        pthread_cond_wait(&s->changed, &s->lock);
    size_t others = s->bytes - before;
    if (s->max_bytes && others + bytes > s->max_bytes)
        e = why_set(why, E_NOMEM,
                    "%.200s needs %zu bytes; tenants hold %zu of the %zu bytes that "
                    "max_tenant_bytes allows them",
                    label, bytes, others, s->max_bytes);
    else
        s->bytes = others + bytes;
    pthread_mutex_unlock(&s->lock);
    return e;
}

static void unreserve(struct tenant_store *s, size_t bytes) {
    pthread_mutex_lock(&s->lock);
    s->bytes -= bytes;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* Frees what a tenant holds, whole or half loaded. */
static void release(struct tenant *t) {
    struct tenant_store *s = t->store;
    if (t->bound)
        s->kernels->ops->unbind_tenant(s->kernels, &t->weights);
    pthread_mutex_lock(&s->tables_lock);
    drop_table(s, t->rope);
    pthread_mutex_unlock(&s->tables_lock);
    tenant_file_free(&t->file);
    unreserve(s, t->bytes);
    free(t);
}

static void *keeper_thread(void *arg) {
    struct tenant_store *s = arg;
    pthread_mutex_lock(&s->lock);
    while (s->dead || !s->closing) {
        struct tenant *t = s->dead;
        if (!t) {
            pthread_cond_wait(&s->changed, &s->lock);
            continue;
        }
        s->dead = t->next_dead;
        pthread_mutex_unlock(&s->lock);
        release(t);
        pthread_mutex_lock(&s->lock);
        s->n_freeing--;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

struct tenant *tenant_ref(struct tenant *t) {
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    return t;
}

/* The decrement releases this holder's reads and acquires those of the others, so the keeper frees
 * after all of them. */
void tenant_unref(struct tenant *t) {
    if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) > 1)
        return;
    struct tenant_store *s = t->store;
    pthread_mutex_lock(&s->lock);
    t->next_dead = s->dead;
    s->dead = t;
    s->n_freeing++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

const struct tenant_info *tenant_info(const struct tenant *t) {
    return &t->info;
}

size_t tenant_store_bytes(struct tenant_store *s) {
    pthread_mutex_lock(&s->lock);
    size_t bytes = s->bytes;
    pthread_mutex_unlock(&s->lock);
    return bytes;
}

/* ---- loading --------------------------------------------------------------------------------- */

static void fill_config(struct tenant *t, const struct model_config *c) {
    t->info.vocab = t->weights.vocab = c->shape.vocab;
    t->info.context = t->weights.context = c->context;
    t->info.bos_id = c->bos_id;
    t->info.n_eos = c->n_eos;
    memcpy(t->info.eos_id, c->eos_id, sizeof t->info.eos_id);
    t->info.loaded_unix_s = (int64_t)time(NULL);
    t->weights.sliding_window = c->shape.sliding_window;
    t->weights.norm_eps = c->shape.norm_eps;
    t->weights.tied = c->tied;
}

/* Memory for a tenant's angles unless they are the base's. A table that several tenants share is
 * counted for each of them: the sum may say too much, never too little. */
static size_t table_bytes(const struct model_config *base, const struct model_config *c) {
    if (c->context == base->context && rope_equal(&c->rope, &base->rope))
        return 0;
    return rope_floats(c->context, c->shape.head_dim) * sizeof(float);
}

/* ---- files that were hashed before -----------------------------------------------------------
 * The same inode with the same size and times is the same content: a write changes the time of
 * change, which nobody can set. A file that changed a moment ago is not remembered, since a write
 * within the clock's grain would not show. */

static bool same_time(const struct timespec *a, const struct timespec *b) {
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool verified_same(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           same_time(&a->st_mtim, &b->st_mtim) && same_time(&a->st_ctim, &b->st_ctim);
}

static bool verified_find(struct tenant_store *s, const struct stat *st) {
    bool found = false;
    pthread_mutex_lock(&s->lock);
    for (int32_t i = 0; i < MAX_VERIFIED && !found; i++)
        found = s->verified[i].st_ino && verified_same(&s->verified[i], st);
    pthread_mutex_unlock(&s->lock);
    return found;
}

/* st: from before the file was read. The oldest entry makes room. */
static void verified_add(struct tenant_store *s, const struct stat *st) {
    if (time(NULL) - st->st_ctim.tv_sec < 2)
        return;
    pthread_mutex_lock(&s->lock);
    s->verified[s->n_verified++ % MAX_VERIFIED] = *st;
    pthread_mutex_unlock(&s->lock);
}

/* ---- one file -------------------------------------------------------------------------------- */

static err_t read_file(struct tenant *t, int fd, const char *label, struct why *why) {
    struct tenant_store *s = t->store;
    const struct model_config *base = &s->base->checkpoint.config;
    const char *fingerprint;
    err_t e = base_model_fingerprint(s->base, &fingerprint, why);
    struct stat st;
    if (!e && (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)))
        e = why_set(why, E_IO, "%.200s is not a regular file", label);
    if (!e)
        e = reserve(s, 0, (size_t)st.st_size, label, why);
    if (e)
        return e;
    t->bytes = (size_t)st.st_size;
    bool trusted = verified_find(s, &st);
    e = tenant_file_load(&t->file, fd, label, s->kernels, trusted, base, fingerprint, why);
    if (e)
        return e;
    if (!trusted)
        verified_add(s, &st);
    int32_t vocab = t->file.meta.config.shape.vocab;
    if (vocab > base->shape.max_vocab)
        return why_set(why, E_UNSUPPORTED,
                       "%.200s has a vocabulary of %d; the base has %d and extra_vocab allows %d "
                       "more",
                       label, vocab, base->shape.vocab, base->shape.max_vocab - base->shape.vocab);
    size_t bytes = t->file.bytes + table_bytes(base, &t->file.meta.config);
    e = reserve(s, t->bytes, bytes, label, why);
    if (!e)
        t->bytes = bytes;
    return e;
}

static err_t take_angles(struct tenant *t, const char *label, struct why *why) {
    struct tenant_store *s = t->store;
    pthread_mutex_lock(&s->tables_lock);
    err_t e = take_table(s, &t->file.meta.config, &t->rope);
    pthread_mutex_unlock(&s->tables_lock);
    return e ? why_set(why, e, "%.200s: no memory for the angles of its %d positions", label,
                       t->file.meta.config.context)
             : E_OK;
}

/* What steps see of the tenant. */
static err_t bind(struct tenant *t, const char *label, struct why *why) {
    const struct tenant_file *f = &t->file;
    fill_config(t, &f->meta.config);
    t->weights.norm = f->norm;
    t->weights.rope = t->rope->device;
    t->weights.delta = f->delta;
    t->weights.embed = f->embed;
    t->weights.head = f->head;
    err_t e = t->store->kernels->ops->bind_tenant(t->store->kernels, &t->weights, why);
    if (e)
        return why_prefix(why, e, "%.200s", label);
    t->bound = true;
    return E_OK;
}

static void publish(struct tenant *t) {
    struct tenant_store *s = t->store;
    const struct tenant_file *f = &t->file;
    memcpy(t->info.hash, f->meta.hash, sizeof t->info.hash);
    t->info.bytes = t->bytes;
    t->info.file_bytes = f->file_bytes;
    t->info.bits_per_weight = f->bits_per_weight;
    t->info.tokenizer_json = f->meta.tokenizer_json;
    t->info.generation_json = f->meta.generation_json;
    t->info.made_json = f->meta.made_json;
    t->info.quality_json = f->meta.quality_json;
    pthread_mutex_lock(&s->lock);
    t->info.generation = ++s->generation;
    pthread_mutex_unlock(&s->lock);
    atomic_store(&t->refs, 1);
}

err_t tenant_load(struct tenant_store *s, int fd, const char *label, struct tenant **out,
                  struct why *why) {
    struct tenant *t = calloc(1, sizeof *t);
    if (!t)
        return why_set(why, E_NOMEM, "no memory for %.200s", label);
    t->store = s;
    err_t e = read_file(t, fd, label, why);
    if (!e)
        e = take_angles(t, label, why);
    if (!e)
        e = bind(t, label, why);
    if (e) {
        release(t);
        return e;
    }
    publish(t);
    *out = t;
    return E_OK;
}

/* ---- the store ------------------------------------------------------------------------------- */

/* The base as a tenant without deltas. */
static err_t open_base(struct tenant_store *s, struct why *why) {
    const struct model_config *c = &s->base->checkpoint.config;
    struct tenant *t = &s->of_base;
    t->store = s;
    fill_config(t, c);
    t->weights.norm = s->base->norm;
    t->weights.delta = calloc((size_t)c->shape.n_layers * N_PARTS, sizeof *t->weights.delta);
    t->info.bytes = s->base->bytes;
    t->info.bits_per_weight = 16;
    t->info.generation_json = s->base->checkpoint.generation_json;
    t->info.tokenizer_json = t->info.made_json = t->info.quality_json = "{}";
    atomic_store(&t->refs, 1);
    pthread_mutex_lock(&s->tables_lock);
    err_t e = t->weights.delta ? take_table(s, c, &t->rope) : E_NOMEM;
    pthread_mutex_unlock(&s->tables_lock);
    if (e)
        return why_set(why, e, "no memory for the angles of %d positions", c->context);
    t->weights.rope = t->rope->device;
    e = s->kernels->ops->bind_tenant(s->kernels, &t->weights, why);
    t->bound = e == E_OK;
    return e;
}

err_t tenant_store_open(struct tenant_store *s, struct base_model *base, size_t max_bytes,
                        struct why *why) {
    *s = (struct tenant_store){.kernels = base->kernels, .base = base, .max_bytes = max_bytes};
    pthread_mutex_init(&s->tables_lock, NULL);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    err_t e = open_base(s, why);
    if (e)
        return e;
    s->running = pthread_create(&s->keeper, NULL, keeper_thread, s) == 0;
    return s->running ? E_OK : why_set(why, E_NOMEM, "no thread for freeing tenants");
}

void tenant_store_close(struct tenant_store *s) {
    if (!s->base)
        return; /* never opened */
    if (s->running) {
        pthread_mutex_lock(&s->lock);
        s->closing = true;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->keeper, NULL);
    }
    if (s->of_base.bound)
        s->kernels->ops->unbind_tenant(s->kernels, &s->of_base.weights);
    drop_table(s, s->of_base.rope);
    free(s->of_base.weights.delta);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->tables_lock);
    *s = (struct tenant_store){0};
}
