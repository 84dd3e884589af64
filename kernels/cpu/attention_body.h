/* Attention over KV pages, included by each isa_*.c.
 *
 *   out = softmax(q k' / sqrt E) v,   per query, online over pages in ascending order
 *   bytes per page and kv head: 8 P E (fp32 k and v); FLOPs per query and page: 4 P E
 *
 * Keys lie transposed, so the 32 scores of a page are two vectors of lanes without any horizontal
 * sum; values lie by token. Queries of a group (the heads that share a kv head, and the rows of a
 * prefill block) read each page once. What a query computes depends on its own position only: pages
 * are cut at fixed positions and tokens it may not see are never touched by its sums. */
#ifndef KERNELS_CPU_ATTENTION_BODY_H
#define KERNELS_CPU_ATTENTION_BODY_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"

enum { P = KV_PAGE_TOKENS, QUERY_MICRO = LANE_VECTORS == 1 ? 4 : 2 };

/* score[c][0..32) of C queries against a page's keys [E, P]; even and odd columns are summed apart,
 * which hides the latency of a sum when there are few queries. */
INLINE void page_scores(const int C, const float *const *q, const float *keys, int32_t e,
                        float scale, float (*score)[P]) {
    struct lanes acc[QUERY_MICRO][2][2]; /* C of it; columns even, odd; tokens low, high */
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
        acc[c][0][0] = acc[c][0][1] = acc[c][1][0] = acc[c][1][1] = lanes_set(0);
    for (int32_t i = 0; i < e; i += 2, keys += 2 * P)
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            struct lanes k0 = lanes_load(keys + odd * P), k1 = lanes_load(keys + odd * P + LANES);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) {
                struct lanes x = lanes_set(q[c][i + odd]);
                acc[c][odd][0] = lanes_fma(k0, x, acc[c][odd][0]);
                acc[c][odd][1] = lanes_fma(k1, x, acc[c][odd][1]);
            }
        }
    struct lanes k = lanes_set(scale);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
        lanes_store(score[c], lanes_mul(lanes_add(acc[c][0][0], acc[c][1][0]), k));
        lanes_store(score[c] + LANES, lanes_mul(lanes_add(acc[c][0][1], acc[c][1][1]), k));
    }
}

/* n vectors of lanes of: context[c] = context[c] * keep[c] + sum over t of p[c][t] * values[t]. */
INLINE void value_lanes(const int C, const int n, const float (*p)[P], const float *keep,
                        const float *values, int32_t e_lanes, int32_t t0, int32_t t1,
                        float *context) {
    struct lanes acc[QUERY_MICRO][4]; /* C x n of it */
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            acc[c][i] =
                lanes_mul(lanes_load(context + c * e_lanes + i * LANES), lanes_set(keep[c]));
    for (int32_t t = t0; t < t1; t++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            struct lanes v = lanes_load(values + t * e_lanes + i * LANES);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++)
                acc[c][i] = lanes_fma(v, lanes_set(p[c][t]), acc[c][i]);
        }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            lanes_store(context + c * e_lanes + i * LANES, acc[c][i]);
}

INLINE void page_values(const int C, const float (*p)[P], const float *keep, const float *values,
                        int32_t e_lanes, int32_t t0, int32_t t1, float *context) {
    int32_t i = 0;
    for (; i + 4 * LANES <= e_lanes; i += 4 * LANES)
        value_lanes(C, 4, p, keep, values + i, e_lanes, t0, t1, context + i);
    for (; i < e_lanes; i += LANES)
        value_lanes(C, 1, p, keep, values + i, e_lanes, t0, t1, context + i);
}

struct softmax_state {
    float max, sum;
};

