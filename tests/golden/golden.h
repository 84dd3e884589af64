/* Recorded reference results against an engine. Two files of one form: golden.json beside the
 * shared models (Hugging Face transformers in FP32; their README says how it was made), and
 * demo.json here (reference.py, for the shipped base and tenants). */
#ifndef TESTS_GOLDEN_GOLDEN_H
#define TESTS_GOLDEN_GOLDEN_H

#include "engine/engine.h"

/* Serves every case recorded under `name` in the file, all of them at once, for a tenant (NULL: the
 * base), and fails the test where a log-probability is off by more than `tolerance` or a greedy id
 * differs although its recorded margin exceeds 0.02. Gives the worst deviation. */
double golden_check(struct engine *e, struct tenant *tenant, const char *file, const char *name,
                    double tolerance);

/* Natural logarithm; FP16 keys and values give about 1e-4. */
#define GOLDEN_TOLERANCE 2e-3

#endif
