/* Rows are appended; a new tenant opens a new group. */
#include "engine/batch.h"

#include <stdlib.h>
#include <string.h>

#include "engine/tenant.h"

err_t batch_init(struct batch *b, int32_t max_rows, int32_t max_seqs) {
    *b = (struct batch){0};
    size_t rows = (size_t)max_rows, seqs = (size_t)max_seqs;
    b->owner = calloc(seqs, sizeof *b->owner);
    b->n_logits = calloc(seqs, sizeof *b->n_logits);
    b->token = calloc(rows, sizeof *b->token);
    b->group = calloc(seqs, sizeof *b->group);
    b->seq = calloc(seqs, sizeof *b->seq);
    b->logit = calloc(rows, sizeof *b->logit);
    b->sampled = calloc(rows, sizeof *b->sampled);
    b->event = calloc(rows + 1, sizeof *b->event);
    b->step = (struct step){.token = b->token,
                            .group = b->group,
                            .seq = b->seq,
                            .logit = b->logit,
                            .sampled = b->sampled};
    if (b->owner && b->n_logits && b->token && b->group && b->seq && b->logit && b->sampled &&
        b->event)
        return E_OK;
    batch_free(b);
    return E_NOMEM;
}

void batch_free(struct batch *b) {
    free(b->owner);
    free(b->n_logits);
    free(b->token);
    free(b->group);
    free(b->seq);
    free(b->logit);
    free(b->sampled);
    free(b->event);
    *b = (struct batch){0};
}

void batch_clear(struct batch *b) {
    b->step.n_rows = b->step.n_groups = b->step.n_seqs = b->step.n_logits = 0;
}

static struct row_group *group_for(struct batch *b, const struct tenant_weights *tenant) {
    struct step *step = &b->step;
    if (step->n_groups > 0 && b->group[step->n_groups - 1].tenant == tenant)
        return &b->group[step->n_groups - 1];
    b->group[step->n_groups] = (struct row_group){.tenant = tenant, .first = step->n_rows};
    return &b->group[step->n_groups++];
}

void batch_add(struct batch *b, struct seq *q) {
    struct step *step = &b->step;
    int32_t first = step->n_rows, n = q->n_rows;
    memcpy(b->token + first, q->ids + q->n_cached, (size_t)n * sizeof *b->token);
    group_for(b, &q->tenant->weights)->n += n;
    b->owner[step->n_seqs] = q;
    b->n_logits[step->n_seqs] = seq_logits(q, first, n, b->logit + step->n_logits);
    b->seq[step->n_seqs] =
        (struct row_seq){.first = first, .n = n, .position = q->n_cached, .pages = q->pages};
    step->n_logits += b->n_logits[step->n_seqs];
    step->n_rows += n;
    step->n_seqs++;
}
