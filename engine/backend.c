/* The executable's own folder is the only place the library's path is derived from: never the
 * working directory, never the environment. */
#include "engine/backend.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "config/log.h"

typedef err_t open_fn(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                      int32_t threads, struct why *why);

enum { LIBRARY_PATH_CAP = PATH_MAX + 64 };

/* The library's path, from the first of its two places that has it; else the executable's folder.
 */
static bool find_library(char path[LIBRARY_PATH_CAP]) {
    static const char *const place[] = {"libbitdelta_cuda.so",
                                        "../lib/bitdeltad/libbitdelta_cuda.so"};
    char folder[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    folder[n > 0 ? n : 0] = 0;
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = 0;
    for (int i = 0; i < 2; i++) {
        snprintf(path, LIBRARY_PATH_CAP, "%s/%s", folder, place[i]);
        if (access(path, R_OK) == 0)
            return true;
    }
    snprintf(path, LIBRARY_PATH_CAP, "%s", folder);
    return false;
}

static err_t cuda_open(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                       int32_t threads, struct why *why) {
    char path[LIBRARY_PATH_CAP];
    if (!find_library(path))
        return why_set(why, E_UNSUPPORTED,
                       "the CUDA backend is not installed: libbitdelta_cuda.so stands neither in "
                       "%.300s nor in ../lib/bitdeltad beside it",
                       path);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return why_set(why, E_UNSUPPORTED, "the CUDA backend could not be loaded: %.400s",
                       dlerror());
    open_fn *open_cuda;
    void *symbol = dlsym(library, "kernels_cuda_open");
    if (!symbol)
        return why_set(why, E_UNSUPPORTED, "%.400s is no backend of this program", path);
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

err_t backend_upload(struct kernels *k, const void *data, size_t bytes, void **device) {
    void *window;
    err_t e = k->ops->reserve(k, bytes, device);
    if (e) {
        *device = NULL;
        return e;
    }
    for (size_t at = 0; !e && at < bytes; at += WINDOW_BYTES) {
        size_t n = bytes - at < WINDOW_BYTES ? bytes - at : WINDOW_BYTES;
        char *to = (char *)*device + at;
        e = k->ops->stage(k, to, n, &window);
        if (!e) {
            memcpy(window, (const char *)data + at, n);
            e = k->ops->commit(k, to, window, n);
        }
    }
    if (!e)
        e = k->ops->settle(k);
    if (e) {
        k->ops->release(k, *device, bytes);
        *device = NULL;
    }
    return e;
}
