/* Which backend a device name means. */
#include "engine/backend.h"

#include <string.h>

#include "config/library.h"
#include "config/log.h"

typedef err_t open_fn(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                      int32_t threads, struct why *why);

static err_t cuda_open(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                       int32_t threads, struct why *why) {
    open_fn *open_cuda;
    void *symbol;
    err_t e = library_symbol("the CUDA backend", "libbitdelta_cuda.so", "kernels_cuda_open",
                             &symbol, why);
    if (e)
        return e;
    memcpy(&open_cuda, &symbol, sizeof symbol); /* ISO C has no cast from object to function */
    return open_cuda(out, shape, max_rows, threads, why);
}

err_t backend_open(struct kernels **out, const char *device, const struct model_shape *shape,
                   int32_t max_rows, int32_t threads, struct why *why) {
    if (strcmp(device, "cpu") == 0)
        return kernels_cpu_open(out, shape, max_rows, threads, why);
    if (strcmp(device, "cuda") == 0)
        return cuda_open(out, shape, max_rows, threads, why);
    if (strcmp(device, "auto") != 0)
        return why_set(why, E_CONFIG, "device \"%.40s\" is none of auto, cpu, cuda", device);
    struct why reason = {""};
    if (cuda_open(out, shape, max_rows, threads, &reason) == E_OK)
        return E_OK;
    log_info("engine", "device=cpu reason=\"%s\"", reason.text);
    return kernels_cpu_open(out, shape, max_rows, threads, why);
}
