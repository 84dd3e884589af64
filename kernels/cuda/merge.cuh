/* W + delta of some rows of a matrix as fp16, row-major: what the wide linear multiplies with. Part
 * of prefill.cu, see there. */
#ifndef KERNELS_CUDA_MERGE_CUH
#define KERNELS_CUDA_MERGE_CUH

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step.h"

/* Tiles [first_tile, first_tile + n_tiles) of 16 outputs of the joined matrix. */
struct merge_args {
    struct linear_shape shape;
    const uint4 *base; /* packed by linear_pack */
    struct delta delta[MAX_PARTS];
    int32_t first_tile, n_tiles;
    __half *out; /* [16 n_tiles][ld]; rows past a part's end are zeros */
    int32_t ld;  /* a multiple of 8, at least n_k; columns past n_k hold anything */
};

err_t merge_launch(const struct merge_args *a, int32_t n_thread_blocks, cudaStream_t stream);

#endif
