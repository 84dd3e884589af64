/* What a tenant holds of each matrix, found from the weights alone: kinds, signs, least-squares
 * scales, low-rank pairs. */
#include "compress/student.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/low_rank.h"
#include "compress/student_block.h"

enum { SCALE_ROUNDS = 8, SPLIT_ROUNDS = 2, MAX_LINEAR_RANK = 8 };
/* A low-rank pair stays in a vocabulary matrix if it holds this share of the difference's energy.
 */
static const double rank_worth = 0.25;
/* A difference beyond three scales is a sure sign; the cap lets learning still turn it. */
static const float bit_cap = 3;

static err_t param_open(struct param *p, size_t n) {
    *p = (struct param){calloc(n, sizeof(float)), calloc(n, sizeof(float)),
                        calloc(n, sizeof(float)), n};
    return p->x && p->m && p->v ? 0 : E_NOMEM;
}

static void param_free(struct param *p) {
    free(p->x), free(p->m), free(p->v);
    *p = (struct param){0};
}

static float log_scale(double x) {
    return x > 1e-13 ? (float)log(x) : -30.0f; /* 0 once it is stored */
}

struct scale_job {
    const struct student_matrix *x;
    const float *d; /* [N, K] */
    double *row, *col;
    double col_norm;
};

static void row_scale_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct scale_job *j = arg;
    for (int32_t n = task * BLOCK_ROWS; n < block_end(j->x, task); n++) {
        const float *d = j->d + (size_t)n * (size_t)j->x->k;
        double sum = 0;
        for (int32_t k = 0; k < j->x->k; k++)
            sum += (double)fabsf(d[k]) * j->col[k];
        j->row[n] = j->col_norm > 0 ? sum / j->col_norm : 0;
    }
}

/* row [N], col [K]: scales whose outer product is nearest to |d|, by alternating least squares;
 * with one round and col all ones the rows' means. */
static void nearest_scales(const struct gemm *g, struct scale_job *j, int32_t rounds) {
    const struct student_matrix *x = j->x;
    for (int32_t k = 0; k < x->k; k++)
        j->col[k] = 1;
    j->col_norm = x->k;
    for (int32_t round = 0; round < rounds; round++) {
        pool_run(g->pool, row_scale_task, j, blocks(x));
        if (rounds == 1)
            return;
        double norm = 0;
        memset(j->col, 0, (size_t)x->k * sizeof *j->col);
        for (int32_t n = 0; n < x->n; n++) {
            const float *d = j->d + (size_t)n * (size_t)x->k;
            norm += j->row[n] * j->row[n];
            for (int32_t k = 0; k < x->k; k++)
                j->col[k] += j->row[n] * (double)fabsf(d[k]);
        }
        j->col_norm = 0;
        for (int32_t k = 0; k < x->k; k++) {
            j->col[k] = norm > 0 ? j->col[k] / norm : 0;
            j->col_norm += j->col[k] * j->col[k];
        }
    }
}

/* Fits a plane to d [N, K] and takes what it explains out of d. */
static err_t fit_plane(const struct gemm *g, const struct student_matrix *x, float *d, bool scalar,
                       struct student_plane *p) {
    size_t n = (size_t)x->n, k = (size_t)x->k;
    double *scale = calloc(n + k, sizeof *scale);
    err_t e = scale ? 0 : E_NOMEM;
    if (!p->bit.n) {
        e = e ? e : param_open(&p->bit, n * k);
        e = e ? e : param_open(&p->row, scalar ? 1 : n);
        if (!scalar)
            e = e ? e : param_open(&p->col, k);
        p->col_scale = malloc(k * sizeof(float));
        e = e ? e : p->col_scale ? 0 : E_NOMEM;
    }
    if (!e) {
        struct scale_job j = {x, d, scale, scale + n, 0};
        nearest_scales(g, &j, scalar ? 1 : SCALE_ROUNDS);
        double mean = 0;
        for (size_t i = 0; i < n; i++)
            mean += j.row[i] / (double)n;
        for (size_t i = 0; i < n; i++) {
            double row = scalar ? mean : j.row[i];
            p->row.x[scalar ? 0 : i] = log_scale(row);
            for (size_t l = 0; l < k; l++) {
                float *y = d + i * k + l, size = (float)(row * j.col[l]);
                float unit = size > 0 ? *y / size : 0;
                p->bit.x[i * k + l] = unit > bit_cap ? bit_cap : unit < -bit_cap ? -bit_cap : unit;
                *y -= *y >= 0 ? size : -size;
            }
        }
        for (size_t l = 0; l < p->col.n; l++)
            p->col.x[l] = log_scale(j.col[l]);
        plane_columns(x, p);
    }
    free(scale);
    return e;
}

