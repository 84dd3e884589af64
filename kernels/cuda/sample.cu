/* From rows of logits to tokens, as struct logit_row says and kernels/cpu/sample.c computes.
 *
 * One block of 1024 threads a row; the row is read from the L2: once for the largest (a greedy row
 * ends there), once more for log-probabilities, and once for a draw, or twice when top_k or top_p
 * cut it. Bytes: 4 V a pass. Bound: latency of a multiprocessor's loads; rows run side by side. */
#include <algorithm>

#include "kernels/cuda/sample.cuh"
#include "kernels/cuda/sample_draw.cuh"
#include "kernels/draw.h"

namespace {

/* ---- log-probabilities of the raw distribution ----------------------------------------------- */

/* The n_top first places, and log of the sum of e^z. Every warp's largest stands in desk.best: the
 * n-th of those has n places not below it, so nothing below it is among the first n. */
__device__ __noinline__ double report(const float *z, const struct sample_row &how, float max,
                                      uint64_t *list, struct desk &d, struct sampled *out) {
    int n = min(min(how.n_top, (int)MAX_TOP), how.vocab), rank = 0;
    uint64_t mine = d.best[threadIdx.x % 32], least = 0;
    for (int i = 0; i < 32; i++)
        rank += __shfl_sync(~0u, mine, i) > mine;
    uint32_t at = __ballot_sync(~0u, rank == n - 1 && mine);
    if (at)
        least = __shfl_sync(~0u, mine, __ffs((int)at) - 1);
    if (threadIdx.x == 0)
        d.n_list = 0;
    __syncthreads();
    double sum = 0;
    float least_value = least ? value_of(least) : -INFINITY;
    for_each(z, how.vocab, [&](float v, int i) {
        sum += (double)weight_of(v, max, 1);
        if (n > 0 && v >= least_value && place_of(v, i) >= least)
            append(list, d, place_of(v, i));
    });
    double log_sum = (double)max + log(block_sum(sum, d));
    for (int i = threadIdx.x; i < d.n_list; i += THREADS) {
        uint64_t p = list[i];
        rank = 0;
        for (int j = 0; j < d.n_list && rank < n; j++)
            rank += list[j] > p;
        if (rank < n) {
            out->top_id[rank] = id_of(p);
            out->top_logprob[rank] = (float)((double)value_of(p) - log_sum);
        }
    }
    if (threadIdx.x == 0)
        out->n_top = n;
    __syncthreads();
    return log_sum;
}

/* ---- bias, bans, penalties ------------------------------------------------------------------- */

enum { SEEN = 1 << 24 }; /* in a count of an id: it stands in the history, maybe the prompt's */

/* counts [vocab]: any memory. */
__device__ void penalise(float *z, const struct sample_row &how, int32_t *counts) {
    bool repetition = how.repetition != 1 && how.repetition > 0;
    auto each = [&](auto f) {
        for (int i = threadIdx.x; i < how.n_history; i += THREADS)
            if (how.history[i] >= 0 && how.history[i] < how.vocab)
                f(i, how.history[i]);
        __syncthreads();
    };
    each([&](int, int id) { counts[id] = 0; });
    each([&](int i, int id) {
        atomicOr(&counts[id], SEEN);
        if (i >= how.n_prompt)
            atomicAdd(&counts[id], 1);
    });
    each([&](int, int id) {
        int n = atomicExch(&counts[id], 0); /* once per id */
        if (!n)
            return;
        n &= SEEN - 1;
        float v = __ldcg(z + id);
        if (repetition)
            v = v > 0 ? __fdiv_rn(v, how.repetition) : __fmul_rn(v, how.repetition);
        v = __fsub_rn(v, __fmul_rn(how.frequency, (float)n));
        z[id] = __fsub_rn(v, n > 0 ? how.presence : 0.0f);
    });
}

__device__ __noinline__ void adjust(float *z, const struct sample_row &how, int32_t *counts) {
    for (int i = threadIdx.x; i < how.n_bias; i += THREADS) {
        int id = how.bias[i].id;
        if (id < 0 || id >= how.vocab || (i > 0 && how.bias[i - 1].id == id))
            continue;
        float v = __ldcg(z + id); /* one thread for all of an id, in their order */
        for (int j = i; j < how.n_bias && how.bias[j].id == id; j++)
            v = __fadd_rn(v, how.bias[j].bias);
        z[id] = v;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < how.n_banned; i += THREADS)
        if (how.banned[i] >= 0 && how.banned[i] < how.vocab)
            z[how.banned[i]] = -INFINITY;
    __syncthreads();
    if (how.n_history)
        penalise(z, how, counts);
}

/* ---- one row --------------------------------------------------------------------------------- */

/* The token, or -1. top: place of the largest of z. */
__device__ int choose(const float *z, const struct sample_row &how, uint64_t top, uint64_t *list,
                      struct desk &d) {
    if (!(how.temperature > 0))
        return id_of(top);
    struct weighing weigh = {z, how.vocab, value_of(top), __fdiv_rn(1.0f, how.temperature),
                             how.min_p};
    bool cuts = how.top_p < 1 || (how.top_k > 0 && how.top_k < how.vocab);
    return cuts ? draw_cut(weigh, how, list, d) : draw_in_order(weigh, how.u, d);
}

__global__ void __launch_bounds__(THREADS) sample_kernel(const struct sample_args a) {
    __shared__ struct desk d;
    __shared__ struct sample_row how;
    int row = blockIdx.x, n_words = (int)(sizeof(struct sampled) / 4);
    grid_wait();
    if (row >= *a.n_logits)
        return;
    struct sampled *out = a.out + row;
    if (threadIdx.x < sizeof how / 4)
        ((uint32_t *)&how)[threadIdx.x] = ((const uint32_t *)(a.rows + row))[threadIdx.x];
    if (threadIdx.x < n_words)
        ((uint32_t *)out)[threadIdx.x] = 0;
    __syncthreads();

    float *z = a.logits + (size_t)row * a.ld, *raw = z;
    uint64_t *list = (uint64_t *)a.workspace + (size_t)row * a.ld;
    bool bad;
    uint64_t top = largest(z, how.vocab, d, bad);
    float max = value_of(top);
    bool finite = !bad && top && how.target < how.vocab;
    int token = how.target;
    double log_sum = 0;
    if (finite && how.n_top >= 0)
        log_sum = report(z, how, max, list, d, out);
    if (finite && how.target < 0) {
        if (how.n_bias || how.n_banned || how.n_history) {
            if (how.n_top >= 0) {
                raw = (float *)((uint64_t *)a.workspace + (size_t)gridDim.x * a.ld) +
                      (size_t)row * a.ld;
                for_each(z, how.vocab, [&](float v, int i) { raw[i] = v; });
                __syncthreads();
            }
            adjust(z, how, (int32_t *)list);
            top = largest(z, how.vocab, d, bad);
            finite = !bad && top;
        }
        token = finite ? choose(z, how, top, list, d) : -1;
        finite = token >= 0;
    }
    if (threadIdx.x == 0) {
        out->token = token;
        out->finite = finite;
        if (how.n_top >= 0 && finite)
            out->logprob = (float)((double)__ldcg(raw + token) - log_sum);
    }
}

/* ---- packing --------------------------------------------------------------------------------- */

/* Penalties that do nothing need no history. */
bool penalises(const struct logit_row *r) {
    bool repetition = r->repetition != 1 && r->repetition > 0;
    return r->n_history && (repetition || r->frequency != 0 || r->presence != 0);
}
/* Where lists begin after the rows; in bytes. */
size_t rows_bytes(int32_t n) {
    return (size_t)n * sizeof(struct sample_row);
}
bool draws(const struct logit_row *r) {
    return r->target < 0;
}

} // namespace

