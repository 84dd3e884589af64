/* Every thread takes the next tensor and moves it in windows of the backend: read, hashed, looked
 * at, sent off. On the CPU a window is the memory itself, so nothing is copied twice. */
#include "engine/tenant_content.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "engine/upload.h"

enum { MAX_HASHES = 1 << 20 };

err_t content_open(struct content *c, struct tenant_file *t, const struct st_file *f,
                   struct why *why) {
    *c = (struct content){.t = t, .f = f, .why = why};
    c->tensor = calloc((size_t)f->n_tensors + 1, sizeof *c->tensor);
    return c->tensor ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory to read it", f->label);
}

void content_close(struct content *c) {
    for (int32_t i = 0; c->tensor && i < c->f->n_tensors; i++)
        free(c->tensor[i].kept);
    free(c->tensor);
}

static struct content_tensor *tensor_of(const struct content *c, const struct st_tensor *t) {
    return &c->tensor[t - c->f->tensor];
}

const void *content_address(const struct content *c, const struct st_tensor *t) {
    const struct tenant_extent *x = &c->t->extent[tensor_of(c, t)->extent];
    return (const unsigned char *)x->device + (t->offset - x->offset);
}

const void *content_kept(const struct content *c, const struct st_tensor *t) {
    return tensor_of(c, t)->kept;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static err_t reserve(struct content *c, uint64_t offset, size_t bytes) {
    struct tenant_file *t = c->t;
    struct tenant_extent *x = realloc(t->extent, (size_t)(t->n_extents + 1) * sizeof *t->extent);
    if (!x)
        return E_NOMEM;
    t->extent = x;
    x += t->n_extents;
    *x = (struct tenant_extent){.offset = offset, .bytes = bytes};
    err_t e = E_OK;
    if (t->kernels)
        e = t->kernels->ops->reserve(t->kernels, bytes, &x->device);
    else
        e = (x->device = host_block(bytes)) ? E_OK : E_NOMEM;
    if (e)
        return e;
    t->n_extents++;
    t->bytes += bytes;
    return E_OK;
}

static int by_offset(const void *a, const void *b) {
    const struct st_tensor *x = *(const struct st_tensor *const *)a,
                           *y = *(const struct st_tensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Claimed tensors in file order into runs. */
static err_t reserve_extents(struct content *c, const struct st_tensor **order, int32_t n) {
    err_t e = E_OK;
    for (int32_t i = 0, last; !e && i < n; i = last) {
        uint64_t start = order[i]->offset, end = start;
        for (last = i; last < n; last++) {
            uint64_t next = order[last]->offset + order[last]->bytes;
            if (last > i && next - start > EXTENT_BYTES)
                break;
            tensor_of(c, order[last])->extent = c->t->n_extents;
            end = next;
        }
        e = reserve(c, start, (size_t)(end - start));
    }
    return e ? why_set(c->why, e, "%s: no memory for its tensors", c->f->label) : E_OK;
}

/* ---- values ---------------------------------------------------------------------------------- */

static void note(struct content_tensor *t, uint64_t at, double value) {
    if (t->broken)
        return;
    t->broken = true;
    t->at = at;
    t->value = value;
}

static void see_f32(struct content_tensor *t, uint64_t first, const float *x, size_t n,
                    float limit) {
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) < limit))
            note(t, first + i, (double)x[i]);
}

static void see_f16(struct content_tensor *t, uint64_t first, const uint16_t *x, size_t n) {
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++) /* without a branch: dense matrices are large */
        bad |= (x[i] & 0x7c00) == 0x7c00;
    for (size_t i = 0; bad && i < n; i++)
        if ((x[i] & 0x7c00) == 0x7c00)
            note(t, first + i, 0);
}

