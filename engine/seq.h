/* One generation's life: its ids so far, how many of them are computed, its pages, and what the
 * logits of a step mean for it. A sequence knows nothing of the batch it runs in, which is half of
 * the promise that its reply does not depend on one (the kernels give the other half): draws are
 * numbered by the output's length, penalties look at its own ids alone.
 *
 * The I/O thread opens and frees a sequence; between submit and its last event the engine thread
 * alone touches it. It does not allocate after seq_open. */
#ifndef ENGINE_SEQ_H
#define ENGINE_SEQ_H

#include "engine/kv.h"
#include "engine/request.h"

enum seq_state { SEQ_WAITING, SEQ_RUNNING };

struct seq {
    struct gen_request request; /* ids and bias are not used: see below */
    struct tenant *tenant;      /* a reference; never NULL */
    uint64_t arrival;           /* order of submission */
    enum seq_state state;

    int32_t *ids;             /* [n_prompt + max_tokens] owned: prompt, then output */
    int32_t n_prompt, n_ids;  /* n_ids: known so far */
    int32_t n_cached;         /* ids whose keys and values stand in the pages */
    int32_t n_scored;         /* prompt ids reported: ids[1 .. n_scored] */
    int32_t *pages;           /* [kv_pages_for(n_prompt + max_tokens)] owned */
    int32_t n_pages;          /* held now */
    struct logit_bias *bias;  /* [request.n_bias] owned */
    int32_t *banned;          /* [n_banned] owned: ids that end the text, for min_tokens */
    int32_t n_banned, n_rows; /* n_rows: rows planned for this step */
};

/* Takes over r->ids and r->bias on success; `tenant` with one reference that the caller adds.
 * eos: [n_eos], the tenant's; vocab: its vocabulary. E_NOMEM. */
err_t seq_open(struct seq **out, const struct gen_request *r, struct tenant *tenant,
               const int32_t *eos, int32_t n_eos, int32_t vocab);
void seq_free(struct seq *s); /* NULL is fine; pages and tenant must have been given back */

/* Rows still to be computed before the sequence can go on: 1 in decode, more in prefill, 0 when
 * nothing is left to do. */
int32_t seq_rows_left(const struct seq *s);

/* What to do with the logits of the next n_rows rows, which are rows first .. of the step.
 * Writes at most n_rows logit rows and returns how many. */
int32_t seq_logits(const struct seq *s, int32_t first, int32_t n_rows, struct logit_row *out);

/* The step computed s->n_rows rows, whose logits gave result[n]. Writes the events that follow, at
 * most n + 1 of them, and returns how many; *ended says that the last of them ends the request. */
int32_t seq_advance(struct seq *s, const struct sampled *result, int32_t n, struct gen_event *out,
                    bool *ended);

struct gen_event seq_done(const struct seq *s, enum gen_finish finish);
struct gen_event seq_failed(const struct seq *s, err_t error);

#endif
