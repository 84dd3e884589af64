/* Row operators of fitting, included by each train_isa_*.c: norm, SwiGLU, softmax, decoding's
 * attention, the loss. */
#ifndef KERNELS_CPU_TRAIN_ROWS_BODY_H
#define KERNELS_CPU_TRAIN_ROWS_BODY_H

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/train_isa.h"

/* The next up to sixteen of n floats at i, and back. */
INLINE struct lanes next(const float *p, size_t i, size_t n) {
    return i + LANES <= n ? lanes_load(p + i) : lanes_load_n(p + i, (int32_t)(n - i));
}
INLINE void leave(float *p, size_t i, size_t n, struct lanes a) {
    if (i + LANES <= n)
        lanes_store(p + i, a);
    else
        lanes_store_n(p + i, a, (int32_t)(n - i));
}

static void norm(int32_t n, float eps, const float *x, const float *w, float *y, float *inv) {
    struct lanes sum = lanes_set(0);
    size_t end = (size_t)n;
    for (size_t i = 0; i < end; i += LANES) {
        struct lanes a = next(x, i, end);
        sum = lanes_fma(a, a, sum);
    }
    *inv = 1.0f / sqrtf(lanes_sum(sum) / (float)n + eps);
    struct lanes scale = lanes_set(*inv);
    for (size_t i = 0; i < end; i += LANES)
        leave(y, i, end, lanes_mul(lanes_mul(next(x, i, end), scale), next(w, i, end)));
}

/* y = x inv w, inv = (mean x^2 + eps)^-1/2:  dx = inv (dy w - x inv^2 mean(dy w x)),  dw = dy x inv
 */
static void norm_back(int32_t n, float inv, const float *x, const float *w, const float *dy,
                      float *dx, float *dw) {
    struct lanes dot = lanes_set(0);
    size_t end = (size_t)n;
    for (size_t i = 0; i < end; i += LANES)
        dot = lanes_fma(lanes_mul(next(dy, i, end), next(w, i, end)), next(x, i, end), dot);
    struct lanes shrink = lanes_set(-lanes_sum(dot) * inv * inv * inv / (float)n),
                 scale = lanes_set(inv);
    for (size_t i = 0; i < end; i += LANES) {
        struct lanes a = next(x, i, end), g = lanes_mul(next(dy, i, end), scale);
        leave(dx, i, end, lanes_fma(a, shrink, lanes_fma(g, next(w, i, end), next(dx, i, end))));
        leave(dw, i, end, lanes_fma(g, a, next(dw, i, end)));
    }
}

INLINE struct lanes sigmoid(struct lanes g) {
    struct lanes one = lanes_set(1);
    return lanes_div(one, lanes_add(one, lanes_exp(lanes_sub(lanes_set(0), g))));
}

static void swiglu(size_t n, const float *gate, const float *up, float *act) {
    for (size_t i = 0; i < n; i += LANES) {
        struct lanes g = next(gate, i, n);
        leave(act, i, n, lanes_mul(lanes_mul(g, sigmoid(g)), next(up, i, n)));
    }
}

static void swiglu_back(size_t n, const float *gate, const float *up, const float *dact,
                        float *dgate, float *dup) {
    struct lanes one = lanes_set(1);
    for (size_t i = 0; i < n; i += LANES) {
        struct lanes g = next(gate, i, n), d = next(dact, i, n), s = sigmoid(g),
                     silu = lanes_mul(g, s), slope = lanes_fma(silu, lanes_sub(one, s), s);
        struct lanes u = next(up, i, n);
        leave(dup, i, n, lanes_mul(d, silu));
        leave(dgate, i, n, lanes_mul(lanes_mul(d, u), slope));
    }
}

static void axpy(size_t n, float scale, const float *y, float *x) {
    struct lanes s = lanes_set(scale);
    for (size_t i = 0; i < n; i += LANES)
        leave(x, i, n, lanes_fma(s, next(y, i, n), next(x, i, n)));
}

