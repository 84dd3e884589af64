/* What the current device runs of this library; see launch.h. */
#include "kernels/cuda/launch.h"

namespace {

enum { HOPPER_OWN = 901 };

__global__ void tell_kernel(int *code) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    *code = HOPPER_OWN;
#elif defined(__CUDA_ARCH__)
    *code = __CUDA_ARCH__;
#endif
}

int ask(void) {
    int code = 0, *device = NULL;
    if (cudaMalloc((void **)&device, sizeof *device) == cudaSuccess) {
        tell_kernel<<<1, 1>>>(device);
        if (cudaMemcpy(&code, device, sizeof code, cudaMemcpyDeviceToHost) != cudaSuccess)
            code = 0;
    }
    cudaFree(device);
    cudaGetLastError(); /* said by the result */
    return code;
}

int code(void) {
    static const int asked = ask();
    return asked;
}

} // namespace

int code_arch(void) {
    return code() / 10 * 10;
}

bool code_is_hopper(void) {
    return code() == HOPPER_OWN;
}
