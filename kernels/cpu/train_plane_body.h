/* Learning's inner loops, included by each train_isa_*.c: Adam, and one row of a sign plane. */
#ifndef KERNELS_CPU_TRAIN_PLANE_BODY_H
#define KERNELS_CPU_TRAIN_PLANE_BODY_H

#include "kernels/cpu/train_rows_body.h"

INLINE struct lanes lanes_sqrt(struct lanes a) {
    float part[LANES];
    lanes_store(part, a);
    for (int i = 0; i < LANES; i++)
        part[i] = sqrtf(part[i]);
    return lanes_load(part);
}

static void adam(size_t n, struct adam_step a, const float *grad, float *x, float *m, float *v) {
    struct lanes keep1 = lanes_set(adam_beta1), new1 = lanes_set(1 - adam_beta1),
                 keep2 = lanes_set(a.beta2), new2 = lanes_set(1 - a.beta2),
                 rate = lanes_set(-a.rate * a.fix1), fix2 = lanes_set(a.fix2),
                 least = lanes_set(a.least), keep = lanes_set(a.keep);
    for (size_t i = 0; i < n; i += LANES) {
        struct lanes g = next(grad, i, n), p = lanes_fma(keep1, next(m, i, n), lanes_mul(new1, g)),
                     q = lanes_fma(keep2, next(v, i, n), lanes_mul(new2, lanes_mul(g, g)));
        leave(m, i, n, p), leave(v, i, n, q);
        struct lanes size = lanes_add(lanes_sqrt(lanes_mul(q, fix2)), least);
        leave(x, i, n, lanes_fma(rate, lanes_div(p, size), lanes_mul(keep, next(x, i, n))));
    }
}

/* ---- sixteen hidden reals (FP16) ------------------------------------------------------------- */

INLINE struct lanes next_half(const uint16_t *p, int32_t i, int32_t n) {
    return i + LANES <= n ? lanes_half(p + i) : lanes_half_n(p + i, n - i);
}
INLINE void leave_half(uint16_t *p, int32_t i, int32_t n, struct lanes a) {
    uint16_t part[LANES];
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)part, _mm512_cvtps_ph((__m512)a.v[0], 0));
#elif defined(__AVX2__)
    EACH _mm_storeu_si128((__m128i *)(part + i_ * LANES_EACH), _mm256_cvtps_ph((__m256)a.v[i_], 0));
#else
    float x[LANES];
    lanes_store(x, a);
    for (int j = 0; j < LANES; j++)
        part[j] = half_from_float(x[j]);
#endif
    memcpy(p + i, part, (size_t)(n - i < LANES ? n - i : LANES) * sizeof *p);
}
static void widen(enum train_number type, bool served, size_t n, const void *from, float *x) {
    const uint16_t *half = from;
    int32_t end = (int32_t)n;
    if (type == TRAIN_F32)
        memcpy(x, from, n * sizeof *x);
    for (size_t i = 0; type == TRAIN_BF16 && i < n; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(&x[i], &bits, sizeof bits);
    }
    for (int32_t i = 0; type == TRAIN_F16 && i < end; i += LANES)
        leave(x, (size_t)i, n, next_half(half, i, end));
    for (int32_t i = 0; served && type != TRAIN_F16 && i < end; i += LANES) {
        uint16_t part[LANES];
        leave_half(part, 0, LANES, next(x, (size_t)i, n));
        leave(x, (size_t)i, n, lanes_half(part));
    }
}

/* a with the signs of b */
INLINE struct lanes signed_by(struct lanes a, struct lanes b) {
    EACH a.v[i_] = (fvec)((ivec)a.v[i_] ^ ((ivec)b.v[i_] & INT32_MIN));
    return a;
}

/* ---- one row of a plane ---------------------------------------------------------------------- */

static void plane_add(int32_t k, const uint16_t *x, float row, const float *col, float *w) {
    struct lanes r = lanes_set(row);
    size_t end = (size_t)k;
    for (int32_t i = 0; i < k; i += LANES) {
        struct lanes c = signed_by(next(col, (size_t)i, end), next_half(x, i, k));
        leave(w, (size_t)i, end, lanes_fma(r, c, next(w, (size_t)i, end)));
    }
}

static float plane_grad(int32_t k, const uint16_t *x, float row, const float *col,
                        const float *grad, float *col_sum) {
    struct lanes r = lanes_set(row), sum = lanes_set(0);
    size_t end = (size_t)k;
    for (int32_t i = 0; i < k; i += LANES) {
        struct lanes g = signed_by(next(grad, (size_t)i, end), next_half(x, i, k));
        sum = lanes_fma(g, next(col, (size_t)i, end), sum);
        leave(col_sum, (size_t)i, end, lanes_fma(g, r, next(col_sum, (size_t)i, end)));
    }
    return lanes_sum(sum);
}

static float plane_square(int32_t k, float row, const float *col, const float *grad,
                          float *col_sum) {
    struct lanes r = lanes_set(row), sum = lanes_set(0);
    size_t end = (size_t)k;
    for (size_t i = 0; i < end; i += LANES) {
        struct lanes g = lanes_mul(lanes_mul(next(grad, i, end), next(col, i, end)), r);
        g = lanes_mul(g, g);
        sum = lanes_add(sum, g);
        leave(col_sum, i, end, lanes_add(next(col_sum, i, end), g));
    }
    return lanes_sum(sum);
}

static void plane_move(int32_t k, float step, const float *col_step, const float *grad,
                       uint16_t *x) {
    struct lanes s = lanes_set(-step);
    size_t end = (size_t)k;
    for (int32_t i = 0; i < k; i += LANES) {
        struct lanes g = lanes_mul(next(grad, (size_t)i, end), next(col_step, (size_t)i, end));
        leave_half(x, i, k, lanes_fma(g, s, next_half(x, i, k)));
    }
}

static void plane_start(int32_t k, float row, const float *col, const float *d, float cap,
                        uint16_t *x) {
    for (int32_t i = 0; i < k; i++) {
        float size = row * col[i], unit = size > 0 ? d[i] / size : 0;
        x[i] = half_from_float(unit > cap ? cap : unit < -cap ? -cap : unit);
    }
}

INLINE struct lanes magnitude(struct lanes a) {
    EACH a.v[i_] = (fvec)((ivec)a.v[i_] & INT32_MAX);
    return a;
}

static float size_row(int32_t k, const float *d, const float *w) {
    struct lanes sum = lanes_set(0);
    size_t end = (size_t)k;
    for (size_t i = 0; i < end; i += LANES)
        sum = lanes_fma(magnitude(next(d, i, end)), next(w, i, end), sum);
    return lanes_sum(sum);
}

static void size_cols(int32_t k, const float *d, float row, float *sums) {
    struct lanes r = lanes_set(row);
    size_t end = (size_t)k;
    for (size_t i = 0; i < end; i += LANES)
        leave(sums, i, end, lanes_fma(magnitude(next(d, i, end)), r, next(sums, i, end)));
}

#endif
