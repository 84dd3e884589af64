/* Where the bits go: for every matrix of a tenant how many sign planes with which scales, and how
 * large a low-rank pair, so that the whole loses least of the fine-tune for the bits that it may
 * take.
 *
 * One currency for all matrices: the loss that a matrix is
 * expected to cause is its sensitivity (what a unit of squared error in it costs, measured by
 * compress/sensitivity.h) times the energy of what its planes and pair leave of the difference.
 * Every way to store a matrix is then a point of bits and loss; bits are spent where they gain
 * most. Pure arithmetic on the host, the same on every machine. */
#ifndef COMPRESS_BUDGET_H
#define COMPRESS_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

enum budget_scales { SCALES_ONE, SCALES_ROWS, SCALES_BOTH, N_SCALES };

/* What is known of one matrix [n, k] before it is stored. */
struct budget_matrix {
    int32_t n, k;
    double energy;         /* sum of squares of its difference from the base */
    double sensitivity;    /* loss for each unit of squared error that stays */
    double left[N_SCALES]; /* share of the energy that one plane leaves with each kind of scales */
    const double *root;    /* [n_roots] the difference's largest singular values, squared, falling;
                              borrowed */
    int32_t n_roots;
    int32_t n_changed; /* rows that differ at all; > 0: they may be kept exactly (embed, head) */
    double fixed_bits; /* spent whatever is chosen: rows beyond the base's vocabulary */
};

/* How to store it. exact: all changed rows, in 16 bits a weight; whole: the others, too; else
 * planes and a pair, or neither: the base's. */
struct budget_choice {
    int32_t planes, rank;
    enum budget_scales scales;
    bool exact, whole;
};

struct budget_result {
    double bits; /* as spent, of all matrices */
    double loss; /* expected, of all; at no bits at all: loss_at_base */
    double loss_at_base;
};

/* Shares `bits` per weight, scales and pairs included, among the n matrices; choice [n] is written.
 * Every matrix that changed gets a plane: an expected loss is a rough guide, and what one plane
 * keeps of a matrix it misjudges. The rest goes where it gains. A pair alone may take the plane's
 * place where it leaves less than a tenth of what that would. E_NOMEM with a sentence. */
err_t budget_spend(const struct budget_matrix *m, int32_t n, double bits,
                   struct budget_choice *choice, struct budget_result *result, struct why *why);

/* What a choice costs; what planes and pair (not exact rows) leave. */
double budget_bits(const struct budget_matrix *m, const struct budget_choice *c);
double budget_loss(const struct budget_matrix *m, const struct budget_choice *c);

#endif
