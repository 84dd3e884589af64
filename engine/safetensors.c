#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/json.h"
#include "kernels/f16.h"

enum {
    MAX_NAME = 256,
    MAX_DEPTH = 4,        /* {"tensor": {"shape": [..]}} is 3 */
    MAX_VALUES = 1 << 20, /* about 100,000 tensors: far above any model, 100 MB of JSON objects */
    MAX_DIM = 1 << 30,
    MAX_READ = 1 << 30, /* Linux moves at most 2^31 - 4096 bytes in one call */
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[ST_N] = {
    [ST_BOOL] = {"BOOL", 1}, [ST_U8] = {"U8", 1},   [ST_I8] = {"I8", 1},   [ST_I16] = {"I16", 2},
    [ST_I32] = {"I32", 4},   [ST_I64] = {"I64", 8}, [ST_F16] = {"F16", 2}, [ST_BF16] = {"BF16", 2},
    [ST_F32] = {"F32", 4},   [ST_F64] = {"F64", 8},
};

size_t st_dtype_bytes(enum st_dtype d) {
    return dtypes[d].bytes;
}

const char *st_dtype_name(enum st_dtype d) {
    return dtypes[d].name;
}

static enum st_dtype dtype_of(const char *name) {
    for (int d = 0; name && d < ST_N; d++)
        if (strcmp(name, dtypes[d].name) == 0)
            return (enum st_dtype)d;
    return ST_N;
}

static err_t read_at(const struct st_file *f, uint64_t offset, void *dst, uint64_t bytes,
                     struct why *why) {
    unsigned char *to = dst;
    while (bytes) {
        size_t want = bytes < MAX_READ ? (size_t)bytes : MAX_READ;
        ssize_t got = pread(f->fd, to, want, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return why_set(why, E_IO, "%s: cannot read: %s", f->label, strerror(errno));
        if (got == 0)
            return why_set(why, E_IO, "%s: ended at byte %llu while it was read", f->label,
                           (unsigned long long)offset);
        to += got;
        offset += (uint64_t)got;
        bytes -= (uint64_t)got;
    }
    return E_OK;
}

/* Printable ASCII only: names go into sentences and logs. */
static bool name_is_fit(const char *name) {
    size_t n = strlen(name);
    if (n == 0 || n > MAX_NAME)
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] < 0x21 || name[i] > 0x7e)
            return false;
    return true;
}

static err_t parse_shape(struct st_file *f, struct st_tensor *t, const json_t *shape,
                         uint64_t *elements, struct why *why) {
    if (!json_is_array(shape) || json_array_size(shape) > ST_MAX_DIMS)
        return why_set(why, E_FORMAT, "%s: tensor %s: shape must be a list of at most %d numbers",
                       f->label, t->name, ST_MAX_DIMS);
    *elements = 1;
    t->n_dims = (int32_t)json_array_size(shape);
    for (int32_t i = 0; i < t->n_dims; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0 || json_integer_value(d) > MAX_DIM)
            return why_set(why, E_FORMAT, "%s: tensor %s: shape holds a value outside 0..%d",
                           f->label, t->name, MAX_DIM);
        t->dim[i] = json_integer_value(d);
        if (__builtin_mul_overflow(*elements, (uint64_t)t->dim[i], elements))
            return why_set(why, E_FORMAT, "%s: tensor %s: its shape has more than 2^64 elements",
                           f->label, t->name);
    }
    return E_OK;
}

