/* Sampling in full precision and without a full sort: candidates stand in a heap, and only as many
 * are taken out as top_k or top_p let in.
 *
 * The draw: with u from kernels/draw.h, the first candidate at which the running sum of weights
 * exceeds u times their total; candidates stand in the order of ids, or, when top_k or top_p cut
 * them, from the heaviest down (ties: lower id first). */
#include "kernels/cpu/sample.h"

#include <math.h>
#include <string.h>

#include "kernels/draw.h"

/* ---- log-probabilities of the raw distribution ----------------------------------------------- */

static void report(const struct isa *isa, const float *z, int32_t vocab, float max, int32_t n_top,
                   float *weight, struct sampled *out, double *log_sum) {
    *log_sum = (double)max + log(isa->weigh(z, max, 1, vocab, weight));
    n_top = n_top < MAX_TOP ? n_top : MAX_TOP;
    float best[MAX_TOP];
    int32_t n = 0;
    for (int32_t i = 0; i < vocab && n_top > 0; i++) {
        if (n == n_top && !(z[i] > best[n - 1])) /* equal: the lower id is in already */
            continue;
        int32_t at = n < n_top ? n++ : n - 1;
        for (; at > 0 && z[i] > best[at - 1]; at--) {
            best[at] = best[at - 1];
            out->top_id[at] = out->top_id[at - 1];
        }
        best[at] = z[i];
        out->top_id[at] = i;
    }
    out->n_top = n;
    for (int32_t i = 0; i < n; i++)
        out->top_logprob[i] = (float)((double)best[i] - *log_sum);
}

/* ---- bias, masks, penalties ------------------------------------------------------------------ */

/* count[id] of the ids in history: from n_prompt on in the low 24 bits, and SEEN for any. */
enum { SEEN = 1 << 24 };

static void penalise(float *z, int32_t vocab, const struct logit_row *how, int32_t *count) {
    bool repetition = how->repetition != 1 && how->repetition > 0;
    if (!how->n_history || (!repetition && how->frequency == 0 && how->presence == 0))
        return;
    for (int32_t i = 0; i < how->n_history; i++)
        if (how->history[i] >= 0 && how->history[i] < vocab)
            count[how->history[i]] = 0;
    for (int32_t i = 0; i < how->n_history; i++)
        if (how->history[i] >= 0 && how->history[i] < vocab) {
            int32_t *n = &count[how->history[i]];
            *n = (*n | SEEN) + (i >= how->n_prompt);
        }
    for (int32_t i = 0; i < how->n_history; i++) {
        int32_t id = how->history[i], n;
        if (id < 0 || id >= vocab || !count[id])
            continue;
        n = count[id] & (SEEN - 1);
        count[id] = 0; /* once per id */
        if (repetition)
            z[id] = z[id] > 0 ? z[id] / how->repetition : z[id] * how->repetition;
        z[id] -= how->frequency * (float)n;
        z[id] -= n > 0 ? how->presence : 0;
    }
}

static void adjust(float *z, int32_t vocab, const struct logit_row *how, int32_t *scratch) {
    for (int32_t i = 0; i < how->n_bias; i++)
        if (how->bias[i].id >= 0 && how->bias[i].id < vocab)
            z[how->bias[i].id] += how->bias[i].bias;
    for (int32_t i = 0; i < how->n_banned; i++)
        if (how->banned[i] >= 0 && how->banned[i] < vocab)
            z[how->banned[i]] = -INFINITY;
    penalise(z, vocab, how, scratch);
}

/* ---- the draw -------------------------------------------------------------------------------- */

static bool before(const float *w, int32_t a, int32_t b) {
    return w[a] > w[b] || (w[a] == w[b] && a < b);
}

static void sift(const float *w, int32_t *heap, int32_t n, int32_t at) {
    int32_t id = heap[at];
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(w, heap[child + 1], heap[child]))
            child++;
        if (!before(w, heap[child], id))
            break;
        heap[at] = heap[child];
    }
    heap[at] = id;
}

