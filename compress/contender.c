#include "compress/contender.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress/delta_come.h"
#include "compress/svd.h"
#include "kernels/f16.h"

enum { HALF = 16, LONGEST = 2048 };

enum contender contender_of(const char *name) {
    return strcmp(name, "svd") == 0          ? CONTENDER_SVD
           : strcmp(name, "delta-come") == 0 ? CONTENDER_DELTA_COME
                                             : CONTENDER_NONE;
}

/* One linear while it is worked on. */
struct piece {
    const char *part;
    int32_t n, k;
    float *base, *d; /* [n, k]: the base's weights; the difference, then what is kept of it */
    uint16_t *half;  /* [n, k] */
    struct tenant_writer *w;
    struct why *why;
};

static err_t put_half(const struct piece *p, const char *suffix, int64_t n, int64_t k,
                      const float *x) {
    err_t e = diff_to_half(p->half, x, (size_t)n * (size_t)k, p->part, p->why);
    int64_t dim[2] = {n, k};
    return e ? e : tenant_writer_tensor(p->w, p->part, suffix, ST_F16, 2, dim, p->half, p->why);
}

/* The nearest pair of FP16 factors that the bits allow. d becomes their product. */
static err_t write_svd(const struct piece *p, double bits, double *spent) {
    size_t n = (size_t)p->n, k = (size_t)p->k, least = n < k ? n : k;
    size_t rank = (size_t)(bits * (double)n * (double)k / (HALF * (double)(n + k)));
    rank = rank > least / 2 ? least / 2 : rank;
    float *u = malloc((n + k + 1) * least * sizeof *u);
    if (!u)
        return E_NOMEM;
    float *v = u + n * least, *value = v + k * least;
    err_t e = rank ? svd(p->n, p->k, p->d, u, value, v) : 0;
    memset(p->d, 0, n * k * sizeof *p->d);
    for (size_t i = 0; !e && i < rank * k; i++)
        v[i] = half_to_float(half_from_float(v[i] * sqrtf(value[i / k])));
    for (size_t i = 0; !e && i < n; i++)
        for (size_t r = 0; r < rank; r++) {
            float x = half_to_float(half_from_float(u[i * least + r] * sqrtf(value[r])));
            for (size_t j = 0; j < k; j++)
                p->d[i * k + j] += x * v[r * k + j];
            u[i * rank + r] = x; /* rows close up: never ahead of what is still read */
        }
    *spent += (double)rank * HALF * (double)(n + k);
    if (!e && rank)
        e = put_half(p, ".lora_a", (int64_t)rank, (int64_t)k, v);
    if (!e && rank)
        e = put_half(p, ".lora_b", (int64_t)n, (int64_t)rank, u);
    free(u);
    return e;
}

static err_t write_delta_come(const struct piece *p, double bits, double *spent) {
    size_t all = (size_t)p->n * (size_t)p->k;
    double taken;
    err_t e = delta_come(p->n, p->k, bits, p->d, &taken);
    if (e)
        return e;
    *spent += taken;
    for (size_t i = 0; i < all; i++)
        p->base[i] += p->d[i];
    return put_half(p, ".dense", p->n, p->k, p->base);
}

err_t contender_write_part(enum contender method, double bits, struct tenant_writer *w,
                           const char *part, struct rows base, struct rows fine,
                           struct report_row *report, double *spent, struct why *why) {
    size_t all = (size_t)base.n * (size_t)base.k;
    if (base.n > LONGEST && base.k > LONGEST)
        return why_set(why, E_UNSUPPORTED,
                       "%s is [%d, %d]: the methods for comparison decompose matrices whole and "
                       "take those with a side of at most %d.",
                       part, base.n, base.k, LONGEST);
    uint64_t before = tenant_writer_bytes(w);
    struct piece p = {.part = part, .n = base.n, .k = base.k, .w = w, .why = why};
    float *whole = malloc(all * sizeof *whole);
    p.base = malloc(all * sizeof *p.base), p.d = malloc(all * sizeof *p.d);
    p.half = malloc(all * sizeof *p.half);
    err_t e = whole && p.base && p.d && p.half ? 0 : E_NOMEM;
    e = e ? e : base.read(base.arg, p.base, 0, base.n, why);
    e = e ? e : fine.read(fine.arg, whole, 0, base.n, why);
    if (e)
        goto out;
    double change = 0, size = 0, left = 0;
    for (size_t i = 0; i < all; i++) {
        p.d[i] = whole[i] - p.base[i];
        change += (double)p.d[i] * (double)p.d[i], size += (double)p.base[i] * (double)p.base[i];
        report->zeros += p.d[i] == 0;
        whole[i] = p.d[i]; /* the difference, to compare with */
    }
    enum tenant_kind kind =
        change > 0 ? method == CONTENDER_SVD ? KIND_PLANES : KIND_DENSE : KIND_ABSENT;
    if (kind == KIND_PLANES)
        e = write_svd(&p, bits, spent);
    else if (kind == KIND_DENSE)
        e = write_delta_come(&p, bits, spent);
    for (size_t i = 0; i < all; i++)
        left += ((double)whole[i] - (double)p.d[i]) * ((double)whole[i] - (double)p.d[i]);
    tenant_writer_kind(w, part, kind);
    report_kind(report, tenant_kind_name(kind));
    report->base += size, report->change += change, report->residual += left;
    report->weights += (double)all;
    report->bytes += (double)(tenant_writer_bytes(w) - before);
out:
    free(whole), free(p.base), free(p.d), free(p.half);
    return e == E_NOMEM ? why_set(why, e, "%s: not enough memory to decompose it", part) : e;
}
