/* Parameters against the model that was named: ids within its vocabulary, lengths within its
 * context; then the engine's request of one draw. The engine checks again. Loop thread. */
#ifndef SERVER_FIT_H
#define SERVER_FIT_H

#include "server/params.h"
#include "server/registry.h"

/* On failure *field names the parameter. Errors: E_TOKEN_RANGE, E_CONTEXT, E_INVAL. */
err_t fit_check(const struct params *p, const struct tenant_info *info, const char **field,
                struct why *why);
/* Fills *r but for its id; r->ids and r->bias are given (free). Draw i has the seed + i. Errors:
 * E_NOMEM. */
err_t fit_request(const struct params *p, const struct prompt *prompt, const struct served *model,
                  int draw, struct gen_request *r);

#endif
