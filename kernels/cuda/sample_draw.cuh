/* The draw from weights: in the order of ids when nothing is cut, else from the heaviest down.
 *
 * Nothing is sorted. "The first candidate, in order, at which a count reaches top_k, or a sum
 * reaches top_p or the drawn share" is found digit by digit: bins by binary exponent hold counts
 * and exact sums of mantissas; candidates down to the exponent of the cut are listed; three
 * further digits of the weight, and two of the id where weights tie, go over that list until one
 * candidate is left. Integer
 * sums do not depend on the order in which threads add them. */
#ifndef KERNELS_CUDA_SAMPLE_DRAW_CUH
#define KERNELS_CUDA_SAMPLE_DRAW_CUH

#include "kernels/cuda/sample.cuh"

namespace {

/* Which weights can be drawn, and how they come from logits. */
struct weighing {
    const float *z;
    int32_t vocab;
    float max, scale, min_p;
    __device__ __forceinline__ float operator()(float v) const {
        float w = weight_of(v, max, scale);
        return w > 0 && !(w < min_p) ? w : 0;
    }
};

/* ---- nothing cut: ids in order --------------------------------------------------------------- */

/* Weights of ids i .. i + 3, zeros from `end` on, and their sum. */
__device__ __forceinline__ double weigh_quad(const struct weighing &weigh, int i, int end,
                                             float (&w)[4]) {
    float4 v = i < end ? __ldcg((const float4 *)(weigh.z + i)) : make_float4(0, 0, 0, 0);
    w[0] = i < end ? weigh(v.x) : 0;
    w[1] = i + 1 < end ? weigh(v.y) : 0;
    w[2] = i + 2 < end ? weigh(v.z) : 0;
    w[3] = i + 3 < end ? weigh(v.w) : 0;
    return ((double)w[0] + (double)w[1]) + ((double)w[2] + (double)w[3]);
}

/* The warp's total at which the running sum, from `before` on, exceeds the target; the last one
 * with weight if rounding hides it; -1: none has. before: then of those ahead of it. */
__device__ int find_warp(const struct desk &d, double target, double &before) {
    int lane = threadIdx.x % 32;
    double mine = d.total[lane], to = before + warp_scan(mine);
    uint32_t some = __ballot_sync(~0u, mine > 0);
    uint32_t past = __ballot_sync(~0u, mine > 0 && to > target);
    int chosen = past ? __ffs((int)past) - 1 : 31 - __clz((int)some);
    double ahead = __shfl_sync(~0u, to, max(chosen - 1, 0));
    before = chosen > 0 ? ahead : before;
    return chosen;
}

/* Two rounds, in which each warp sums a run of ids, all of them and then those of the run that the
 * draw falls into; the warp of the shorter run goes over it once more. */
__device__ __noinline__ int draw_in_order(const struct weighing &weigh, double u, struct desk &d) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = 0, chosen = 0;
    int end = weigh.vocab, run = 0;
    double total = 0, before = 0;
    float w[4];
    for (int round = 0; round < 2; round++) {
        run = (end - first + WARPS * 128 - 1) / (WARPS * 128) * 128;
        int from = first + warp * run, to = min(from + run, end);
        double sum = 0;
#pragma unroll 2
        for (int i = from + lane * 4; i < to; i += 128)
            sum += weigh_quad(weigh, i, to, w);
        sum = block_sum(sum, d);
        total = round ? total : sum;
        chosen = find_warp(d, u * total, before);
        if (chosen < 0)
            return -1;
        first += chosen * run;
        end = min(first + run, end);
    }
    if (warp == chosen) {
        int found = -1, last = -1; /* last with any weight: in case rounding hides the crossing */
        for (int i = first + lane * 4; i - lane * 4 < end && found < 0; i += 128) {
            double mine = weigh_quad(weigh, i, end, w), scan = warp_scan(mine);
            double at = before + (scan - mine);
            int here = -1, any = -1;
            for (int j = 0; j < 4; j++) {
                at += (double)w[j];
                if (here < 0 && w[j] > 0 && at > u * total)
                    here = i + j;
                any = w[j] > 0 ? i + j : any;
            }
            uint32_t hit = __ballot_sync(~0u, here >= 0);
            if (hit)
                found = __shfl_sync(~0u, here, __ffs((int)hit) - 1);
            last = max(last, __reduce_max_sync(~0u, any));
            before += __shfl_sync(~0u, scan, 31);
        }
        if (lane == 0)
            d.id = found >= 0 ? found : last;
    }
    __syncthreads();
    return d.id;
}

