/* Which backend of kernels/train.h a device name means. */
#include "compress/device.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "config/library.h"

typedef err_t open_fn(struct train **out, struct why *why);

static err_t cuda_open(struct train **out, struct why *why) {
    open_fn *open_cuda;
    void *symbol;
    err_t e = library_symbol("the CUDA backend of fitting", "libbitdelta_train.so",
                             "train_cuda_open", &symbol, why);
    if (e)
        return e;
    memcpy(&open_cuda, &symbol, sizeof symbol); /* ISO C has no cast from object to function */
    return open_cuda(out, why);
}

err_t device_open(struct train **out, const char *device, int32_t threads, struct why *why) {
    if (strcmp(device, "cpu") == 0)
        return train_cpu_open(out, threads, why);
    if (strcmp(device, "cuda") == 0)
        return cuda_open(out, why);
    if (strcmp(device, "auto") != 0)
        return why_set(why, E_CONFIG, "device \"%.40s\" is none of auto, cpu, cuda", device);
    struct why reason = {""};
    if (cuda_open(out, &reason) == E_OK)
        return E_OK;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "Computing on the CPU: %s.\n", reason.text);
    return train_cpu_open(out, threads, why);
}
