/* What base and adapter make together. The merge is what PEFT's merge_and_unload computes, in FP32:
 * W + scale B A, with DoRA each row stretched to its magnitude; a whole matrix takes the base's
 * place first, replaced rows win last. */
#include "compress/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/parallel.h"

enum { MERGE_ROWS = 16 };

/* ---- reading --------------------------------------------------------------------------------- */

/* Elements [first, first + n) of a tensor of the adapter. */
static err_t read_part(const struct lora *l, const struct st_tensor *t, float *dst, uint64_t first,
                       size_t n, struct why *why) {
    size_t size = st_dtype_bytes(t->dtype);
    void *raw = malloc(n * size + 1);
    err_t e = raw ? st_read_part(&l->file, t, first * size, raw, n * size, why)
                  : why_set(why, E_NOMEM, "not enough memory for %s", t->name);
    if (!e && st_to_f32(t->dtype, raw, dst, n) != E_OK)
        e = why_set(why, E_UNSUPPORTED, "%s: tensor %s has dtype %s; a float type is wanted",
                    l->file.label, t->name, st_dtype_name(t->dtype));
    for (size_t i = 0; !e && i < n; i++)
        if (!isfinite(dst[i]))
            e = why_set(why, E_FORMAT, "%s: tensor %s: element %zu is not a finite number",
                        l->file.label, t->name, (size_t)first + i);
    free(raw);
    return e;
}

/* x [rows, cols] becomes [cols, rows]. */
static err_t transpose(float **x, int32_t rows, int32_t cols) {
    float *y = malloc((size_t)rows * (size_t)cols * sizeof *y);
    for (int32_t r = 0; y && r < rows; r++)
        for (int32_t c = 0; c < cols; c++)
            y[(size_t)c * (size_t)rows + (size_t)r] = (*x)[(size_t)r * (size_t)cols + (size_t)c];
    free(*x);
    *x = y;
    return y ? E_OK : E_NOMEM;
}

err_t lora_pair_read(const struct lora *l, const struct lora_module *m, struct lora_pair *out,
                     struct why *why) {
    int32_t rank = (int32_t)m->a->dim[0];
    size_t n_a = (size_t)rank * (size_t)m->k, n_b = (size_t)m->n * (size_t)rank;
    size_t most = n_a > n_b ? n_a : n_b;
    *out = (struct lora_pair){.rank = rank, .n = m->n, .k = m->k, .module = m};
    float scale, *a = malloc(most * sizeof *a), *b = malloc(most * sizeof *b);
    err_t e = a && b ? lora_scale(&l->config, m->name, rank, &scale, why)
                     : why_set(why, E_NOMEM, "not enough memory for %s", m->name);
    e = e ? e : read_part(l, m->a, a, 0, m->of_embedding ? n_b : n_a, why);
    e = e ? e : read_part(l, m->b, b, 0, m->of_embedding ? n_a : n_b, why);
    out->a = a, out->b = b;
    if (!e && m->of_embedding) { /* PEFT looks rows up in A', so its pair is the other way round */
        e = transpose(&a, rank, m->n);
        e = e ? e : transpose(&b, m->k, rank);
        out->a = b, out->b = a;
        if (e)
            why_set(why, e, "not enough memory for %s", m->name);
    }
    for (size_t i = 0; !e && i < n_b; i++)
        out->b[i] *= scale;
    return e;
}

void lora_pair_free(struct lora_pair *p) {
    free(p->a);
    free(p->b);
    *p = (struct lora_pair){0};
}

/* ---- merging --------------------------------------------------------------------------------- */

struct merge {
    const struct lora_pair *p;
    const float *magnitude; /* of the rows from `first` on; NULL: none */
    float *w;               /* [rows, k] */
    int32_t first;
};

static void merge_range(void *arg, int32_t from, int32_t end) {
    const struct merge *m = arg;
    const struct lora_pair *p = m->p;
    for (int32_t r = from; r < end; r++) {
        float *w = m->w + (size_t)r * (size_t)p->k;
        for (int32_t j = 0; j < p->rank; j++) {
            float b = p->b[(size_t)(m->first + r) * (size_t)p->rank + (size_t)j];
            const float *a = p->a + (size_t)j * (size_t)p->k; /* [k] */
            for (int32_t i = 0; i < p->k; i++)
                w[i] += b * a[i];
        }
        double sum = 0;
        for (int32_t i = 0; m->magnitude && i < p->k; i++)
            sum += (double)w[i] * w[i];
        float stretch = sum > 0 ? (float)(m->magnitude[r] / sqrt(sum)) : 1;
        for (int32_t i = 0; m->magnitude && i < p->k; i++)
            w[i] *= stretch;
    }
}