/* ---- cut: from the heaviest down ------------------------------------------------------------- */

/* The candidates up to and including one. */
struct prefix {
    uint64_t place; /* of the last */
    double weight;  /* of all */
};
/* Where to stop: at `count` candidates, or when their weight reaches (past: exceeds) `weight`. */
struct goal {
    int32_t count; /* 0: by weight */
    bool past;
    double weight;
    __device__ __forceinline__ bool reached(int32_t n, double w) const {
        return count ? n >= count : past ? w > weight : w >= weight;
    }
};

__device__ __forceinline__ double weight_to(const struct desk &d, int exponent, uint64_t sum) {
    return d.sum_above[exponent] +
           (double)sum * __longlong_as_double((long long)(exponent - 150 + 1023) << 52);
}
__device__ __forceinline__ void clear_bins(struct desk &d) {
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += THREADS)
        d.count[i] = d.low[i] = d.high[i] = 0;
    __syncthreads();
}
__device__ __forceinline__ uint32_t mantissa(uint32_t key) {
    return (key & 0x7fffff) | 0x800000;
}

/* ---- which candidates can matter ---- */

/* Candidates of at least 2^-DROP of the heaviest, DROP = 5, 9, 13, and all: number and weight. */
struct windows {
    int32_t count[WINDOWS];
    double weight[WINDOWS];
};
__device__ __forceinline__ int window_exponent(int i) {
    return i == WINDOWS - 1 ? 0 : 127 - 5 - 4 * i;
}

__device__ struct windows weigh_windows(const struct weighing &weigh, struct desk &d) {
    struct windows w = {};
    for_each(weigh.z, weigh.vocab, [&](float z, int) {
        float one = weigh(z);
        double wide = (double)one;
        w.count[3] += one > 0;
        w.weight[3] += wide;
        if (one >= 0x1p-13f) {
            w.count[2]++;
            w.weight[2] += wide;
            w.count[1] += one >= 0x1p-9f;
            w.weight[1] += one >= 0x1p-9f ? wide : 0;
            w.count[0] += one >= 0x1p-5f;
            w.weight[0] += one >= 0x1p-5f ? wide : 0;
        }
    });
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < WINDOWS; i++) {
        w.count[i] = __reduce_add_sync(~0u, w.count[i]);
        w.weight[i] = warp_total(w.weight[i]);
        if (lane == 0) {
            d.window_count[i][warp] = w.count[i];
            d.window_weight[i][warp] = w.weight[i];
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WINDOWS; i++) {
        w.count[i] = __reduce_add_sync(~0u, d.window_count[i][lane]);
        w.weight[i] = warp_total(d.window_weight[i][lane]);
    }
    return w;
}

/* Lists the candidates down to the exponent. */
__device__ void list_candidates(const struct weighing &weigh, int exponent, uint64_t *list,
                                struct desk &d) {
    if (threadIdx.x == 0)
        d.n_list = 0;
    __syncthreads();
    for_each(weigh.z, weigh.vocab, [&](float z, int i) {
        float w = weigh(z);
        if (w > 0 && (int)(__float_as_uint(w) >> 23) >= exponent)
            append(list, d, place_of_weight(w, i));
    });
    __syncthreads();
}

/* ---- digits ---- */

/* Adds the lane's candidate to a bin, -1: none. Where all go to one bin the warp adds up first, so
 * that ties of a whole vocabulary do not queue. */
