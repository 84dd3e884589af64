/* Row-wise operators, included by each isa_*.c: norm, SwiGLU, and what sampling needs of a row of
 * logits. Each reads and writes its row once; none is worth counting beside a matrix product. */
#ifndef KERNELS_CPU_ROWS_BODY_H
#define KERNELS_CPU_ROWS_BODY_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"

static void norm(const float *h, const float *w, float eps, int32_t n, float *out) {
    struct lanes sum = lanes_set(0);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        struct lanes a = lanes_load(h + i);
        sum = lanes_fma(a, a, sum);
    }
    if (i < n) {
        struct lanes a = lanes_load_n(h + i, n - i);
        sum = lanes_fma(a, a, sum);
    }
    float scale = 1.0f / sqrtf(lanes_sum(sum) / (float)n + eps);
    for (i = 0; i < n; i++)
        out[i] = h[i] * scale * w[i];
}

INLINE struct lanes swiglu_lanes(struct lanes g, struct lanes u) {
    struct lanes one = lanes_set(1), e = lanes_exp(lanes_sub(lanes_set(0), g));
    return lanes_mul(lanes_div(g, lanes_add(one, e)), u);
}

static void swiglu(const float *gate, const float *up, int32_t n, float *out) {
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        lanes_store(out + i, swiglu_lanes(lanes_load(gate + i), lanes_load(up + i)));
    if (i < n)
        lanes_store_n(out + i,
                      swiglu_lanes(lanes_load_n(gate + i, n - i), lanes_load_n(up + i, n - i)),
                      n - i);
}

static void widen(const uint16_t *h, int32_t n, float *out) {
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        lanes_store(out + i, lanes_half(h + i));
    if (i < n)
        lanes_store_n(out + i, lanes_half_n(h + i, n - i), n - i);
}

static float largest(const float *z, int32_t n, int32_t *at, bool *finite) {
    struct lanes max = lanes_set(-INFINITY), bad = lanes_set(0);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        struct lanes a = lanes_load(z + i);
        max = lanes_max(max, a);
        EACH bad.v[i_] = (fvec)((ivec)bad.v[i_] | ~(ivec)(a.v[i_] < INFINITY));
    }
    float m = -INFINITY, part[LANES];
    int32_t mask[LANES], any = 0;
    lanes_store(part, max);
    memcpy(mask, &bad, sizeof mask);
    for (int32_t j = 0; j < LANES; j++) {
        m = part[j] > m ? part[j] : m;
        any |= mask[j];
    }
    for (; i < n; i++) {
        m = z[i] > m ? z[i] : m;
        any |= !(z[i] < INFINITY);
    }
    *finite = !any;
    for (i = 0; i < n && z[i] != m; i++)
        ;
    *at = i;
    return m;
}

static double weigh(const float *z, float max, float scale, int32_t n, float *w) {
    struct lanes m = lanes_set(max), k = lanes_set(scale);
    double sum = 0;
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        struct lanes e = lanes_exp(lanes_mul(lanes_sub(lanes_load(z + i), m), k));
        lanes_store(w + i, e);
        sum += (double)lanes_sum(e);
    }
    if (i < n) {
        struct lanes e = lanes_exp(lanes_mul(lanes_sub(lanes_load_n(z + i, n - i), m), k));
        lanes_store_n(w + i, e, n - i);
        for (; i < n; i++)
            sum += (double)w[i];
    }
    return sum;
}

#endif
