/* Delta-CoMe's decomposition of a difference, for comparison: singular vectors at falling
 * precision. The first 2 ranks at 8 bits, the next 32 at 3, the rest at 2, as many as the bits
 * allow, in groups of 128 numbers with a scale and an offset each. Bands follow one another: of
 * each the right vectors are rounded first, then the left ones are fitted to them and to what the
 * bands before got wrong, and rounded. Where all ranks fit, what is left of the bits goes into more
 * of them, the largest singular values first. The rounding is of the weights alone (the published
 * recipe rounds by calibration data). */
#ifndef COMPRESS_DELTA_COME_H
#define COMPRESS_DELTA_COME_H

#include "kernels/train.h"

/* d [n, k], on the device, becomes what at most `bits` per weight leave of it; *spent: bits taken,
 * scales and offsets of the groups included. E_NOMEM. */
err_t delta_come(struct train *t, int32_t n, int32_t k, double bits, float *d, double *spent);

#endif
