/* What the fuzz targets share: deterministic damage for `build/test`, seeds for libFuzzer. */
#ifndef TESTS_FUZZ_MUTATE_H
#define TESTS_FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

typedef void fuzz_fn(const uint8_t *data, size_t n);

/* Runs the target on the seed and on `rounds` damaged copies of it (bits, bytes, numbers, cuts,
 * repeats), or as many as fit into a second. With FUZZ_SEEDS=DIR in the environment it also writes
 * the seed to DIR/NAME/, where tests/fuzz/run.sh takes it from. */
void fuzz_mutations(const char *name, fuzz_fn *target, const void *seed, size_t n, int rounds);
/* The same for a file. */
void fuzz_mutations_of_file(const char *name, fuzz_fn *target, const char *path, int rounds);

#endif
