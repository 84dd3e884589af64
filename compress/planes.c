#include "compress/planes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/parallel.h"

enum {
    N_CODES = 1 << MAX_PLANES,
    REFINE_ROUNDS = 4, /* the residual falls by less than 1 % a round from there on */
    BLOCK_ROWS = 64,   /* of one partial sum: fixed, so sums do not depend on the cores */
};

/* A weight's code holds its sign in each plane: bit p set is +1. All sums that the fit needs are
 * sums over codes, so one pass over the weights serves every plane. */
struct sums {
    double abs;                          /* of |d - level[code]| */
    double square;                       /* of d^2 */
    double count[N_CODES], sum[N_CODES]; /* of weights, and of their d, by code */
    uint64_t zeros;
};

struct levels {
    int32_t n_planes;
    float scale[MAX_PLANES];
    float of[N_CODES];       /* sum of +-scale */
    uint8_t sorted[N_CODES]; /* codes by ascending level */
    float between[N_CODES];  /* midpoint of sorted[i] and sorted[i + 1] */
};

static void set_levels(struct levels *l, int32_t n_planes) {
    l->n_planes = n_planes;
    for (int c = 0; c < 1 << n_planes; c++) {
        float x = 0;
        for (int32_t p = 0; p < n_planes; p++)
            x += c >> p & 1 ? l->scale[p] : -l->scale[p];
        l->of[c] = n_planes ? x : 0;
    }
}

static void sort_levels(struct levels *l) {
    int n = 1 << l->n_planes;
    for (int i = 0; i < n; i++) { /* insertion: nearly sorted in later rounds */
        int j = i;
        for (; j > 0 && l->of[l->sorted[j - 1]] > l->of[i]; j--)
            l->sorted[j] = l->sorted[j - 1];
        l->sorted[j] = (uint8_t)i;
    }
    for (int i = 0; i + 1 < n; i++)
        l->between[i] = 0.5f * (l->of[l->sorted[i]] + l->of[l->sorted[i + 1]]);
}

/* Evenly spaced levels, at the spacing that loses least of a Gaussian of this size (Max 1960): from
 * there least squares and nearest levels end lower than from signs chosen plane by plane. */
static void start_levels(struct levels *l, int32_t n_planes, double rms) {
    static const double step[MAX_PLANES] = {1.5958, 0.9957, 0.5860,  0.3352,
                                            0.1881, 0.1041, 0.05687, 0.03076};
    for (int32_t p = 0; p < n_planes; p++)
        l->scale[p] = (float)(rms * step[n_planes - 1] / 2 * (1 << (n_planes - 1 - p)));
    set_levels(l, n_planes);
    sort_levels(l);
}

/* ---- passes over the weights d [n] with codes [n] -------------------------------------------- */

static void pass_nearest(const float *d, uint8_t *code, size_t n, const struct levels *l) {
    for (size_t i = 0; i < n; i++) {
        int at = 0; /* how many midpoints lie below d */
        for (int step = 1 << l->n_planes >> 1; step; step >>= 1)
            at += d[i] >= l->between[at + step - 1] ? step : 0;
        code[i] = l->sorted[at];
    }
}