/* Takes the heaviest out of heap[0..n) and puts it at heap[n - 1]. */
static int32_t take(const float *w, int32_t *heap, int32_t n) {
    int32_t id = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = id;
    if (n > 1)
        sift(w, heap, n - 1, 0);
    return id;
}

/* Cuts to top_k, then top_p of what is left; kept ids stand at heap[n - kept ..], lightest first.
 * Gives their number. */
static int32_t cut(const float *w, int32_t *heap, int32_t n, const struct logit_row *how,
                   double total) {
    int32_t kept = 0, limit = how->top_k > 0 && how->top_k < n ? how->top_k : n;
    double sum = 0;
    for (int32_t i = n / 2 - 1; i >= 0; i--)
        sift(w, heap, n, i);
    if (limit < n) { /* top_p is a share of what top_k leaves */
        for (total = 0; kept < limit; kept++)
            total += (double)w[take(w, heap, n - kept)];
        if (how->top_p >= 1)
            return kept;
        for (kept = 0; kept < limit;) {
            sum += (double)w[heap[n - 1 - kept++]];
            if (sum >= (double)how->top_p * total)
                break;
        }
        return kept;
    }
    while (kept < n) {
        sum += (double)w[take(w, heap, n - kept++)];
        if (sum >= (double)how->top_p * total)
            break;
    }
    return kept;
}

/* Draws from weights w (largest 1), of which those below min_p of the largest do not count.
 * -1: nothing can be drawn. */
static int32_t draw(float *w, int32_t vocab, const struct logit_row *how, int32_t *id) {
    bool cuts = how->top_p < 1 || (how->top_k > 0 && how->top_k < vocab);
    double total = 0, u = draw_uniform(how->seed, how->draw);
    int32_t n = 0;
    for (int32_t i = 0; i < vocab; i++)
        if (w[i] > 0 && !(w[i] < how->min_p)) {
            id[n++] = i;
            total += (double)w[i];
        }
    int32_t kept = n;
    if (cuts && n > 1) {
        kept = cut(w, id, n, how, total);
        for (int32_t i = 0; i < kept / 2; i++) { /* heaviest first, at the end of the array */
            int32_t *a = &id[n - kept + i], *b = &id[n - 1 - i], swap = *a;
            *a = *b;
            *b = swap;
        }
        id += n - kept;
        total = 0;
        for (int32_t i = 0; i < kept; i++)
            total += (double)w[id[i]];
    }
    double sum = 0;
    for (int32_t i = 0; i < kept; i++) {
        sum += (double)w[id[i]];
        if (sum > u * total)
            return id[i];
    }
    return kept > 0 ? id[kept - 1] : -1;
}

static int32_t choose(const struct isa *isa, float *z, int32_t vocab, const struct logit_row *how,
                      const struct sample_scratch *scratch) {
    int32_t best;
    bool finite;
    float max = isa->largest(z, vocab, &best, &finite);
    if (!finite || !(max > -INFINITY))
        return -1;
    if (!(how->temperature > 0))
        return best;
    isa->weigh(z, max, 1 / how->temperature, vocab, scratch->weight);
    return draw(scratch->weight, vocab, how, scratch->id);
}

void sample_row(const struct isa *isa, float *z, int32_t vocab, const struct logit_row *how,
                const struct sample_scratch *scratch, struct sampled *out) {
    *out = (struct sampled){.token = how->target};
    int32_t best;
    float max = isa->largest(z, vocab, &best, &out->finite);
    out->finite &= max > -INFINITY && how->target < vocab;
    if (!out->finite)
        return;
    const float *raw = z;
    double log_sum = 0;
    if (how->n_top >= 0)
        report(isa, z, vocab, max, how->n_top, scratch->weight, out, &log_sum);
    if (how->target < 0) {
        if (how->n_top >= 0 && (how->n_bias || how->n_banned || how->n_history))
            raw = memcpy(scratch->raw, z, (size_t)vocab * sizeof *z);
        adjust(z, vocab, how, scratch->id);
        out->token = choose(isa, z, vocab, how, scratch);
        out->finite = out->token >= 0;
    }
    if (how->n_top >= 0 && out->finite)
        out->logprob = (float)((double)raw[out->token] - log_sum);
}
