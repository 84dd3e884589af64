/* Wide rows: for each tenant's rows the product with W + delta, merged on the way to the tensor
 * core, and the element-wise operators around it. Not captured in graphs: the host knows all sizes.
 *
 * The input of a linear is held here, in an order of its own (wide.cuh): prefill_norm,
 * prefill_swiglu or prefill_take writes it, the next prefill_linear_launch reads it. All work is
 * queued on the caller's stream.
 *
 * An output is one chain of operations over ascending k, whatever the number of rows, their place,
 * the tenants beside it: same bits in any batch. */
#ifndef KERNELS_CUDA_PREFILL_H
#define KERNELS_CUDA_PREFILL_H

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step.h"

struct prefill; /* input, scratch for merged weights; one per backend, host memory */

/* For the device that is current. max_rows: most wide rows of a step. */
err_t prefill_open(struct prefill **out, const struct model_shape *shape, int32_t max_rows);
void prefill_close(struct prefill *p); /* NULL: nothing */
/* From here on the product that other devices than Hopper's have: for tests and comparisons. */
err_t prefill_use_plain(struct prefill *p);
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
 * Row n of part p is column 16 first_tile[p] + n of y; columns between parts get zeros, and so do
 * those after the last up to a multiple of 8 (of residual: 4). y and residual start at multiples of
 * 16 bytes, ld_y is a multiple of 8. */
struct prefill_linear {
    struct linear_shape shape;
    const uint4 *base;
    int32_t first_part; /* of the tenants' deltas: layer * N_PARTS + linear_first_part(which) */
    const struct prefill_group *groups; /* host [n_groups] */
    int32_t n_groups;
    __half *y;
    float *residual;
    int32_t ld_y;
};
err_t prefill_linear_launch(struct prefill *p, const struct prefill_linear *l, cudaStream_t stream);

/* Input = h / rms(h) * w of the wide rows; norm_index in the tenant's norm table. */
err_t prefill_norm(struct prefill *p, const struct gpu_step *s, const struct gpu_activations *a,
                   int32_t norm_index, int32_t dim, int32_t n_narrow, int32_t n_wide,
                   cudaStream_t stream);
/* Input = silu(gate) * up of the wide rows; gate_up16 holds the parts joined as above. */
err_t prefill_swiglu(struct prefill *p, const struct gpu_activations *a, int32_t ffn_dim,
                     int32_t n_wide, cudaStream_t stream);
/* Input = x [n_wide][ld_x]; x starts at a multiple of 16 bytes, ld_x is a multiple of 8. Columns
 * past n_k are not used. */
err_t prefill_take(struct prefill *p, const __half *x, int32_t ld_x, int32_t n_k, int32_t n_wide,
                   cudaStream_t stream);

/* The input and how many rows it is made for (a multiple of 8): for wide_place. */
char *prefill_input(const struct prefill *p, int32_t *max_rows);

#endif