INLINE float row_top(int32_t n, const float *x) {
    struct lanes top = lanes_set(-INFINITY);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        top = lanes_max(top, lanes_load(x + i));
    float part[LANES], m = -INFINITY;
    lanes_store(part, top);
    for (int32_t j = 0; j < LANES; j++)
        m = part[j] > m ? part[j] : m;
    for (; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}

static int32_t largest(int32_t n, const float *x) {
    float top = row_top(n, x);
    int32_t at = 0;
    while (at < n && x[at] != top)
        at++;
    return at < n ? at : 0; /* all NaN */
}

/* e^((x - top) scale), 0 past the end of n. */
INLINE struct lanes weight(int32_t n, int32_t i, struct lanes top, struct lanes scale,
                           const float *x) {
    size_t end = (size_t)n;
    struct lanes e = lanes_exp(lanes_mul(lanes_sub(next(x, (size_t)i, end), top), scale));
    if (i + LANES > n) {
        float part[LANES];
        lanes_store(part, e);
        return lanes_load_n(part, n - i);
    }
    return e;
}

static void weigh(int32_t n, float top, float scale, const float *x, float *e) {
    struct lanes t = lanes_set(top), s = lanes_set(scale);
    for (int32_t i = 0; i < n; i += LANES)
        leave(e, (size_t)i, (size_t)n, weight(n, i, t, s, x));
}

static void softmax(int32_t n, float scale, float *p) {
    struct lanes top = lanes_set(row_top(n, p)), s = lanes_set(scale), sum = lanes_set(0);
    size_t end = (size_t)n;
    for (int32_t i = 0; i < n; i += LANES) {
        struct lanes e = weight(n, i, top, s, p);
        sum = lanes_add(sum, e);
        leave(p, (size_t)i, end, e);
    }
    struct lanes inv = lanes_set(1 / lanes_sum(sum));
    for (size_t i = 0; i < end; i += LANES)
        leave(p, i, end, lanes_mul(next(p, i, end), inv));
}

static void softmax_back(int32_t n, float scale, const float *p, float *ds) {
    struct lanes dot = lanes_set(0), s = lanes_set(scale);
    size_t end = (size_t)n;
    for (size_t i = 0; i < end; i += LANES)
        dot = lanes_fma(next(p, i, end), next(ds, i, end), dot);
    dot = lanes_set(lanes_sum(dot));
    for (size_t i = 0; i < end; i += LANES)
        leave(ds, i, end,
              lanes_mul(lanes_mul(next(p, i, end), lanes_sub(next(ds, i, end), dot)), s));
}

static void decode(const struct decode_head *h) {
    size_t end = (size_t)h->head_dim;
    for (int32_t t = 0; t < h->n; t++) {
        struct lanes dot = lanes_set(0);
        const float *k = h->k + (size_t)t * h->ld;
        for (size_t i = 0; i < end; i += LANES)
            dot = lanes_fma(next(h->q, i, end), next(k, i, end), dot);
        h->p[t] = lanes_sum(dot);
    }
    softmax(h->n, 1 / sqrtf((float)h->head_dim), h->p);
    for (size_t i = 0; i < end; i += LANES) {
        struct lanes c = lanes_set(0);
        for (int32_t t = 0; t < h->n; t++)
            c = lanes_fma(lanes_set(h->p[t]), next(h->v + (size_t)t * h->ld, i, end), c);
        leave(h->ctx, i, end, c);
    }
}

/* log p = x - off */
INLINE float log_offset(int32_t n, const float *x) {
    float top = row_top(n, x);
    struct lanes t = lanes_set(top), one = lanes_set(1), sum = lanes_set(0);
    for (int32_t i = 0; i < n; i += LANES)
        sum = lanes_add(sum, weight(n, i, t, one, x));
    return top + logf(lanes_sum(sum));
}

static void distil(const struct distil_row *r, struct train_loss *sum) {
    int32_t v = r->vocab;
    size_t end = (size_t)v;
    const float *y = r->student, *t = r->teacher;
    float off_y = log_offset(v, y), off_t = log_offset(v, t);
    if (r->target >= 0) {
        sum->nll += (double)off_y - (double)y[r->target];
        sum->teacher_nll += (double)off_t - (double)t[r->target];
        sum->n_targets++;
    }
    sum->n_agree += largest(v, y) == largest(v, t);
    sum->n_rows++;
    struct lanes kl = lanes_set(0), mse = lanes_set(0), oy = lanes_set(off_y),
                 ot = lanes_set(off_t), pull = lanes_set(2 * r->mse_weight / (float)v),
                 klw = lanes_set(r->kl_weight), scale = lanes_set(r->grad_scale);
    for (int32_t i = 0; i < v; i += LANES) {
        struct lanes a = next(y, (size_t)i, end), b = next(t, (size_t)i, end), d = lanes_sub(a, b),
                     ly = lanes_sub(a, oy), lt = lanes_sub(b, ot), p = lanes_exp(lt),
                     gap = lanes_sub(lt, ly);
        if (i + LANES > v) { /* past the end d is 0 already, a probability would not be */
            float part[LANES];
            lanes_store(part, p);
            p = lanes_load_n(part, v - i);
        }
        kl = lanes_fma(p, gap, kl);
        mse = lanes_fma(d, d, mse);
        if (r->grad) /* last use of y here: grad may lie where y lies */
            leave(
                r->grad, (size_t)i, end,
                lanes_mul(lanes_fma(lanes_sub(lanes_exp(ly), p), klw, lanes_mul(pull, d)), scale));
    }
    sum->kl += (double)lanes_sum(kl);
    sum->mse += (double)lanes_sum(mse) / (double)v;
}

#endif