static err_t add_pair(struct lora *l, const struct lora_module *m, float *w, int32_t first,
                      int32_t rows, struct why *why) {
    err_t e = E_OK;
    if (!l->last && !(l->last = calloc(1, sizeof *l->last)))
        return why_set(why, E_NOMEM, "not enough memory for %s", m->name);
    if (l->last->module != m) { /* matrices are read in blocks of rows, one after the other */
        lora_pair_free(l->last);
        e = lora_pair_read(l, m, l->last, why);
    }
    struct merge merge = {.p = l->last, .w = w, .first = first};
    float *magnitude = NULL;
    if (!e && m->magnitude) {
        magnitude = malloc((size_t)rows * sizeof *magnitude);
        e = magnitude ? read_part(l, m->magnitude, magnitude, (uint64_t)first, (size_t)rows, why)
                      : why_set(why, E_NOMEM, "not enough memory for %s", m->name);
        merge.magnitude = magnitude;
    }
    if (!e)
        parallel_rows(rows, MERGE_ROWS, merge_range, &merge);
    else
        lora_pair_free(l->last);
    free(magnitude);
    return e;
}

static err_t put_tokens(const struct lora *l, const struct lora_module *m, float *w, int32_t first,
                        int32_t rows, struct why *why) {
    const json_t *ids =
        lora_token_ids(&l->config, strrchr(m->name, '.') ? "embed_tokens" : m->name);
    const json_t *id;
    size_t i;
    err_t e = E_OK;
    json_array_foreach((json_t *)ids, i, id) {
        int32_t r = (int32_t)json_integer_value(id) - first;
        if (!e && r >= 0 && r < rows)
            e = read_part(l, m->tokens, w + (size_t)r * (size_t)m->k, (uint64_t)i * (uint64_t)m->k,
                          (size_t)m->k, why);
    }
    return e;
}

/* Rows [first, first + rows) of the merged weight. */
static err_t merge_rows_of(struct lora *l, const struct lora_module *m, float *w, int32_t first,
                           int32_t rows, struct why *why) {
    bool head = m == &l->module[lora_head(l)];
    char name[160];
    uint64_t at = (uint64_t)first * (uint64_t)m->k;
    size_t n = (size_t)rows * (size_t)m->k;
    snprintf(name, sizeof name, "%s.weight",
             head && l->base->config.tied ? "model.embed_tokens" : m->name);
    err_t e = m->whole ? read_part(l, m->whole, w, at, n, why)
                       : checkpoint_read_f32_rows(l->base, name, w, at, n, why);
    if (!e && m->a)
        e = add_pair(l, m, w, first, rows, why);
    return e || !m->tokens ? e : put_tokens(l, m, w, first, rows, why);
}

static err_t lora_read(void *arg, const char *name, float *dst, uint64_t first, size_t n,
                       struct why *why) {
    struct lora *l = arg;
    size_t length = strlen(name);
    const struct lora_module *m = length > 7 && strcmp(name + length - 7, ".weight") == 0
                                      ? lora_find(l, name, length - 7)
                                      : NULL;
    if (!m || first + n > (uint64_t)m->n * (uint64_t)m->k)
        return why_set(why, E_INTERNAL, "%s: tensor %s has no elements up to %llu", l->dir, name,
                       (unsigned long long)(first + n));
    uint64_t k = (uint64_t)m->k, from = first / k, end = (first + n + k - 1) / k;
    if (from * k == first && end * k == first + n)
        return merge_rows_of(l, m, dst, (int32_t)from, (int32_t)(end - from), why);
    float *whole_rows = malloc((size_t)(end - from) * (size_t)k * sizeof *whole_rows);
    err_t e = whole_rows
                  ? merge_rows_of(l, m, whole_rows, (int32_t)from, (int32_t)(end - from), why)
                  : why_set(why, E_NOMEM, "not enough memory for %s", name);
    if (!e)
        memcpy(dst, whole_rows + (first - from * k), n * sizeof *dst);
    free(whole_rows);
    return e;
}

err_t lora_checkpoint(struct lora *l, struct checkpoint *out, struct why *why) {
    const struct checkpoint *base = l->base;
    *out = (struct checkpoint){.dir = strdup(l->dir),
                               .config = base->config,
                               .generation_json = strdup(base->generation_json),
                               .overlay = {lora_read, l}};
    out->config.shape.vocab = out->config.shape.max_vocab = l->vocab;
    out->config.tied = l->tied;
    if (l->vocab == base->config.shape.vocab && l->tied == base->config.tied) {
        out->config_json = strdup(base->config_json);
    } else {
        json_t *config = json_loads(base->config_json, 0, NULL);
        json_object_set_new(config, "vocab_size", json_integer(l->vocab));
        json_object_set_new(config, "tie_word_embeddings", json_boolean(l->tied));
        out->config_json = config ? json_dumps(config, JSON_COMPACT) : NULL;
        json_decref(config);
    }
    return out->dir && out->generation_json && out->config_json
               ? E_OK
               : why_set(why, E_NOMEM, "%s: not enough memory", l->dir);
}
