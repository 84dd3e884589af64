#include "compress/contender.h"

#include <stdlib.h>
#include <string.h>

#include "compress/delta_come.h"
#include "compress/low_rank.h"
#include "kernels/f16.h"

enum { HALF = 16 }; /* bits of a number */

enum contender contender_of(const char *name) {
    return strcmp(name, "svd") == 0          ? CONTENDER_SVD
           : strcmp(name, "delta-come") == 0 ? CONTENDER_DELTA_COME
                                             : CONTENDER_NONE;
}

/* One linear while it is worked on. */
struct piece {
    struct train *t;
    const char *part;
    int32_t n, k;
    float *fine, *d; /* host [n, k]: the fine-tune; the difference */
    float *left;     /* device [n, k]: the difference, then what is not kept of it */
    float *lost;     /* host [n, k]: the latter */
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

/* A factor [n, k] as the file has it: in FP16, also where it lies on the device, there `sign` times
 * that. */
static err_t write_factor(const struct piece *p, const char *suffix, int32_t n, int32_t k,
                          float sign, float *device) {
    size_t all = (size_t)n * (size_t)k;
    float *x = malloc(all * sizeof *x);
    if (!x)
        return E_NOMEM;
    p->t->ops->get(p->t, x, device, all * sizeof *x);
    err_t e = put_half(p, suffix, n, k, x);
    for (size_t i = 0; i < all; i++)
        x[i] = sign * half_to_float(half_from_float(x[i]));
    p->t->ops->put(p->t, device, x, all * sizeof *x);
    free(x);
    return e;
}

/* The nearest pair of FP16 factors that the bits allow. */
static err_t write_svd(const struct piece *p, double bits, double *spent) {
    size_t n = (size_t)p->n, k = (size_t)p->k, least = n < k ? n : k, bytes = n * k * sizeof(float);
    size_t rank = (size_t)(bits * (double)n * (double)k / (HALF * (double)(n + k)));
    rank = rank > least / 2 ? least / 2 : rank;
    int32_t r = (int32_t)rank;
    float *a = NULL, *b;
    if (!rank)
        return 0;
    err_t e = p->t->ops->take(p->t, rank * (n + k) * sizeof *a, (void **)&a);
    if (e)
        return e;
    b = a + rank * k;
    e = low_rank(p->t, p->n, p->k, r, p->left, NULL, b, a, NULL);
    e = e ? e : write_factor(p, ".lora_a", r, p->k, 1, a);
    e = e ? e : write_factor(p, ".lora_b", p->n, r, -1, b);
    p->t->ops->put(p->t, p->left, p->d, bytes);
    p->t->ops->gemm(p->t, p->n, p->k, r, train_mat(b, rank), train_mat(a, k), p->left, k, true);
    p->t->ops->give(p->t, a);
    *spent += (double)rank * HALF * (double)(n + k);
    return e;
}

static err_t write_delta_come(const struct piece *p, double bits, double *spent) {
    size_t all = (size_t)p->n * (size_t)p->k;
    double taken;
    err_t e = delta_come(p->t, p->n, p->k, bits, p->left, &taken);
    if (e)
        return e;
    *spent += taken;
    p->t->ops->get(p->t, p->lost, p->left, all * sizeof *p->lost);
    for (size_t i = 0; i < all; i++)
        p->fine[i] -= p->lost[i];
    return put_half(p, ".dense", p->n, p->k, p->fine);
}

/* Reads both into `fine` and `d`, adds what they say to the report. */
static err_t read_pair(const struct piece *p, struct rows base, struct rows fine,
                       struct report_row *report) {
    size_t all = (size_t)p->n * (size_t)p->k;
    err_t e = base.read(base.arg, p->d, 0, p->n, p->why);
    e = e ? e : fine.read(fine.arg, p->fine, 0, p->n, p->why);
    double size = 0, change = 0;
    for (size_t i = 0; !e && i < all; i++) {
        size += (double)p->d[i] * (double)p->d[i];
        p->d[i] = p->fine[i] - p->d[i];
        change += (double)p->d[i] * (double)p->d[i];
        report->zeros += p->d[i] == 0;
    }
    report->base += size, report->change += change, report->weights += (double)all;
    return e;
}

err_t contender_write_part(struct train *t, enum contender method, double bits,
                           struct tenant_writer *w, const char *part, struct rows base,
                           struct rows fine, struct report_row *report, double *spent,
                           struct why *why) {
    size_t all = (size_t)base.n * (size_t)base.k, bytes = all * sizeof(float);
    uint64_t before = tenant_writer_bytes(w);
    struct piece p = {.t = t, .part = part, .n = base.n, .k = base.k, .w = w, .why = why};
    double change = report->change, left = 0;
    p.fine = malloc(bytes), p.d = malloc(bytes), p.lost = malloc(bytes);
    p.half = malloc(all * sizeof *p.half);
    err_t e =
        p.fine && p.d && p.lost && p.half ? t->ops->take(t, bytes, (void **)&p.left) : E_NOMEM;
    e = e ? e : read_pair(&p, base, fine, report);
    if (e)
        goto out;
    enum tenant_kind kind = !(report->change > change) ? KIND_ABSENT
                            : method == CONTENDER_SVD  ? KIND_PLANES
                                                       : KIND_DENSE;
    t->ops->put(t, p.left, p.d, bytes);
    if (kind == KIND_PLANES)
        e = write_svd(&p, bits, spent);
    else if (kind == KIND_DENSE)
        e = write_delta_come(&p, bits, spent);
    t->ops->get(t, p.lost, p.left, bytes);
    e = e ? e : t->ops->settle(t, why);
    for (size_t i = 0; !e && i < all; i++)
        left += (double)p.lost[i] * (double)p.lost[i];
    tenant_writer_kind(w, part, kind);
    report_kind(report, tenant_kind_name(kind));
    report->residual += left;
    report->bytes += (double)(tenant_writer_bytes(w) - before);
out:
    t->ops->give(t, p.left);
    free(p.fine), free(p.d), free(p.lost), free(p.half);
    return e == E_NOMEM ? why_set(why, e, "%s: not enough memory to decompose it (%s)", part,
                                  t->ops->describe(t))
                        : e;
}
