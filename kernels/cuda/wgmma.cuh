/* Warpgroup instructions of Hopper (PTX ISA 8.x, "wgmma", "stmatrix", "red"): products
 * with A in registers and B in shared memory, clusters of two blocks, bulk copies out of shared
 * memory. Nothing here allocates, launches or knows a model. */
#ifndef KERNELS_CUDA_WGMMA_CUH
#define KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/device.cuh"

/* ---- products -------------------------------------------------------------------------------- */

/* B [N x 64 columns] K-major, rows of 128 bytes with the 128-byte swizzle (16-byte piece c of row r
 * at c ^ r % 8), groups of 8 rows 1024 bytes apart; `p` is a multiple of 1024. The next 16 columns
 * are 2 further. */
__device__ __forceinline__ uint64_t wgmma_descriptor(const void *p) {
    return (uint64_t)(shared_address(p) & 0x3ffff) >> 4 | (uint64_t)1 << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Until at most N groups of products are under way. */
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* clang-format off */
#define ACC8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]),                      \
                   "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define ACC32(d, i) ACC8(d, i), ACC8(d, i + 8), ACC8(d, i + 16), ACC8(d, i + 24)

/* d [64 x 256] = (keep ? d : 0) + a [64 x 16] b [16 x 256]; a as in mma.m16n8k16, a warp's 16 rows. */
__device__ __forceinline__ void wgmma_f16(float (&d)[128], const uint32_t *a, uint64_t b, bool keep) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %133, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
        "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
        "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127},"
        "{%128,%129,%130,%131}, %132, p, 1, 1, 0;\n\t}"
        : ACC32(d, 0), ACC32(d, 32), ACC32(d, 64), ACC32(d, 96)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)keep));
}
/* The same with b [16 x 128]. */
__device__ __forceinline__ void wgmma_f16(float (&d)[64], const uint32_t *a, uint64_t b, bool keep) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"
        "{%64,%65,%66,%67}, %68, p, 1, 1, 0;\n\t}"
        : ACC32(d, 0), ACC32(d, 32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)keep));
}
#undef ACC32
#undef ACC8
/* clang-format on */

/* A warpgroup takes, or gives back, registers: so many a thread from here on. */
template <int N> __device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- clusters -------------------------------------------------------------------------------- */

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}
/* Arrives at the same barrier of block `rank` of the cluster. */
__device__ __forceinline__ void barrier_arrive_at(uint64_t *b, uint32_t rank) {
    asm volatile("{\n\t.reg .b32 r;\n\tmapa.shared::cluster.u32 r, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [r];\n\t}" ::"r"(shared_address(b)),
                 "r"(rank)
                 : "memory");
}
/* bulk_copy to the same place in the shared memory of every block in `mask`; each one's barrier at
 * the place of `b` counts the bytes that arrive there. */
__device__ __forceinline__ void bulk_copy_all(void *shared, const void *global, uint32_t bytes,
                                              uint64_t *b, uint16_t mask) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(b)), "h"(mask)
                 : "memory");
}

/* ---- out of shared memory -------------------------------------------------------------------- */

/* Four 8 x 8 matrices of fp16, transposed; `p` is where lane i's row goes: row i % 8 of matrix
 * i / 8. */
__device__ __forceinline__ void store_transposed(uint32_t shared, uint32_t r0, uint32_t r1,
                                                 uint32_t r2, uint32_t r3) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared),
        "r"(r0), "r"(r1), "r"(r2), "r"(r3)
        : "memory");
}
/* Adds to four neighbours in memory; 16-byte aligned. */
__device__ __forceinline__ void add4(float *global, const float4 &v) {
    asm volatile("red.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(global), "f"(v.x), "f"(v.y),
                 "f"(v.z), "f"(v.w)
                 : "memory");
}

#endif
