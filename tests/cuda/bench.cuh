/* What the GPU benches share: a launch timed as the median of a captured graph's replays, and the
 * kernel that measures the card's read rate. */
#ifndef TESTS_CUDA_BENCH_CUH
#define TESTS_CUDA_BENCH_CUH

#include <algorithm>

#include "tests/cuda/setup.cuh"

enum { REPEATS = 15 };

template <typename F> static float median_ms(F record) {
    cudaStream_t s;
    CUDA(cudaStreamCreate(&s));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    record(s);
    CUDA(cudaStreamEndCapture(s, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t a, b;
    CUDA(cudaEventCreate(&a));
    CUDA(cudaEventCreate(&b));
    std::vector<float> ms(REPEATS);
    CUDA(cudaGraphLaunch(exec, s));
    for (float &t : ms) {
        CUDA(cudaEventRecord(a, s));
        CUDA(cudaGraphLaunch(exec, s));
        CUDA(cudaEventRecord(b, s));
        CUDA(cudaEventSynchronize(b));
        CUDA(cudaEventElapsedTime(&t, a, b));
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(s));
    std::sort(ms.begin(), ms.end());
    return ms[REPEATS / 2];
}

static __global__ void read_kernel(const uint4 *p, size_t n, uint32_t *out) {
    uint32_t x = 0;
    size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i + 7 * step < n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] = __ldcs(p + i + j * step);
#pragma unroll
        for (int j = 0; j < 8; j++)
            x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (x == 0x12345678)
        *out = x;
}

#endif
