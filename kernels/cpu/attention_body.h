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

enum { P = KV_PAGE_TOKENS, QUERY_MICRO = LANE_VECTORS == 1 ? 4 : 1 };

/* score[c][0..32) of C queries against a page's keys [E, P]. */
INLINE void page_scores(const int C, const float *const *q, const float *keys, int32_t e,
                        float scale, float (*score)[P]) {
    struct lanes acc[QUERY_MICRO][2]; /* C of it */
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
        acc[c][0] = acc[c][1] = lanes_set(0);
    for (int32_t i = 0; i < e; i++) {
        struct lanes k0 = lanes_load(keys + i * P), k1 = lanes_load(keys + i * P + LANES);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            struct lanes x = lanes_set(q[c][i]);
            acc[c][0] = lanes_fma(k0, x, acc[c][0]);
            acc[c][1] = lanes_fma(k1, x, acc[c][1]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
        lanes_store(score[c], lanes_mul(acc[c][0], lanes_set(scale)));
        lanes_store(score[c] + LANES, lanes_mul(acc[c][1], lanes_set(scale)));
    }
}

/* context[c] = context[c] * keep[c] + sum over t in [t0, t1) of p[c][t] * values[t]. */
INLINE void page_values(const int C, const float (*p)[P], const float *keep, const float *values,
                        int32_t e_lanes, int32_t t0, int32_t t1, float *context) {
    for (int32_t i = 0; i < e_lanes; i += LANES) {
        struct lanes acc[QUERY_MICRO]; /* C of it */
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            acc[c] = lanes_mul(lanes_load(context + c * e_lanes + i), lanes_set(keep[c]));
        for (int32_t t = t0; t < t1; t++) {
            struct lanes v = lanes_load(values + t * e_lanes + i);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                acc[c] = lanes_fma(v, lanes_set(p[c][t]), acc[c]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            lanes_store(context + c * e_lanes + i, acc[c]);
    }
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

static void attention_page(const struct attention_args *a, int32_t page, struct softmax_state *st,
                           float *context) {
    const float *keys = a->kv + (size_t)a->pages[page] * a->page_stride;
    const float *values = keys + (size_t)P * (size_t)a->e;
    int32_t base = page * P, e_lanes = kv_lanes(a->e), t0[QUERIES], t1[QUERIES];
    float score[QUERIES][P], keep[QUERIES];
    int32_t i = 0;
    for (; i + QUERY_MICRO <= a->n_q; i += QUERY_MICRO)
        page_scores(QUERY_MICRO, a->q + i, keys, a->e, a->scale, score + i);
    for (; i < a->n_q; i++)
        page_scores(1, a->q + i, keys, a->e, a->scale, score + i);
    for (i = 0; i < a->n_q; i++) {
        t0[i] = a->from[i] > base ? a->from[i] - base : 0;
        t1[i] = a->to[i] - base + 1 < P ? a->to[i] - base + 1 : P;
        keep[i] = 1;
        if (t0[i] < t1[i])
            keep[i] = page_softmax(&st[i], score[i], t0[i], t1[i]);
    }
    for (i = 0; i < a->n_q;) {
        int32_t n = 1; /* neighbours that see the same tokens share the loads */
        while (n < QUERY_MICRO && i + n < a->n_q && t0[i + n] == t0[i] && t1[i + n] == t1[i])
            n++;
        const float(*p)[P] = (const float(*)[P])(score + i);
        float *c = context + (size_t)i * (size_t)e_lanes;
        if (t0[i] >= t1[i])
            n = 1; /* sees nothing here */
        else if (n == QUERY_MICRO)
            page_values(QUERY_MICRO, p, keep + i, values, e_lanes, t0[i], t1[i], c);
        else {
            n = 1;
            page_values(1, p, keep + i, values, e_lanes, t0[i], t1[i], c);
        }
        i += n;
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
