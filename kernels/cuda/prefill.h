/* Wide rows: for each tenant's rows one GEMM with W + delta, merged on the way, and the
 * element-wise operators around it. Not captured in graphs: the host knows all sizes.
 *
 * The merge writes fp16(W + delta) of one matrix, from the packed base and the tenant's planes,
 * pair or dense matrix, to a scratch that stays in the L2 as far as it can; the next matrix is
 * merged on a second stream while the tensor cores work on this one. */
#ifndef KERNELS_CUDA_PREFILL_H
#define KERNELS_CUDA_PREFILL_H

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step.h"

struct prefill; /* cuBLAS handle, second stream, events, scratch; one per backend, host memory */

err_t prefill_open(struct prefill **out, const struct model_shape *shape, int32_t max_rows);
void prefill_close(struct prefill *p);         /* NULL: nothing */
size_t prefill_bytes(const struct prefill *p); /* device memory held */

/* One matrix over the wide groups of a step (host copies of the tables: tenants' deltas are read
 * on the device, `groups` on the host with first counted from the first wide row). base: packed by
 * linear_pack. y = (W + delta) x as fp16 [rows][ld_y], or, with y NULL, added to residual. */
struct prefill_linear {
    struct linear_shape shape;
    const uint4 *base;
    int32_t first_part; /* of the layer's deltas: layer * N_PARTS + linear_first_part(which) */
    const struct gpu_group *groups; /* host [n_groups] */
    int32_t n_groups;
    const __half *x; /* [rows][ld_x] */
    int32_t ld_x;
    __half *y;
    float *residual;
    int32_t ld_y;
};
err_t prefill_linear_launch(struct prefill *p, const struct prefill_linear *l, cudaStream_t stream);
/* Tells which matrix comes next, so that its merge may start beside the current GEMM; optional. */
err_t prefill_linear_next(struct prefill *p, const struct prefill_linear *l, cudaStream_t stream);

/* x16 = h / rms(h) * w of the wide rows; norm_index in the tenant's norm table. */
err_t prefill_norm(const struct gpu_step *s, const struct gpu_activations *a, int32_t norm_index,
                   int32_t dim, int32_t n_narrow, int32_t n_wide, cudaStream_t stream);
/* act16 = silu(gate) * up of the wide rows; gate_up16 holds the parts joined as in
 * linear_shape.first_tile (padded to tiles of 16). */
err_t prefill_swiglu(const struct gpu_activations *a, int32_t ffn_dim, int32_t n_wide,
                     cudaStream_t stream);

#endif
