/* Causal attention of fitting, forwards and backwards, and with a cache. Over whole sequences a
 * task is one kv head of one sequence with all query heads that read it, so that gradients of k and
 * v have one writer. Scores are whole [T, T] squares per thread, and are computed again on the way
 * back: at calibration lengths that costs less than keeping them. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/train_cpu.h"

struct attention_job {
    const struct train_cpu *cpu;
    const struct train_batch *b;
    struct train_heads heads;
    const float *q, *k, *v, *dctx; /* [M, H*E], [M, K*E], [M, K*E], [M, H*E] or NULL: forwards */
    float *ctx, *dq, *dk, *dv;
    float *score;  /* [threads, 2, longest, longest] */
    size_t square; /* floats of one score matrix */
};

/* p [n, n]: scores to probabilities of the keys each query may see, 0 elsewhere. */
static void causal_softmax(const struct attention_job *j, float *p, int32_t n) {
    float scale = 1.0f / sqrtf((float)j->heads.head_dim);
    int32_t window = j->heads.window;
    for (int32_t i = 0; i < n; i++, p += n) {
        int32_t from = window > 0 && i >= window ? i - window + 1 : 0;
        j->cpu->isa->softmax(i + 1 - from, scale, p + from);
        memset(p, 0, (size_t)from * sizeof *p);
        memset(p + i + 1, 0, (size_t)(n - i - 1) * sizeof *p);
    }
}

static void attention_task(void *arg, int32_t task, int32_t thread) {
    const struct attention_job *j = arg;
    const struct train_cpu *cpu = j->cpu;
    const struct train_heads *h = &j->heads;
    int32_t seq = task / h->n_kv_heads, kv = task % h->n_kv_heads, head = h->head_dim;
    int32_t group = h->n_heads / h->n_kv_heads;
    size_t row = (size_t)j->b->start[seq], ldq = (size_t)(h->n_heads * head),
           ldk = (size_t)(h->n_kv_heads * head), kat = row * ldk + (size_t)(kv * head);
    int32_t n = j->b->start[seq + 1] - j->b->start[seq];
    float *p = j->score + (size_t)thread * 2 * j->square, *ds = p + j->square; /* [n, n] */
    float scale = 1.0f / sqrtf((float)head);
    struct train_mat k = train_mat(j->k + kat, ldk), v = train_mat(j->v + kat, ldk); /* [n, E] */
    struct train_mat kt = train_mat_t(k.p, ldk), vt = train_mat_t(v.p, ldk);
    for (int32_t i = 0; i < group; i++) {
        size_t qat = row * ldq + (size_t)((kv * group + i) * head), ldp = (size_t)n;
        struct train_mat q = train_mat(j->q + qat, ldq); /* [n, E] */
        train_cpu_gemm_one(cpu, thread, n, n, head, q, kt, p, ldp, false);
        causal_softmax(j, p, n);
        if (!j->dctx) {
            train_cpu_gemm_one(cpu, thread, n, head, n, train_mat(p, ldp), v, j->ctx + qat, ldq,
                               false);
            continue;
        }
        struct train_mat dctx = train_mat(j->dctx + qat, ldq);
        train_cpu_gemm_one(cpu, thread, n, head, n, train_mat_t(p, ldp), dctx, j->dv + kat, ldk,
                           i > 0);
        train_cpu_gemm_one(cpu, thread, n, n, head, dctx, vt, ds, ldp, false);
        for (size_t r = 0; r < ldp; r++)
            cpu->isa->softmax_back(n, scale, p + r * ldp, ds + r * ldp);
        train_cpu_gemm_one(cpu, thread, n, head, n, train_mat(ds, ldp), k, j->dq + qat, ldq, false);
        train_cpu_gemm_one(cpu, thread, n, head, n, train_mat_t(ds, ldp), q, j->dk + kat, ldk,
                           i > 0);
    }
}

static void attend(struct attention_job *j) {
    struct train_cpu *cpu = (struct train_cpu *)j->cpu;
    j->square = (size_t)j->b->longest * (size_t)j->b->longest;
    j->score = train_cpu_work(cpu, 2 * j->square * (size_t)pool_threads(cpu->pool));
    if (j->score)
        pool_run(cpu->pool, attention_task, j, j->b->n_seqs * j->heads.n_kv_heads);
}

void train_cpu_attention(struct train *t, const struct train_batch *b, struct train_heads heads,
                         const float *q, const float *k, const float *v, float *ctx) {
    struct attention_job j = {
        .cpu = train_cpu(t), .b = b, .heads = heads, .q = q, .k = k, .v = v, .ctx = ctx};
    attend(&j);
}

void train_cpu_attention_back(struct train *t, const struct train_batch *b,
                              struct train_heads heads, const float *q, const float *k,
                              const float *v, const float *ctx, const float *dctx, float *dq,
                              float *dk, float *dv) {
    (void)ctx;
    struct attention_job j = {.cpu = train_cpu(t), .b = b, .heads = heads, .q = q, .k = k, .v = v};
    j.dctx = dctx, j.dq = dq, j.dk = dk, j.dv = dv;
    attend(&j);
}

/* ---- with a cache ---------------------------------------------------------------------------- */

struct decode_job {
    const struct train_isa *isa;
    const int32_t *slot, *position;
    int32_t cap;
    struct train_heads heads;
    const float *q, *k, *v;
    float *cache_k, *cache_v, *ctx;
    float *p; /* [threads, cap] */
};

/* The query heads of one kv head of one row, over the cached positions it may see. */
static void decode_task(void *arg, int32_t task, int32_t thread) {
    const struct decode_job *j = arg;
    const struct train_heads *h = &j->heads;
    int32_t row = task / h->n_kv_heads, kv = task % h->n_kv_heads, head = h->head_dim;
    int32_t group = h->n_heads / h->n_kv_heads, n = j->position[row] + 1, from = 0;
    if (h->window > 0 && n > h->window)
        from = n - h->window;
    size_t ld = (size_t)(h->n_kv_heads * head), bytes = (size_t)head * sizeof(float),
           cache = (size_t)j->slot[row] * (size_t)j->cap * ld + (size_t)(kv * head),
           at = (size_t)row * ld + (size_t)(kv * head), last = cache + (size_t)(n - 1) * ld;
    memcpy(j->cache_k + last, j->k + at, bytes);
    memcpy(j->cache_v + last, j->v + at, bytes);
    struct decode_head d = {.n = n - from, .head_dim = head, .ld = ld};
    d.k = j->cache_k + cache + (size_t)from * ld;
    d.v = j->cache_v + cache + (size_t)from * ld;
    d.p = j->p + (size_t)thread * (size_t)j->cap;
    for (int32_t i = 0; i < group; i++) {
        size_t q = (size_t)row * (size_t)(h->n_heads * head) + (size_t)((kv * group + i) * head);
        d.q = j->q + q, d.ctx = j->ctx + q;
        j->isa->decode(&d);
    }
}

void train_cpu_decode_attention(struct train *t, int32_t rows, const int32_t *slot,
                                const int32_t *position, int32_t cap, struct train_heads heads,
                                const float *q, const float *k, const float *v, void *cache_k,
                                void *cache_v, float *ctx) {
    struct train_cpu *c = train_cpu(t);
    struct decode_job j = {c->isa, slot, position, cap, heads, q, k, v, cache_k, cache_v, ctx, 0};
    j.p = train_cpu_work(c, (size_t)cap * (size_t)pool_threads(c->pool));
    if (j.p)
        pool_run(c->pool, decode_task, &j, rows * heads.n_kv_heads);
}
