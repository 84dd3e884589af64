/* Points of bits and loss for every matrix, their lower convex hull, and a greedy walk along the
 * hulls, the steepest step of any matrix first: what a Lagrange multiplier would choose, but for
 * the last few bits, which go where they still fit. */
#include "compress/budget.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { HALF = 16, ONE_SCALE = 32, ROW_ID = 32 };
/* A scale for a whole matrix is a thousandth of a bit in small models: not worth refusing 1.0 for.
 */
static const double slack = 1.0005;
/* What p planes with fitted scales leave of normally distributed values (the least squared error of
 * 2^p evenly spaced levels). */
static const double planes_leave[MAX_PLANES + 1] = {1,       0.36338, 0.11885,   0.03744,   0.01154,
                                                    0.00350, 0.00104, 0.0003043, 0.00008769};

/* What a pair alone may leave of what the least planes would. */
static const double pair_worth = 0.1;

struct point {
    double bits, loss;
    struct budget_choice choice;
};
struct frontier {
    struct point *point; /* [n] every way to store the matrix; owned */
    int32_t n;
    int32_t *hull; /* [n_hull] those on the lower convex hull, bits rising; owned */
    int32_t n_hull, at;
};

double budget_bits(const struct budget_matrix *m, const struct budget_choice *c) {
    double n = m->n, k = m->k, scales = 0;
    if (c->exact)
        return m->fixed_bits + m->n_changed * (HALF * k + ROW_ID);
    switch (c->scales) {
    case SCALES_ONE:
        scales = ONE_SCALE;
        break;
    case SCALES_ROWS:
        scales = HALF * n;
        break;
    default:
        scales = HALF * (n + k);
    }
    return m->fixed_bits + c->planes * (n * k + scales) + c->rank * HALF * (n + k);
}

double budget_loss(const struct budget_matrix *m, const struct budget_choice *c) {
    double energy = m->energy;
    for (int32_t r = 0; r < c->rank; r++)
        energy -= m->root[r];
    if (c->planes)
        energy *= m->left[c->scales] * planes_leave[c->planes] / planes_leave[1];
    return energy > 0 ? energy * m->sensitivity : 0;
}

/* Fewer bits first; of equal bits the smaller loss, then the order of making. */
static int by_bits(const void *a, const void *b) {
    const struct point *x = a, *y = b;
    if (x->bits != y->bits)
        return x->bits < y->bits ? -1 : 1;
    if (x->loss != y->loss)
        return x->loss < y->loss ? -1 : 1;
    return x->choice.rank - y->choice.rank;
}

static double slope(const struct point *a, const struct point *b) {
    return (a->loss - b->loss) / (b->bits - a->bits);
}

static void find_hull(struct frontier *f) {
    for (int32_t i = 0; i < f->n; i++) {
        const struct point *p = &f->point[i];
        if (f->n_hull && (p->loss >= f->point[f->hull[f->n_hull - 1]].loss ||
                          p->bits <= f->point[f->hull[f->n_hull - 1]].bits))
            continue;
        while (f->n_hull > 1) {
            const struct point *last = &f->point[f->hull[f->n_hull - 1]],
                               *before = &f->point[f->hull[f->n_hull - 2]];
            if (slope(before, last) > slope(last, p))
                break;
            f->n_hull--;
        }
        f->hull[f->n_hull++] = i;
    }
}

/* The least that every changed matrix gets. */
struct least {
    int32_t planes;
    enum budget_scales scales;
};
static bool allowed(const struct budget_matrix *m, const struct budget_choice *c,
                    struct least least) {
    struct budget_choice floor = {.planes = least.planes, .scales = least.scales};
    if (!(m->energy > 0))
        return true;
    return c->planes ? c->planes >= least.planes && c->scales >= least.scales
                     : budget_loss(m, c) < pair_worth * budget_loss(m, &floor);
}

static err_t frontier_open(struct frontier *f, const struct budget_matrix *m, struct least floor) {
    int32_t least = m->n < m->k ? m->n : m->k,
            ranks = m->n_roots < least / 2 ? m->n_roots : least / 2;
    size_t cap = (size_t)(MAX_PLANES * N_SCALES + 1) * (size_t)(ranks + 1) + 1;
    f->point = malloc(cap * sizeof *f->point);
    f->hull = malloc(cap * sizeof *f->hull);
    if (!f->point || !f->hull)
        return E_NOMEM;
    struct budget_choice c = {0};
    for (c.planes = 0; c.planes <= MAX_PLANES; c.planes++)
        for (int s = 0; s < (c.planes ? N_SCALES : 1); s++)
            for (c.rank = 0; c.rank <= ranks; c.rank++) {
                c.scales = (enum budget_scales)s;
                if (!allowed(m, &c, floor))
                    continue;
                f->point[f->n++] = (struct point){budget_bits(m, &c), budget_loss(m, &c), c};
            }
    qsort(f->point, (size_t)f->n, sizeof *f->point, by_bits);
    find_hull(f);
    return 0;
}