__device__ __forceinline__ void add_to_bin(struct desk &d, int bin, uint64_t place) {
    uint32_t m = mantissa((uint32_t)(place >> 32)), some = __ballot_sync(~0u, bin >= 0);
    if (!some)
        return;
    int leader = __ffs((int)some) - 1, one = __shfl_sync(~0u, bin, leader);
    if (__all_sync(~0u, bin < 0 || bin == one)) {
        uint32_t low = __reduce_add_sync(~0u, bin < 0 ? 0 : m & 0xfff);
        uint32_t high = __reduce_add_sync(~0u, bin < 0 ? 0 : m >> 12);
        if (threadIdx.x % 32 == leader) {
            atomicAdd(&d.count[one], __popc(some));
            atomicAdd(&d.low[one], low);
            atomicAdd(&d.high[one], high);
        }
    } else if (bin >= 0) {
        atomicAdd(&d.count[bin], 1);
        atomicAdd(&d.low[bin], m & 0xfff);
        atomicAdd(&d.high[bin], m >> 12);
    }
}

/* The list's counts and sums by exponent. */
__device__ void count_exponents(const uint64_t *list, struct desk &d) {
    clear_bins(d);
    for (int base = 0; base < d.n_list; base += THREADS) {
        int i = base + threadIdx.x;
        uint64_t p = i < d.n_list ? list[i] : 0;
        add_to_bin(d, p ? (int)(p >> 55) : -1, p);
    }
    __syncthreads();
    if (threadIdx.x < 32) { /* lane l: exponents 127 - 4 l and the three below */
        int lane = threadIdx.x, count = 0;
        double sum = 0;
        for (int j = 0; j < 4; j++) {
            int e = EXPONENTS - 1 - lane * 4 - j;
            d.count_above[e] = count;
            d.sum_above[e] = sum;
            count += (int)d.count[e];
            sum += (double)((uint64_t)d.low[e] + ((uint64_t)d.high[e] << 12)) *
                   __longlong_as_double((long long)(e - 150 + 1023) << 52);
        }
        int count_to = warp_scan(count);
        double sum_to = warp_scan(sum);
        int c = __shfl_up_sync(~0u, count_to, 1);
        double w = __shfl_up_sync(~0u, sum_to, 1);
        for (int j = 0; j < 4 && lane > 0; j++) {
            int e = EXPONENTS - 1 - lane * 4 - j;
            d.count_above[e] += c;
            d.sum_above[e] = w + d.sum_above[e];
        }
        if (lane == 31) {
            d.n = count_to;
            d.sum = sum_to;
        }
    }
    __syncthreads();
}

/* The exponent at which the goal is reached; the lightest one if rounding hides it. */
__device__ int find_exponent(struct desk &d, const struct goal &goal) {
    if (threadIdx.x == 0)
        d.bin = -1, d.id = EXPONENTS;
    __syncthreads();
    int e = threadIdx.x;
    if (e < EXPONENTS) {
        int count_to = e ? d.count_above[e - 1] : d.n;
        double sum_to = e ? d.sum_above[e - 1] : d.sum;
        bool any = count_to > d.count_above[e];
        if (any && goal.reached(count_to, sum_to))
            atomicMax(&d.bin, e);
        if (any)
            atomicMin(&d.id, e);
    }
    __syncthreads();
    e = d.bin >= 0 ? d.bin : d.id;
    __syncthreads();
    return e;
}

/* Counts what the list holds with the known digits by the next one: `bits` from `shift` on. */
__device__ void count_digit(const uint64_t *list, struct desk &d, uint64_t known, int shift,
                            int bits) {
    clear_bins(d);
    for (int base = 0; base < d.n_list; base += THREADS) {
        int i = base + threadIdx.x;
        uint64_t p = i < d.n_list ? list[i] : 0;
        int bin = (int)(p >> shift) & ((1 << bits) - 1);
        add_to_bin(d, p && p >> (shift + bits) == known ? bin : -1, p);
    }
    __syncthreads();
}

