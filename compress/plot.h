/* The chart of `bitdelta eval`: what tenants reach against the bits they take, with their base and
 * fine-tune as lines of reference. Series differ by marker and dash as well as by colour. */
#ifndef COMPRESS_PLOT_H
#define COMPRESS_PLOT_H

#include "config/err.h"

enum plot_metric { PLOT_EXACT, PLOT_KL, PLOT_TOP1, PLOT_PERPLEXITY, N_PLOT_METRICS };

struct plot_point {
    const char *series; /* points of one name are joined in the order of their bits; borrowed */
    double bits;        /* a weight of the linears */
    double value[N_PLOT_METRICS]; /* NAN: not measured; shares in percent */
};

struct plot {
    const char *title;
    struct plot_point *point; /* [n_points]; sorted by the call */
    int n_points;
    double base[N_PLOT_METRICS], fine_tune[N_PLOT_METRICS]; /* NAN: no line */
};

/* One panel for each of the first three metrics that some tenant has. */
err_t plot_write(const char *path, const struct plot *p, struct why *why);

#endif
