/* What a command made, per kind of matrix: how much changed, how well it is kept, what it costs. */
#ifndef COMPRESS_REPORT_H
#define COMPRESS_REPORT_H

#include <jansson.h>

#include "compress/cost.h"
#include "kernels/kernels.h"

enum { REPORT_EMBED = N_PARTS, REPORT_HEAD, REPORT_NORM, N_REPORT };

struct report_row {
    double weights;                /* elements of the fine-tune's matrices */
    double base, change, residual; /* sums of squares: base weights, difference, what is lost */
    double bytes;                  /* in the tenant file */
    uint64_t zeros;                /* differences that are exactly 0 */
    char kind[32];                 /* "planes", "absent", ...; "mixed" when matrices differ */
};

struct report {
    struct report_row row[N_REPORT];
    struct cost cost; /* of a fit */
};

/* Remembers the kind of one matrix of the row. */
void report_kind(struct report_row *r, const char *kind);
void report_print(const struct report *r, double file_bytes);
/* What a tenant's "quality" says, as a table; nothing when it says nothing that is known. */
void report_quality(const json_t *quality);
/* How much of the way from the base to the fine-tune a tenant goes, 0 .. 1: one less the root of
 * its KL divergence from the fine-tune's predictions over the base's. (KL grows with the square of
 * a distance.) NAN: not measured. */
double report_kept(const json_t *quality);
/* The same of two divergences. */
double report_way(double kl, double base_kl);
json_t *report_json(const struct report *r, double file_bytes); /* given to the caller */

#endif