static void pass_sums(const float *d, const uint8_t *code, size_t n, struct sums *s) {
    for (size_t i = 0; i < n; i++) {
        s->count[code[i]] += 1;
        s->sum[code[i]] += d[i];
        s->square += (double)d[i] * d[i];
        s->zeros += d[i] == 0;
    }
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* Solves G x = b by elimination with the largest pivot first. A plane that the others already make
 * up (pivot next to nothing) gets scale 0. */
static void solve(double g[MAX_PLANES][MAX_PLANES + 1], int32_t n, float *x) {
    bool done[MAX_PLANES] = {false};
    double tiny = 1e-9 * g[0][0];
    for (int32_t turn = 0; turn < n; turn++) {
        int32_t p = -1;
        for (int32_t i = 0; i < n; i++)
            if (!done[i] && (p < 0 || g[i][i] > g[p][p]))
                p = i;
        if (!(g[p][p] > tiny))
            break;
        done[p] = true;
        for (int32_t i = 0; i < n; i++) {
            if (i == p)
                continue;
            double f = g[i][p] / g[p][p];
            for (int32_t j = 0; j <= n; j++)
                g[i][j] -= f * g[p][j];
        }
    }
    for (int32_t i = 0; i < n; i++)
        x[i] = done[i] ? (float)(g[i][n] / g[i][i]) : 0;
}

static void solve_scales(struct levels *l, int32_t n_planes, const struct sums *s) {
    double g[MAX_PLANES][MAX_PLANES + 1] = {{0}};
    for (int c = 0; c < 1 << n_planes; c++)
        for (int32_t i = 0; i < n_planes; i++) {
            double sign = c >> i & 1 ? 1 : -1;
            for (int32_t j = 0; j < n_planes; j++)
                g[i][j] += sign * (c >> j & 1 ? 1 : -1) * s->count[c];
            g[i][n_planes] += sign * s->sum[c];
        }
    solve(g, n_planes, l->scale);
    set_levels(l, n_planes);
}

/* Sum of (d - level)^2, from sums by code: d^2 - 2 d level + level^2. */
static double residual_of(const struct levels *l, const struct sums *s) {
    double r = s->square;
    for (int c = 0; c < 1 << l->n_planes; c++)
        r += (double)l->of[c] * (l->of[c] * s->count[c] - 2 * s->sum[c]);
    return r > 0 ? r : 0;
}

/* ---- packing --------------------------------------------------------------------------------- */

static void pack_row(struct planes *p, int32_t row, const uint8_t *code) {
    for (int32_t i = 0; i < p->n_planes; i++)
        for (int32_t k = 0; k < p->k; k += 32) {
            uint32_t word = 0;
            int32_t m = p->k - k < 32 ? p->k - k : 32;
            for (int32_t j = 0; j < m; j++)
                word |= (uint32_t)(code[k + j] >> i & 1) << j;
            p->bits[i][plane_word(row, k, p->k)] = word;
        }
}

/* ---- one scale per row ----------------------------------------------------------------------- */

struct row_fit {
    struct planes *p;
    const float *d; /* [rows, k] */
    int32_t first;
    double *change, *residual; /* [rows] */
    uint64_t *zeros;           /* [rows] */
    uint8_t *code;             /* [rows, k] */
};

static void fit_row(struct row_fit *f, int32_t r) {
    struct planes *p = f->p;
    size_t k = (size_t)p->k;
    const float *d = f->d + (size_t)r * k;
    uint8_t *code = f->code + (size_t)r * k;
    struct levels l = {0};
    struct sums s;
    memset(code, 0, k);
    double square = 0;
    for (size_t i = 0; i < k; i++)
        square += (double)d[i] * d[i];
    start_levels(&l, p->n_planes, sqrt(square / (double)k));
    pass_nearest(d, code, k, &l);
    for (int round = 0;; round++) {
        memset(&s, 0, sizeof s);
        pass_sums(d, code, k, &s);
        solve_scales(&l, p->n_planes, &s);
        if (p->n_planes == 1 || round == REFINE_ROUNDS)
            break;
        sort_levels(&l);
        pass_nearest(d, code, k, &l);
    }
    for (int32_t i = 0; i < p->n_planes; i++)
        p->row[i][f->first + r] = l.scale[i];
    f->change[r] = s.square;
    f->residual[r] = residual_of(&l, &s);
    f->zeros[r] = s.zeros;
    pack_row(p, f->first + r, code);
}

static void fit_row_range(void *arg, int32_t first, int32_t end) {
    for (int32_t r = first; r < end; r++)
        fit_row(arg, r);
}

err_t planes_fit_rows(struct planes *p, const float *d, int32_t first, int32_t rows,
                      struct why *why) {
    struct row_fit f = {.p = p, .d = d, .first = first};
    f.code = malloc((size_t)rows * (size_t)p->k);
    f.change = calloc((size_t)rows, sizeof *f.change);
    f.residual = calloc((size_t)rows, sizeof *f.residual);
    f.zeros = calloc((size_t)rows, sizeof *f.zeros);
    err_t e = E_OK;
    if (!f.code || !f.change || !f.residual || !f.zeros) {
        e = why_set(why, E_NOMEM, "not enough memory to fit %d rows", rows);
    } else {
        parallel_rows(rows, TILE_ROWS, fit_row_range, &f);
        for (int32_t r = 0; r < rows; r++) { /* in row order: the same sum on any machine */
            p->change += f.change[r];
            p->residual += f.residual[r];
            p->zeros += f.zeros[r];
        }
    }
    free(f.code);
    free(f.change);
    free(f.residual);
    free(f.zeros);
    return e;
}

/* ---- one scale per matrix -------------------------------------------------------------------- */

enum pass { PASS_NEAREST, PASS_SUMS, PASS_PACK };

struct matrix_fit {
    struct planes *p;
    const float *d;       /* [n, k] */
    uint8_t *code;        /* [n, k] */
    struct sums *partial; /* [blocks] */
    struct levels l;
    enum pass pass;
};

static void fit_block(void *arg, int32_t first, int32_t end) {
    struct matrix_fit *f = arg;
    size_t at = (size_t)first * (size_t)f->p->k, n = (size_t)(end - first) * (size_t)f->p->k;
    struct sums *s = &f->partial[first / BLOCK_ROWS];
    switch (f->pass) {
    case PASS_NEAREST:
        pass_nearest(f->d + at, f->code + at, n, &f->l);
        break;
    case PASS_SUMS:
        memset(s, 0, sizeof *s);
        pass_sums(f->d + at, f->code + at, n, s);
        break;
    case PASS_PACK:
        for (int32_t r = first; r < end; r++)
            pack_row(f->p, r, f->code + (size_t)r * (size_t)f->p->k);
        break;
    }
}

static void run_pass(struct matrix_fit *f, enum pass pass, struct sums *total) {
    f->pass = pass;
    parallel_rows(f->p->n, BLOCK_ROWS, fit_block, f);
    if (!total)
        return;
    memset(total, 0, sizeof *total);
    for (int32_t b = 0; b < tiles_of(f->p->n, BLOCK_ROWS); b++) {
        total->square += f->partial[b].square;
        total->zeros += f->partial[b].zeros;
        for (int c = 0; c < 1 << f->p->n_planes; c++) {
            total->count[c] += f->partial[b].count[c];
            total->sum[c] += f->partial[b].sum[c];
        }
    }
}

err_t planes_fit_matrix(struct planes *p, const float *d, struct why *why) {
    size_t elements = (size_t)p->n * (size_t)p->k;
    struct matrix_fit f = {.p = p, .d = d};
    f.code = calloc(elements, 1);
    f.partial = calloc((size_t)tiles_of(p->n, BLOCK_ROWS), sizeof *f.partial);
    err_t e = E_OK;
    if (!f.code || !f.partial) {
        e = why_set(why, E_NOMEM, "not enough memory to fit a [%d, %d] matrix", p->n, p->k);
        goto out;
    }
    struct sums s;
    run_pass(&f, PASS_SUMS, &s);
    start_levels(&f.l, p->n_planes, sqrt(s.square / (double)elements));
    run_pass(&f, PASS_NEAREST, NULL);
    for (int round = 0;; round++) {
        run_pass(&f, PASS_SUMS, &s);
        solve_scales(&f.l, p->n_planes, &s);
        if (p->n_planes == 1 || round == REFINE_ROUNDS)
            break;
        sort_levels(&f.l);
        run_pass(&f, PASS_NEAREST, NULL);
    }
    for (int32_t i = 0; i < p->n_planes; i++)
        p->row[i][0] = f.l.scale[i];
    p->change = s.square;
    p->residual = residual_of(&f.l, &s);
    p->zeros = s.zeros;
    run_pass(&f, PASS_PACK, NULL);
out:
    free(f.code);
    free(f.partial);
    return e;
}

/* ---- memory ---------------------------------------------------------------------------------- */

err_t planes_init(struct planes *p, int32_t n, int32_t k, int32_t n_planes, bool per_row,
                  struct why *why) {
    *p = (struct planes){.n = n, .k = k, .n_planes = n_planes, .per_row = per_row};
    for (int32_t i = 0; i < n_planes; i++) {
        p->bits[i] = calloc(plane_bytes(n, k), 1);
        p->row[i] = calloc(per_row ? (size_t)n : 1, sizeof *p->row[i]);
        if (!p->bits[i] || !p->row[i]) {
            planes_free(p);
            return why_set(why, E_NOMEM, "not enough memory for the planes of a [%d, %d] matrix", n,
                           k);
        }
    }
    return E_OK;
}

void planes_free(struct planes *p) {
    for (int32_t i = 0; i < MAX_PLANES; i++) {
        free(p->bits[i]);
        free(p->row[i]);
        p->bits[i] = NULL;
        p->row[i] = NULL;
    }
}
