/* How both CUDA libraries, of serving and of fitting, find their card: it is the first. C++ only.
 */
#ifndef KERNELS_CUDA_CARD_H
#define KERNELS_CUDA_CARD_H

#include <cstdio>
#include <cuda_runtime.h>

#include "config/err.h"

/* Makes it the current one and describes it in `size` bytes of `description`. */
static inline err_t card_open(cudaDeviceProp *p, char *description, size_t size, struct why *why) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n < 1)
        return why_set(why, E_UNSUPPORTED, "there is no CUDA device: %s",
                       e == cudaSuccess ? "none found" : cudaGetErrorString(e));
    e = cudaGetDeviceProperties(p, 0);
    if (e == cudaSuccess)
        e = cudaSetDevice(0);
    if (e != cudaSuccess)
        return why_set(why, E_DEVICE, "the CUDA device does not answer: %s", cudaGetErrorString(e));
    snprintf(description, size, "cuda, %.100s, %zu MiB", p->name, p->totalGlobalMem >> 20);
    return E_OK;
}

#endif
