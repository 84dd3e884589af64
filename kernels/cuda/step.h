/* What the kernels of a step share: the device's view of tenants and of the rows of a step, the
 * activations, and where everything lies. Device memory unless a comment says otherwise.
 *
 * Two classes of rows. A sequence that brings at most WIDE_MIN - 1 rows to a step (decode, short
 * prompts, the tails of long ones) has *narrow* rows: FP32 activations, x split in two fp16 halves
 * for the base product, exact integers for the deltas, keys and values in scaled 16-bit integers.
 * What is computed for a narrow row depends on that row and its own sequence alone, bit for bit. A
 * sequence that brings more has *wide* rows: merged fp16 weights and one GEMM for each tenant's
 * rows, fp16 activations. The class depends on the sequence's own rows, never on its neighbours.
 *
 * Rows of a step stand as [narrow rows][wide rows], rows of one tenant side by side in either
 * class; open.cu's begin makes this order and keeps the way back. Residuals h are FP32 for both. */
#ifndef KERNELS_CUDA_STEP_H
#define KERNELS_CUDA_STEP_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/kernels.h"

enum {
    SLICE_ROWS = 64, /* narrow rows of one launch of the fused linear: LINEAR_MAX_ROWS */
    WIDE_MIN = 65,   /* rows of one sequence in one step from which they are wide */
};

/* A bound tenant as kernels see it: tenant_weights with its deltas on the device. Made once, when
 * the tenant is bound, so a step names a tenant by one pointer. */
struct gpu_tenant {
    const float *norm; /* [2L + 1, D] */
    const float *rope; /* [context, E/2, 2] */
    int32_t context, vocab, sliding_window;
    float norm_eps;
    bool tied;
    const struct delta *delta;       /* [L * N_PARTS], device; its pointers are the device's, too */
    struct vocab_matrix embed, head; /* head of a tied tenant: a copy of embed */
    bool has_pairs, has_dense;       /* some linear has a low-rank pair; is dense */
    bool head_has_pairs;
};

/* One row. */
struct gpu_row {
    const struct gpu_tenant *tenant;
    int32_t token, position; /* position in its sequence: the keys it sees are 0 .. position */
    int32_t seq;             /* index in gpu_step.seq */
    int32_t group;           /* index in gpu_step.group */
};

/* Rows [first, first + n) of one sequence, at positions position ..; its pages are
 * page[first_page ..]. */
struct gpu_seq {
    int32_t first, n, position, first_page;
};

/* Rows [first, first + n) of one tenant, narrow or wide. */
struct gpu_group {
    const struct gpu_tenant *tenant;
    int32_t first, n;
};

/* The tables of a step at fixed addresses: a captured graph reads whatever stands there. Counts
 * are device data, too; launches are sized for a bucket and surplus threads leave. */
struct gpu_counts {
    int32_t n_narrow, n_wide; /* rows */
    int32_t n_narrow_groups, n_wide_groups;
    int32_t n_narrow_seqs, n_wide_seqs;
    int32_t n_logits, reserved;
};
struct gpu_step {
    const struct gpu_counts *counts;
    const struct gpu_row *row;     /* [n_narrow + n_wide] */
    const struct gpu_group *group; /* narrow groups, then wide ones */
    const struct gpu_seq *seq;     /* likewise */
    const int32_t *page;           /* all sequences' pages */
};

/* Activations; rows as in gpu_step.row. Leading dimensions are in elements, multiples of 8. */
struct gpu_activations {
    float *h;                          /* [rows][ld_h] residual stream, both classes */
    float *qkv, *ctx, *gate_up;        /* narrow [rows][ld_...] */
    __half *qkv16, *ctx16, *gate_up16; /* wide, indexed from the first wide row */
    int32_t ld_h, ld_qkv, ld_ctx, ld_gate_up;
};

#endif