/* d [N, K] += sign * b a */
static void add_pair(const struct gemm *g, const struct student_matrix *x, float sign, float *d) {
    size_t rank = (size_t)x->rank, k = (size_t)x->k;
    for (size_t i = 0; i < x->b.n; i++)
        x->b.x[i] *= sign;
    gemm(g, x->n, x->k, x->rank, mat_of(x->b.x, rank), mat_of(x->a.x, k), d, k, true);
    for (size_t i = 0; i < x->b.n; i++)
        x->b.x[i] *= sign;
}

/* Where in the linears low-rank pairs gain most: takes, as long as the budget lasts, the largest
 * remaining singular value of any difference, squared, relative to its matrix's size and to the
 * bits its vectors cost. s->rank: how many each matrix gets. */
static err_t share_out_pairs(struct student *s, const struct gemm *g, double bits_per_weight) {
    int32_t n_linears = llama_embed(s->base);
    size_t widest = 0;
    double weights = 0;
    for (int32_t i = 0; i < n_linears; i++) {
        size_t n = (size_t)s->base->matrix[i].n, k = (size_t)s->base->matrix[i].k;
        widest = n + k > widest ? n + k : widest;
        weights += (double)n * (double)k;
    }
    float *pair = malloc(MAX_LINEAR_RANK * widest * sizeof *pair);
    double(*gain)[MAX_LINEAR_RANK + 1] = calloc((uint32_t)n_linears, sizeof *gain);
    err_t e = pair && gain ? 0 : E_NOMEM;
    for (int32_t i = 0; !e && i < n_linears; i++) {
        const struct llama_matrix *b = &s->base->matrix[i], *t = &s->teacher->matrix[i];
        int32_t least = b->n < b->k ? b->n : b->k,
                rank = least < MAX_LINEAR_RANK ? least : MAX_LINEAR_RANK;
        double size = 0, share, cost = 16.0 * (b->n + b->k);
        for (size_t l = 0; l < (size_t)b->n * (size_t)b->k; l++) {
            s->scratch[l] = t->w[l] - b->w[l];
            size += (double)b->w[l] * (double)b->w[l];
        }
        float *a = pair + (size_t)b->n * (size_t)rank;
        e = low_rank(g, b->n, b->k, rank, s->scratch, pair, a, &share);
        for (int32_t r = 0; !e && r < rank && size > 0; r++) {
            double root = 0; /* the pair is balanced: a row of a has the singular value's length */
            for (int32_t l = 0; l < b->k; l++)
                root += (double)a[r * b->k + l] * (double)a[r * b->k + l];
            gain[i][r] = root * root / size / cost;
        }
    }
    double left = bits_per_weight * weights;
    for (int32_t best = 0; !e && best >= 0;) {
        best = -1;
        for (int32_t i = 0; i < n_linears; i++)
            if (16.0 * (s->base->matrix[i].n + s->base->matrix[i].k) <= left &&
                gain[i][s->rank[i]] > (best < 0 ? 0 : gain[best][s->rank[best]]))
                best = i;
        if (best >= 0) {
            s->rank[best]++;
            left -= 16.0 * (s->base->matrix[best].n + s->base->matrix[best].k);
        }
    }
    free(pair);
    free(gain);
    return e;
}

