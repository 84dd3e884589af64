#include "compress/tenant_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_NAME = 160, COPY_BYTES = 1 << 20 };

struct tenant_writer {
    char *path;
    int spool; /* unlinked at once: it goes away with the process */
    uint64_t bytes;
    struct st_tensor *tensor; /* [n] in file order; names owned */
    unsigned char (*digest)[SHA256_BYTES];
    int32_t n, capacity;
    json_t *parts; /* name -> kind, in order */
    enum tenant_kind embed, head;
    bool failed; /* out of memory in a call that cannot say so */
};

err_t tenant_writer_open(struct tenant_writer **out, const char *path, struct why *why) {
    *out = NULL;
    struct stat st; /* known now, not after hours of work */
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return why_set(why, E_PATH, "%s is a folder; name a file to write", path);
    struct tenant_writer *w = calloc(1, sizeof *w);
    char *spool = NULL;
    err_t e = E_NOMEM;
    if (!w)
        return why_set(why, E_NOMEM, "%s: not enough memory to write it", path);
    w->spool = -1;
    w->path = strdup(path);
    w->parts = json_object();
    if (!w->path || !w->parts || asprintf(&spool, "%s.spool-%d", path, (int)getpid()) < 0) {
        spool = NULL;
        why_set(why, E_NOMEM, "%s: not enough memory to write it", path);
        goto out;
    }
    w->spool = open(spool, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (w->spool < 0) {
        e = why_set(why, E_IO, "%s cannot be written: %s", path, strerror(errno));
        goto out;
    }
    unlink(spool);
    e = E_OK;
out:
    free(spool);
    if (e)
        tenant_writer_abort(w);
    else
        *out = w;
    return e;
}

void tenant_writer_abort(struct tenant_writer *w) {
    if (!w)
        return;
    for (int32_t i = 0; i < w->n; i++)
        free((char *)w->tensor[i].name);
    free(w->tensor);
    free(w->digest);
    json_decref(w->parts);
    if (w->spool >= 0)
        close(w->spool);
    free(w->path);
    free(w);
}

uint64_t tenant_writer_bytes(const struct tenant_writer *w) {
    return w->bytes;
}

void tenant_writer_kind(struct tenant_writer *w, const char *part, enum tenant_kind kind) {
    if (strcmp(part, "embed") == 0)
        w->embed = kind;
    else if (strcmp(part, "head") == 0)
        w->head = kind;
    else if (json_object_set_new(w->parts, part, json_string(tenant_kind_name(kind))) < 0)
        w->failed = true;
}

static err_t spool_write(struct tenant_writer *w, const void *data, size_t bytes, struct why *why) {
    for (const unsigned char *from = data; bytes;) {
        ssize_t n = write(w->spool, from, bytes < (1u << 30) ? bytes : 1u << 30);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return why_set(why, E_IO, "%s: cannot write: %s", w->path, strerror(errno));
        from += n;
        bytes -= (size_t)n;
    }
    return E_OK;
}

/* Adds a tensor's entry and its bytes; padding is an entry like any other. */
static err_t append(struct tenant_writer *w, const char *name, enum st_dtype dtype, int32_t n_dims,
                    const int64_t *dim, const void *data, struct why *why) {
    if (w->n == w->capacity) {
        int32_t capacity = w->capacity ? 2 * w->capacity : 64;
        struct st_tensor *tensor = realloc(w->tensor, (size_t)capacity * sizeof *tensor);
        if (tensor)
            w->tensor = tensor;
        unsigned char(*digest)[SHA256_BYTES] =
            realloc(w->digest, (size_t)capacity * sizeof *digest);
        if (digest)
            w->digest = digest;
        if (!tensor || !digest)
            return why_set(why, E_NOMEM, "%s: not enough memory to write it", w->path);
        w->capacity = capacity;
    }
    struct st_tensor *t = &w->tensor[w->n];
    *t = (struct st_tensor){
        .name = strdup(name), .dtype = dtype, .n_dims = n_dims, .offset = w->bytes};
    if (!t->name)
        return why_set(why, E_NOMEM, "%s: not enough memory to write it", w->path);
    t->bytes = st_dtype_bytes(dtype);
    for (int32_t i = 0; i < n_dims; i++) {
        t->dim[i] = dim[i];
        t->bytes *= (uint64_t)dim[i];
    }
    sha256_of(data, (size_t)t->bytes, w->digest[w->n]);
    w->n++;
    w->bytes += t->bytes;
    return spool_write(w, data, (size_t)t->bytes, why);
}

err_t tenant_writer_tensor(struct tenant_writer *w, const char *part, const char *suffix,
                           enum st_dtype dtype, int32_t n_dims, const int64_t *dim,
                           const void *data, struct why *why) {
    char name[MAX_NAME];
    snprintf(name, sizeof name, "%s%s", part, suffix);
    err_t e = append(w, name, dtype, n_dims, dim, data, why);
    int64_t pad = (int64_t)(-w->bytes % TENANT_ALIGN);
    if (e || !pad)
        return e;
    static const unsigned char zeros[TENANT_ALIGN];
    snprintf(name, sizeof name, "_pad.%d", w->n);
    return append(w, name, ST_U8, 1, &pad, zeros, why);
}

static bool is_pad(const struct st_tensor *t) {
    return strncmp(t->name, "_pad.", 5) == 0;
}

/* The metadata strings; *tenant: the exact text that the content hash covers. */
static err_t put_metadata(struct tenant_writer *w, struct st_writer *st,
                          const struct tenant_header *h, char hash[SHA256_HEX], struct why *why) {
    struct hash_job *job = calloc((size_t)w->n + 1, sizeof *job);
    json_t *hashes = json_object();
    json_t *tenant = json_pack("{s:i, s:O, s:O, s:s, s:s, s:O, s:O}", "base_vocab", h->base_vocab,
                               "config", h->config, "parts", w->parts, "embed",
                               tenant_kind_name(w->embed), "head", tenant_kind_name(w->head),
                               "tokenizer", h->tokenizer, "generation", h->generation);
    int32_t n = 0;
    for (int32_t i = 0; job && i < w->n; i++) {
        if (is_pad(&w->tensor[i]))
            continue;
        char hex[SHA256_HEX];
        sha256_hex(w->digest[i], hex);
        if (json_object_set_new(hashes, w->tensor[i].name, json_string(hex)) < 0)
            w->failed = true;
        job[n].tensor = &w->tensor[i];
        memcpy(job[n++].digest, w->digest[i], SHA256_BYTES);
    }
    char *text[4] = {tenant ? json_dumps(tenant, JSON_COMPACT) : NULL,
                     json_dumps(hashes, JSON_COMPACT), json_dumps(h->made, JSON_COMPACT),
                     json_dumps(h->quality, JSON_COMPACT)};
    err_t e = E_OK;
    if (!job || w->failed || !text[0] || !text[1] || !text[2] || !text[3] ||
        tenant_content_hash(job, n, h->base_fingerprint, text[0], hash) != E_OK) {
        e = why_set(why, E_NOMEM, "%s: not enough memory for its metadata", w->path);
    } else {
        st_writer_meta(st, "format", "bitdelta");
        st_writer_meta(st, "format_version", "1");
        st_writer_meta(st, "layout", "m16k256");
        st_writer_meta(st, "base_fingerprint", h->base_fingerprint);
        st_writer_meta(st, "content_hash", hash);
        st_writer_meta(st, "made", text[2]);
        st_writer_meta(st, "quality", text[3]);
        st_writer_meta(st, "tenant", text[0]);
        st_writer_meta(st, "hashes", text[1]);
    }
    for (int i = 0; i < 4; i++)
        free(text[i]);
    json_decref(tenant);
    json_decref(hashes);
    free(job);
    return e;
}

static err_t copy_spool(struct tenant_writer *w, struct st_writer *st, struct why *why) {
    unsigned char *block = malloc(COPY_BYTES);
    err_t e = block ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory to write it", w->path);
    for (uint64_t at = 0; !e && at < w->bytes;) {
        ssize_t n = pread(w->spool, block, COPY_BYTES, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            e = why_set(why, E_IO, "%s: cannot read its spool: %s", w->path,
                        n < 0 ? strerror(errno) : "it is short");
        else
            e = st_writer_data(st, block, (size_t)n, why);
        at += n > 0 ? (uint64_t)n : 0;
    }
    free(block);
    return e;
}

err_t tenant_writer_end(struct tenant_writer *w, const struct tenant_header *h,
                        char hash[SHA256_HEX], struct why *why) {
    struct st_writer *st = NULL;
    char own[SHA256_HEX];
    err_t e = st_writer_open(&st, w->path, why);
    if (!e)
        e = put_metadata(w, st, h, hash ? hash : own, why);
    for (int32_t i = 0; !e && i < w->n; i++)
        st_writer_tensor(st, w->tensor[i].name, w->tensor[i].dtype, w->tensor[i].n_dims,
                         w->tensor[i].dim);
    if (!e)
        e = st_writer_header(st, TENANT_DATA_ALIGN, why);
    if (!e)
        e = copy_spool(w, st, why);
    if (e)
        st_writer_abort(st);
    else
        e = st_writer_end(st, why);
    tenant_writer_abort(w);
    return e;
}
