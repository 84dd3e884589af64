#include "engine/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/file.h"
#include "config/json.h"
#include "kernels/f16.h"

enum {
    MAX_CONFIG = 4 << 20,
    MAX_INDEX = 64 << 20,
    MAX_INDEX_VALUES = 1 << 20,
    MAX_SHARDS = 4096,
    MAX_SHARD_HEADER = 64 << 20,
    CHUNK_ELEMENTS = 1 << 18, /* converted at a time: 1 MiB of FP32 stays in the cache */
};

/* ---- names and shapes ----------------------------------------------------------------------- */

void part_name(char *out, size_t n, int32_t layer, enum part p) {
    static const char *const names[N_PARTS] = {
        [PART_Q] = "self_attn.q_proj", [PART_K] = "self_attn.k_proj", [PART_V] = "self_attn.v_proj",
        [PART_O] = "self_attn.o_proj", [PART_GATE] = "mlp.gate_proj", [PART_UP] = "mlp.up_proj",
        [PART_DOWN] = "mlp.down_proj",
    };
    snprintf(out, n, "model.layers.%d.%s", layer, names[p]);
}

void norm_name(char *out, size_t n, const struct model_shape *s, int32_t i) {
    if (i == 2 * s->n_layers)
        snprintf(out, n, "model.norm.weight");
    else
        snprintf(out, n, "model.layers.%d.%s.weight", i / 2,
                 i % 2 ? "post_attention_layernorm" : "input_layernorm");
}

/* The i-th tensor that the config asks for: name and shape (rows 0: a vector). False past the end.
 */
static bool expected_tensor(const struct model_config *c, int32_t i, char *name, size_t n,
                            int64_t *rows, int64_t *cols) {
    const struct model_shape *s = &c->shape;
    int32_t parts = s->n_layers * N_PARTS, norms = 2 * s->n_layers + 1;
    if (i < parts) {
        enum part p = (enum part)(i % N_PARTS);
        part_name(name, n, i / N_PARTS, p);
        strncat(name, ".weight", n - strlen(name) - 1);
        *rows = part_rows(s, p);
        *cols = part_cols(s, p);
        return true;
    }
    i -= parts;
    if (i < norms) {
        norm_name(name, n, s, i);
        *rows = 0;
        *cols = s->dim;
        return true;
    }
    i -= norms;
    if (i > (c->tied ? 0 : 1))
        return false;
    snprintf(name, n, "%s", i ? "lm_head.weight" : "model.embed_tokens.weight");
    *rows = s->vocab;
    *cols = s->dim;
    return true;
}

/* The name as the files have it: a model saved without its head has no "model." before its names.
 */
