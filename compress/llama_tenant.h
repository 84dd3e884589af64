/* A tenant file as a calibration model. */
#ifndef COMPRESS_LLAMA_TENANT_H
#define COMPRESS_LLAMA_TENANT_H

#include "compress/llama.h"
#include "engine/tenant_file.h"

/* The weights that a tenant file makes of its base, dense in FP32. Free with llama_free. */
err_t llama_of_tenant(struct llama *m, const struct gemm *g, const struct llama *base,
                      const struct tenant_file *t, struct why *why);

#endif
