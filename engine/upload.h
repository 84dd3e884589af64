/* The way from host memory into a device's, in windows of the backend. */
#ifndef ENGINE_UPLOAD_H
#define ENGINE_UPLOAD_H

#include "kernels/kernels.h"

/* Sends what stands in host memory to a place in device memory; it has arrived after settle(). Any
 * thread. k NULL: the place is the host's. Errors: E_DEVICE. */
err_t upload_fill(struct kernels *k, void *device, const void *data, size_t bytes);
/* Reserves device memory and fills it. Any thread. *device is NULL after an error. Errors: E_NOMEM,
 * E_DEVICE. */
err_t upload_new(struct kernels *k, const void *data, size_t bytes, void **device);

#endif
