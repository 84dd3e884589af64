#include "compress/search.h"

#include <math.h>

/* Of the logarithm of the loss per bit, before two looks tell: the demo's fine-tunes lose 2 to 4
 * times less with a second bit, and less so with every further one. */
static const double usual_slope = 1.1;
static const double least_slope = 0.15;
/* Nobody minds a tenth of a bit, and a fit is minutes. */
static const double fine_enough = 0.1;
static const double most_step = 2.5; /* two looks at a stair's tread tell no slope */
/* A share is measured to about this. */
static const double noise = 1e-4;

static double log_loss(double kept) {
    return log(1 - kept > noise ? 1 - kept : noise);
}

/* The nearest look that misses the target, and the smallest that reaches it; -1: none. */
static void bracket(const struct search *s, int32_t *miss, int32_t *reach) {
    *miss = *reach = -1;
    for (int32_t i = 0; i < s->n; i++) {
        if (s->kept[i] >= s->target && (*reach < 0 || s->bits[i] < s->bits[*reach]))
            *reach = i;
        if (s->kept[i] < s->target && (*miss < 0 || s->bits[i] > s->bits[*miss]))
            *miss = i;
    }
}

double search_estimate(const struct search *s, double kept) {
    int32_t high = 0, next = -1; /* the two largest budgets: later bits gain less than early ones */
    for (int32_t i = 1; i < s->n; i++)
        if (s->bits[i] > s->bits[high])
            next = high, high = i;
        else if (next < 0 || s->bits[i] > s->bits[next])
            next = i;
    double slope = usual_slope;
    if (next >= 0 && s->bits[high] - s->bits[next] > fine_enough / 4)
        slope =
            (log_loss(s->kept[next]) - log_loss(s->kept[high])) / (s->bits[high] - s->bits[next]);
    slope = slope > least_slope ? slope : least_slope;
    return s->bits[high] + (log_loss(s->kept[high]) - log_loss(kept)) / slope;
}

bool search_next(const struct search *s, double first, double *bits) {
    int32_t miss, reach;
    if (s->n == SEARCH_MAX_LOOKS)
        return false;
    bracket(s, &miss, &reach);
    if (s->n == 0) {
        *bits = first;
    } else if (reach < 0) {
        /* A little more than should be enough, the more so the more often it was not: a miss costs
         * a whole fit. */
        double step = fmax(search_estimate(s, s->target) - s->bits[miss], fine_enough);
        *bits = s->bits[miss] + fmin(step * (s->n < 3 ? 1 : 1.5), most_step) + fine_enough / 2;
    } else if (miss < 0) {
        *bits = s->least;
    } else {
        double low = log_loss(s->kept[miss]), high = log_loss(s->kept[reach]);
        double part = low > high ? (low - log_loss(s->target)) / (low - high) : 0.5;
        /* Looks that missed since this one was reached: the curve may be a stair; go up it faster.
         */
        for (int32_t i = reach + 1; i < s->n; i++)
            part = s->kept[i] < s->target ? (1 + part) / 2 : part;
        double width = s->bits[reach] - s->bits[miss], edge = fine_enough / 2 / width;
        if (width <= fine_enough * 1.001 || part > 1 - edge)
            return false;
        *bits = s->bits[miss] + (part < edge ? edge : part) * width;
    }
    *bits = fmin(fmax(*bits, s->least), s->most);
    for (int32_t i = 0; i < s->n; i++)
        if (fabs(s->bits[i] - *bits) < fine_enough / 4)
            return false;
    return true;
}

bool search_add(struct search *s, double bits, double kept) {
    int32_t miss, reach;
    bracket(s, &miss, &reach);
    s->bits[s->n] = bits;
    s->kept[s->n++] = kept;
    return kept >= s->target && (reach < 0 || bits < s->bits[reach]);
}