/* score -> e^(score - max) over [t0, t1), zero outside; gives the factor for what came before. */
static float page_softmax(struct softmax_state *st, float *score, int32_t t0, int32_t t1) {
    float max = st->max;
    for (int32_t t = 0; t < P; t++)
        if (t < t0 || t >= t1)
            score[t] = -INFINITY;
        else if (!(score[t] <= max)) /* also takes a NaN, which then reaches the result */
            max = score[t];
    struct lanes m = lanes_set(max);
    struct lanes p0 = lanes_exp(lanes_sub(lanes_load(score), m));
    struct lanes p1 = lanes_exp(lanes_sub(lanes_load(score + LANES), m));
    struct lanes k = lanes_exp(lanes_sub(lanes_set(st->max), m));
    float keep[LANES];
    lanes_store(score, p0);
    lanes_store(score + LANES, p1);
    lanes_store(keep, k);
    st->sum = st->sum * keep[0] + lanes_sum(lanes_add(p0, p1));
    st->max = max;
    return keep[0];
}

/* How many of n queries the next call takes. */
static int32_t micro_of(int32_t n) {
    return n >= QUERY_MICRO ? QUERY_MICRO : n >= 2 ? 2 : 1;
}

static void attention_page(const struct attention_args *a, int32_t page, struct softmax_state *st,
                           float *context) {
    const float *keys = a->kv + (size_t)a->pages[page] * a->page_stride;
    const float *values = keys + (size_t)P * (size_t)a->e;
    int32_t base = page * P, e_lanes = kv_lanes(a->e), t0[QUERIES], t1[QUERIES];
    float score[QUERIES][P], keep[QUERIES];
    for (int32_t i = 0, n; i < a->n_q; i += n) {
        n = micro_of(a->n_q - i);
        if (n == QUERY_MICRO)
            page_scores(QUERY_MICRO, a->q + i, keys, a->e, a->scale, score + i);
        else if (n == 2)
            page_scores(2, a->q + i, keys, a->e, a->scale, score + i);
        else
            page_scores(1, a->q + i, keys, a->e, a->scale, score + i);
    }
    for (int32_t i = 0; i < a->n_q; i++) {
        t0[i] = a->from[i] > base ? a->from[i] - base : 0;
        t1[i] = a->to[i] - base + 1 < P ? a->to[i] - base + 1 : P;
        keep[i] = 1;
        if (t0[i] < t1[i])
            keep[i] = page_softmax(&st[i], score[i], t0[i], t1[i]);
    }
    for (int32_t i = 0, n; i < a->n_q; i += n) {
        n = 1; /* neighbours that see the same tokens share the loads */
        while (i + n < a->n_q && t0[i + n] == t0[i] && t1[i + n] == t1[i])
            n++;
        n = micro_of(n);
        const float(*p)[P] = (const float(*)[P])(score + i);
        float *c = context + (size_t)i * (size_t)e_lanes;
        if (t0[i] >= t1[i]) /* sees nothing here */
            continue;
        if (n == QUERY_MICRO)
            page_values(QUERY_MICRO, p, keep + i, values, e_lanes, t0[i], t1[i], c);
        else if (n == 2)
            page_values(2, p, keep + i, values, e_lanes, t0[i], t1[i], c);
        else
            page_values(1, p, keep + i, values, e_lanes, t0[i], t1[i], c);
    }
}

static void attention(const struct attention_args *a, struct scratch *s) {
    struct softmax_state st[QUERIES];
    int32_t e_lanes = kv_lanes(a->e), first = a->from[0], last = a->to[0];
    for (int32_t i = 0; i < a->n_q; i++) {
        st[i] = (struct softmax_state){-INFINITY, 0};
        first = a->from[i] < first ? a->from[i] : first;
        last = a->to[i] > last ? a->to[i] : last;
    }
    memset(s->context, 0, (size_t)a->n_q * (size_t)e_lanes * sizeof(float));
    for (int32_t page = first / P; page <= last / P; page++)
        attention_page(a, page, st, s->context);
    for (int32_t i = 0; i < a->n_q; i++)
        for (int32_t j = 0; j < a->e; j++)
            a->out[i][j] = s->context[(size_t)i * (size_t)e_lanes + (size_t)j] / st[i].sum;
}

#endif
