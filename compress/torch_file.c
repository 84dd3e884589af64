#include "compress/torch_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zip.h>

enum { MAX_PICKLE = 64 << 20, MAX_MEMBERS = 1 << 18 };

static err_t no_memory(const char *label, struct why *why) {
    return why_set(why, E_NOMEM, "%s: not enough memory to read it", label);
}

/* The one member that ends in "/data.pkl" names the folder of the archive. */
static err_t find_folder(struct torch_file *f, struct why *why) {
    zip_int64_t n = zip_get_num_entries(f->zip, 0);
    if (n > MAX_MEMBERS)
        return why_set(why, E_FORMAT, "%s: the archive has %lld members; no model needs them",
                       f->label, (long long)n);
    for (zip_int64_t i = 0; i < n; i++) {
        const char *name = zip_get_name(f->zip, (zip_uint64_t)i, ZIP_FL_ENC_RAW);
        size_t length = name ? strlen(name) : 0;
        if (length < 10 || strcmp(name + length - 9, "/data.pkl") != 0)
            continue;
        if (f->folder)
            return why_set(why, E_FORMAT, "%s: the archive has two pickles", f->label);
        f->folder = strndup(name, length - 9);
        if (!f->folder)
            return no_memory(f->label, why);
    }
    return f->folder ? E_OK
                     : why_set(why, E_FORMAT,
                               "%s: the archive has no data.pkl, so it is not a "
                               "file of torch.save",
                               f->label);
}

/* A whole member, stored (never compressed, so its size is bounded by the file's). *bytes NULL when
 * there is none of that name. */
static err_t read_member(const struct torch_file *f, const char *name, uint64_t max,
                         unsigned char **bytes, uint64_t *n, struct why *why) {
    char path[512];
    zip_stat_t s;
    *bytes = NULL;
    *n = 0;
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    zip_int64_t index = zip_name_locate(f->zip, path, ZIP_FL_ENC_RAW);
    if (index < 0)
        return E_OK;
    if (zip_stat_index(f->zip, (zip_uint64_t)index, 0, &s) < 0 ||
        !(s.valid & ZIP_STAT_SIZE && s.valid & ZIP_STAT_COMP_METHOD))
        return why_set(why, E_FORMAT, "%s: member %s cannot be read", f->label, name);
    if (s.comp_method != ZIP_CM_STORE || s.size > max)
        return why_set(why, E_FORMAT,
                       "%s: member %s is compressed or has more bytes (%llu) than it should",
                       f->label, name, (unsigned long long)s.size);
    zip_file_t *member = zip_fopen_index(f->zip, (zip_uint64_t)index, 0);
    unsigned char *data = member ? malloc(s.size + 1) : NULL;
    err_t e = !member ? why_set(why, E_FORMAT, "%s: member %s cannot be opened", f->label, name)
              : data  ? E_OK
                      : no_memory(f->label, why);
    for (uint64_t at = 0; !e && at < s.size;) {
        zip_int64_t got = zip_fread(member, data + at, s.size - at);
        if (got <= 0)
            e = why_set(why, E_FORMAT, "%s: member %s is damaged or cut off", f->label, name);
        else
            at += (uint64_t)got;
    }
    /* The CRC-32 is checked when the end is read. */
    unsigned char none;
    if (!e && zip_fread(member, &none, 1) != 0)
        e = why_set(why, E_FORMAT, "%s: member %s is damaged: its checksum is wrong", f->label,
                    name);
    if (member)
        zip_fclose(member);
    if (e) {
        free(data);
        return e;
    }
    *bytes = data;
    *n = s.size;
    return E_OK;
}

static err_t check_byte_order(const struct torch_file *f, struct why *why) {
    unsigned char *text;
    uint64_t n;
    err_t e = read_member(f, "byteorder", 16, &text, &n, why);
    if (!e && text && (n != 6 || memcmp(text, "little", 6) != 0))
        e = why_set(why, E_UNSUPPORTED, "%s: its byte order is not little-endian", f->label);
    free(text);
    return e;
}