/* The bin, from the highest down, in which the goal is reached; the lowest one if rounding hides
 * it. One thread a bin. */
__device__ int find_bin(struct desk &d, const struct goal &goal, int exponent) {
    int bin = BINS - 1 - (int)threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int mine = (int)d.count[bin], count = warp_scan(mine);
    uint64_t own = (uint64_t)d.low[bin] + ((uint64_t)d.high[bin] << 12), sum = warp_scan(own);
    if (lane == 31) {
        d.warp_count[warp] = count;
        d.warp_sum[warp] = sum;
    }
    if (threadIdx.x == 0)
        d.bin = -1, d.id = BINS;
    __syncthreads();
    int counts = warp_scan(d.warp_count[lane]);
    uint64_t sums = warp_scan(d.warp_sum[lane]);
    counts = __shfl_sync(~0u, counts, max(warp - 1, 0));
    sums = __shfl_sync(~0u, sums, max(warp - 1, 0));
    count += d.count_before + (warp ? counts : 0);
    sum += d.sum_before + (warp ? sums : 0);
    if (mine && goal.reached(d.count_above[exponent] + count, weight_to(d, exponent, sum)))
        atomicMax(&d.bin, bin);
    if (mine)
        atomicMin(&d.id, bin);
    __syncthreads();
    int chosen = d.bin >= 0 ? d.bin : d.id;
    if (bin == chosen) {
        d.bin_count = mine;
        d.count_before = count - mine;
        d.sum_before = sum - own;
    }
    __syncthreads();
    return chosen;
}

/* The shortest prefix that reaches the goal. The list holds all candidates with its exponent. */
__device__ struct prefix reach(const uint64_t *list, struct desk &d, const struct goal &goal) {
    int e = find_exponent(d, goal), shift = 55;
    uint64_t known = (uint64_t)e;
    if (threadIdx.x == 0) {
        d.count_before = 0;
        d.sum_before = 0;
        d.bin_count = (e ? d.count_above[e - 1] : d.n) - d.count_above[e];
    }
    __syncthreads();
    while (d.bin_count > 1) {
        int bits = shift > 39 ? 8 : shift == 39 ? 7 : 10;
        if (shift == 32) {
            known = known << 12 | 0xfff; /* ids stop at 20 bits */
            shift = 20;
        }
        shift -= bits;
        count_digit(list, d, known, shift, bits);
        known = known << bits | (uint64_t)find_bin(d, goal, e);
    }
    for (int i = threadIdx.x; i < d.n_list; i += THREADS)
        if (list[i] >> shift == known)
            d.place = list[i];
    __syncthreads();
    uint64_t place = d.place;
    double weight = weight_to(d, e, d.sum_before + mantissa((uint32_t)(place >> 32)));
    __syncthreads();
    return {place, weight};
}

__device__ __noinline__ int draw_cut(const struct weighing &weigh, const struct sample_row &how,
                                     uint64_t *list, struct desk &d) {
    struct windows w = weigh_windows(weigh, d);
    int n = w.count[WINDOWS - 1], window = 0;
    if (n == 0)
        return -1;
    bool few = how.top_k > 0 && how.top_k < n;
    struct goal goal = {n, false, 0};
    if (few)
        goal.count = how.top_k;
    else if (how.top_p < 1)
        goal = {0, false, (double)how.top_p * w.weight[WINDOWS - 1]};
    while (window < WINDOWS - 1 && !goal.reached(w.count[window], w.weight[window]))
        window++;
    list_candidates(weigh, window_exponent(window), list, d);
    count_exponents(list, d);
    struct prefix kept = {0, d.sum};
    if (few || how.top_p < 1)
        kept = reach(list, d, goal);
    if (few && how.top_p < 1)
        kept = reach(list, d, {0, false, (double)how.top_p * kept.weight});
    return id_of(reach(list, d, {0, true, how.u * kept.weight}).place);
}

} // namespace

#endif
