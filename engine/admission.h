/* What a request must satisfy before it may join a batch: the one place where a client's numbers
 * are checked inside the engine. Pure functions. */
#ifndef ENGINE_ADMISSION_H
#define ENGINE_ADMISSION_H

#include "engine/engine.h"

/* t: of the tenant that the request is for. pool_tokens: KV memory of the engine, in tokens.
 * Errors: E_INVAL, E_TOKEN_RANGE, E_CONTEXT, each with a sentence that holds the numbers. */
err_t admission_check(const struct gen_request *r, const struct tenant_info *t, int64_t pool_tokens,
                      struct why *why);

#endif