size_t sample_workspace_bytes(int32_t max_logits, int32_t ld) {
    return (size_t)max_logits * (size_t)ld * (sizeof(uint64_t) + sizeof(float));
}

size_t sample_packed_bytes(const struct logit_row *rows, int32_t n) {
    size_t bytes = rows_bytes(n);
    for (const struct logit_row *r = rows; r < rows + n; r++)
        if (draws(r))
            bytes += (size_t)r->n_bias * sizeof *r->bias + (size_t)r->n_banned * 4 +
                     (penalises(r) ? (size_t)r->n_history * 4 : 0);
    return bytes;
}

void sample_pack(const struct logit_row *rows, const int32_t *vocab, int32_t n, void *to,
                 void *device) {
    char *host = (char *)to, *gpu = (char *)device;
    size_t at = rows_bytes(n);
    auto put = [&](const void *from, size_t bytes) {
        const void *there = gpu + at;
        if (bytes)
            memcpy(host + at, from, bytes);
        at += bytes;
        return there;
    };
    for (int32_t i = 0; i < n; i++) {
        const struct logit_row *r = rows + i;
        struct sample_row p = {};
        p.temperature = r->temperature, p.top_p = r->top_p, p.min_p = r->min_p;
        p.presence = r->presence, p.frequency = r->frequency, p.repetition = r->repetition;
        p.target = r->target, p.top_k = r->top_k, p.n_top = r->n_top, p.vocab = vocab[i];
        p.u = draw_uniform(r->seed, r->draw);
        if (draws(r)) {
            struct logit_bias *bias = (struct logit_bias *)(host + at);
            p.n_bias = r->n_bias, p.n_banned = r->n_banned, p.n_prompt = r->n_prompt;
            p.n_history = penalises(r) ? r->n_history : 0;
            p.bias = (const struct logit_bias *)put(r->bias, (size_t)r->n_bias * sizeof *bias);
            std::stable_sort(
                bias, bias + r->n_bias,
                [](const struct logit_bias &a, const struct logit_bias &b) { return a.id < b.id; });
            p.banned = (const int32_t *)put(r->banned, (size_t)r->n_banned * 4);
            p.history = (const int32_t *)put(r->history, (size_t)p.n_history * 4);
        }
        memcpy(host + (size_t)i * sizeof p, &p, sizeof p);
    }
}

err_t sample_launch(const struct sample_args *a, int32_t max_logits, cudaStream_t stream) {
    if (max_logits < 1 || a->ld % 4 || a->ld > SAMPLE_MAX_VOCAB)
        return E_INVAL;
    return launch_early(sample_kernel, dim3((unsigned)max_logits), THREADS, 0, true, stream, *a);
}
