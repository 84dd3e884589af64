#include "compress/sensitivity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/low_rank.h"

enum { SCALE_ROUNDS = 8, HALF_BITS = 16, ROW_ID_BITS = 32 };
/* A logit so far above the others that the softmax is one there and nothing elsewhere. */
static const float certain = 60;

struct measuring {
    struct train *t;
    const struct llama *teacher;
    struct sensitivity *s;
    float **fisher;   /* [n_matrices][n] sum over batches of each row's squared gradient; host */
    float *row, *col; /* host [longest side] each */
    float *dots;      /* device [longest side] */
    float *d;         /* device: the largest matrix */
    float *served;    /* device: the same of the base */
    float *b, *a;     /* device: its pair */
    float *logs;      /* device [2, longest side]: scales */
    int64_t n_tokens;
};

/* ---- gradients ------------------------------------------------------------------------------- */

static void add_gradient(void *arg, int32_t i, float *grad) {
    struct measuring *m = arg;
    struct train *t = m->t;
    const struct train_weights *w = &m->teacher->matrix[i];
    t->ops->row_dots(t, w->n, w->k, grad, grad, m->dots);
    t->ops->get(t, m->row, m->dots, (size_t)w->n * sizeof(float));
    for (int32_t n = 0; n < m->s->matrix[i].n; n++)
        m->fisher[i][n] += m->row[n];
}

/* "Teacher" logits that make the KL divergence the negative log-likelihood of the next token; for
 * the last row of a sequence, which has none, the model's own: nothing to learn there. */
static void put_targets(const struct measuring *m, const struct llama_batch *b, const float *logits,
                        float *target) {
    size_t vocab = (size_t)m->teacher->config.shape.vocab, bytes = vocab * sizeof(float);
    m->t->ops->zero(m->t, target, (size_t)b->n_rows * bytes);
    for (int32_t s = 0; s < b->n_seqs; s++)
        for (int32_t r = b->start[s]; r < b->start[s + 1]; r++) {
            float *row = target + (size_t)r * vocab;
            if (r + 1 < b->start[s + 1])
                m->t->ops->put(m->t, row + b->id[r + 1], &certain, sizeof certain);
            else
                m->t->ops->copy(m->t, row, logits + (size_t)r * vocab, bytes);
        }
}

static err_t take(struct train *t, size_t floats, float **out) {
    void *p = NULL;
    err_t e = t->ops->take(t, floats * sizeof(float), &p);
    *out = p;
    return e;
}

static err_t find_gradients(struct measuring *m, const struct corpus *own, int32_t rows,
                            int32_t batches, struct progress *p, struct why *why) {
    const struct model_shape *shape = &m->teacher->config.shape;
    size_t logits = (size_t)rows * (size_t)shape->vocab,
           norms = (size_t)(2 * shape->n_layers + 1) * (size_t)shape->dim;
    struct train *t = m->t;
    struct llama_tape *tape = NULL;
    float *y = NULL, *target = NULL, *dnorm = NULL;
    int32_t *id = malloc((size_t)rows * sizeof *id), next = 0,
            *start = malloc(((size_t)rows + 1) * sizeof *start);
    err_t e = id && start ? 0 : E_NOMEM;
    e = e ? e : take(t, logits, &y);
    e = e ? e : take(t, logits, &target);
    e = e ? e : take(t, norms, &dnorm);
    e = e ? e : llama_tape_open(&tape, m->teacher, rows, true, why);
    for (int32_t i = 0; !e && i < batches; i++) {
        struct llama_batch b;
        struct train_loss sum = {0};
        if (!corpus_batch(own, &next, true, rows, id, start, &b))
            break;
        llama_forward(m->teacher, &b, tape, y);
        put_targets(m, &b, y, target);
        t->ops->distil(t, b.n_rows, shape->vocab, y, target, NULL, 1, 0, 1, y, &sum);
        llama_backward(m->teacher, tape, y, NULL, dnorm,
                       (struct llama_sink){add_gradient, NULL, m});
        m->n_tokens += b.n_rows - b.n_seqs;
        if (p)
            progress_show(p, (uint64_t)i + 1, (uint64_t)batches);
    }
    llama_tape_close(tape);
    t->ops->give(t, y), t->ops->give(t, target), t->ops->give(t, dnorm);
    free(id), free(start);
    return e;
}

