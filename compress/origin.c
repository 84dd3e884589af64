/* Sampled rows are enough: two models that were trained apart differ everywhere by about sqrt(2) of
 * their size, and what fine-tuning changes is spread over the rows of a matrix. */
#include "compress/origin.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 24, WORST = 3 };

struct distance {
    double change, base; /* sums of squares */
    char name[160];
};

static double ratio(const struct distance *d) {
    return d->base > 0 ? sqrt(d->change / d->base) : 0;
}

/* Adds up ROWS rows of [n, k] spread over the matrix. row: [2, k]. */
static err_t measure(const struct checkpoint *base, const struct checkpoint *fine,
                     struct distance *d, int32_t n, int32_t k, float *row, struct why *why) {
    int32_t step = n > ROWS ? n / ROWS : 1;
    err_t e = E_OK;
    for (int32_t r = 0; !e && r < n; r += step) {
        uint64_t at = (uint64_t)r * (uint64_t)k;
        e = checkpoint_read_f32_rows(base, d->name, row, at, (size_t)k, why);
        e = e ? e : checkpoint_read_f32_rows(fine, d->name, row + k, at, (size_t)k, why);
        for (int32_t i = 0; !e && i < k; i++) {
            double change = (double)row[k + i] - row[i];
            d->change += change * change;
            d->base += (double)row[i] * row[i];
        }
    }
    return e;
}

static err_t refuse(const struct checkpoint *base, const struct checkpoint *fine,
                    const struct distance *all, const struct distance worst[WORST],
                    struct why *why) {
    char list[500] = "";
    for (int w = 0; w < WORST && worst[w].name[0]; w++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s (%.2f)", w ? ", " : "",
                 worst[w].name, ratio(&worst[w]));
    return why_set(why, E_WRONG_BASE,
                   "%s is not a fine-tune of %s: its weights differ by %.2f times the size of the "
                   "base's (a fine-tune: well below 1; unrelated models: about 1.4), most in %s",
                   fine->dir, base->dir, ratio(all), list);
}

err_t origin_check(const struct checkpoint *base, const struct checkpoint *fine, struct why *why) {
    const struct model_shape *s = &base->config.shape;
    struct distance all = {0}, worst[WORST] = {0};
    int32_t widest = part_cols(s, PART_O);
    widest = widest > s->dim ? widest : s->dim;
    widest = widest > s->ffn_dim ? widest : s->ffn_dim;
    float *row = malloc(2 * (size_t)widest * sizeof *row);
    err_t e = row ? E_OK : why_set(why, E_NOMEM, "%s: not enough memory to compare it", fine->dir);
    for (int32_t i = 0; !e && i < s->n_layers * N_PARTS; i++) {
        enum part p = (enum part)(i % N_PARTS);
        struct distance d = {0};
        char part[128];
        part_name(part, sizeof part, i / N_PARTS, p);
        snprintf(d.name, sizeof d.name, "%s.weight", part);
        e = measure(base, fine, &d, part_rows(s, p), part_cols(s, p), row, why);
        all.change += d.change;
        all.base += d.base;
        for (int w = 0; w < WORST; w++)
            if (ratio(&d) > ratio(&worst[w])) { /* the one it displaces goes on down the list */
                struct distance less = worst[w];
                worst[w] = d;
                d = less;
            }
    }
    free(row);
    return e || ratio(&all) <= 1 ? e : refuse(base, fine, &all, worst, why);
}