/* Bits past N and K must be zero: a kernel may count them. Only edge tiles have any. */
static void see_tile(struct content_tensor *t, uint64_t tile, const uint32_t *word) {
    int32_t across = tiles_of(t->k, TILE_COLS), down = tiles_of(t->n, TILE_ROWS);
    int32_t i = (int32_t)(tile / (uint64_t)across), j = (int32_t)(tile % (uint64_t)across);
    if (!(i == down - 1 && t->n % TILE_ROWS) && !(j == across - 1 && t->k % TILE_COLS))
        return;
    for (int32_t w = 0; w < TILE_BYTES / 4; w++) {
        int32_t lane = w / 4, slot = w % 4;
        int32_t row = i * TILE_ROWS + slot % 2 * 8 + lane / 4;
        int32_t col = j * TILE_COLS + (lane % 4 + slot / 2 * 4) * 32;
        uint32_t valid = row >= t->n || col >= t->k ? 0
                         : t->k - col >= 32         ? ~0u
                                                    : (1u << (t->k - col)) - 1;
        if (word[w] & ~valid)
            note(t, (uint64_t)row << 32 | (uint32_t)col, 0);
    }
}

/* Bytes [at, at + n) of a tensor. Pieces are whole tiles and elements. */
static void see(struct content_tensor *t, uint64_t at, const void *data, size_t n) {
    switch (t->check) {
    case CHECK_F16:
        see_f16(t, at / 2, data, n / 2);
        break;
    case CHECK_F32:
        see_f32(t, at / 4, data, n / 4, INFINITY);
        break;
    case CHECK_SCALE:
        see_f32(t, at / 4, data, n / 4, TENANT_MAX_SCALE);
        break;
    case CHECK_PADDING:
        for (size_t i = 0; i < n; i += TILE_BYTES)
            see_tile(t, (at + i) / TILE_BYTES, (const uint32_t *)data + i / 4);
        break;
    default:
        break;
    }
    if (t->kept)
        memcpy(t->kept + at, data, n);
}

static err_t value_error(const struct content *c, const struct st_tensor *t,
                         const struct content_tensor *x) {
    const char *label = c->f->label;
    switch (x->check) {
    case CHECK_F16:
        return why_set(c->why, E_FORMAT, "%s: tensor %s: element %llu is not a finite number",
                       label, t->name, (unsigned long long)x->at);
    case CHECK_PADDING:
        return why_set(c->why, E_FORMAT,
                       "%s: tensor %s: padding bits at row %d, columns %d.. are not zero", label,
                       t->name, (int)(x->at >> 32), (int)(x->at & 0xffffffff));
    default:
        return why_set(c->why, E_FORMAT,
                       "%s: tensor %s: element %llu is %g; it must be finite and below %g", label,
                       t->name, (unsigned long long)x->at, x->value,
                       x->check == CHECK_SCALE ? (double)TENANT_MAX_SCALE : (double)INFINITY);
    }
}

