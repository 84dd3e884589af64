/* Launches that may start while the stream's previous kernel still runs (programmatic dependent
 * launch), where the device has that; the kernel waits with grid_wait (device.cuh). C++ only. */
#ifndef KERNELS_CUDA_LAUNCH_H
#define KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime.h>

#include "config/err.h"

/* Major compute capability of the current device. */
static inline int device_major(void) {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major;
}

template <typename A>
static inline err_t launch_early(void (*kernel)(A), dim3 grid, int threads, size_t shared,
                                 cudaStream_t stream, const A &args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    cudaLaunchAttribute early[1];
    early[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = early;
    config.numAttrs = device_major() >= 9;
    return cudaLaunchKernelEx(&config, kernel, args) == cudaSuccess ? 0 : E_DEVICE;
}

#endif