static void frontiers_close(struct frontier *f, int32_t n) {
    for (int32_t i = 0; f && i < n; i++)
        free(f[i].point), free(f[i].hull);
    free(f);
}

static const struct point *chosen(const struct frontier *f) {
    return &f->point[f->hull[f->at]];
}

/* Takes steps of the n matrices, the steepest first, while they fit into *left. A step that
 * does not fit ends its matrix's walk: what lies behind it costs more and gains less. */
static void walk(struct frontier *f, int32_t n, double *left) {
    for (;;) {
        int32_t best = -1;
        double best_slope = 0;
        for (int32_t i = 0; i < n; i++) {
            if (f[i].at + 1 >= f[i].n_hull)
                continue;
            const struct point *a = chosen(&f[i]), *b = &f[i].point[f[i].hull[f[i].at + 1]];
            double s = slope(a, b);
            if (b->bits - a->bits <= *left && s > best_slope)
                best = i, best_slope = s;
        }
        if (best < 0)
            return;
        *left -= f[best].point[f[best].hull[f[best].at + 1]].bits - chosen(&f[best])->bits;
        f[best].at++;
    }
}

/* The last bits: any point of any matrix that still fits, the largest gain first. pick [n]:
 * points in use. */
static void fill(const struct frontier *f, int32_t n, const struct point **pick, double *left) {
    for (;;) {
        const struct point *best = NULL;
        int32_t where = 0;
        double gain = 0;
        for (int32_t i = 0; i < n; i++)
            for (int32_t l = 0; l < f[i].n; l++) {
                const struct point *p = &f[i].point[l];
                if (p->bits - pick[i]->bits > *left)
                    break; /* they are sorted by bits */
                if (pick[i]->loss - p->loss > gain)
                    best = p, where = i, gain = pick[i]->loss - p->loss;
            }
        if (!best)
            return;
        *left -= best->bits - pick[where]->bits;
        pick[where] = best;
    }
}

static double weights_of(const struct budget_matrix *m, int32_t n) {
    double weights = 0;
    for (int32_t i = 0; i < n; i++)
        weights += (double)m[i].n * m[i].k;
    return weights;
}

/* As many planes, with scales as good, as the limit pays for in all linears: what expected losses
 * say of scales and planes is true before a fit, but a fit makes more of scales in every matrix
 * than of planes in few. */
static struct least find_least(const struct budget_matrix *m, int32_t n, double bits) {
    for (int32_t planes = MAX_PLANES; planes > 0; planes--)
        for (int s = SCALES_BOTH; s >= (planes > 1 ? SCALES_BOTH : SCALES_ONE); s--) {
            struct budget_choice c = {.planes = planes, .scales = (enum budget_scales)s};
            double all = 0;
            for (int32_t i = 0; i < n; i++)
                all += m[i].energy > 0 ? budget_bits(&m[i], &c) : 0;
            if (all <= bits)
                return (struct least){planes, c.scales};
        }
    return (struct least){1, SCALES_ONE};
}

static err_t spend(struct frontier *f, const struct budget_matrix *m, int32_t n, double bits,
                   struct budget_choice *choice, struct budget_result *r) {
    const struct point **pick = calloc((size_t)n, sizeof *pick);
    struct least floor = find_least(m, n, bits);
    struct budget_choice none = {0};
    err_t e = pick ? 0 : E_NOMEM;
    for (int32_t i = 0; !e && i < n; i++)
        e = frontier_open(&f[i], &m[i], floor);
    for (int32_t i = 0; !e && i < n; i++)
        bits -= chosen(&f[i])->bits;
    if (!e)
        walk(f, n, &bits); /* of tiny matrices even one scale is more than all may take */
    for (int32_t i = 0; !e && i < n; i++)
        pick[i] = chosen(&f[i]);
    if (!e)
        fill(f, n, pick, &bits);
    *r = (struct budget_result){0};
    for (int32_t i = 0; !e && i < n; i++) {
        choice[i] = pick[i]->choice;
        r->bits += pick[i]->bits;
        r->loss += pick[i]->loss;
        r->loss_at_base += budget_loss(&m[i], &none);
    }
    free(pick);
    return e;
}

err_t budget_spend(const struct budget_matrix *m, int32_t n, double bits,
                   struct budget_choice *choice, struct budget_result *result, struct why *why) {
    struct frontier *f = calloc((size_t)n, sizeof *f);
    err_t e = f ? spend(f, m, n, bits * weights_of(m, n) * slack, choice, result) : E_NOMEM;
    frontiers_close(f, n);
    return e ? why_set(why, e, "There is not enough memory to share out the bits.") : 0;
}
