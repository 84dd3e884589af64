/* Wide rows: for each tenant's rows one GEMM with W + delta, merged on the way, and the
 * element-wise operators around it. Not captured in graphs: the host knows all sizes.
 *
 * The merge writes fp16(W + delta) of a piece of a matrix, from the packed base and the tenant's
 * planes, pair or dense matrix, to a scratch that stays in the L2 as far as it can; the next piece
 * is merged on a second stream while the tensor cores work on this one. That
 * stream does not wait for the caller's: weights must be on the device at the call. */
#ifndef KERNELS_CUDA_PREFILL_H
#define KERNELS_CUDA_PREFILL_H

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step.h"

struct prefill; /* cuBLASLt handle, second stream, events, scratch; one per backend, host memory */

/* For the device that is current. */
err_t prefill_open(struct prefill **out, const struct model_shape *shape);
void prefill_close(struct prefill *p);         /* waits for merges; NULL: nothing */
size_t prefill_bytes(const struct prefill *p); /* device memory held */

/* The wide rows [first, first + n) of one tenant, counted from the first wide row. delta: the
 * tenant's table [L * N_PARTS] as tenant_weights has it, host memory with the device's pointers,
 * read at the call; NULL: no deltas. */
struct prefill_group {
    const struct delta *delta;
    int32_t first, n;
};

/* One matrix over the wide groups of a step. base: packed by linear_pack. y = (W + delta) x as fp16
 * [rows][ld_y], or, with y NULL, added to residual.
 *
 * Row n of part p is column 16 first_tile[p] + n of y; columns between parts get zeros. Columns of
 * x past n_k are not read. x and y start at multiples of 16 bytes, ld_x and ld_y are multiples of
 * 8. */
struct prefill_linear {
    struct linear_shape shape;
    const uint4 *base;
    int32_t first_part; /* of the tenants' deltas: layer * N_PARTS + linear_first_part(which) */
    const struct prefill_group *groups; /* host [n_groups] */
    int32_t n_groups;
    const __half *x; /* [rows][ld_x] */
    int32_t ld_x;
    __half *y;
    float *residual;
    int32_t ld_y;
};
/* E_DEVICE when a launch fails. All of it is queued on `stream`, as the caller sees it. */
err_t prefill_linear_launch(struct prefill *p, const struct prefill_linear *l, cudaStream_t stream);
/* Tells which launch comes next, so that its merge may start beside the current GEMM; optional. No
 * other launch may come before it. */
err_t prefill_linear_next(struct prefill *p, const struct prefill_linear *l);

/* x16 [n_wide][ld_h] = h / rms(h) * w of the wide rows; norm_index in the tenant's norm table. */
err_t prefill_norm(const struct gpu_step *s, const struct gpu_activations *a, int32_t norm_index,
                   int32_t dim, int32_t n_narrow, int32_t n_wide, cudaStream_t stream);
/* act16 = silu(gate) * up of the wide rows; gate_up16 holds the parts joined as above. Columns up
 * to the next multiple of 8 are written, too. */
err_t prefill_swiglu(const struct gpu_activations *a, int32_t ffn_dim, int32_t n_wide,
                     cudaStream_t stream);

#endif
