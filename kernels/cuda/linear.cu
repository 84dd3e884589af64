/* y = W x + (sum over planes of diag(row) S q) for 1 to 64 rows of any mix of tenants (linear.h).
 *
 * Bytes: 2 N K for W, N K / 8 for each distinct tenant; activations come from the L2. FLOPs:
 * 2 N K rows, twice. Bound: device memory, at every number of rows.
 *
 * A block owns tiles of 16 outputs over the whole of K, in groups of at most 4; nothing is split
 * along K across warps or blocks, so there is nothing to reduce and the sums cannot depend on the
 * batch or the grid. Two streams run side by side:
 *
 *   base   4 warps, a ring of stages of W (16 KB) and one of x, filled by bulk copies that two more
 *          warps start
 *   signs  8 warps, each with a ring of its own and copies of its own: up to 8 tiles and the bit
 *          planes of x that go with them a step; a job (a tenant's rows) belongs to one warp
 *
 * For a tile, mma_and_popc counts for 16 outputs x 16 planes. The counts, at most 256, are then the
 * bits of fp16 subnormals, in registers just where mma_f16 wants its A operand, and its B holds the
 * planes' weights: low planes of tile m in column 2m, high ones in 2m + 1. That product is exact
 * (products are multiples of 2^-24 and at most 2^-9, so no way of aligning them loses a bit), it
 * sums over the planes and over the four lanes at once, and leaves lane (g, t) with the integers of
 * outputs g and g + 8 of tile t: one chain of FP32 additions over the blocks, as kernels/delta.h
 * has it.
 *
 * Copies of weights start before the previous kernel has ended (programmatic dependent launch).
 */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_base.cuh"
#include "kernels/cuda/linear_signs.cuh"

namespace {

/* ---- the kernel ------------------------------------------------------------------------------ */

/* Q quads of rows a block, H blocks for the same tiles. */
template <int Q, int H>
__global__ void __launch_bounds__(THREADS, 1) linear_kernel(const __grid_constant__ linear_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) char shared[];
    using C = config<Q>;
    layout l;
    l.base = shared;
    l.x = l.base + C::slots * C::stage;
    l.sign = l.x + C::x_slots * C::x_slot;
    l.total = (float *)(l.sign + SIGN_WARPS * DEPTH * STEP);
    l.jobs = (struct linear_job *)(l.total + 4 * Q * ROW_FLOATS);
    l.pairs = (struct linear_pair *)(l.jobs + 4 * Q);
    l.full = (uint64_t *)(l.pairs + 4 * Q);
    l.empty = l.full + C::slots;
    l.x_full = l.empty + C::slots;
    l.x_empty = l.x_full + C::x_slots;
    l.total_full = l.x_empty + C::x_slots;
    l.total_empty = l.total_full + 1;

    grid_launch_next();
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::slots; i++) {
            barrier_init(l.full + i, GROUP);
            barrier_init(l.empty + i, 32 * BASE_WARPS);
        }
        for (int i = 0; i < C::x_slots; i++) {
            barrier_init(l.x_full + i, Q);
            barrier_init(l.x_empty + i, 32 * BASE_WARPS);
        }
        barrier_init(l.total_full, 32 * SIGN_WARPS);
        barrier_init(l.total_empty, 32 * BASE_WARPS);
        barrier_init_fence();
    }
    __syncthreads();

    int warp = threadIdx.x / 32;
    if (warp < BASE_WARPS)
        run_base<Q, H>(a, l);
    else if (warp < BASE_WARPS + SIGN_WARPS)
        run_signs<Q, H>(a, l);
    else if (warp == BASE_WARPS + SIGN_WARPS)
        copy_base<Q, H>(a, l);
    else
        copy_x<Q, H>(a, l);
#endif
}