static err_t check_values(const struct content *c) {
    for (int32_t i = 0; i < c->f->n_tensors; i++)
        if (c->tensor[i].broken)
            return value_error(c, &c->f->tensor[i], &c->tensor[i]);
    return E_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

static err_t take_window(void *arg, const struct st_tensor *t, uint64_t at, size_t n, void **to) {
    const struct content *c = arg;
    struct kernels *k = c->t->kernels;
    unsigned char *device = (unsigned char *)(uintptr_t)content_address(c, t) + at;
    if (k)
        return k->ops->stage(k, device, n, to);
    *to = device;
    return E_OK;
}

static err_t send_window(void *arg, const struct st_tensor *t, uint64_t at, size_t n, void *from,
                         bool read) {
    const struct content *c = arg;
    struct kernels *k = c->t->kernels;
    if (read)
        see(tensor_of(c, t), at, from, n);
    unsigned char *device = (unsigned char *)(uintptr_t)content_address(c, t) + at;
    return k ? k->ops->commit(k, device, from, n) : E_OK;
}

/* The digest of each tensor against `hashes`, then all of them against content_hash. */
static err_t check_hashes(const struct content *c, struct hash_job *job, int32_t n) {
    const char *text = st_meta(c->f, "hashes"), *label = c->f->label;
    if (!text)
        return why_set(c->why, E_FORMAT, "%s: metadata \"hashes\" is missing", label);
    json_t *hashes;
    err_t e = json_parse(&hashes, text, strlen(text), "hashes", 2, MAX_HASHES, c->why);
    if (e)
        return why_prefix(c->why, e, "%s", label);
    for (int32_t i = 0; !e && i < n; i++) {
        const char *name = job[i].tensor->name;
        const char *want = json_string_value(json_object_get(hashes, name));
        char got[SHA256_HEX];
        sha256_hex(job[i].digest, got);
        if (!want)
            e = why_set(c->why, E_FORMAT, "%s: metadata \"hashes\" has none for tensor %s", label,
                        name);
        else if (strcmp(got, want) != 0)
            e = why_set(c->why, E_FORMAT,
                        "%s: tensor %s is damaged: its SHA-256 is %.8s..., the file says %.8s...",
                        label, name, got, want);
    }
    if (!e && json_object_size(hashes) != (size_t)n)
        e = why_set(c->why, E_FORMAT, "%s: metadata \"hashes\" names tensors that are not there",
                    label);
    json_decref(hashes);
    char hash[SHA256_HEX];
    if (!e && (e = tenant_content_hash(job, n, c->t->meta.base_fingerprint, st_meta(c->f, "tenant"),
                                       hash)))
        e = why_set(c->why, e, "%s: not enough memory to hash it", label);
    if (!e && strcmp(hash, c->t->meta.hash) != 0)
        e = why_set(c->why, E_FORMAT,
                    "%s: metadata is damaged: its content hash is %.8s..., the file says %.8s...",
                    label, hash, c->t->meta.hash);
    return e;
}

static err_t keep_some(struct content *c, const struct st_tensor *t) {
    struct content_tensor *x = tensor_of(c, t);
    if (!x->keep)
        return E_OK;
    x->kept = malloc((size_t)t->bytes + 1);
    return x->kept ? E_OK
                   : why_set(c->why, E_NOMEM, "%s: not enough memory for its scales", c->f->label);
}

err_t content_read(struct content *c, bool trusted) {
    const struct st_file *f = c->f;
    const struct st_tensor **order = calloc((size_t)f->n_tensors + 1, sizeof *order);
    struct hash_job *job = calloc((size_t)f->n_tensors + 1, sizeof *job);
    struct hash_sink sink = {take_window, send_window, c, trusted};
    int32_t n = 0;
    err_t e = order && job ? E_OK : why_set(c->why, E_NOMEM, "%s: not enough memory", f->label);
    for (int32_t i = 0; !e && i < f->n_tensors; i++)
        if (c->tensor[i].claimed) {
            job[n] = (struct hash_job){.file = f, .tensor = &f->tensor[i]};
            order[n++] = &f->tensor[i];
            e = keep_some(c, &f->tensor[i]);
        }
    if (!e) {
        qsort(order, (size_t)n, sizeof *order, by_offset);
        e = reserve_extents(c, order, n);
    }
    if (!e)
        e = hash_tensors(job, n, &sink, NULL, NULL, c->why);
    if (!e && !trusted)
        e = check_hashes(c, job, n);
    if (!e)
        e = check_values(c);
    free(order);
    free(job);
    return e;
}

err_t content_reserve(struct content *c, size_t bytes, const void **address) {
    err_t e = reserve(c, 0, bytes);
    if (e)
        return why_set(c->why, e, "%s: no memory for its expanded scales", c->f->label);
    *address = c->t->extent[c->t->n_extents - 1].device;
    return E_OK;
}

err_t content_fill(struct content *c, const void *address, const void *data, size_t bytes) {
    err_t e = upload_fill(c->t->kernels, (void *)(uintptr_t)address, data, bytes);
    return e ? why_set(c->why, e, "%s: its scales could not be copied", c->f->label) : E_OK;
}

err_t content_settle(struct content *c) {
    struct kernels *k = c->t->kernels;
    err_t e = k ? k->ops->settle(k) : E_OK;
    return e ? why_set(c->why, e, "%s: the copy to the device failed", c->f->label) : E_OK;
}