static err_t parse_tensor(struct st_file *f, struct st_tensor *t, const char *name,
                          const json_t *entry, struct why *why) {
    t->name = name;
    if (!name_is_fit(name))
        return why_set(why, E_FORMAT,
                       "%s: a tensor name is empty, longer than %d bytes or not printable ASCII",
                       f->label, MAX_NAME);
    const json_t *shape = json_object_get(entry, "shape"),
                 *range = json_object_get(entry, "data_offsets"),
                 *dtype = json_object_get(entry, "dtype");
    if (!json_is_object(entry) || json_object_size(entry) != 3 || !shape || !range || !dtype)
        return why_set(why, E_FORMAT,
                       "%s: tensor %s: its entry must hold dtype, shape and data_offsets and "
                       "nothing else",
                       f->label, name);
    t->dtype = dtype_of(json_string_value(dtype));
    if (t->dtype == ST_N)
        return why_set(why, E_FORMAT, "%s: tensor %s: unknown dtype \"%.16s\"", f->label, name,
                       json_is_string(dtype) ? json_string_value(dtype) : "?");
    uint64_t elements = 0, bytes = 0;
    err_t e = parse_shape(f, t, shape, &elements, why);
    if (e)
        return e;
    const json_t *b = json_array_get(range, 0), *end = json_array_get(range, 1);
    if (!json_is_array(range) || json_array_size(range) != 2 || !json_is_integer(b) ||
        !json_is_integer(end) || json_integer_value(b) < 0 ||
        json_integer_value(end) < json_integer_value(b))
        return why_set(why, E_FORMAT,
                       "%s: tensor %s: data_offsets must be two ascending whole numbers", f->label,
                       name);
    uint64_t from = (uint64_t)json_integer_value(b), to = (uint64_t)json_integer_value(end);
    if (to > f->size - f->data_start)
        return why_set(why, E_FORMAT,
                       "%s: tensor %s ends at byte %llu of the data, but the file has only %llu "
                       "(is it truncated?)",
                       f->label, name, (unsigned long long)to,
                       (unsigned long long)(f->size - f->data_start));
    if (__builtin_mul_overflow(elements, st_dtype_bytes(t->dtype), &bytes) || bytes != to - from)
        return why_set(why, E_FORMAT,
                       "%s: tensor %s: its shape and dtype need %llu bytes, its range has %llu",
                       f->label, name, (unsigned long long)elements * st_dtype_bytes(t->dtype),
                       (unsigned long long)(to - from));
    t->offset = f->data_start + from;
    t->bytes = bytes;
    return E_OK;
}

static int by_offset(const void *a, const void *b) {
    const struct st_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

/* Every byte of the data belongs to exactly one tensor. */
static err_t check_cover(const struct st_file *f, struct why *why) {
    uint64_t at = f->data_start;
    for (int32_t i = 0; i < f->n_tensors; i++) {
        const struct st_tensor *t = &f->tensor[i];
        if (t->offset < at)
            return why_set(why, E_FORMAT, "%s: tensor %s overlaps tensor %s", f->label, t->name,
                           f->tensor[i - 1].name);
        if (t->offset > at)
            return why_set(why, E_FORMAT, "%s: %llu bytes before tensor %s belong to no tensor",
                           f->label, (unsigned long long)(t->offset - at), t->name);
        at += t->bytes;
    }
    if (at != f->size)
        return why_set(why, E_FORMAT, "%s: %llu bytes after the last tensor belong to no tensor",
                       f->label, (unsigned long long)(f->size - at));
    return E_OK;
}

static err_t parse_header(struct st_file *f, struct why *why) {
    json_t *root = f->header;
    if (!json_is_object(root))
        return why_set(why, E_FORMAT, "%s: the header is not a JSON object", f->label);
    f->tensor = calloc(json_object_size(root) + 1, sizeof *f->tensor);
    if (!f->tensor)
        return why_set(why, E_NOMEM, "%s: not enough memory for its header", f->label);
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            const char *meta_key;
            json_t *meta;
            if (!json_is_object(value))
                return why_set(why, E_FORMAT, "%s: __metadata__ is not a JSON object", f->label);
            json_object_foreach(value, meta_key, meta) {
                if (!json_is_string(meta))
                    return why_set(why, E_FORMAT, "%s: metadata \"%.64s\" is not a string",
                                   f->label, meta_key);
            }
            continue;
        }
        err_t e = parse_tensor(f, &f->tensor[f->n_tensors], key, value, why);
        if (e)
            return e;
        f->n_tensors++;
    }
    qsort(f->tensor, (size_t)f->n_tensors, sizeof *f->tensor, by_offset);
    err_t e = check_cover(f, why);
    qsort(f->tensor, (size_t)f->n_tensors, sizeof *f->tensor, by_name);
    return e;
}

