/* Positions: row i of a sequence computes ids[i] and its logits judge ids[i + 1]. So prompt id i is
 * scored by row i - 1, and the row of the last known id draws the next one. After a preemption
 * n_cached falls to 0 and the same rows run again; n_scored and n_ids remember what was reported,
 * so nothing is reported or drawn twice. */
#include "engine/seq.h"

#include <stdlib.h>
#include <string.h>

static bool ends_text(const struct seq *s, int32_t id) {
    for (int32_t i = 0; i < s->n_banned; i++)
        if (s->banned[i] == id)
            return true;
    return false;
}

/* The ids that end this text: stop ids, and the tenant's EOS ids unless they are ignored. */
static void fill_banned(struct seq *s, const int32_t *eos, int32_t n_eos, int32_t vocab) {
    const struct gen_request *r = &s->request;
    for (int32_t i = 0; !r->ignore_eos && i < n_eos; i++)
        if (eos[i] >= 0 && eos[i] < vocab) /* a config may name an EOS that has no row */
            s->banned[s->n_banned++] = eos[i];
    for (int32_t i = 0; i < r->n_stop_ids; i++)
        if (!ends_text(s, r->stop_id[i]))
            s->banned[s->n_banned++] = r->stop_id[i];
}

err_t seq_open(struct seq **out, const struct gen_request *r, struct tenant *tenant,
               const int32_t *eos, int32_t n_eos, int32_t vocab) {
    size_t total = (size_t)r->n_ids + (size_t)r->max_tokens;
    struct seq *s = calloc(1, sizeof *s);
    if (!s)
        return E_NOMEM;
    s->request = *r;
    s->request.ids = NULL;
    s->request.bias = NULL;
    s->tenant = tenant;
    s->n_prompt = s->n_ids = r->n_ids;
    s->pages = malloc((size_t)kv_pages_for((int64_t)total) * sizeof *s->pages);
    s->bias = malloc(((size_t)r->n_bias + 1) * sizeof *s->bias);
    s->banned = malloc((size_t)(n_eos + r->n_stop_ids + 1) * sizeof *s->banned);
    s->ids = malloc(total * sizeof *s->ids);
    if (!s->pages || !s->bias || !s->banned || !s->ids) {
        seq_free(s);
        return E_NOMEM;
    }
    memcpy(s->ids, r->ids, (size_t)r->n_ids * sizeof *s->ids);
    for (int32_t i = 0; i < r->n_bias; i++)
        s->bias[i] = (struct logit_bias){r->bias[i].id, r->bias[i].bias};
    fill_banned(s, eos, n_eos, vocab);
    free(r->ids); /* given to us: the copy above has room for the output */
    free(r->bias);
    *out = s;
    return E_OK;
}

void seq_free(struct seq *s) {
    if (!s)
        return;
    free(s->ids);
    free(s->pages);
    free(s->bias);
    free(s->banned);
    free(s);
}

int32_t seq_rows_left(const struct seq *s) {
    int32_t end = s->n_ids;
    if (s->request.max_tokens == 0) /* the last row would only draw; unscored prompts need none */
        end = s->request.prompt_logprobs ? s->n_prompt - 1 : 0;
    return end > s->n_cached ? end - s->n_cached : 0;
}

static struct logit_row draw_row(const struct seq *s, int32_t row) {
    const struct gen_request *r = &s->request;
    int32_t n_output = s->n_ids - s->n_prompt;
    return (struct logit_row){
        .row = row,
        .target = -1,
        .temperature = r->temperature,
        .top_p = r->top_p,
        .min_p = r->min_p,
        .top_k = r->top_k,
        .presence = r->presence,
        .frequency = r->frequency,
        .repetition = r->repetition,
        .seed = r->seed,
        .draw = (uint64_t)n_output,
        .history = s->ids,
        .n_prompt = s->n_prompt,
        .n_history = s->n_ids,
        .bias = s->bias,
        .n_bias = r->n_bias,
        .banned = s->banned,
        .n_banned = n_output < r->min_tokens ? s->n_banned : 0,
        .n_top = r->n_top,
    };
}

int32_t seq_logits(const struct seq *s, int32_t first, int32_t n_rows, struct logit_row *out) {
    int32_t n = 0;
    for (int32_t i = 0; i < n_rows; i++) {
        int32_t id = s->n_cached + i + 1; /* index of the id that this row judges */
        if (id == s->n_ids && s->request.max_tokens > 0)
            out[n++] = draw_row(s, first + i);
        else if (s->request.prompt_logprobs && id > s->n_scored && id < s->n_prompt)
            out[n++] = (struct logit_row){
                .row = first + i,
                .target = s->ids[id],
                .top_p = 1,
                .repetition = 1,
                .n_top = s->request.n_top > 0 ? s->request.n_top : 0,
            };
    }
    return n;
}

static struct gen_event event_of(const struct seq *s, enum gen_kind kind, const struct sampled *r) {
    struct gen_event e = {
        .id = s->request.id, .kind = kind, .token = r->token, .logprob = r->logprob};
    e.n_top = r->n_top > 0 ? r->n_top : 0;
    memcpy(e.top_id, r->top_id, (size_t)e.n_top * sizeof *e.top_id);
    memcpy(e.top_logprob, r->top_logprob, (size_t)e.n_top * sizeof *e.top_logprob);
    return e;
}

struct gen_event seq_done(const struct seq *s, enum gen_finish finish) {
    return (struct gen_event){.id = s->request.id, .kind = GEN_DONE, .token = -1, .finish = finish};
}

struct gen_event seq_failed(const struct seq *s, err_t error) {
    return (struct gen_event){.id = s->request.id, .kind = GEN_FAILED, .token = -1, .error = error};
}

/* A drawn id: it ends the text, or joins it. */
static int32_t take_draw(struct seq *s, const struct sampled *r, struct gen_event *out,
                         bool *ended) {
    if (ends_text(s, r->token)) {
        out[0] = event_of(s, GEN_DONE, r);
        out[0].finish = GEN_STOP;
        *ended = true;
        return 1;
    }
    out[0] = event_of(s, GEN_TOKEN, r);
    s->ids[s->n_ids++] = r->token;
    if (s->n_ids - s->n_prompt < s->request.max_tokens)
        return 1;
    out[1] = seq_done(s, GEN_LENGTH);
    *ended = true;
    return 2;
}

int32_t seq_advance(struct seq *s, const struct sampled *result, int32_t n, struct gen_event *out,
                    bool *ended) {
    int32_t n_events = 0;
    bool draws = s->n_cached + s->n_rows == s->n_ids && s->request.max_tokens > 0;
    s->n_cached += s->n_rows;
    *ended = false;
    for (int32_t i = 0; i < n && !*ended; i++) {
        if (!result[i].finite) {
            out[n_events++] = seq_failed(s, E_NONFINITE);
            *ended = true;
        } else if (draws && i == n - 1) {
            n_events += take_draw(s, &result[i], out + n_events, ended);
        } else {
            out[n_events++] = event_of(s, GEN_PROMPT, &result[i]);
            s->n_scored++;
        }
    }
    if (!*ended && seq_rows_left(s) == 0) { /* only the prompt was wanted */
        out[n_events++] = seq_done(s, GEN_LENGTH);
        *ended = true;
    }
    return n_events;
}
