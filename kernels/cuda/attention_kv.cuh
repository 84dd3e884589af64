/* The KV pool as attention*.cu see it, and the arithmetic of its integers.
 *
 * The pool is [L][pages][K] blocks. A block holds P = 32 tokens of one KV head, E' = E rounded up
 * to 16:
 *     scales  [P] FP32 of the keys, then [P] FP32 of the values, 256 bytes
 *     keys    [P/8][E'/8][8 tokens][8] uint16, 64 E' bytes
 *     values  like keys
 * A number stands as its integer -32767 .. 32767 plus 32768; columns past E are integer 0. Eight
 * tokens by eight columns are 128 contiguous bytes: what ldmatrix reads at a time, from different
 * banks whatever E is; and a page that is filled to token n is copied up to n's group of eight.
 *
 * The integer is 256 h + l with h in -128 .. 127 and l in 0 .. 255, and both are exact in fp16 as
 * multiples of 2^-24 (l as the bits of a subnormal): products with a tensor core see the full 16
 * bits, in two instructions instead of one. */
#ifndef KERNELS_CUDA_ATTENTION_KV_CUH
#define KERNELS_CUDA_ATTENTION_KV_CUH

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

enum {
    KV_SPLIT = 256, /* keys of one partial sum of narrow attention */
    KV_SCALE_BYTES = 2 * KV_PAGE_TOKENS * 4,
    KV_GROUP = 8,
    MOST_HEAD_DIM = 256,
    MOST_NARROW = 256, /* narrow rows of a step: a table of sequences in shared memory */
};
constexpr float KV_UNIT = 16777216.0f; /* integers are seen as multiples of 1 / KV_UNIT */

__host__ __device__ constexpr int kv_padded(int e) {
    return (e + 15) / 16 * 16;
}
__host__ __device__ constexpr size_t kv_block_bytes(int e) {
    return (size_t)128 * kv_padded(e) + KV_SCALE_BYTES;
}
/* Where the keys of a block start, and the values. */
__host__ __device__ constexpr int kv_keys_at() {
    return KV_SCALE_BYTES;
}
__host__ __device__ constexpr int kv_values_at(int e) {
    return KV_SCALE_BYTES + 64 * kv_padded(e);
}
/* Bytes from the start of the keys, or of the values, to element (token, i). */
__host__ __device__ constexpr int kv_element_at(int e, int token, int i) {
    return token / KV_GROUP * 16 * kv_padded(e) + i / 8 * 128 + token % KV_GROUP * 16 + i % 8 * 2;
}
__device__ __forceinline__ char *kv_block(const struct attention_args &a, int page, int kv) {
    size_t block = ((size_t)a.layer * a.n_pages + page) * a.n_kv_heads + kv;
    return (char *)a.kv + block * kv_block_bytes(a.head_dim);
}

/* The bytes that make 1024 + a byte of a byte, as fp16. Not a constant to the compiler, which would
 * put it into the instruction and fetch the selector into a register each time instead. */
__device__ __forceinline__ uint32_t kv_magic(const attention_args &a) {
    return 0x64646464u | (uint32_t)a.head_dim >> 16;
}
/* Two stored numbers -> the high parts 256 h, the low parts l, as fp16 multiples of 2^-24. */
__device__ __forceinline__ uint32_t kv_high(uint32_t stored, uint32_t magic) {
    uint32_t high = __byte_perm(stored, magic, 0x4341);    /* 1024 + h + 128 */
    __half2 unit = __half2half2(__ushort_as_half(0x0100)); /* 2^-16 */
    __half2 bias = __half2half2(__ushort_as_half(0xa480)); /* -1152 * 2^-16 */
    __half2 v = __hfma2(*(__half2 *)&high, unit, bias);
    return *(uint32_t *)&v;
}
__device__ __forceinline__ uint32_t kv_low(uint32_t stored) {
    return stored & 0x00ff00ff;
}
/* Both, rounded to fp16. */
__device__ __forceinline__ uint32_t kv_half(uint32_t stored, uint32_t magic) {
    uint32_t high = kv_high(stored, magic), low = kv_low(stored);
    __half2 v = __hadd2(*(__half2 *)&high, *(__half2 *)&low);
    return *(uint32_t *)&v;
}

/* Four 8 x 8 matrices of 16-bit numbers: lane i gives the address of row i % 8 of matrix i / 8. */
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Of attention_wide.cu and attention_plain.cu; attention_setup calls them. */
err_t attention_wide_setup(void);
err_t attention_plain_setup(void);
/* Rows of more than one split: ctx from what narrow rows' kernel left in the workspace. */
err_t attention_merge(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);
/* What attention_narrow and attention_wide do on devices other than Hopper's; narrow rows have the
 * same bits. Arguments are checked already. */
err_t attention_plain_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);
err_t attention_plain_wide(const struct attention_args *a, int32_t n_wide_seqs, int32_t longest,
                           cudaStream_t stream);

#endif