err_t st_open(struct st_file *f, int fd, const char *label, size_t max_header, struct why *why) {
    memset(f, 0, sizeof *f);
    f->fd = fd;
    f->label = strdup(label);
    if (!f->label)
        return why_set(why, E_NOMEM, "not enough memory to open %s", label);
    struct stat s;
    if (fstat(fd, &s) < 0)
        return why_set(why, E_IO, "%s: cannot stat: %s", label, strerror(errno));
    if (!S_ISREG(s.st_mode))
        return why_set(why, E_FORMAT, "%s: not a regular file", label);
    f->size = (uint64_t)s.st_size;
    if (f->size < 10)
        return why_set(why, E_FORMAT, "%s: too short to be a safetensors file (%llu bytes)", label,
                       (unsigned long long)f->size);
    unsigned char le[8];
    err_t e = read_at(f, 0, le, sizeof le, why);
    if (e)
        return e;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | le[i];
    if (n < 2 || n > f->size - 8 || n > max_header)
        return why_set(why, E_FORMAT,
                       "%s: its header length says %llu bytes; at most %llu are possible here, so "
                       "it is truncated or not a safetensors file",
                       label, (unsigned long long)n,
                       (unsigned long long)(f->size - 8 < max_header ? f->size - 8 : max_header));
    f->data_start = 8 + n;
    char *text = malloc((size_t)n);
    if (!text)
        return why_set(why, E_NOMEM, "%s: not enough memory for its header", label);
    e = read_at(f, 8, text, n, why);
    if (!e && text[0] != '{')
        e = why_set(why, E_FORMAT, "%s: the header does not begin with '{'", label);
    json_t *root = NULL;
    if (!e)
        e = json_parse(&root, text, (size_t)n, label, MAX_DEPTH, MAX_VALUES, why);
    free(text);
    f->header = root;
    return e ? e : parse_header(f, why);
}

void st_close(struct st_file *f) {
    free(f->label);
    free(f->tensor);
    json_decref(f->header);
    memset(f, 0, sizeof *f);
}

const struct st_tensor *st_find(const struct st_file *f, const char *name) {
    struct st_tensor key = {.name = name};
    return f->n_tensors ? bsearch(&key, f->tensor, (size_t)f->n_tensors, sizeof *f->tensor, by_name)
                        : NULL;
}

const char *st_meta(const struct st_file *f, const char *key) {
    return json_string_value(json_object_get(json_object_get(f->header, "__metadata__"), key));
}

err_t st_read_part(const struct st_file *f, const struct st_tensor *t, uint64_t at, void *dst,
                   uint64_t bytes, struct why *why) {
    err_t e = read_at(f, t->offset + at, dst, bytes, why);
    return e ? why_prefix(why, e, "tensor %s", t->name) : E_OK;
}

err_t st_read(const struct st_file *f, const struct st_tensor *t, void *dst, struct why *why) {
    return st_read_part(f, t, 0, dst, t->bytes, why);
}

err_t st_to_f32(enum st_dtype d, const void *src, float *dst, size_t n) {
    const uint16_t *half = src;
    switch (d) {
    case ST_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = half_to_float(half[i]);
        return E_OK;
    case ST_BF16:
        for (size_t i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)half[i] << 16;
            memcpy(&dst[i], &bits, sizeof bits);
        }
        return E_OK;
    case ST_F32:
        memcpy(dst, src, n * sizeof *dst);
        return E_OK;
    case ST_F64: {
        const double *wide = src;
        for (size_t i = 0; i < n; i++)
            dst[i] = (float)wide[i];
        return E_OK;
    }
    default:
        return E_UNSUPPORTED;
    }
}
