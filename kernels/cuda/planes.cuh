/* What a kernel that makes the input of a fused linear (linear.h) writes: the two fp16 halves of
 * x, and for each block of 256 columns the bit planes of the integers of kernels/delta.h: plane p
 * holds bit p of every q (two's complement). A warp has one row and one block; a lane has the
 * columns that planes_column names, zeros past K. All lanes must call. Nothing here waits or
 * launches.
 *
 * Bits stand on end by exchanging lanes' bits, not by ballots. With g = lane / 4 and t = lane % 4 a
 * lane holds columns g, g + 8, g + 16, g + 24 of words t and t + 4, two q in a register. Two byte
 * permutes put low and high bytes together; exchanges with the lanes 16, 8 and 4 away then trade
 * the three bits of g for the three of the plane's number. What is left in the lane is words t and
 * t + 4 of planes g and g + 8, as the B operand of mma.m16n8k256 wants them: about 60 instructions
 * where 128 ballots take 500. */
#ifndef KERNELS_CUDA_PLANES_CUH
#define KERNELS_CUDA_PLANES_CUH

#include "kernels/cuda/linear.h"
#include "kernels/delta.h"

/* The two halves of one value; `to` is linear_x_at its column. Values beyond fp16's range have a
 * large lo, infinities and NaN stay bad. */
static __device__ __forceinline__ void halves_store(__half *to, float v) {
    float near = fabsf(v) < 131000.0f ? fminf(fmaxf(v, -65504.0f), 65504.0f) : v;
    __half hi = __float2half_rn(near);
    to[0] = hi;
    to[32] = __float2half_rn(v - __half2float(hi));
}

/* Column of this lane's v[i] within the block. */
static __device__ __forceinline__ int planes_column(int i) {
    int lane = (int)(threadIdx.x % 32);
    return 32 * (lane % 4 + i / 4 * 4) + lane / 4 + i % 4 * 8;
}

/* Exchanges bit log2(SHIFT) of the position in x with bit LANE of the lane's number; KEEP has the
 * positions where the former is 0. */
template <int LANE, int SHIFT, uint32_t KEEP>
static __device__ __forceinline__ void planes_exchange(uint32_t &x) {
    bool high = threadIdx.x & LANE;
    uint32_t keep = high ? ~KEEP : KEEP, other = __shfl_xor_sync(~0u, x, LANE);
    other = __funnelshift_l(other, other, high ? 32 - SHIFT : SHIFT);
    x = (x & keep) | (other & ~keep);
}

/* The bit planes of one row and block, its scale and its sum. */
static __device__ __forceinline__ void planes_store(struct linear_planes *to, const float (&v)[8]) {
    uint32_t m = 0; /* of magnitudes; as integers they compare alike, NaN above all */
#pragma unroll
    for (int i = 0; i < 8; i++)
        m = max(m, __float_as_uint(v[i]) & 0x7fffffff);
    m = __reduce_max_sync(~0u, m);
    int e = max((int)(m >> 23) - 127 - 14, (int)DELTA_MIN_EXPONENT), q[8], sum = 0;
    bool finite = m < 0x7f800000;
    float inverse = __uint_as_float((uint32_t)(127 - e) << 23);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        q[i] = min(max(__float2int_rn(v[i] * inverse), -DELTA_MAX_Q), (int)DELTA_MAX_Q);
        q[i] = finite ? q[i] : 0;
        sum += q[i];
    }
    sum = __reduce_add_sync(~0u, sum);
    uint32_t word[2][2]; /* [words t, t + 4][low, high byte] */
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t a = __byte_perm((uint32_t)q[4 * h], (uint32_t)q[4 * h + 2], 0x5410);
        uint32_t b = __byte_perm((uint32_t)q[4 * h + 1], (uint32_t)q[4 * h + 3], 0x5410);
        word[h][0] = __byte_perm(a, b, 0x6240);
        word[h][1] = __byte_perm(a, b, 0x7351);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            planes_exchange<16, 4, 0x0f0f0f0f>(word[h][i]);
            planes_exchange<8, 2, 0x33333333>(word[h][i]);
            planes_exchange<4, 1, 0x55555555>(word[h][i]);
        }
    }
    int lane = (int)(threadIdx.x % 32);
    to->lane[lane] = make_uint4(word[0][0], word[1][0], word[0][1], word[1][1]);
    if (lane == 0) {
        float s = finite ? __uint_as_float((uint32_t)(127 + e) << 23) : __int_as_float(0x7fc00000);
        *(float4 *)&to->scale = make_float4(s, (float)sum, 0, 0);
    }
}

#endif
