/* Bounds first, so that the loops over ids and biases have lengths that can be trusted. */
#include "engine/admission.h"

static err_t check_id(const struct tenant_info *t, int32_t id, const char *where, int32_t at,
                      struct why *why) {
    if (id >= 0 && id < t->vocab)
        return E_OK;
    return why_set(why, E_TOKEN_RANGE,
                   "token id %d at index %d of %s is outside the model's vocabulary of %d", id, at,
                   where, t->vocab);
}

/* Every id that a client can name, against the vocabulary of the tenant it is for. */
static err_t check_ids(const struct tenant_info *t, const struct gen_request *r, struct why *why) {
    err_t e = E_OK;
    for (int32_t i = 0; !e && i < r->n_ids; i++)
        e = check_id(t, r->ids[i], "the prompt", i, why);
    for (int32_t i = 0; !e && i < r->n_stop_ids; i++)
        e = check_id(t, r->stop_id[i], "the stop ids", i, why);
    for (int32_t i = 0; !e && i < r->n_bias; i++)
        e = check_id(t, r->bias[i].id, "logit_bias", i, why);
    return e;
}

static err_t check_range(const char *name, double value, double low, double high, struct why *why) {
    if (value >= low && value <= high) /* false for NaN */
        return E_OK;
    return why_set(why, E_INVAL, "%s is %g; it must lie between %g and %g", name, value, low, high);
}

/* Bounds that keep the arithmetic finite; the server's own may be tighter. */
static err_t check_values(const struct gen_request *r, struct why *why) {
    const struct {
        const char *name;
        double value, low, high;
    } rule[] = {
        {"the number of prompt ids", r->n_ids, 1, INT32_MAX},
        {"max_tokens", r->max_tokens, 0, INT32_MAX},
        {"min_tokens", r->min_tokens, 0, r->max_tokens},
        {"the number of stop ids", r->n_stop_ids, 0, GEN_MAX_STOP_IDS},
        {"the number of logit_bias entries", r->n_bias, 0, GEN_MAX_BIAS},
        {"the number of top log-probabilities", r->n_top, -1, GEN_MAX_TOP},
        {"temperature", (double)r->temperature, 0, 100},
        {"top_p", (double)r->top_p, 0, 1},
        {"min_p", (double)r->min_p, 0, 1},
        {"presence_penalty", (double)r->presence, -100, 100},
        {"frequency_penalty", (double)r->frequency, -100, 100},
        {"repetition_penalty", (double)r->repetition, (double)0.01f, 100},
    };
    err_t e = E_OK;
    for (size_t i = 0; !e && i < sizeof rule / sizeof *rule; i++)
        e = check_range(rule[i].name, rule[i].value, rule[i].low, rule[i].high, why);
    for (int32_t i = 0; !e && i < r->n_bias; i++)
        e = check_range("a logit_bias", (double)r->bias[i].bias, -1e6, 1e6, why);
    return e;
}

static err_t check_room(const struct gen_request *r, const struct tenant_info *t,
                        int64_t pool_tokens, struct why *why) {
    int64_t total = (int64_t)r->n_ids + r->max_tokens;
    if (total > t->context)
        return why_set(why, E_CONTEXT,
                       "the prompt has %d tokens and max_tokens is %d: together %lld, but the "
                       "model's context is %d",
                       r->n_ids, r->max_tokens, (long long)total, t->context);
    if (total > pool_tokens)
        return why_set(why, E_CONTEXT,
                       "the prompt has %d tokens and max_tokens is %d: together %lld, but this "
                       "server has KV memory for %lld (kv_tokens)",
                       r->n_ids, r->max_tokens, (long long)total, (long long)pool_tokens);
    return E_OK;
}

err_t admission_check(const struct gen_request *r, const struct tenant_info *t, int64_t pool_tokens,
                      struct why *why) {
    err_t e = check_values(r, why);
    if (!e)
        e = check_ids(t, r, why);
    return e ? e : check_room(r, t, pool_tokens, why);
}