struct bucket {
    int32_t rows, halves;
    size_t shared_bytes;
    void (*kernel)(linear_args);
};
const struct bucket buckets[] = {
    {4, 1, config<1>::shared_bytes, linear_kernel<1, 1>},
    {8, 1, config<2>::shared_bytes, linear_kernel<2, 1>},
    {16, 1, config<4>::shared_bytes, linear_kernel<4, 1>},
    {32, 1, config<8>::shared_bytes, linear_kernel<8, 1>},
    {64, 2, config<8>::shared_bytes, linear_kernel<8, 2>},
};

/* Packs one lane's 16 bytes. The k order within 32 columns is the one in which a lane of the B
 * operand holds 8 neighbours of x: step s, register h, lane t, half e <-> k = 8t + 4s + 2h + e. */
__global__ void pack_kernel(struct linear_shape s, const __half *w, uint4 *packed) {
    int blocks = (s.n_k + TILE_COLS - 1) / TILE_COLS;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    size_t tile = i / (blocks * 512);
    if (tile >= (size_t)s.first_tile[s.n_parts])
        return;
    int at = (int)(i % (blocks * 512)), step = at / 32, lane = at % 32, g = lane / 4, t = lane % 4;
    int part = ((int)tile >= s.first_tile[1]) + ((int)tile >= s.first_tile[2]), before = 0;
    for (int p = 0; p < part; p++)
        before += s.part_rows[p];
    __half v[8];
    for (int e = 0; e < 8; e++) { /* register e / 2: rows g, g + 8, g, g + 8 */
        int row = ((int)tile - s.first_tile[part]) * TILE_ROWS + g + e / 2 % 2 * 8;
        int k = step / 2 * 32 + 8 * t + 4 * (step % 2) + 2 * (e / 4) + e % 2;
        v[e] = row < s.part_rows[part] && k < s.n_k ? w[(size_t)(before + row) * s.n_k + k]
                                                    : __float2half(0);
    }
    packed[i] = *(const uint4 *)v;
}

} // namespace

struct linear_shape linear_shape_of(int32_t n_parts, const int32_t *part_rows, int32_t n_k) {
    struct linear_shape s = {};
    s.n_parts = n_parts;
    s.n_k = n_k;
    for (int32_t p = 0; p < MAX_PARTS; p++) {
        s.part_rows[p] = p < n_parts ? part_rows[p] : 0;
        s.first_tile[p + 1] = s.first_tile[p] + tiles_of(s.part_rows[p], TILE_ROWS);
    }
    return s;
}

size_t linear_packed_bytes(const struct linear_shape *s) {
    return (size_t)s->first_tile[s->n_parts] * (size_t)tiles_of(s->n_k, TILE_COLS) * BASE_TILE;
}

err_t linear_pack(const struct linear_shape *s, const __half *w, void *packed,
                  cudaStream_t stream) {
    size_t lanes = linear_packed_bytes(s) / 16;
    pack_kernel<<<(unsigned)((lanes + 255) / 256), 256, 0, stream>>>(*s, w, (uint4 *)packed);
    return cudaGetLastError() == cudaSuccess ? 0 : E_DEVICE;
}

err_t linear_setup(void) {
    for (const struct bucket &b : buckets)
        if (code_is_hopper() &&
            cudaFuncSetAttribute(b.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)b.shared_bytes) != cudaSuccess)
            return E_DEVICE;
    return 0;
}

err_t linear_launch(const struct linear_args *a, int32_t max_rows, cudaStream_t stream) {
    int32_t tiles = a->shape.first_tile[a->shape.n_parts], grid = a->n_thread_blocks;
    if (max_rows < 1 || max_rows > LINEAR_MAX_ROWS || tiles < 1 || a->shape.n_k < 1 || grid < 1)
        return E_INVAL;
    if (!code_is_hopper())
        return linear_plain_launch(a, max_rows, stream);
    const struct bucket *b = buckets;
    while (b->rows < max_rows)
        b++;
    if (grid > tiles * b->halves)
        grid = tiles * b->halves;
    if (grid < b->halves) /* a lone multiprocessor */
        grid = b->halves;
    grid = grid / b->halves * b->halves;
    return launch_early(b->kernel, dim3((unsigned)grid), THREADS, b->shared_bytes, stream, *a);
}
