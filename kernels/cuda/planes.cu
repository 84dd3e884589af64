/* The input of a fused linear from plain FP32 rows: planes.cuh as a launch of its own, one warp for
 * a set and a block of 256 columns. The input is in the L2. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/planes.cuh"

enum { WARPS = 4 };

static __global__ void __launch_bounds__(32 * WARPS) planes_kernel(const planes_args a) {
    int block = blockIdx.x * WARPS + threadIdx.x / 32;
    int n_blocks = (a.n_k + TILE_COLS - 1) / TILE_COLS;
    grid_launch_next();
    grid_wait();
    int set = blockIdx.y;
    if (set >= *a.n_sets || block >= n_blocks)
        return;
    int n_rows = *a.n_rows;
    bool plain = set < n_rows;
    int row = plain ? set : a.extra[set - n_rows].row;
    const float *col = plain ? NULL : a.extra[set - n_rows].col;

    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int k = block * TILE_COLS + planes_column(i);
        v[i] = k < a.n_k ? __ldcg(a.x + (size_t)row * a.ld_x + k) : 0;
        if (plain)
            halves_store(a.x16 + linear_x_at(n_blocks, row, k, 0), v[i]);
        if (col)
            v[i] *= k < a.n_k ? col[k] : 0;
    }
    planes_store(a.planes + (size_t)set * n_blocks + block, v);
}
err_t planes_launch(const struct planes_args *a, int32_t max_rows, int32_t max_sets,
                    cudaStream_t stream) {
    if (a->n_k < 1 || max_rows < 1 || max_rows > LINEAR_MAX_ROWS || max_sets < max_rows)
        return E_INVAL;
    int n_blocks = tiles_of(a->n_k, TILE_COLS);
    return launch_early(planes_kernel,
                        dim3((unsigned)tiles_of(n_blocks, WARPS), (unsigned)max_sets), 32 * WARPS,
                        0, stream, *a);
}