err_t torch_file_open(struct torch_file *f, const char *path, struct why *why) {
    memset(f, 0, sizeof *f);
    f->label = strdup(path);
    if (!f->label)
        return no_memory(path, why);
    int code = 0;
    f->zip = zip_open(path, ZIP_RDONLY, &code);
    if (!f->zip) {
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        err_t e =
            why_set(why, code == ZIP_ER_NOZIP || code == ZIP_ER_INCONS ? E_FORMAT : E_IO,
                    "%s: cannot be opened as a zip archive: %s", path, zip_error_strerror(&error));
        zip_error_fini(&error);
        return e;
    }
    unsigned char *pickle = NULL;
    uint64_t n;
    err_t e = find_folder(f, why);
    if (!e)
        e = check_byte_order(f, why);
    if (!e)
        e = read_member(f, "data.pkl", MAX_PICKLE, &pickle, &n, why);
    if (!e && !pickle)
        e = why_set(why, E_FORMAT, "%s: its data.pkl has a name that cannot be found again", path);
    if (!e)
        e = pickle_read(&f->all, pickle, (size_t)n, path, why);
    free(pickle);
    return e;
}

void torch_file_close(struct torch_file *f) {
    pt_tensors_free(&f->all);
    if (f->zip)
        zip_discard(f->zip);
    free(f->folder);
    free(f->label);
    memset(f, 0, sizeof *f);
}

const struct pt_tensor *torch_file_find(const struct torch_file *f, const char *name) {
    int32_t lo = 0, hi = f->all.n;
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2, c = strcmp(f->all.tensor[mid].name, name);
        if (c == 0)
            return &f->all.tensor[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

/* The storage's bytes; its member must have exactly the size that the pickle says. */
static err_t read_storage(const struct torch_file *f, const struct pt_tensor *t, size_t n,
                          unsigned char **bytes, struct why *why) {
    char member[64];
    uint64_t want, got, elements = 1;
    for (int32_t i = 0; i < t->n_dims; i++)
        if (__builtin_mul_overflow(elements, (uint64_t)t->dim[i], &elements))
            elements = UINT64_MAX;
    if (elements != n)
        return why_set(why, E_FORMAT, "%s: tensor %s has another shape than the base needs",
                       f->label, t->name);
    snprintf(member, sizeof member, "data/%s", t->storage);
    if (__builtin_mul_overflow(t->storage_size, st_dtype_bytes(t->dtype), &want))
        want = UINT64_MAX;
    err_t e = read_member(f, member, want, bytes, &got, why);
    if (!e && (!*bytes || got != want)) {
        e = why_set(why, E_FORMAT, "%s: the data of tensor %s (member %s) %s", f->label, t->name,
                    member, *bytes ? "has another size than its pickle says" : "is missing");
        free(*bytes);
        *bytes = NULL;
    }
    return e;
}

/* Element i in row-major order -> place in the storage. */
static uint64_t place(const struct pt_tensor *t, uint64_t i) {
    uint64_t at = t->offset;
    for (int32_t d = t->n_dims; d-- > 0;) {
        at += i % (uint64_t)t->dim[d] * (uint64_t)t->stride[d];
        i /= (uint64_t)t->dim[d];
    }
    return at;
}

err_t torch_file_read_i32(const struct torch_file *f, const struct pt_tensor *t, int32_t *dst,
                          size_t n, struct why *why) {
    unsigned char *bytes;
    if (t->dtype != ST_I32)
        return why_set(why, E_FORMAT, "%s: tensor %s has dtype %s; I32 is wanted", f->label,
                       t->name, st_dtype_name(t->dtype));
    err_t e = read_storage(f, t, n, &bytes, why);
    for (size_t i = 0; !e && i < n; i++)
        memcpy(&dst[i], bytes + 4 * place(t, i), 4);
    free(e ? NULL : bytes);
    return e;
}

err_t torch_file_read_f32(const struct torch_file *f, const struct pt_tensor *t, float *dst,
                          size_t n, struct why *why) {
    unsigned char *bytes;
    size_t size = st_dtype_bytes(t->dtype);
    if (t->dtype == ST_I32)
        return why_set(why, E_FORMAT, "%s: tensor %s has dtype I32; a float type is wanted",
                       f->label, t->name);
    err_t e = read_storage(f, t, n, &bytes, why);
    for (size_t i = 0; !e && i < n; i++) {
        uint32_t aligned = 0;
        memcpy(&aligned, bytes + size * place(t, i), size);
        st_to_f32(t->dtype, &aligned, &dst[i], 1);
    }
    free(e ? NULL : bytes);
    return e;
}