/* The low-rank pair and the first plane take turns, since each is to fit what the other leaves.
 * d [N, K] is the whole difference, and what all leave in the end. */
static err_t fit_matrix(const struct gemm *g, struct student_matrix *x, float *d, int32_t planes,
                        int32_t rank, double worth, bool scalar) {
    err_t e = 0;
    int32_t least = x->n < x->k ? x->n : x->k;
    x->rank = rank < least ? rank : least;
    x->n_planes = planes;
    if (x->rank > 0) {
        e = param_open(&x->a, (size_t)x->rank * (size_t)x->k);
        e = e ? e : param_open(&x->b, (size_t)x->n * (size_t)x->rank);
        double share = 0;
        e = e ? e : low_rank(g, x->n, x->k, x->rank, d, x->b.x, x->a.x, &share);
        if (e)
            return e;
        if (share < worth) {
            param_free(&x->a), param_free(&x->b);
            x->rank = 0;
        } else {
            add_pair(g, x, -1, d);
        }
    }
    e = fit_plane(g, x, d, scalar, &x->plane[0]);
    for (int32_t round = 1; !e && x->rank > 0 && round < SPLIT_ROUNDS; round++) {
        double share = 0;
        add_pair(g, x, 1, d); /* d: what the plane leaves */
        e = low_rank(g, x->n, x->k, x->rank, d, x->b.x, x->a.x, &share);
        if (e)
            break;
        add_pair(g, x, -1, d);
        plane_add(g, x, &x->plane[0], 1, d); /* d: what the pair leaves */
        e = fit_plane(g, x, d, scalar, &x->plane[0]);
    }
    for (int32_t p = 1; !e && p < planes; p++)
        e = fit_plane(g, x, d, scalar, &x->plane[p]);
    return e;
}

/* Kind and exact rows of embedding or lm_head. */
static err_t choose_rows(struct student *s, int32_t i, const struct student_plan *plan) {
    struct student_matrix *x = &s->matrix[i];
    const struct llama_matrix *t = &s->teacher->matrix[i], *b = &s->base->matrix[i];
    size_t k = (size_t)x->k;
    x->row_id = calloc((size_t)t->n, sizeof *x->row_id);
    if (!x->row_id)
        return E_NOMEM;
    for (int32_t r = 0; r < x->n; r++)
        if (memcmp(t->w + (size_t)r * k, b->w + (size_t)r * k, k * sizeof(float)) != 0)
            x->row_id[x->n_rows++] = r;
    /* A changed row costs 16 bits a weight, planes one for every row; being exact is worth twice
     * the bits. */
    x->kind = plan->dense_vocab                                              ? STUDENT_DENSE
              : x->n_rows == 0                                               ? STUDENT_BASE
              : (int64_t)x->n_rows * 8 <= (int64_t)x->n * plan->vocab_planes ? STUDENT_ROWS
                                                                             : STUDENT_PLANES;
    if (x->kind != STUDENT_ROWS)
        x->n_rows = 0;
    for (int32_t r = x->n; r < t->n && x->kind != STUDENT_DENSE; r++)
        x->row_id[x->n_rows++] = r;
    if (x->kind == STUDENT_BASE && x->n_rows)
        x->kind = STUDENT_ROWS;
    return 0;
}

static bool same_as_base(const struct student *s, int32_t i) {
    const struct student_matrix *x = &s->matrix[i];
    return memcmp(s->teacher->matrix[i].w, s->base->matrix[i].w,
                  (size_t)x->n * (size_t)x->k * sizeof(float)) == 0;
}

