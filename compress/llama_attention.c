/* Causal attention of the calibration model, forwards and backwards. A task is one kv head of one
 * sequence with all query heads that read it, so that gradients of k and v have one writer. Scores
 * are whole [T, T] squares per thread, and are computed again on the way back: at calibration
 * lengths that costs less than keeping them. */
#include <math.h>
#include <string.h>

#include "compress/llama_rows.h"

struct attention_job {
    const struct llama *m;
    const struct gemm *g;
    const struct llama_batch *b;
    const struct llama_tape *t;
    const struct llama_acts *a;
    size_t square; /* floats of one score matrix */
    bool back;
};

static int32_t longest(const struct llama_batch *b) {
    int32_t n = 0;
    for (int32_t s = 0; s < b->n_seqs; s++)
        n = b->start[s + 1] - b->start[s] > n ? b->start[s + 1] - b->start[s] : n;
    return n;
}

/* p [n, n]: scores to probabilities of the keys each query may see, 0 elsewhere. */
static void causal_softmax(float *p, int32_t n, int32_t window, float scale) {
    for (int32_t i = 0; i < n; i++, p += n) {
        int32_t from = window > 0 && i >= window ? i - window + 1 : 0;
        float top = p[from], sum = 0;
        for (int32_t j = from; j <= i; j++)
            top = p[j] > top ? p[j] : top;
        for (int32_t j = from; j <= i; j++) {
            p[j] = fast_exp((p[j] - top) * scale);
            sum += p[j];
        }
        for (int32_t j = from; j <= i; j++)
            p[j] /= sum;
        memset(p, 0, (size_t)from * sizeof *p);
        memset(p + i + 1, 0, (size_t)(n - i - 1) * sizeof *p);
    }
}

/* ds [n, n]: dP to dS = P (dP - rowsum(dP P)) scale */
static void softmax_back(const float *p, float *ds, int32_t n, float scale) {
    for (int32_t i = 0; i < n; i++, p += n, ds += n) {
        float dot = 0;
        for (int32_t j = 0; j <= i; j++)
            dot += p[j] * ds[j];
        for (int32_t j = 0; j < n; j++)
            ds[j] = p[j] * (ds[j] - dot) * scale;
    }
}

static void attention_task(void *arg, int32_t task, int32_t thread) {
    const struct attention_job *j = arg;
    const struct model_shape *s = &j->m->config.shape;
    int32_t seq = task / s->n_kv_heads, kv = task % s->n_kv_heads, head = s->head_dim;
    int32_t group = s->n_heads / s->n_kv_heads;
    size_t row = (size_t)j->b->start[seq], ldq = (size_t)(s->n_heads * head),
           ldk = (size_t)(s->n_kv_heads * head), kat = row * ldk + (size_t)(kv * head);
    int32_t n = j->b->start[seq + 1] - j->b->start[seq];
    float *p = j->t->score + (size_t)thread * 2 * j->square, *ds = p + j->square; /* [n, n] */
    float scale = 1.0f / sqrtf((float)head);
    struct mat k = mat_of(j->a->k + kat, ldk), v = mat_of(j->a->v + kat, ldk); /* [n, E] */
    struct mat kt = mat_transposed(k.p, ldk), vt = mat_transposed(v.p, ldk);
    for (int32_t i = 0; i < group; i++) {
        size_t qat = row * ldq + (size_t)((kv * group + i) * head);
        struct mat q = mat_of(j->a->q + qat, ldq); /* [n, E] */
        gemm_one(j->g, thread, n, n, head, q, kt, p, (size_t)n, false);
        causal_softmax(p, n, s->sliding_window, scale);
        if (!j->back) {
            gemm_one(j->g, thread, n, head, n, mat_of(p, (size_t)n), v, j->a->ctx + qat, ldq,
                     false);
            continue;
        }
        struct mat dctx = mat_of(j->t->dctx + qat, ldq), pt = mat_transposed(p, (size_t)n);
        gemm_one(j->g, thread, n, head, n, pt, dctx, j->t->dv + kat, ldk, i > 0);
        gemm_one(j->g, thread, n, n, head, dctx, vt, ds, (size_t)n, false);
        softmax_back(p, ds, n, scale);
        gemm_one(j->g, thread, n, head, n, mat_of(ds, (size_t)n), k, j->t->dq + qat, ldq, false);
        gemm_one(j->g, thread, n, head, n, mat_transposed(ds, (size_t)n), q, j->t->dk + kat, ldk,
                 i > 0);
    }
}

static void attend(const struct llama *m, const struct gemm *g, const struct llama_batch *b,
                   struct llama_tape *t, const struct llama_acts *a, bool back) {
    size_t n = (size_t)longest(b);
    struct attention_job j = {m, g, b, t, a, n * n, back};
    pool_run(g->pool, attention_task, &j, b->n_seqs * m->config.shape.n_kv_heads);
}

void llama_attention(const struct llama *m, const struct gemm *g, const struct llama_batch *b,
                     struct llama_tape *t, const struct llama_acts *a) {
    attend(m, g, b, t, a, false);
}

void llama_attention_back(const struct llama *m, const struct gemm *g, const struct llama_batch *b,
                          struct llama_tape *t, const struct llama_acts *a) {
    attend(m, g, b, t, a, true);
}