/* ---- differences ----------------------------------------------------------------------------- */

/* d [n, k] of a matrix: of a linear from the models as they lie on the device, of embedding and
 * lm_head against the file, for which rows changed at all the device's weights may not know. */
static err_t find_difference(struct measuring *m, int32_t i, const struct llama *base,
                             struct llama_reader *fine, struct why *why) {
    const struct train_ops *op = m->t->ops;
    const struct budget_matrix *x = &m->s->matrix[i];
    const struct train_weights *of_base = &base->matrix[i];
    err_t e = 0;
    if (i < m->s->n_linears)
        op->load(m->t, &m->teacher->matrix[i], m->d);
    else
        e = llama_read(fine, i, 0, x->n, x->k, m->d, why);
    op->load(m->t, of_base, m->served);
    op->axpy(m->t, (size_t)x->n * (size_t)x->k, -1, m->served, m->d);
    return e;
}

/* What one plane leaves of d with each kind of scales. The scales are least-squares ones, so what
 * their product holds is its own energy. */
static void find_left(struct measuring *m, struct budget_matrix *x) {
    struct train *t = m->t;
    size_t n = (size_t)x->n, k = (size_t)x->k;
    struct train_plane plane = {.row = {.x = m->logs, .n = n}, .col = {.x = m->logs + n, .n = k}};
    double sum = 0, rows = 0, columns = 0;
    t->ops->scales_fit(t, x->n, x->k, m->d, NULL, 1, &plane);
    t->ops->get(t, m->row, plane.row.x, n * sizeof(float));
    for (size_t r = 0; r < n; r++) {
        double mean = exp((double)m->row[r]);
        sum += mean, rows += mean * mean;
    }
    x->left[SCALES_ONE] = 1 - sum * sum * (double)k / (double)n / x->energy;
    x->left[SCALES_ROWS] = 1 - rows * (double)k / x->energy;
    t->ops->scales_fit(t, x->n, x->k, m->d, NULL, SCALE_ROUNDS, &plane);
    t->ops->get(t, m->row, plane.row.x, n * sizeof(float));
    t->ops->get(t, m->col, plane.col.x, k * sizeof(float));
    rows = 0;
    for (size_t r = 0; r < n; r++)
        rows += exp(2 * (double)m->row[r]);
    for (size_t c = 0; c < k; c++)
        columns += exp(2 * (double)m->col[c]);
    x->left[SCALES_BOTH] = 1 - rows * columns / x->energy;
    for (int s = 0; s < N_SCALES; s++) /* rounding; a matrix of one sign and size leaves nothing */
        x->left[s] = x->left[s] > 1e-6 ? x->left[s] : 1e-6;
}

