/* Making, filling and freeing the calibration model's weights. */
#include "compress/llama.h"

#include <stdlib.h>
#include <string.h>

#include "compress/parallel.h"
#include "engine/rope.h"
#include "kernels/f16.h"

/* A thread lives for a block alone: more of them than this take longer to start than to read. */
enum { READ_TASKS = 16 };

void llama_tensor(char *out, size_t n, const struct model_config *c, int32_t i) {
    int32_t n_linears = c->shape.n_layers * N_PARTS;
    if (i < n_linears) {
        part_name(out, n - 8, i / N_PARTS, (enum part)(i % N_PARTS));
        strcat(out, ".weight");
    } else {
        snprintf(out, n, "%s",
                 i == n_linears || c->tied ? "model.embed_tokens.weight" : "lm_head.weight");
    }
}

/* ---- where they come from -------------------------------------------------------------------- */

static size_t cols_of(const struct model_config *c, int32_t i) {
    const struct model_shape *s = &c->shape;
    return (size_t)(i < s->n_layers * N_PARTS ? part_cols(s, (enum part)(i % N_PARTS)) : s->dim);
}

static enum train_number file_type(void *arg, int32_t i) {
    const struct llama_files *f = arg;
    const struct st_file *file;
    char name[160];
    llama_tensor(name, sizeof name, &f->files->config, i);
    const struct st_tensor *t = checkpoint_find(f->files, name, &file);
    bool half = !f->files->overlay.read && t && (t->dtype == ST_F16 || t->dtype == ST_BF16);
    return !half ? TRAIN_F32 : t->dtype == ST_F16 ? TRAIN_F16 : TRAIN_BF16;
}

static err_t file_stored(void *arg, int32_t i, int32_t first, int32_t n, uint16_t *out,
                         struct why *why) {
    const struct llama_files *f = arg;
    size_t k = cols_of(&f->files->config, i);
    char name[160];
    llama_tensor(name, sizeof name, &f->files->config, i);
    return checkpoint_read_half_rows(f->files, name, out, (uint64_t)first * k, (size_t)n * k, why);
}

static err_t file_rows(void *arg, int32_t i, int32_t first, int32_t n, float *out,
                       struct why *why) {
    const struct llama_files *f = arg;
    char name[160];
    llama_tensor(name, sizeof name, &f->files->config, i);
    size_t k = cols_of(&f->files->config, i);
    err_t e =
        checkpoint_read_f32_rows(f->files, name, out, (uint64_t)first * k, (size_t)n * k, why);
    for (size_t l = 0; !e && f->served && l < (size_t)n * k; l++)
        out[l] = half_to_float(half_from_float(out[l]));
    return e;
}

static err_t file_norms(void *arg, float *out, struct why *why) {
    const struct llama_files *f = arg;
    const struct model_shape *s = &f->files->config.shape;
    err_t e = 0;
    for (int32_t i = 0; !e && i < 2 * s->n_layers + 1; i++) {
        char name[160];
        norm_name(name, sizeof name, s, i);
        e = checkpoint_read_f32(f->files, name, out + (size_t)i * (size_t)s->dim, (size_t)s->dim,
                                why);
    }
    return e;
}

struct llama_source llama_source_files(struct llama_files *f) {
    /* An overlay computes what it reads, and remembers things in between. */
    return (struct llama_source){.one_by_one = f->files->overlay.read != NULL,
                                 .rows = file_rows,
                                 .type = file_type,
                                 .stored = file_stored,
                                 .served = f->served,
                                 .norms = file_norms,
                                 .arg = f};
}

/* ---- to a device ----------------------------------------------------------------------------- */

static int32_t block_rows(int32_t k) {
    return LLAMA_BLOCK / k > 0 ? LLAMA_BLOCK / k : 1;
}

err_t llama_reader_open(struct llama_reader *r, struct train *t, struct llama_source from,
                        struct why *why) {
    size_t bytes = LLAMA_BLOCK * sizeof(float);
    *r = (struct llama_reader){.t = t, .from = from, .host = malloc(bytes)};
    if (!r->host || t->ops->take(t, bytes, &r->stage))
        return why_set(why, E_NOMEM, "There is not enough memory to read weights.");
    return 0;
}