static err_t open_matrix(struct student *s, const struct gemm *g, int32_t i,
                         const struct student_plan *plan) {
    struct student_matrix *x = &s->matrix[i];
    bool vocab = i >= llama_embed(&s->model);
    x->n = s->base->matrix[i].n, x->k = s->base->matrix[i].k;
    if (vocab && i == llama_head(&s->model) && s->model.config.tied)
        return 0; /* the embedding's */
    err_t e = vocab ? choose_rows(s, i, plan) : 0;
    if (!vocab)
        x->kind = same_as_base(s, i) ? STUDENT_BASE : STUDENT_PLANES;
    if (!e && x->kind == STUDENT_PLANES) {
        const float *a = s->teacher->matrix[i].w, *b = s->base->matrix[i].w;
        for (size_t l = 0; l < (size_t)x->n * (size_t)x->k; l++)
            s->scratch[l] = a[l] - b[l];
        e = fit_matrix(g, x, s->scratch, vocab ? plan->vocab_planes : plan->planes,
                       vocab ? plan->vocab_rank : s->rank[i], vocab ? rank_worth : 0, plan->scalar);
    }
    if (!e)
        student_set_weights(s, g, i);
    return e;
}

err_t student_open(struct student *s, const struct gemm *g, const struct llama *base,
                   const struct llama *teacher, const struct student_plan *plan, struct why *why) {
    *s = (struct student){.base = base, .teacher = teacher};
    if (teacher->config.shape.vocab < base->config.shape.vocab)
        return why_set(
            why, E_UNSUPPORTED,
            "Fitting needs a fine-tune with at least the base's %d vocabulary rows; this "
            "one has %d.",
            base->config.shape.vocab, teacher->config.shape.vocab);
    err_t e = llama_make(&s->model, &teacher->config, why);
    size_t largest = 0, tallest = 0, widest = 0;
    for (int32_t i = 0; i < base->n_matrices; i++) {
        size_t n = (size_t)base->matrix[i].n, k = (size_t)base->matrix[i].k;
        largest = n * k > largest ? n * k : largest;
        tallest = n > tallest ? n : tallest;
        widest = k > widest ? k : widest;
    }
    if (!e) {
        s->matrix = calloc((size_t)base->n_matrices, sizeof *s->matrix);
        s->rank = calloc((size_t)base->n_matrices, sizeof *s->rank);
        s->scratch = malloc(largest * sizeof(float));
        s->part = malloc((tallest / BLOCK_ROWS + 1) * widest * sizeof(float));
        size_t n_norm =
            (size_t)(2 * base->config.shape.n_layers + 1) * (size_t)base->config.shape.dim;
        e = s->matrix && s->rank && s->scratch && s->part ? param_open(&s->norm, n_norm) : E_NOMEM;
        if (!e) {
            memcpy(s->norm.x, teacher->norm, n_norm * sizeof(float));
            memcpy(s->model.norm, teacher->norm, n_norm * sizeof(float));
        }
    }
    if (!e && plan->pair_bits > 0)
        e = share_out_pairs(s, g, plan->pair_bits);
    for (int32_t i = 0; !e && i < base->n_matrices; i++)
        e = open_matrix(s, g, i, plan);
    return e ? why_set(why, e, "There is not enough memory for fitting a tenant of this base.") : 0;
}

void student_free(struct student *s) {
    for (int32_t i = 0; s->matrix && s->base && i < s->base->n_matrices; i++) {
        struct student_matrix *x = &s->matrix[i];
        for (int32_t p = 0; p < MAX_PLANES; p++)
            param_free(&x->plane[p].row), param_free(&x->plane[p].col),
                param_free(&x->plane[p].bit), free(x->plane[p].col_scale);
        param_free(&x->a), param_free(&x->b);
        free(x->row_id);
    }
    free(s->matrix), free(s->rank), free(s->scratch), free(s->part);
    param_free(&s->norm);
    llama_free(&s->model);
    *s = (struct student){0};
}

double student_bits_per_weight(const struct student *s) {
    double bits = 0, weights = 0;
    for (int32_t i = 0; i < llama_embed(&s->model); i++) {
        const struct student_matrix *x = &s->matrix[i];
        weights += (double)x->n * (double)x->k;
        for (int32_t p = 0; p < x->n_planes; p++)
            bits +=
                (double)x->plane[p].bit.n + 16 * (double)(x->plane[p].row.n + x->plane[p].col.n);
        bits += 16 * (double)(x->a.n + x->b.n);
    }
    return bits / weights;
}
