/* What a row of logits is sampled with: the device form of struct logit_row, and the steps that a
 * block of 1024 threads takes over one row. Private to sample.cu.
 *
 * Arithmetic. Weights e^((z - max) / temperature) are computed by the CPU backend's own polynomial
 * with its own roundings (kernels/cpu/lanes.h, lanes_exp), so equal weights are equal there and
 * here. Sums of weights are exact integers within a binary exponent, and doubles over the
 * exponents, heaviest first; the CPU adds doubles one by one. The two differ by less than
 * n 2^-53 of the sum, so a draw or a cut at top_p can fall on the neighbouring token with about
 * that probability: 3e-11 at 256 k tokens. Nothing else can differ. */
#ifndef KERNELS_CUDA_SAMPLE_CUH
#define KERNELS_CUDA_SAMPLE_CUH

#include "kernels/cuda/rows.cuh"

/* Made by sample_pack; all pointers are the device's. */
struct sample_row {
    float temperature, top_p, min_p, presence, frequency, repetition;
    int32_t target, top_k, n_top, vocab;
    int32_t n_prompt, n_history, n_bias, n_banned;
    double u; /* of the draw, in [0, 1) */
    const int32_t *history;
    const struct logit_bias *bias; /* those of one id side by side, in their order */
    const int32_t *banned;
};

namespace {

enum {
    THREADS = 1024,
    WARPS = THREADS / 32,
    QUADS = 4, /* loads of 16 bytes under way in a thread */
    EXPONENTS = 128,
    BINS = 1024, /* of one digit */
    WINDOWS = 4, /* sample_draw.cuh */
};

/* Shared memory of a block, reused from step to step. */
struct desk {
    uint64_t best[WARPS]; /* each warp's largest */
    double total[WARPS];
    int32_t n_list, bin, id;
    bool bad;
    /* What a digit's bins hold: candidates, and the sums of their mantissas' halves (12 bits). */
    uint32_t count[BINS], low[BINS], high[BINS];
    int32_t window_count[WINDOWS][WARPS];
    double window_weight[WINDOWS][WARPS];
    int32_t warp_count[WARPS];
    uint64_t warp_sum[WARPS];
    /* By binary exponent: what all heavier exponents hold. */
    int32_t count_above[EXPONENTS];
    double sum_above[EXPONENTS];
    int32_t n;  /* in the list */
    double sum; /* of their weights */
    /* A digit's chosen bin: its own count, and what the heavier ones of the same prefix hold. */
    int32_t bin_count, count_before;
    uint64_t sum_before, place;
};

/* Calls f(z[i], i) for all i, a thread's in ascending order; z is 16-byte aligned. */
template <typename F> __device__ __forceinline__ void for_each(const float *z, int n, F f) {
    for (int base = threadIdx.x * 4; base < n; base += THREADS * 4 * QUADS) {
        float4 v[QUADS];
#pragma unroll
        for (int q = 0; q < QUADS; q++)
            if (base + q * THREADS * 4 < n)
                v[q] = __ldcg((const float4 *)(z + base + q * THREADS * 4));
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            int i = base + q * THREADS * 4;
            if (i < n)
                f(v[q].x, i);
            if (i + 1 < n)
                f(v[q].y, i + 1);
            if (i + 2 < n)
                f(v[q].z, i + 2);
            if (i + 3 < n)
                f(v[q].w, i + 3);
        }
    }
}

/* A place: larger logits, then lower ids, compare as larger. -0 counts as 0. */
__device__ __forceinline__ uint32_t ordered(float z) {
    uint32_t b = __float_as_uint(z + 0.0f);
    return b ^ (b >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ uint64_t place_of(float z, int id) {
    return (uint64_t)ordered(z) << 32 | (uint32_t)~id;
}
/* Weights are positive: their bits compare as they do. */
__device__ __forceinline__ uint64_t place_of_weight(float w, int id) {
    return (uint64_t)__float_as_uint(w) << 32 | (uint32_t)~id;
}
__device__ __forceinline__ int id_of(uint64_t place) {
    return (int)~(uint32_t)place;
}
__device__ __forceinline__ float value_of(uint64_t place) {
    uint32_t b = (uint32_t)(place >> 32);
    return __uint_as_float(b ^ (b >> 31 ? 0x80000000u : 0xffffffffu));
}

/* The place of the largest logit (0: all are -inf), and each warp's in desk.best; bad: a NaN or
 * +inf is there. Ends with all threads in step. */
__device__ uint64_t largest(const float *z, int n, struct desk &d, bool &bad) {
    float top = -INFINITY;
    int at = 0;
    bool mine = false;
    if (threadIdx.x == 0)
        d.bad = false;
    for_each(z, n, [&](float v, int i) {
        mine |= !(v < INFINITY);
        at = v > top ? i : at; /* equal: the lower id came first */
        top = fmaxf(v, top);
    });
    uint64_t best = top > -INFINITY ? place_of(top, at) : 0;
    uint32_t high = __reduce_max_sync(~0u, (uint32_t)(best >> 32));
    uint32_t low = __reduce_max_sync(~0u, best >> 32 == high ? (uint32_t)best : 0);
    mine = __any_sync(~0u, mine);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        d.best[threadIdx.x / 32] = (uint64_t)high << 32 | low;
        if (mine)
            d.bad = true;
    }
    __syncthreads();
    best = d.best[threadIdx.x % 32];
    high = __reduce_max_sync(~0u, (uint32_t)(best >> 32));
    low = __reduce_max_sync(~0u, best >> 32 == high ? (uint32_t)best : 0);
    bad = d.bad;
    return (uint64_t)high << 32 | low;
}

/* e^((z - max) * scale), rounded where the CPU rounds: no fused operations. */
__device__ __forceinline__ float weight_of(float z, float max, float scale) {
    float a = __fmul_rn(__fsub_rn(z, max), scale), x = a < -87.0f ? -87.0f : a;
    x = x > 88.0f ? 88.0f : x;
    float shifted = __fadd_rn(__fmul_rn(x, 1.44269504089f), 12582912.0f);
    float n = __fsub_rn(shifted, 12582912.0f);
    float r = __fadd_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, 2.12194440e-4f));
    float p = 1.0f / 5040;
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 720);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 120);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 24);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 6);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    p = __fmul_rn(p, __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23)));
    return a < -87.0f ? 0 : p;
}

__device__ __forceinline__ double warp_total(double v) {
#pragma unroll
    for (int s = 16; s; s >>= 1)
        v += __shfl_xor_sync(~0u, v, s);
    return v;
}
template <typename T> __device__ __forceinline__ T warp_scan(T v) {
#pragma unroll
    for (int s = 1; s < 32; s <<= 1) {
        T below = __shfl_up_sync(~0u, v, s);
        v += threadIdx.x % 32 >= s ? below : 0;
    }
    return v;
}
/* Sum over the block in a fixed order; all threads get it, and each warp's is in desk.total. */
__device__ double block_sum(double v, struct desk &d) {
    v = warp_total(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        d.total[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_total(d.total[threadIdx.x % 32]);
}

/* Lists of places stand in memory; their order does not matter to anyone. Between two
 * __syncthreads.
 */
__device__ __forceinline__ void append(uint64_t *list, struct desk &d, uint64_t place) {
    list[atomicAdd(&d.n_list, 1)] = place;
}

} // namespace

#endif
