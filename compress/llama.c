/* Making, filling and freeing the calibration model's weights. */
#include "compress/llama.h"

#include <stdlib.h>
#include <string.h>

#include "compress/parallel.h"
#include "engine/rope.h"
#include "kernels/f16.h"

enum { BLOCK_FLOATS = 1 << 23 }; /* read at a time: 32 MB */

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

/* ---- where they come from ----------------------------------------------------------------------
 */

static err_t file_rows(void *arg, int32_t i, int32_t first, int32_t n, float *out,
                       struct why *why) {
    const struct llama_files *f = arg;
    const struct model_shape *s = &f->files->config.shape;
    char name[160];
    llama_tensor(name, sizeof name, &f->files->config, i);
    size_t k =
        (size_t)(i < s->n_layers * N_PARTS ? part_cols(s, (enum part)(i % N_PARTS)) : s->dim);
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
    return (struct llama_source){f->files->overlay.read != NULL, file_rows, file_norms, f};
}

/* ---- making ------------------------------------------------------------------------------------
 */

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

/* Rows of a block, read by several threads. */
struct reading {
    struct llama_source from;
    int32_t i_matrix, first, k;
    float *out;
    err_t error[64]; /* by the first row's number, so that no two tasks share one */
    struct why why[64];
    int32_t step;
};
static void read_rows(void *arg, int32_t first, int32_t end) {
    struct reading *r = arg;
    int32_t task = first / r->step;
    r->error[task] = r->from.rows(r->from.arg, r->i_matrix, r->first + first, end - first,
                                  r->out + (size_t)first * (size_t)r->k, &r->why[task]);
}

static err_t read_block(struct llama_source from, int32_t i, int32_t first, int32_t n, int32_t k,
                        float *out, struct why *why) {
    struct reading r = {.from = from, .i_matrix = i, .first = first, .k = k, .out = out};
    r.step = from.one_by_one ? n : (n + 63) / 64;
    parallel_rows(n, r.step, read_rows, &r);
    for (int32_t task = 0; task < 64; task++)
        if (r.error[task]) {
            *why = r.why[task];
            return r.error[task];
        }
    return 0;
}

static err_t fill(struct llama *m, struct llama_source from, struct progress *p, float *host,
                  float *device, struct why *why) {
    struct train *t = m->t;
    size_t done = 0, all = 0;
    for (int32_t i = 0; i < m->n_matrices; i++)
        all += size_of(&m->matrix[i]);
    for (int32_t i = 0; i < m->n_matrices; i++) {
        const struct train_weights *x = &m->matrix[i];
        int32_t step = BLOCK_FLOATS / x->k > 0 ? BLOCK_FLOATS / x->k : 1;
        bool again = i == llama_head(m) && m->config.tied;
        for (int32_t at = 0; !again && at < x->n; at += step) {
            struct train_weights part = {(char *)x->w +
                                             (size_t)at * (size_t)x->k * t->ops->weight_bytes,
                                         x->n - at < step ? x->n - at : step, x->k};
            err_t e = read_block(from, i, at, part.n, x->k, host, why);
            if (e)
                return e;
            t->ops->put(t, device, host, size_of(&part) * sizeof *host);
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
    size_t n_norm = (size_t)(2 * s->n_layers + 1) * (size_t)s->dim, widest = 0;
    for (int32_t i = 0; !e && i < m->n_matrices; i++)
        widest = (size_t)m->matrix[i].k > widest ? (size_t)m->matrix[i].k : widest;
    size_t floats = widest > BLOCK_FLOATS ? widest : BLOCK_FLOATS;
    floats = n_norm > floats ? n_norm : floats;
    float *host = e ? NULL : malloc(floats * sizeof *host), *device = NULL;
    if (!e)
        e = host && !t->ops->take(t, floats * sizeof *host, (void **)&device) ? 0 : no_room(m, why);
    e = e ? e : fill(m, from, p, host, device, why);
    e = e ? e : from.norms(from.arg, host, why);
    if (!e)
        t->ops->put(t, m->norm, host, n_norm * sizeof *host);
    t->ops->give(t, device);
    free(host);
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