static err_t measure(struct measuring *m, int32_t i, bool vocab) {
    struct train *t = m->t;
    struct budget_matrix *x = &m->s->matrix[i];
    double cost = 0;
    t->ops->row_dots(t, x->n, x->k, m->d, m->d, m->dots);
    t->ops->get(t, m->row, m->dots, (size_t)x->n * sizeof(float));
    for (int32_t n = 0; n < x->n; n++) {
        x->energy += (double)m->row[n];
        x->n_changed += vocab && m->row[n] > 0;
        cost += (double)m->row[n] * (double)m->fisher[i][n];
    }
    if (!(x->energy > 0))
        return 0;
    if (m->n_tokens > 0)
        x->sensitivity = 0.5 * cost / x->energy / (double)m->n_tokens / x->k;
    find_left(m, x);
    int32_t least = x->n < x->k ? x->n : x->k,
            rank = least / 2 < SENSITIVITY_ROOTS ? least / 2 : SENSITIVITY_ROOTS;
    x->n_roots = rank;
    return rank ? low_rank(t, x->n, x->k, rank, m->d, NULL, m->b, m->a, m->s->root[i]) : 0;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static err_t make_room(struct measuring *m, int32_t base_vocab) {
    const struct llama *teacher = m->teacher;
    struct sensitivity *s = m->s;
    size_t largest = 0, longest = 0;
    s->n_matrices = teacher->n_matrices, s->n_linears = llama_embed(teacher);
    s->matrix = calloc((size_t)s->n_matrices, sizeof *s->matrix);
    s->root = calloc((size_t)s->n_matrices, sizeof *s->root);
    m->fisher = calloc((size_t)s->n_matrices, sizeof *m->fisher);
    if (!s->matrix || !s->root || !m->fisher)
        return E_NOMEM;
    for (int32_t i = 0; i < s->n_matrices; i++) {
        struct budget_matrix *x = &s->matrix[i];
        bool tied_head = i == llama_head(teacher) && teacher->config.tied;
        x->n = teacher->matrix[i].n, x->k = teacher->matrix[i].k, x->root = s->root[i];
        if (i >= s->n_linears && x->n > base_vocab) {
            x->fixed_bits =
                tied_head ? 0
                          : (double)(x->n - base_vocab) * (HALF_BITS * (double)x->k + ROW_ID_BITS);
            x->n = base_vocab;
        }
        size_t rows = (size_t)teacher->matrix[i].n, k = (size_t)x->k;
        largest = rows * k > largest ? rows * k : largest;
        longest = rows > longest ? rows : longest;
        longest = k > longest ? k : longest;
        m->fisher[i] = calloc(rows, sizeof *m->fisher[i]);
        if (!m->fisher[i])
            return E_NOMEM;
    }
    m->row = malloc(longest * sizeof *m->row), m->col = malloc(longest * sizeof *m->col);
    err_t e = m->row && m->col ? 0 : E_NOMEM;
    e = e ? e : take(m->t, longest, &m->dots);
    e = e ? e : take(m->t, largest, &m->d);
    e = e ? e : take(m->t, largest, &m->served);
    e = e ? e : take(m->t, 2 * longest, &m->logs);
    e = e ? e : take(m->t, longest * SENSITIVITY_ROOTS, &m->b);
    return e ? e : take(m->t, longest * SENSITIVITY_ROOTS, &m->a);
}

err_t sensitivity_open(struct sensitivity *s, const struct llama *base, const struct llama *teacher,
                       struct llama_source fine_files, const struct corpus *own, int32_t rows,
                       int32_t batches, struct progress *p, struct why *why) {
    *s = (struct sensitivity){0};
    struct measuring m = {.t = teacher->t, .teacher = teacher, .s = s};
    struct llama_reader fine;
    err_t e = llama_reader_open(&fine, teacher->t, fine_files, why);
    e = e ? e : make_room(&m, base->config.shape.vocab);
    e = e ? e : find_gradients(&m, own, rows, batches, p, why);
    for (int32_t i = 0; !e && i < s->n_matrices; i++) {
        if (i == llama_head(teacher) && teacher->config.tied)
            continue; /* the embedding's */
        e = find_difference(&m, i, base, &fine, why);
        e = e ? e : measure(&m, i, i >= s->n_linears);
        if (p)
            progress_show(p, (uint64_t)i + 1, (uint64_t)s->n_matrices);
    }
    e = e ? e : m.t->ops->settle(m.t, why);
    float *device[] = {m.dots, m.d, m.served, m.logs, m.b, m.a};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        m.t->ops->give(m.t, device[i]);
    llama_reader_close(&fine);
    for (int32_t i = 0; m.fisher && i < s->n_matrices; i++)
        free(m.fisher[i]);
    free(m.fisher), free(m.row), free(m.col);
    return e == E_NOMEM ? why_set(why, e, "There is not enough memory to measure the fine-tune.")
                        : e;
}

void sensitivity_free(struct sensitivity *s) {
    free(s->matrix), free(s->root);
    *s = (struct sensitivity){0};
}
