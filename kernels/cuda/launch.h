/* Launches that may start while the stream's previous kernel still runs (programmatic dependent
 * launch), where the device has that; the kernel waits with grid_wait (device.cuh). C++ only. */
#ifndef KERNELS_CUDA_LAUNCH_H
#define KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime.h>

#include "config/err.h"

/* What the code that the current device runs was compiled for: 800, 900, ..; 0 where the library
 * holds none for it. Not the device's own number: code of an older one may run there. Asked once a
 * process, not first while a graph is captured. */
int code_arch(void);
/* That code has the instructions that are Hopper's alone (compute_90a): the 1-bit product in
 * hardware, bulk copies to clusters, warpgroup products. */
bool code_is_hopper(void);

template <typename T> struct as_declared { typedef T type; }; /* args convert, they do not deduce */

template <typename... A>
static inline err_t launch_early(void (*kernel)(A...), dim3 grid, int threads, size_t shared,
                                 cudaStream_t stream,
                                 const typename as_declared<A>::type &...args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    cudaLaunchAttribute early[1];
    early[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = early;
    config.numAttrs = code_arch() >= 900;
    return cudaLaunchKernelEx(&config, kernel, args...) == cudaSuccess ? 0 : E_DEVICE;
}

#endif
