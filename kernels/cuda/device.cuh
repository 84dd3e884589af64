/* The few instructions, most of them Hopper's, that the kernels are made of, one inline function
 * each: barriers that count bytes (mbarrier), bulk copies from global to shared memory, the matrix
 * instructions, and programmatic dependent launch. PTX ISA 8.x, sections "mbarrier",
 * "cp.async.bulk", "mma", and "griddepcontrol". Nothing here allocates, launches or knows a model.
 */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include <cstdint>
#include <cuda_runtime.h>

/* ---- barriers in shared memory --------------------------------------------------------------- */

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void barrier_init(uint64_t *b, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
                 : "memory");
}
/* Makes the initialised barriers visible to the copy engine. */
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
/* Arrives and adds `bytes` to what the phase waits for. */
__device__ __forceinline__ void barrier_arrive_expect(uint64_t *b, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}
/* Waits until the phase of this parity is complete. A fresh barrier counts as having completed a
 * phase of parity 1. */
__device__ __forceinline__ void barrier_wait(uint64_t *b, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(shared_address(b)), "r"(parity)
                     : "memory");
    } while (!done);
}

/* Waits for `THREADS` threads, whole warps, at the hardware barrier ID. */
template <int ID, int THREADS> __device__ __forceinline__ void named_sync() {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

/* Arrives there without waiting. */
template <int ID, int THREADS> __device__ __forceinline__ void named_arrive() {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* Weights are read once a step: let them leave the L2 first, so that activations stay. */
__device__ __forceinline__ uint64_t policy_evict_first() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
/* Starts a copy of `bytes` (a multiple of 16, both ends 16-byte aligned) that reports to `b`. */
__device__ __forceinline__ void bulk_copy(void *shared, const void *global, uint32_t bytes,
                                          uint64_t *b, uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(b)), "l"(policy)
                 : "memory");
}
/* The same, to be kept as the L2 sees fit. */
__device__ __forceinline__ void bulk_copy(void *shared, const void *global, uint32_t bytes,
                                          uint64_t *b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(b))
                 : "memory");
}
/* Asks `bytes` (a multiple of 16, 16-byte aligned) into the L2; nothing reports back. */
__device__ __forceinline__ void bulk_prefetch(const void *global, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

/* Starts the copy of this lane's 16 bytes; the lane sees them after it has waited for their group.
 */
__device__ __forceinline__ void lane_copy(uint32_t shared, const void *global, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared),
                 "l"(global), "l"(policy)
                 : "memory");
}
__device__ __forceinline__ void lane_copy(uint32_t shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
/* Copies two bytes at once: no group, seen by other lanes after __syncwarp. */
__device__ __forceinline__ void half_copy(uint32_t shared, const void *global) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared), "h"(*(const unsigned short *)global)
                 : "memory");
}
__device__ __forceinline__ void lane_copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until at most N of this lane's groups are under way. */
template <int N> __device__ __forceinline__ void lane_copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- programmatic dependent launch ----------------------------------------------------------- */

/* Until here nothing that an earlier kernel of the stream wrote may be read, nor anything written.
 */
__device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* Lets the next kernel's blocks start as soon as all blocks of this one have. */
__device__ __forceinline__ void grid_launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* ---- matrix instructions --------------------------------------------------------------------- */

/* d[16 x 8] = popcount(a[16 x 256 bits] & b[256 bits x 8]), exact. */
__device__ __forceinline__ void mma_and_popc(uint32_t (&d)[4], const uint4 &a, uint32_t b0,
                                             uint32_t b1) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "r"(0));
}
/* d[16 x 8] += a[16 x 32] b[32 x 8] of 8-bit integers, exact; a unsigned, b signed or not. */
__device__ __forceinline__ void mma_u8_s8(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_u8_u8(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/* d[16 x 8] += a[16 x 16 fp16] b[16 x 8 fp16] in FP32. */
__device__ __forceinline__ void mma_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#endif
