/* The CUDA backend for tests, loaded as the programs load it. Without a device a test says so and
 * counts as skipped. */
#ifndef TESTS_GPU_GPU_H
#define TESTS_GPU_GPU_H

#include "tests/drive.h"
#include "tests/kernels/model.h"

/* Skips the test where no device is. */
void gpu_need(void);
/* The backend with the model's base on it and a KV pool, and the model with its tenants' arrays in
 * device memory and bound (`on_device`; what a step must name). Never freed: a test is a process.
 */
void gpu_open(struct kernels **k, const struct model *m, int32_t max_rows, struct model *on_device);
/* Options for an engine on the device. */
struct engine_options gpu_options(const char *base_dir);

#endif
