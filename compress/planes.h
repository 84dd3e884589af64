/* A matrix of differences as sign planes: d ~ sum over planes of scale * sign, one scale per row or
 * one for the matrix.
 *
 * The 2^planes levels start evenly spaced over the row; then, a few times, every weight takes the
 * nearest level and the scales of all planes are solved jointly by least squares. With one plane
 * this is the published method: the sign of the difference (sign(0) = +1) times its mean magnitude.
 */
#ifndef COMPRESS_PLANES_H
#define COMPRESS_PLANES_H

#include "kernels/kernels.h"

struct planes {
    int32_t n, k, n_planes;
    bool per_row;
    uint32_t *bits[MAX_PLANES]; /* tiles of [n, k], zero bits past its edges; owned */
    float *row[MAX_PLANES];     /* [n] or [1]; owned */
    double change, residual;    /* sums of squares: of d, and of what the planes miss */
    uint64_t zeros;             /* differences that are exactly 0 */
};

err_t planes_init(struct planes *p, int32_t n, int32_t k, int32_t n_planes, bool per_row,
                  struct why *why);
/* Fits rows [first, first + rows) from d [rows, k]; per_row only. All cores. */
err_t planes_fit_rows(struct planes *p, const float *d, int32_t first, int32_t rows,
                      struct why *why);
/* Fits the whole matrix d [n, k] with one scale per plane. All cores. */
err_t planes_fit_matrix(struct planes *p, const float *d, struct why *why);
void planes_free(struct planes *p);

#endif
