/* The device that a tenant is fitted on. */
#ifndef COMPRESS_DEVICE_H
#define COMPRESS_DEVICE_H

#include "kernels/train.h"

/* device: "cpu", "cuda", or "auto": a CUDA device if there is one that the backend is built for.
 * threads: of the CPU; 0: all cores. Close with ops->close. E_CONFIG, E_UNSUPPORTED, E_NOMEM,
 * E_DEVICE with a sentence. */
err_t device_open(struct train **out, const char *device, int32_t threads, struct why *why);

#endif
