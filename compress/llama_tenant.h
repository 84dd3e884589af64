/* A tenant file as a calibration model. */
#ifndef COMPRESS_LLAMA_TENANT_H
#define COMPRESS_LLAMA_TENANT_H

#include "compress/llama.h"
#include "engine/tenant_file.h"

/* The weights that a tenant file makes of its base as it is served, dense on the device. Free with
 * llama_free. p: NULL for none. */
err_t llama_of_tenant(struct llama *m, struct train *t, const struct checkpoint *base,
                      const struct tenant_file *file, struct progress *p, struct why *why);

#endif
