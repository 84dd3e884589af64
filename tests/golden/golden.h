/* Reference results of Hugging Face transformers in FP32 (golden.json beside the models; its README
 * says how they were made), against an engine. */
#ifndef TESTS_GOLDEN_GOLDEN_H
#define TESTS_GOLDEN_GOLDEN_H

#include "engine/engine.h"

/* Serves every case recorded under `name`, all of them at once, for a tenant (NULL: the base), and
 * fails the test where a log-probability is off by more than 2e-3 or a greedy id differs although
 * its recorded margin exceeds 0.02. */
void golden_check(struct engine *e, struct tenant *tenant, const char *name);

#endif
