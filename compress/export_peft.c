/* A tenant of low-rank pairs as the PEFT adapter that computes the same. The tenant's pairs have
 * their scaling folded in, so the adapter's is 1 everywhere: alpha equals rank. Their FP16 bits go
 * over as they are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/export.h"

struct adapter {
    const struct export_job *j;
    struct st_writer *w;
    const float *base_norm; /* [2L + 1, D] */
    int32_t rank;           /* the largest, "r" of the config */
    json_t *ranks, *whole;  /* patterns of both kinds; modules_to_save */
    int32_t n_pairs[N_PARTS];
};

static const struct delta *delta_of(const struct export_matrix *m) {
    return m->delta ? m->delta : &m->vocab->delta;
}
static bool is_whole(const struct export_matrix *m) {
    return m->delta ? m->delta->dense != NULL : m->vocab->dense || m->vocab->n_rows;
}
static bool of_embedding(const struct export_matrix *m) {
    return m->vocab && strcmp(m->name, "model.embed_tokens.weight") == 0;
}

/* "model.layers.0.self_attn.q_proj", "lm_head": the tensor's name without its end. */
static void module_of(const char *tensor, char *out, size_t n) {
    snprintf(out, n, "%.*s", (int)(strlen(tensor) - strlen(".weight")), tensor);
}

static void pair_name(const struct export_matrix *m, char side, char *out, size_t n) {
    char module[160];
    module_of(m->name, module, sizeof module);
    snprintf(out, n,
             of_embedding(m) ? "base_model.model.%s.lora_embedding_%c"
                             : "base_model.model.%s.lora_%c.weight",
             module, side);
}

static const float *norm_of(const struct adapter *x, int32_t i) {
    return x->j->t->norm + (size_t)i * (size_t)x->j->base->checkpoint.config.shape.dim;
}
static bool norm_differs(const struct adapter *x, int32_t i) {
    size_t dim = (size_t)x->j->base->checkpoint.config.shape.dim;
    return memcmp(norm_of(x, i), x->base_norm + (size_t)i * dim, dim * sizeof(float)) != 0;
}

/* ---- whether it is one ----------------------------------------------------------------------- */

static bool same_json(const char *a, const char *b) {
    json_t *x = json_loads(a, 0, NULL), *y = json_loads(b, 0, NULL);
    bool same = json_equal(x, y);
    json_decref(x);
    json_decref(y);
    return same;
}

