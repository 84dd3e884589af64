/* Apart from backend.c, so that what reads tenant files needs no backend. */
#include "engine/upload.h"

#include <string.h>

err_t upload_fill(struct kernels *k, void *device, const void *data, size_t bytes) {
    err_t e = E_OK;
    for (size_t at = 0; !e && at < bytes; at += WINDOW_BYTES) {
        size_t n = bytes - at < WINDOW_BYTES ? bytes - at : WINDOW_BYTES;
        char *to = (char *)device + at;
        void *window = to;
        e = k ? k->ops->stage(k, to, n, &window) : E_OK;
        if (!e)
            memcpy(window, (const char *)data + at, n);
        if (!e && k)
            e = k->ops->commit(k, to, window, n);
    }
    return e;
}

err_t upload_new(struct kernels *k, const void *data, size_t bytes, void **device) {
    err_t e = k->ops->reserve(k, bytes, device);
    if (e) {
        *device = NULL;
        return e;
    }
    e = upload_fill(k, *device, data, bytes);
    if (!e)
        e = k->ops->settle(k);
    if (e) {
        k->ops->release(k, *device, bytes);
        *device = NULL;
    }
    return e;
}
