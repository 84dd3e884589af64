#include "server/fit.h"

#include <stdlib.h>
#include <string.h>

static err_t check_id(const char *name, int64_t id, const struct tenant_info *info,
                      const char **field, struct why *why) {
    if (id >= 0 && id < info->vocab)
        return E_OK;
    *field = name;
    return why_set(why, E_TOKEN_RANGE, "'%s' id %lld is outside 0 .. %d.", name, (long long)id,
                   info->vocab - 1);
}

/* max_tokens < 0: as many as the context leaves. */
static err_t check_length(int32_t n_ids, int32_t max_tokens, const struct tenant_info *info,
                          const char **field, struct why *why) {
    int64_t least = max_tokens < 0 ? 1 : max_tokens;
    if (n_ids > 0 && n_ids + least <= info->context)
        return E_OK;
    *field = "prompt";
    if (n_ids == 0)
        return why_set(why, E_INVAL, "'prompt' gives no token at all.");
    if (max_tokens < 0)
        return why_set(why, E_CONTEXT,
                       "This model's context is %d tokens; the prompt has %d and leaves no room.",
                       info->context, n_ids);
    if (n_ids < info->context)
        *field = "max_tokens";
    return why_set(why, E_CONTEXT,
                   "This model's context is %d tokens; the prompt has %d and max_tokens is %d.",
                   info->context, n_ids, max_tokens);
}

err_t fit_check(const struct params *p, const struct tenant_info *info, const char **field,
                struct why *why) {
    const struct gen_request *g = &p->gen;
    err_t e = E_OK;
    for (int k = 0; !e && k < p->n_prompts; k++) {
        const struct prompt *prompt = &p->prompt[k];
        for (int32_t i = 0; !e && i < prompt->n_ids; i++)
            e = check_id("prompt", prompt->ids[i], info, field, why);
        if (!e)
            e = check_length(prompt->n_ids, g->max_tokens, info, field, why);
    }
    for (int32_t i = 0; !e && i < g->n_bias; i++)
        e = check_id("logit_bias", g->bias[i].id, info, field, why);
    for (int32_t i = 0; !e && i < g->n_stop_ids; i++)
        e = check_id("stop_token_ids", g->stop_id[i], info, field, why);
    return e;
}

err_t fit_request(const struct params *p, const struct prompt *prompt, const struct served *model,
                  int draw, struct gen_request *r) {
    *r = p->gen;
    if (model->away) /* never the base in its place */
        return E_INTERNAL;
    r->tenant = model->tenant;
    r->seed += (uint64_t)draw;
    r->n_ids = prompt->n_ids;
    r->ids = malloc((size_t)r->n_ids * sizeof *r->ids);
    r->bias = r->n_bias ? malloc((size_t)r->n_bias * sizeof *r->bias) : NULL;
    if (!r->ids || (r->n_bias && !r->bias)) {
        free(r->ids);
        free(r->bias);
        return E_NOMEM;
    }
    memcpy(r->ids, prompt->ids, (size_t)r->n_ids * sizeof *r->ids);
    if (r->n_bias)
        memcpy(r->bias, p->gen.bias, (size_t)r->n_bias * sizeof *r->bias);
    if (r->max_tokens < 0)
        r->max_tokens = model->info->context - r->n_ids;
    if (r->min_tokens > r->max_tokens)
        r->min_tokens = r->max_tokens;
    return E_OK;
}