static err_t check(const struct adapter *x, struct why *why) {
    const struct checkpoint *base = &x->j->base->checkpoint;
    const struct tenant_meta *meta = &x->j->t->meta;
    struct export_matrix m;
    for (int32_t i = 0; export_matrix_at(x->j, i, &m); i++)
        if (delta_of(&m)->n_planes)
            return why_set(why, E_UNSUPPORTED,
                           "%s has sign planes, and an adapter only low-rank pairs and whole "
                           "matrices: export without --peft",
                           m.name);
    if (!same_json(meta->config_json, base->config_json) ||
        !same_json(meta->generation_json, base->generation_json))
        return why_set(why, E_UNSUPPORTED,
                       "the tenant has a config.json or generation_config.json of its own, which "
                       "an adapter cannot carry: export without --peft");
    return E_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static void declare_whole(struct adapter *x, const char *tensor, enum st_dtype dtype,
                          int32_t n_dims, const int64_t *dim) {
    char module[160], name[200];
    module_of(tensor, module, sizeof module);
    snprintf(name, sizeof name, "base_model.model.%s", tensor);
    st_writer_tensor(x->w, name, dtype, n_dims, dim);
    json_array_append_new(x->whole, json_string(module));
}

static void declare(struct adapter *x) {
    const struct model_shape *s = &x->j->base->checkpoint.config.shape;
    struct export_matrix m;
    char name[200];
    st_writer_meta(x->w, "format", "pt");
    for (int32_t i = 0; export_matrix_at(x->j, i, &m); i++) {
        const struct delta *d = delta_of(&m);
        if (is_whole(&m)) {
            declare_whole(x, m.name, ST_F16, 2, (int64_t[]){m.n, m.k});
        } else if (d->rank) {
            int64_t n = of_embedding(&m) ? m.k : m.n, k = of_embedding(&m) ? m.n : m.k;
            pair_name(&m, 'A', name, sizeof name);
            st_writer_tensor(x->w, name, ST_F16, 2, (int64_t[]){d->rank, k});
            pair_name(&m, 'B', name, sizeof name);
            st_writer_tensor(x->w, name, ST_F16, 2, (int64_t[]){n, d->rank});
        }
    }
    for (int32_t i = 0; i < 2 * s->n_layers + 1; i++)
        if (norm_differs(x, i)) {
            norm_name(name, sizeof name, s, i);
            declare_whole(x, name, ST_F32, 1, (int64_t[]){s->dim});
        }
}

/* x [rows, cols] as [cols, rows]. */
static err_t write_transposed(struct st_writer *w, const uint16_t *x, int32_t rows, int32_t cols,
                              struct why *why) {
    size_t n = (size_t)rows * (size_t)cols;
    uint16_t *y = malloc(n * sizeof *y);
    for (int32_t r = 0; y && r < rows; r++)
        for (int32_t c = 0; c < cols; c++)
            y[(size_t)c * (size_t)rows + (size_t)r] = x[(size_t)r * (size_t)cols + (size_t)c];
    err_t e = y ? st_writer_data(w, y, n * sizeof *y, why)
                : why_set(why, E_NOMEM, "not enough memory for the adapter");
    free(y);
    return e;
}

static err_t write_pair(struct adapter *x, const struct export_matrix *m, struct why *why) {
    const struct delta *d = delta_of(m);
    size_t n_a = (size_t)d->rank * (size_t)m->k, n_b = (size_t)m->n * (size_t)d->rank;
    err_t e;
    if (of_embedding(m)) { /* PEFT looks rows up in A' */
        e = write_transposed(x->w, d->b, m->n, d->rank, why);
        return e ? e : write_transposed(x->w, d->a, d->rank, m->k, why);
    }
    e = st_writer_data(x->w, d->a, n_a * sizeof *d->a, why);
    return e ? e : st_writer_data(x->w, d->b, n_b * sizeof *d->b, why);
}

static err_t write_tensors(struct adapter *x, struct why *why) {
    const struct model_shape *s = &x->j->base->checkpoint.config.shape;
    char path[4096];
    struct export_matrix m;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", x->j->dir);
    err_t e = st_writer_open(&x->w, path, why);
    if (e)
        return e;
    declare(x);
    e = st_writer_header(x->w, 8, why);
    for (int32_t i = 0; !e && export_matrix_at(x->j, i, &m); i++) {
        if (is_whole(&m))
            e = export_write_merged(x->j, &m, x->w, why);
        else if (delta_of(&m)->rank)
            e = write_pair(x, &m, why);
    }
    for (int32_t i = 0; !e && i < 2 * s->n_layers + 1; i++)
        if (norm_differs(x, i))
            e = st_writer_data(x->w, norm_of(x, i), (size_t)s->dim * sizeof(float), why);
    if (!e)
        return st_writer_end(x->w, why);
    st_writer_abort(x->w);
    return e;
}

/* ---- config ---------------------------------------------------------------------------------- */

/* What a pair's rank and name say to the config: modules that all layers have are named shortly. */
static json_t *targets_of(struct adapter *x) {
    static const char *const names[N_PARTS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                               "gate_proj", "up_proj", "down_proj"};
    const struct model_shape *s = &x->j->base->checkpoint.config.shape;
    json_t *out = json_array();
    struct export_matrix m;
    char module[160];
    for (int32_t i = 0; export_matrix_at(x->j, i, &m); i++)
        if (!is_whole(&m) && delta_of(&m)->rank) {
            x->rank = delta_of(&m)->rank > x->rank ? delta_of(&m)->rank : x->rank;
            if (m.delta)
                x->n_pairs[i % N_PARTS]++;
        }
    for (int p = 0; p < N_PARTS; p++)
        if (x->n_pairs[p] == s->n_layers)
            json_array_append_new(out, json_string(names[p]));
    for (int32_t i = 0; export_matrix_at(x->j, i, &m); i++) {
        const struct delta *d = delta_of(&m);
        if (is_whole(&m) || !d->rank)
            continue;
        module_of(m.name, module, sizeof module);
        if (d->rank != x->rank)
            json_object_set_new(x->ranks, module, json_integer(d->rank));
        if (!m.delta || x->n_pairs[i % N_PARTS] < s->n_layers)
            json_array_append_new(out, json_string(module));
    }
    return out;
}

static err_t write_config(struct adapter *x, struct why *why) {
    json_t *targets = targets_of(x);
    bool whole = json_array_size(x->whole) > 0;
    json_t *config = json_pack(
        "{s:s, s:s, s:s, s:b, s:i, s:i, s:f, s:s, s:b, s:b, s:b, s:b, s:o, s:O, s:O, s:O*}",
        "peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path",
        job_name_of(x->j->base->checkpoint.dir), "inference_mode", 1, "r", x->rank ? x->rank : 1,
        "lora_alpha", x->rank ? x->rank : 1, "lora_dropout", 0.0, "bias", "none", "use_rslora", 0,
        "use_dora", 0, "fan_in_fan_out", 0, "init_lora_weights", 1, "target_modules", targets,
        "rank_pattern", x->ranks, "alpha_pattern", x->ranks, "modules_to_save",
        whole ? x->whole : NULL);
    err_t e = config ? export_json(x->j->dir, "adapter_config.json", config, why)
                     : why_set(why, E_NOMEM, "not enough memory for the adapter");
    json_decref(config);
    return e;
}

err_t export_peft(const struct export_job *j, struct why *why) {
    struct adapter x = {.j = j, .ranks = json_object(), .whole = json_array()};
    float *norms = NULL;
    err_t e = x.ranks && x.whole ? job_norms(&j->base->checkpoint, &norms, why)
                                 : why_set(why, E_NOMEM, "not enough memory for the adapter");
    x.base_norm = norms;
    e = e ? e : check(&x, why);
    e = e ? e : write_tensors(&x, why);
    e = e ? e : write_config(&x, why);
    free(norms);
    json_decref(x.ranks);
    json_decref(x.whole);
    return e;
}
