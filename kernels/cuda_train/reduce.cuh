/* Sums and maxima over a block in one fixed order, and loads and stores of VEC numbers side by
 * side. Every thread of the block calls the reductions and gets the result. */
#ifndef KERNELS_CUDA_TRAIN_REDUCE_CUH
#define KERNELS_CUDA_TRAIN_REDUCE_CUH

#include <cstdint>
#include <cuda_fp16.h>

template <typename T> static __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int i = 16; i; i /= 2)
        x += __shfl_xor_sync(~0u, x, i);
    return x;
}

/* The block is whole warps, at most 1024 threads. */
template <typename T> static __device__ T block_sum(T x) {
    __shared__ T part[32];
    x = warp_sum(x);
    __syncthreads(); /* of an earlier use */
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = part[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++)
        sum += part[i];
    return sum;
}

/* A number and where it stands; of equals the first wins, NaN never does. */
struct top {
    float value;
    int32_t at;
};
static __device__ __forceinline__ struct top top_of(struct top a, struct top b) {
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}
static __device__ struct top block_top(struct top x) {
    __shared__ struct top part[32];
#pragma unroll
    for (int i = 16; i; i /= 2)
        x = top_of(x, {__shfl_xor_sync(~0u, x.value, i), __shfl_xor_sync(~0u, x.at, i)});
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++)
        x = top_of(x, part[i]);
    return x;
}
/* The first of the largest of x [n]; with no number above -infinity the first. */
static __device__ __forceinline__ struct top block_top(const float *x, int32_t n) {
    struct top best = {-INFINITY, 0};
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x)
        if (x[i] > best.value)
            best = {x[i], i};
    return block_top(best);
}

template <int VEC> static __device__ __forceinline__ void load(float (&to)[VEC], const float *x) {
    if (VEC == 4) {
        float4 v = *(const float4 *)x;
        to[0] = v.x, to[VEC > 1] = v.y, to[VEC > 1 ? 2 : 0] = v.z, to[VEC > 1 ? 3 : 0] = v.w;
    } else {
        to[0] = *x;
    }
}
template <int VEC> static __device__ __forceinline__ void save(float *x, const float (&v)[VEC]) {
    if (VEC == 4)
        *(float4 *)x = make_float4(v[0], v[VEC > 1], v[VEC > 1 ? 2 : 0], v[VEC > 1 ? 3 : 0]);
    else
        *x = v[0];
}
/* Two-byte numbers, as their bits. */
template <int VEC>
static __device__ __forceinline__ void load(uint16_t (&to)[VEC], const void *x, size_t at) {
    if (VEC == 4) {
        uint2 v = *(const uint2 *)((const uint16_t *)x + at);
        to[0] = (uint16_t)v.x, to[VEC > 1] = (uint16_t)(v.x >> 16);
        to[VEC > 1 ? 2 : 0] = (uint16_t)v.y, to[VEC > 1 ? 3 : 0] = (uint16_t)(v.y >> 16);
    } else {
        to[0] = ((const uint16_t *)x)[at];
    }
}
template <int VEC>
static __device__ __forceinline__ void save(void *x, size_t at, const uint16_t (&v)[VEC]) {
    if (VEC == 4)
        *(uint2 *)((uint16_t *)x + at) =
            make_uint2((uint32_t)v[0] | (uint32_t)v[VEC > 1] << 16,
                       (uint32_t)v[VEC > 1 ? 2 : 0] | (uint32_t)v[VEC > 1 ? 3 : 0] << 16);
    else
        ((uint16_t *)x)[at] = v[0];
}
static __device__ __forceinline__ float from_half(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}
static __device__ __forceinline__ uint16_t to_half(float x) {
    return __half_as_ushort(__float2half_rn(x));
}

#endif
