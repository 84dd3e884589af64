/* Which backend computes: the CPU's, which is linked in, or CUDA's, a shared library that is loaded
 * when it is wanted, so that one package runs on hosts with and without a GPU. */
#ifndef ENGINE_BACKEND_H
#define ENGINE_BACKEND_H

#include "kernels/kernels.h"

/* device: "cpu", "cuda", or "auto": CUDA if it opens, else the CPU. The library is looked for as
 * libbitdelta_cuda.so beside the executable, then in ../lib/bitdeltad. It stays loaded for the life
 * of the process. Other arguments and errors: kernels_cpu_open; E_CONFIG for another name. */
err_t backend_open(struct kernels **out, const char *device, const struct model_shape *shape,
                   int32_t max_rows, int32_t threads, struct why *why);

#endif