static const char *stored_name(const struct checkpoint *c, const char *name) {
    return c->bare && strncmp(name, "model.", 6) == 0 ? name + 6 : name;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* RoPE frequencies that old checkpoints carry; they follow from the config. */
static bool is_inv_freq(const char *name) {
    return ends_with(name, ".rotary_emb.inv_freq");
}

/* A tied checkpoint may still store lm_head; the embedding is what counts. */
static bool is_tolerated(const struct model_config *c, const char *name) {
    return is_inv_freq(name) || (c->tied && strcmp(name, "lm_head.weight") == 0);
}

/* ---- opening --------------------------------------------------------------------------------- */

static char *path_in(const char *dir, const char *name) {
    char *path;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static err_t read_configs(struct checkpoint *c, struct why *why) {
    size_t n;
    err_t e = file_read_in(c->dir, "config.json", MAX_CONFIG, &c->config_json, &n, why);
    if (e)
        return e;
    e = model_config_parse(&c->config, c->config_json, n, why);
    if (e)
        return why_prefix(why, e, "%s", c->dir);
    e = file_read_in(c->dir, "generation_config.json", MAX_CONFIG, &c->generation_json, &n, why);
    if (e == E_IO && errno == ENOENT) {
        c->generation_json = strdup("{}");
        return c->generation_json ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory", c->dir);
    }
    if (e)
        return e;
    json_t *root = NULL;
    e = json_parse(&root, c->generation_json, n, "generation_config.json", 16, 100000, why);
    if (!e)
        e = model_config_generation(&c->config, root, "generation_config.json", why);
    json_decref(root);
    return e ? why_prefix(why, e, "%s", c->dir) : E_OK;
}

static err_t open_shard(struct checkpoint *c, const char *name, struct why *why) {
    char *path = path_in(c->dir, name);
    if (!path)
        return why_set(why, E_NOMEM, "%s: not enough memory", c->dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    err_t e = fd < 0 ? why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno)) : E_OK;
    if (!e) {
        int32_t i = c->n_files++;
        c->fd[i] = fd;
        e = st_open(&c->file[i], fd, path, MAX_SHARD_HEADER, why);
    }
    free(path);
    return e;
}

static err_t make_room(struct checkpoint *c, size_t n, struct why *why) {
    c->file = calloc(n, sizeof *c->file);
    c->fd = calloc(n, sizeof *c->fd);
    return c->file && c->fd ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory", c->dir);
}

/* Opens each distinct file of the index and checks that the tensors lie where the index says. */
static err_t open_indexed(struct checkpoint *c, const json_t *map, struct why *why) {
    const char *tensor;
    json_t *value;
    json_t *shards = json_object(); /* file name -> its number */
    if (!shards)
        return why_set(why, E_NOMEM, "%s: not enough memory", c->dir);
    err_t e = E_OK;
    json_object_foreach((json_t *)map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || !*name || strchr(name, '/') || name[0] == '.')
            e = why_set(why, E_FORMAT,
                        "%s: model.safetensors.index.json: the file of tensor %.128s must be a "
                        "plain file name",
                        c->dir, tensor);
        else if (!json_object_get(shards, name) &&
                 json_object_set_new(shards, name,
                                     json_integer((json_int_t)json_object_size(shards))) < 0)
            e = why_set(why, E_NOMEM, "%s: not enough memory", c->dir);
        if (!e && json_object_size(shards) > MAX_SHARDS)
            e = why_set(why, E_FORMAT, "%s: the index names more than %d files", c->dir,
                        MAX_SHARDS);
        if (e)
            break;
    }
    if (!e)
        e = make_room(c, json_object_size(shards) + 1, why);
    const char *name;
    json_object_foreach(shards, name, value) {
        if (!e)
            e = open_shard(c, name, why);
    }
    json_object_foreach((json_t *)map, tensor, value) {
        if (e)
            break;
        const json_t *i = json_object_get(shards, json_string_value(value));
        const struct st_file *f = &c->file[json_integer_value(i)];
        if (!st_find(f, tensor))
            e = why_set(why, E_FORMAT, "%s: tensor %.128s is not there, though the index says so",
                        f->label, tensor);
    }
    json_decref(shards);
    return e;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A folder without the usual names: every .safetensors file in it, in the order of their names. */
static err_t open_folder(struct checkpoint *c, struct why *why) {
    char **name = NULL;
    size_t n = 0;
    err_t e = E_OK;
    DIR *d = opendir(c->dir);
    for (struct dirent *entry; d && !e && (entry = readdir(d));) {
        if (!ends_with(entry->d_name, ".safetensors") || entry->d_name[0] == '.')
            continue;
        char **more = realloc(name, (n + 1) * sizeof *name);
        name = more ? more : name;
        if (!more || !(name[n] = strdup(entry->d_name)))
            e = why_set(why, E_NOMEM, "%s: not enough memory", c->dir);
        else if (++n > MAX_SHARDS)
            e = why_set(why, E_FORMAT, "%s: holds more than %d files", c->dir, MAX_SHARDS);
    }
    if (d)
        closedir(d);
    if (!e && !n)
        e = why_set(why, E_IO,
                    "%s: has neither model.safetensors nor model.safetensors.index.json (other "
                    "weight formats must be converted to safetensors first)",
                    c->dir);
    if (n)
        qsort(name, n, sizeof *name, by_name);
    e = e ? e : make_room(c, n, why);
    for (size_t i = 0; i < n; i++) {
        e = e ? e : open_shard(c, name[i], why);
        free(name[i]);
    }
    free(name);
    return e;
}

static err_t open_files(struct checkpoint *c, struct why *why) {
    char *single = path_in(c->dir, "model.safetensors");
    if (!single)
        return why_set(why, E_NOMEM, "%s: not enough memory", c->dir);
    bool is_single = access(single, F_OK) == 0;
    free(single);
    if (is_single) {
        err_t e = make_room(c, 1, why);
        return e ? e : open_shard(c, "model.safetensors", why);
    }
    char *text;
    size_t n;
    err_t e = file_read_in(c->dir, "model.safetensors.index.json", MAX_INDEX, &text, &n, why);
    if (e == E_IO && errno == ENOENT)
        return open_folder(c, why);
    if (e)
        return e;
    json_t *root = NULL;
    e = json_parse(&root, text, n, "model.safetensors.index.json", 8, MAX_INDEX_VALUES, why);
    free(text);
    const json_t *map = json_object_get(root, "weight_map");
    if (!e && !json_object_size(map))
        e = why_set(why, E_FORMAT, "model.safetensors.index.json: weight_map is missing or empty");
    if (e)
        e = why_prefix(why, e, "%s", c->dir);
    else
        e = open_indexed(c, map, why);
    json_decref(root);
    return e;
}

static err_t check_tensor(const struct st_file *f, const struct st_tensor *t, int64_t rows,
                          int64_t cols, struct why *why) {
    if (t->dtype != ST_F16 && t->dtype != ST_BF16 && t->dtype != ST_F32)
        return why_set(why, E_UNSUPPORTED,
                       "%s: tensor %s has dtype %s; F16, BF16 and F32 are "
                       "supported",
                       f->label, t->name, st_dtype_name(t->dtype));
    if (rows ? t->n_dims == 2 && t->dim[0] == rows && t->dim[1] == cols
             : t->n_dims == 1 && t->dim[0] == cols)
        return E_OK;
    char got[128] = "";
    for (int32_t i = 0; i < t->n_dims && i < 4; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%lld", i ? ", " : "",
                 (long long)t->dim[i]);
    if (rows)
        return why_set(why, E_FORMAT,
                       "%s: tensor %s has shape [%s]; config.json makes it [%lld, %lld]", f->label,
                       t->name, got, (long long)rows, (long long)cols);
    return why_set(why, E_FORMAT, "%s: tensor %s has shape [%s]; config.json makes it [%lld]",
                   f->label, t->name, got, (long long)cols);
}

/* Exactly the expected tensors, each once. */
static err_t check_tensors(const struct checkpoint *c, struct why *why) {
    char name[128];
    int64_t rows, cols;
    int64_t n_expected = 0, n_found = 0;
    for (int32_t i = 0; expected_tensor(&c->config, i, name, sizeof name, &rows, &cols); i++) {
        const struct st_file *f;
        const struct st_tensor *t = checkpoint_find(c, name, &f);
        if (!t)
            return why_set(why, E_FORMAT, "%s: tensor %s is missing", c->dir, name);
        err_t e = check_tensor(f, t, rows, cols, why);
        if (e)
            return e;
        n_expected++;
    }
    for (int32_t i = 0; i < c->n_files; i++)
        for (int32_t j = 0; j < c->file[i].n_tensors; j++) {
            const char *found = c->file[i].tensor[j].name;
            if (is_tolerated(&c->config, found))
                continue;
            const struct st_file *first;
            checkpoint_find(c, found, &first);
            if (first != &c->file[i])
                return why_set(why, E_FORMAT, "%s: tensor %s is also in %s", c->file[i].label,
                               found, first->label);
            n_found++;
        }
    if (n_found == n_expected)
        return E_OK;
    for (int32_t i = 0; i < c->n_files; i++)
        for (int32_t j = 0; j < c->file[i].n_tensors; j++) {
            const char *found = c->file[i].tensor[j].name;
            bool known = is_tolerated(&c->config, found);
            for (int32_t k = 0;
                 !known && expected_tensor(&c->config, k, name, sizeof name, &rows, &cols); k++)
                known = strcmp(found, stored_name(c, name)) == 0;
            if (!known && ends_with(found, ".bias"))
                return why_set(why, E_UNSUPPORTED,
                               "%s: tensor %s is a bias; layers with biases are not supported",
                               c->file[i].label, found);
            if (!known)
                return why_set(why, E_UNSUPPORTED,
                               "%s: tensor %s does not belong to the model that config.json "
                               "describes",
                               c->file[i].label, found);
        }
    return why_set(why, E_FORMAT, "%s: has %lld tensors instead of %lld", c->dir,
                   (long long)n_found, (long long)n_expected);
}

err_t checkpoint_open(struct checkpoint *c, const char *dir, struct why *why) {
    memset(c, 0, sizeof *c);
    c->dir = strdup(dir);
    if (!c->dir)
        return why_set(why, E_NOMEM, "%s: not enough memory", dir);
    err_t e = read_configs(c, why);
    if (!e)
        e = open_files(c, why);
    if (!e) {
        c->bare = !checkpoint_find(c, "model.embed_tokens.weight", NULL) &&
                  checkpoint_find(c, "embed_tokens.weight", NULL);
        e = check_tensors(c, why);
    }
    if (e)
        checkpoint_close(c);
    return e;
}

void checkpoint_close(struct checkpoint *c) {
    for (int32_t i = 0; i < c->n_files; i++) {
        st_close(&c->file[i]);
        close(c->fd[i]);
    }
    free(c->file);
    free(c->fd);
    free(c->config_json);
    free(c->generation_json);
    free(c->dir);
    memset(c, 0, sizeof *c);
}

const struct st_tensor *checkpoint_find(const struct checkpoint *c, const char *name,
                                        const struct st_file **file) {
    for (int32_t i = 0; i < c->n_files; i++) {
        const struct st_tensor *t = st_find(&c->file[i], name);
        if (!t)
            t = st_find(&c->file[i], stored_name(c, name));
        if (t) {
            if (file)
                *file = &c->file[i];
            return t;
        }
    }
    return NULL;
}

/* ---- reading --------------------------------------------------------------------------------- */

static err_t find_sized(const struct checkpoint *c, const char *name, size_t n,
                        const struct st_tensor **t, const struct st_file **f, struct why *why) {
    *t = checkpoint_find(c, name, f);
    if (!*t)
        return why_set(why, E_FORMAT, "%s: tensor %s is missing", c->dir, name);
    if ((*t)->bytes != n * st_dtype_bytes((*t)->dtype))
        return why_set(why, E_INTERNAL, "%s: tensor %s does not have %zu elements", (*f)->label,
                       name, n);
    return E_OK;
}

static err_t refuse_element(const struct st_file *f, const char *name, size_t i, float x,
                            struct why *why) {
    if (isfinite(x))
        return why_set(why, E_FORMAT, "%s: tensor %s: element %zu is %g, which FP16 cannot hold",
                       f->label, name, i, (double)x);
    return why_set(why, E_FORMAT, "%s: tensor %s: element %zu is not a finite number", f->label,
                   name, i);
}

static bool f16_is_finite(uint16_t h) {
    return (h & 0x7c00) != 0x7c00;
}

err_t checkpoint_read_f16(const struct checkpoint *c, const char *name, uint16_t *dst, size_t n,
                          struct why *why) {
    const struct st_file *f;
    const struct st_tensor *t;
    err_t e = find_sized(c, name, n, &t, &f, why);
    if (e)
        return e;
    size_t size = st_dtype_bytes(t->dtype);
    void *raw = NULL;
    float *wide = NULL;
    if (t->dtype != ST_F16) {
        raw = malloc(CHUNK_ELEMENTS * size);
        wide = malloc(CHUNK_ELEMENTS * sizeof *wide);
        if (!raw || !wide)
            e = why_set(why, E_NOMEM, "%s: not enough memory to read tensor %s", f->label, name);
    }
    for (size_t at = 0; !e && at < n; at += CHUNK_ELEMENTS) {
        size_t m = n - at < CHUNK_ELEMENTS ? n - at : CHUNK_ELEMENTS;
        uint16_t *to = dst + at;
        e = st_read_part(f, t, at * size, raw ? raw : to, m * size, why);
        if (e)
            break;
        if (wide) {
            st_to_f32(t->dtype, raw, wide, m);
            for (size_t i = 0; i < m; i++)
                to[i] = half_from_float(wide[i]);
        }
        uint16_t bad = 0; /* one pass without a branch, the search only when it found something */
        for (size_t i = 0; i < m; i++)
            bad |= !f16_is_finite(to[i]);
        for (size_t i = 0; bad && i < m; i++)
            if (!f16_is_finite(to[i])) {
                e = refuse_element(f, name, at + i, wide ? wide[i] : half_to_float(to[i]), why);
                break;
            }
    }
    free(raw);
    free(wide);
    return e;
}

/* A tensor with elements up to `end`. */
static err_t find_long(const struct checkpoint *c, const char *name, uint64_t end,
                       const struct st_tensor **t, const struct st_file **f, struct why *why) {
    *t = checkpoint_find(c, name, f);
    if (!*t)
        return why_set(why, E_FORMAT, "%s: tensor %s is missing", c->dir, name);
    if (end > (*t)->bytes / st_dtype_bytes((*t)->dtype))
        return why_set(why, E_INTERNAL, "%s: tensor %s has no elements up to %llu", (*f)->label,
                       name, (unsigned long long)end);
    return E_OK;
}

err_t checkpoint_read_half_rows(const struct checkpoint *c, const char *name, uint16_t *dst,
                                uint64_t first, size_t n, struct why *why) {
    const struct st_file *f;
    const struct st_tensor *t;
    err_t e = find_long(c, name, first + n, &t, &f, why);
    if (!e && (c->overlay.read || (t->dtype != ST_F16 && t->dtype != ST_BF16)))
        e = why_set(why, E_INTERNAL, "%s: tensor %s is not in half precision", c->dir, name);
    e = e ? e : st_read_part(f, t, first * sizeof *dst, dst, n * sizeof *dst, why);
    if (e)
        return e;
    uint16_t exponent = t->dtype == ST_F16 ? 0x7c00 : 0x7f80, bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (dst[i] & exponent) == exponent;
    for (size_t i = 0; bad && i < n; i++)
        if ((dst[i] & exponent) == exponent) {
            float x = 0;
            st_to_f32(t->dtype, &dst[i], &x, 1);
            return refuse_element(f, name, (size_t)first + i, x, why);
        }
    return E_OK;
}

err_t checkpoint_read_f32_rows(const struct checkpoint *c, const char *name, float *dst,
                               uint64_t first, size_t n, struct why *why) {
    if (c->overlay.read)
        return c->overlay.read(c->overlay.arg, name, dst, first, n, why);
    const struct st_file *f;
    const struct st_tensor *t;
    err_t e = find_long(c, name, first + n, &t, &f, why);
    if (e)
        return e;
    size_t size = st_dtype_bytes(t->dtype);
    void *raw = malloc(CHUNK_ELEMENTS * size);
    if (!raw)
        return why_set(why, E_NOMEM, "%s: not enough memory to read tensor %s", f->label, name);
    for (size_t at = 0; !e && at < n; at += CHUNK_ELEMENTS) {
        size_t m = n - at < CHUNK_ELEMENTS ? n - at : CHUNK_ELEMENTS;
        e = st_read_part(f, t, (first + at) * size, raw, m * size, why);
        if (!e)
            st_to_f32(t->dtype, raw, dst + at, m);
        for (size_t i = at; !e && i < at + m; i++)
            if (!isfinite(dst[i]))
                e = refuse_element(f, name, (size_t)first + i, dst[i], why);
    }
    free(raw);
    return e;
}

err_t checkpoint_read_f32(const struct checkpoint *c, const char *name, float *dst, size_t n,
                          struct why *why) {
    const struct st_file *f;
    const struct st_tensor *t;
    err_t e = c->overlay.read ? E_OK : find_sized(c, name, n, &t, &f, why);
    return e ? e : checkpoint_read_f32_rows(c, name, dst, 0, n, why);
}

/* ---- fingerprint ----------------------------------------------------------------------------- */

err_t checkpoint_fingerprint(const struct checkpoint *c, unsigned char out[SHA256_BYTES],
                             hash_progress_fn *progress, void *arg, struct why *why) {
    size_t capacity = 1;
    for (int32_t i = 0; i < c->n_files; i++)
        capacity += (size_t)c->file[i].n_tensors;
    struct hash_job *job = calloc(capacity, sizeof *job);
    if (!job)
        return why_set(why, E_NOMEM, "%s: not enough memory to hash it", c->dir);
    int32_t n = 0;
    for (int32_t i = 0; i < c->n_files; i++)
        for (int32_t j = 0; j < c->file[i].n_tensors; j++)
            if (!is_inv_freq(c->file[i].tensor[j].name)) {
                job[n].file = &c->file[i];
                job[n++].tensor = &c->file[i].tensor[j];
            }
    struct sha256 sum;
    err_t e = hash_tensors(job, n, NULL, progress, arg, why);
    if (!e && (e = sha256_init(&sum)))
        e = why_set(why, e, "%s: not enough memory to hash it", c->dir);
    if (!e) {
        hash_lines(&sum, job, n);
        sha256_end(&sum, out);
    }
    free(job);
    return e;
}
