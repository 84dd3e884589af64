/* Checks of every operator of a struct train against the same formula in double precision, on edge
 * shapes; written against the table, so that they run on any backend. A failed check ends the test.
 * Values of weights are FP16 numbers, so that what is measured is the operator. */
#ifndef TESTS_KERNELS_TRAIN_CHECKS_H
#define TESTS_KERNELS_TRAIN_CHECKS_H

#include "kernels/train.h"

struct train_check {
    const char *name;
    void (*run)(struct train *t);
};
extern const struct train_check train_checks[]; /* ends with a NULL name */

#endif