void llama_reader_close(struct llama_reader *r) {
    if (r->t)
        r->t->ops->give(r->t, r->stage);
    free(r->host);
    *r = (struct llama_reader){0};
}

/* Rows of a block, read by several threads. */
struct reading {
    const struct llama_source *from;
    enum train_number type;
    int32_t i_matrix, first;
    size_t row; /* bytes */
    char *out;
    int32_t step;
    err_t error[READ_TASKS]; /* by the first row's number, so that no two tasks share one */
    struct why why[READ_TASKS];
};

static void read_rows(void *arg, int32_t first, int32_t end) {
    struct reading *r = arg;
    int32_t task = first / r->step, at = r->first + first, n = end - first;
    char *out = r->out + (size_t)first * r->row;
    r->error[task] = r->type == TRAIN_F32 ? r->from->rows(r->from->arg, r->i_matrix, at, n,
                                                          (float *)(void *)out, &r->why[task])
                                          : r->from->stored(r->from->arg, r->i_matrix, at, n,
                                                            (uint16_t *)(void *)out, &r->why[task]);
}

err_t llama_read(struct llama_reader *r, int32_t i_matrix, int32_t first, int32_t n, int32_t k,
                 float *x, struct why *why) {
    const struct llama_source *from = &r->from;
    struct reading *job = malloc(sizeof *job);
    err_t e = job ? 0 : why_set(why, E_NOMEM, "There is not enough memory to read weights.");
    enum train_number type = from->type ? from->type(from->arg, i_matrix) : TRAIN_F32;
    for (int32_t at = 0, rows; !e && at < n; at += rows) {
        rows = n - at < block_rows(k) ? n - at : block_rows(k);
        *job = (struct reading){from, type, i_matrix, first + at, .out = r->host};
        job->row = (size_t)k * train_number_bytes(type);
        job->step = from->one_by_one ? rows : (rows + READ_TASKS - 1) / READ_TASKS;
        parallel_rows(rows, job->step, read_rows, job);
        for (int32_t task = 0; !e && task < READ_TASKS; task++)
            if ((e = job->error[task]))
                *why = job->why[task];
        if (e)
            break;
        size_t floats = (size_t)rows * (size_t)k;
        r->t->ops->put(r->t, r->stage, r->host, (size_t)rows * job->row);
        r->t->ops->widen(r->t, type, from->served, floats, r->stage, x + (size_t)at * (size_t)k);
    }
    free(job);
    return e;
}

/* ---- making ---------------------------------------------------------------------------------- */

static size_t size_of(const struct train_weights *w) {
    return (size_t)w->n * (size_t)w->k;
}

static err_t no_room(const struct llama *m, struct why *why) {
    return why_set(why, E_NOMEM, "There is not enough memory for the model on this device (%s).",
                   m->t->ops->describe(m->t));
}

static err_t make_norms(struct llama *m) {
    const struct model_shape *s = &m->config.shape;
    size_t n_norm = (size_t)(2 * s->n_layers + 1) * (size_t)s->dim,
           n_rope = rope_floats(m->config.context, s->head_dim), most = n_norm;
    most = n_rope > most ? n_rope : most;
    float *host = malloc(most * sizeof *host);
    err_t e = host ? 0 : E_NOMEM;
    e = e ? e : m->t->ops->take(m->t, n_norm * sizeof *host, (void **)&m->norm);
    e = e ? e : m->t->ops->take(m->t, n_rope * sizeof *host, (void **)&m->rope);
    if (!e) {
        for (size_t i = 0; i < n_norm; i++)
            host[i] = 1;
        m->t->ops->put(m->t, m->norm, host, n_norm * sizeof *host);
        rope_fill(host, &m->config.rope, m->config.context, s->head_dim);
        m->t->ops->put(m->t, m->rope, host, n_rope * sizeof *host);
    }
    free(host);
    return e;
}

