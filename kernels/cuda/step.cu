/* The door of a step: what begin checks, how it cuts the rows into passes, what end gives back. The
 * class of a sequence's rows depends on how many it brings, never on its neighbours (step.h). */
#include <cstring>

#include "kernels/cuda/cuda.h"

/* ---- checks: those of the CPU backend -------------------------------------------------------- */

static err_t map_groups(struct cuda *c, const struct step *step) {
    int32_t row = 0;
    for (int32_t i = 0; i < step->n_groups; i++) {
        const struct row_group *g = &step->group[i];
        if (g->first != row || g->n < 1 || g->n > step->n_rows - row || !g->tenant->bound)
            return E_INVAL;
        for (; row < g->first + g->n; row++) {
            c->row_group[row] = i;
            c->logit_of_row[row] = -1;
            if (step->token[row] < 0 || step->token[row] >= g->tenant->vocab)
                return E_TOKEN_RANGE;
        }
    }
    return row == step->n_rows ? E_OK : E_INVAL;
}

/* Sequences in row order, each inside a group, with all their positions within the context and
 * all their pages within the pool. */
static err_t check_sequences(const struct cuda *c, const struct step *step) {
    int32_t row = 0, n_pages = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct row_seq *s = &step->seq[i];
        if (s->first != row || s->n < 1 || s->n > step->n_rows - row || s->position < 0)
            return E_INVAL;
        const struct row_group *g = &step->group[c->row_group[row]];
        row += s->n;
        if (row > g->first + g->n)
            return E_INVAL;
        if (s->position > g->tenant->context - s->n)
            return E_CONTEXT;
        int32_t pages = tiles_of(s->position + s->n, KV_PAGE_TOKENS);
        for (int32_t p = 0; p < pages; p++)
            if (s->pages[p] < 0 || s->pages[p] >= c->n_pages)
                return E_INVAL;
        n_pages += pages;
        if (n_pages > c->n_pages + c->max_rows)
            return E_INVAL;
    }
    return row == step->n_rows ? E_OK : E_INVAL;
}

static err_t map_logits(struct cuda *c, const struct step *step) {
    int32_t last = -1;
    for (int32_t i = 0; i < step->n_logits; i++) {
        int32_t row = step->logit[i].row;
        if (row <= last || row >= step->n_rows)
            return E_INVAL;
        c->logit_of_row[row] = i;
        last = row;
    }
    return E_OK;
}

/* ---- passes ---------------------------------------------------------------------------------- */

/* Narrow rows in passes of SLICE_ROWS; a sequence may be cut between two, which run one after the
 * other. */
static err_t narrow_passes(struct cuda *c) {
    const struct step *step = c->step;
    err_t e = E_OK;
    pass_clear(&c->pass);
    for (int32_t i = 0; !e && i < step->n_seqs; i++) {
        const struct row_seq *s = &step->seq[i];
        for (int32_t at = 0; !e && s->n < WIDE_MIN && at < s->n;) {
            int32_t room = SLICE_ROWS - c->pass.counts.n_narrow;
            int32_t n = s->n - at < room ? s->n - at : room;
            pass_add(c, i, s->first + at, n, false);
            at += n;
            if (c->pass.counts.n_narrow == SLICE_ROWS)
                e = narrow_pass(c);
        }
    }
    return e || !c->pass.counts.n_narrow ? e : narrow_pass(c);
}

static err_t wide_pass(struct cuda *c) {
    const struct step *step = c->step;
    pass_clear(&c->pass);
    for (int32_t i = 0; i < step->n_seqs; i++)
        if (step->seq[i].n >= WIDE_MIN)
            pass_add(c, i, step->seq[i].first, step->seq[i].n, true);
    return c->pass.counts.n_wide ? pass_send(c, &c->wide) : E_OK;
}

err_t cuda_begin(struct kernels *k, const struct step *step) {
    struct cuda *c = cuda_of(k);
    if (c->error)
        return c->error;
    if (step->n_rows < 1 || step->n_rows > c->max_rows || step->n_logits > step->n_rows ||
        step->n_logits < 0)
        return E_INVAL;
    err_t e = map_groups(c, step);
    if (!e)
        e = check_sequences(c, step);
    if (!e)
        e = map_logits(c, step);
    if (e)
        return e;
    c->step = step;
    c->pinned_used = 0;
    c->n_results = 0;
    e = narrow_passes(c);
    if (!e)
        e = wide_pass(c);
    if (e) { /* passes may be under way, and their pages are the caller's again */
        CUDA_NOTE(c, cudaStreamSynchronize(c->stream));
        c->step = NULL;
    }
    return c->error ? (err_t)c->error : e;
}

err_t cuda_end(struct kernels *k) {
    struct cuda *c = cuda_of(k);
    const struct step *step = c->step;
    CUDA_NOTE(c, cudaStreamSynchronize(c->stream));
    for (int32_t i = 0; !c->error && i < c->n_results; i++)
        step->sampled[c->result_of[i]] = c->results[i];
    c->step = NULL;
    return c->error;
}
