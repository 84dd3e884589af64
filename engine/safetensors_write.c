/* The writing half of engine/safetensors.h. A writer owns a temporary file beside its target; the
 * target appears whole or not at all. One thread at a time. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/safetensors.h"

struct st_writer {
    char *path, *tmp;
    int fd;
    json_t *root, *meta; /* the header under construction; NULL once out of memory */
    uint64_t declared, written;
    bool failed; /* a declaration ran out of memory */
};

static err_t write_all(struct st_writer *w, const void *data, size_t bytes, struct why *why) {
    const unsigned char *from = data;
    while (bytes) {
        ssize_t n = write(w->fd, from, bytes < (1u << 30) ? bytes : 1u << 30);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return why_set(why, E_IO, "%s: cannot write: %s", w->tmp, strerror(errno));
        from += n;
        bytes -= (size_t)n;
    }
    return E_OK;
}

static void writer_free(struct st_writer *w) {
    if (w->fd >= 0)
        close(w->fd);
    json_decref(w->root);
    free(w->path);
    free(w->tmp);
    free(w);
}

err_t st_writer_open(struct st_writer **out, const char *path, struct why *why) {
    *out = NULL;
    struct st_writer *w = calloc(1, sizeof *w);
    if (!w)
        return why_set(why, E_NOMEM, "%s: not enough memory to write it", path);
    w->fd = -1;
    w->path = strdup(path);
    w->root = json_object();
    w->meta = json_object();
    if (!w->path || asprintf(&w->tmp, "%s.tmp-%d", path, (int)getpid()) < 0) {
        w->tmp = NULL;
        w->failed = true;
    }
    if (w->failed || !w->root || json_object_set_new(w->root, "__metadata__", w->meta) < 0) {
        writer_free(w);
        return why_set(why, E_NOMEM, "%s: not enough memory to write it", path);
    }
    w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (w->fd < 0) {
        err_t e = why_set(why, E_IO, "%s: cannot create: %s", w->tmp, strerror(errno));
        writer_free(w);
        return e;
    }
    *out = w;
    return E_OK;
}

void st_writer_meta(struct st_writer *w, const char *key, const char *value) {
    if (json_object_set_new(w->meta, key, json_string(value)) < 0)
        w->failed = true;
}

void st_writer_tensor(struct st_writer *w, const char *name, enum st_dtype d, int32_t n_dims,
                      const int64_t *dim) {
    uint64_t bytes = st_dtype_bytes(d);
    json_t *shape = json_array();
    for (int32_t i = 0; i < n_dims; i++) {
        bytes *= (uint64_t)dim[i];
        if (json_array_append_new(shape, json_integer(dim[i])) < 0)
            w->failed = true;
    }
    json_t *entry =
        json_pack("{s:s, s:o, s:[I,I]}", "dtype", st_dtype_name(d), "shape", shape, "data_offsets",
                  (json_int_t)w->declared, (json_int_t)(w->declared + bytes));
    if (json_object_set_new(w->root, name, entry) < 0)
        w->failed = true;
    w->declared += bytes;
}

err_t st_writer_header(struct st_writer *w, size_t align, struct why *why) {
    char *text = w->failed ? NULL : json_dumps(w->root, JSON_COMPACT);
    if (!text)
        return why_set(why, E_NOMEM, "%s: not enough memory for its header", w->path);
    size_t n = strlen(text), padded = (8 + n + align - 1) / align * align - 8;
    unsigned char le[8];
    for (int i = 0; i < 8; i++)
        le[i] = (unsigned char)((uint64_t)padded >> 8 * i);
    err_t e = write_all(w, le, sizeof le, why);
    if (!e)
        e = write_all(w, text, n, why);
    free(text);
    char spaces[256];
    memset(spaces, ' ', sizeof spaces);
    for (size_t left = padded - n; !e && left;) {
        size_t step = left < sizeof spaces ? left : sizeof spaces;
        e = write_all(w, spaces, step, why);
        left -= step;
    }
    return e;
}

err_t st_writer_data(struct st_writer *w, const void *data, size_t bytes, struct why *why) {
    if (bytes > w->declared - w->written)
        return why_set(why, E_INTERNAL, "%s: more data than was declared", w->path);
    w->written += bytes;
    return write_all(w, data, bytes, why);
}

/* The rename itself must survive a crash, so the folder is synced too. */
static err_t sync_folder(const char *path, struct why *why) {
    char *copy = strdup(path);
    if (!copy)
        return why_set(why, E_NOMEM, "%s: not enough memory to finish it", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (fd < 0 || fsync(fd) < 0) {
        err_t e = why_set(why, E_IO, "%s: cannot sync its folder: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return e;
    }
    close(fd);
    return E_OK;
}

err_t st_writer_end(struct st_writer *w, struct why *why) {
    err_t e = E_OK;
    if (w->written != w->declared)
        e = why_set(why, E_INTERNAL, "%s: less data than was declared", w->path);
    else if (fsync(w->fd) < 0)
        e = why_set(why, E_IO, "%s: cannot sync: %s", w->tmp, strerror(errno));
    else if (rename(w->tmp, w->path) < 0)
        e = why_set(why, E_IO, "%s: cannot rename to %s: %s", w->tmp, w->path, strerror(errno));
    if (e) {
        st_writer_abort(w);
        return e;
    }
    e = sync_folder(w->path, why);
    writer_free(w);
    return e;
}

void st_writer_abort(struct st_writer *w) {
    if (!w)
        return;
    unlink(w->tmp);
    writer_free(w);
}
