/* W + delta of some rows of a matrix, in the packed order: the base of tenants whose deltas the
 * wide linear does not merge on the way. Part of prefill.cu, see there. */
#ifndef KERNELS_CUDA_MERGE_CUH
#define KERNELS_CUDA_MERGE_CUH

#include "kernels/cuda/linear.h"

/* Tiles [first_tile, first_tile + n_tiles) of 16 outputs of the joined matrix. */
struct merge_args {
    struct linear_shape shape;
    const uint4 *base; /* packed by linear_pack */
    struct delta delta[MAX_PARTS];
    int32_t first_tile, n_tiles;
    uint4 *out; /* packed as linear_pack has it, from first_tile on */
};

err_t merge_launch(const struct merge_args *a, int32_t n_thread_blocks, cudaStream_t stream);

#endif