err_t llama_make(struct llama *m, struct train *t, const struct model_config *config, bool shell,
                 struct why *why) {
    const struct model_shape *s = &config->shape;
    *m = (struct llama){.t = t, .config = *config, .n_matrices = s->n_layers * N_PARTS + 2};
    m->matrix = calloc((size_t)m->n_matrices, sizeof *m->matrix);
    err_t e = m->matrix ? make_norms(m) : E_NOMEM;
    for (int32_t i = 0; m->matrix && i < m->n_matrices; i++) {
        struct train_weights *x = &m->matrix[i];
        bool part = i < llama_embed(m);
        x->n = part ? part_rows(s, (enum part)(i % N_PARTS)) : s->vocab;
        x->k = part ? part_cols(s, (enum part)(i % N_PARTS)) : s->dim;
        if (i == llama_head(m) && config->tied)
            x->w = m->matrix[llama_embed(m)].w;
        else if (!e && !shell)
            e = t->ops->take(t, size_of(x) * t->ops->weight_bytes, &x->w);
    }
    return e ? no_room(m, why) : 0;
}

static err_t fill(struct llama *m, struct llama_reader *r, struct progress *p, float *device,
                  struct why *why) {
    struct train *t = m->t;
    size_t done = 0, all = 0;
    for (int32_t i = 0; i < m->n_matrices; i++)
        all += size_of(&m->matrix[i]);
    for (int32_t i = 0; i < m->n_matrices; i++) {
        const struct train_weights *x = &m->matrix[i];
        int32_t step = block_rows(x->k);
        bool again = i == llama_head(m) && m->config.tied;
        for (int32_t at = 0; !again && at < x->n; at += step) {
            struct train_weights part = {(char *)x->w +
                                             (size_t)at * (size_t)x->k * t->ops->weight_bytes,
                                         x->n - at < step ? x->n - at : step, x->k};
            err_t e = llama_read(r, i, at, part.n, x->k, device, why);
            if (e)
                return e;
            t->ops->store(t, device, &part);
            done += size_of(&part);
            if (p)
                progress_show(p, done, all);
        }
    }
    return t->ops->settle(t, why);
}

err_t llama_load(struct llama *m, struct train *t, const struct model_config *config,
                 struct llama_source from, struct progress *p, struct why *why) {
    err_t e = llama_make(m, t, config, false, why);
    const struct model_shape *s = &config->shape;
    size_t n_norm = (size_t)(2 * s->n_layers + 1) * (size_t)s->dim;
    struct llama_reader r = {0};
    float *norms = e ? NULL : malloc(n_norm * sizeof *norms), *device = NULL;
    e = e ? e : llama_reader_open(&r, t, from, why);
    if (!e)
        e = norms && !t->ops->take(t, LLAMA_BLOCK * sizeof *device, (void **)&device)
                ? 0
                : no_room(m, why);
    e = e ? e : fill(m, &r, p, device, why);
    e = e ? e : from.norms(from.arg, norms, why);
    if (!e)
        t->ops->put(t, m->norm, norms, n_norm * sizeof *norms);
    t->ops->give(t, device);
    llama_reader_close(&r);
    free(norms);
    return e;
}

void llama_release(struct llama *m, int32_t keep) {
    if (keep == llama_head(m) && m->config.tied)
        keep = llama_embed(m);
    for (int32_t i = 0; m->matrix && i < m->n_matrices; i++) {
        bool again = i == llama_head(m) && m->config.tied;
        if (i != keep && !again)
            m->t->ops->give(m->t, m->matrix[i].w);
        if (i != keep && !(again && keep == llama_embed(m)))
            m->matrix[i].w = NULL;
    }
}

void llama_free(struct llama *m) {
    if (!m->t)
        return;
    llama_release(m, -1);
    m->t->ops->give(m->t, m->norm);
    m->t->ops->give(m->t, m->rope);
    free(m->matrix);
    *m = (struct llama){0};
}

double llama_bytes(const struct model_config *c, size_t weight_bytes) {
    const struct model_shape *s = &c->shape;
    double weights = (c->tied ? 1.0 : 2.0) * s->vocab * s->dim;
    for (int p = 0; p < N_PARTS; p++)
        weights += (double)s->n_layers * part_rows(s, (enum part)p) * part_cols(s, (enum part)p);
    return weights * (double)weight_bytes;
}
