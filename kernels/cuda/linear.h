/* The fused decode linear: y = W x + (delta of the row's tenant) x, for 1 to 64 rows of any mix of
 * tenants. Base weights are read once for all rows, each tenant's signs once for its rows.
 *
 * What is where. W is repacked once, at bind, into the order in which the matrix instruction wants
 * it (linear_pack). Sign planes are used as they stand in the tenant file. Activations come in two
 * forms: two fp16 halves of each value for W, and for the signs the 16 bit planes of the integers
 * that kernels/delta.h defines (planes_launch makes both). Everything that depends on the mix of
 * tenants is device data (struct linear_batch, struct linear_job), so a captured graph serves every
 * mix.
 *
 * An output element is summed by one chain of operations over ascending k whatever the number of
 * rows, their order, the tenants or the number of blocks: same bits in any batch. */
#ifndef KERNELS_CUDA_LINEAR_H
#define KERNELS_CUDA_LINEAR_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "config/err.h"
#include "kernels/kernels.h"

enum {
    LINEAR_MAX_ROWS = 64,
    LINEAR_JOB_ROWS = 4,
};

/* One sign plane of one tenant over some of its rows of the step: at most LINEAR_JOB_ROWS, and at
 * most linear_job_rows(). One warp of a block does one job after the other; a tenant with many rows
 * has several jobs, whose bits come from the memory once and from the L2 again. Parts whose column
 * scales differ have different sets of bit planes, all in the one job. Device memory, as are all
 * tables here. */
struct linear_job {
    const uint32_t *bits[MAX_PARTS]; /* tiles [ceil(N/16)][ceil(K/256)], or NULL: no change here */
    const float *row[MAX_PARTS];     /* [N of the part]; NULL where bits is */
    int32_t first_set[MAX_PARTS]; /* first_row's bit planes for the part; the next row's follow */
    int16_t first_row, n_rows;    /* rows of the step */
};

/* The low-rank pairs of one job's tenant: y += B u, u = A x, after all phases. Stands beside the
 * job of phase 0 in a table [n_jobs]; a tenant with a pair and no planes has a job without bits. */
struct linear_pair {
    const __half *b[MAX_PARTS]; /* [N of the part, rank], 16-byte aligned, or NULL */
    int32_t rank[MAX_PARTS];
    int32_t first_u[MAX_PARTS]; /* where u of this part starts in a row of linear_input.u; a
                                   multiple of 4 */
};

/* Dense parts of one tenant: rows [first_row, first_row + n_rows), any number of them. */
struct linear_dense {
    const __half *w[MAX_PARTS]; /* [n_out, K] row-major, 16-byte aligned, or NULL: not dense */
    int32_t n_out[MAX_PARTS];   /* outputs written; a head's may exceed its part_rows */
    int32_t first_row, n_rows;
};

/* The rows of the step; device memory, complete before the kernel before the linear's starts
 * (blocks of the linear may start that early). The jobs stand as [n_phases][n_jobs], plane p of
 * each tenant in phase p: job i has the same rows in every phase, jobs ascend in their rows, no row
 * is in two, and bits are NULL where a tenant has fewer planes. With jobs there is at least one
 * phase. */
struct linear_batch {
    int32_t n_rows, n_jobs, n_phases, n_dense;
    uint8_t has_delta[LINEAR_MAX_ROWS]; /* the row is in a job */
    uint8_t dense[LINEAR_MAX_ROWS];     /* parts (bits) that a dense matrix gives: not written by
                                           linear_launch; their bits and pairs are NULL */
};

/* A matrix [N, K] of up to three parts joined along N. Host memory, copied at launch. */
struct linear_shape {
    int32_t n_parts, n_k;              /* n_k: columns */
    int32_t part_rows[MAX_PARTS];      /* N of each part */
    int32_t first_tile[MAX_PARTS + 1]; /* in tiles of 16 rows; every part starts a tile */
};

/* Bit planes of one row and block of 256 columns, in the order in which lanes hold the B operand of
 * mma.m16n8k256, and what belongs to them. Written by planes.cuh's functions. */
struct linear_planes {
    uint4 lane[32];
    float scale;  /* s_b */
    float sum;    /* of q; exact */
    float pad[2]; /* copies go by 16 bytes */
};

/* Activations of up to 64 rows; device memory, written with planes.cuh's functions.
 *
 * x is FP32 split into two halves, hi = fp16(x) and lo = fp16(x - hi): fp16 alone would move
 * log-probabilities by 1.7e-2. Four rows and 32 columns form 512 bytes, [4 rows][hi, lo][32], in
 * the order in which lanes hold the B operand: x is [ceil(rows/4)][8 n_blocks] of these,
 * linear_x_at() finds an element. Columns past K are zero; what stands in the rows past the step's
 * last does not matter, but it is read. */
struct linear_input {
    const __half *x;                    /* linear_x_bytes() */
    const struct linear_planes *planes; /* [sets][n_blocks], n_blocks = ceil(K/256) */
    const float *u;                     /* [rows][ld_u] A x of the low-rank pairs, or NULL */
    int32_t ld_u;                       /* a multiple of 4 */
};

/* The matrix that the stream's next linear multiplies: its first bytes are asked into the L2 before
 * this one ends. n_parts 0: unknown. */
struct linear_next {
    const uint4 *base;
    int32_t n_tiles, n_blocks; /* of its shape: first_tile[n_parts], ceil(K/256) */
};

struct linear_args {
    struct linear_shape shape;
    struct linear_input in;
    const uint4 *base; /* packed by linear_pack */
    const struct linear_batch *batch;
    const struct linear_job *jobs;
    const struct linear_pair *pairs;  /* [n_jobs], or NULL: no tenant of the step has any */
    const struct linear_dense *dense; /* [n_dense]; linear_dense_launch's alone */
    float *y;                         /* [rows][ld_y]; parts side by side, not padded */
    int32_t ld_y;
    bool add;                /* y += instead of y = */
    int32_t n_thread_blocks; /* at most this many; the multiprocessors of the device */
    struct linear_next next;
};

/* Fills a shape from the rows of its parts. */
struct linear_shape linear_shape_of(int32_t n_parts, const int32_t *part_rows, int32_t n_k);
/* Rows of a job that spread a step's rows evenly over the warps of a block. */
static inline int32_t linear_job_rows(int32_t n_rows) {
    int32_t n = (n_rows + 7) / 8;
    return n < LINEAR_JOB_ROWS ? n : LINEAR_JOB_ROWS;
}
/* Bytes of the packed base matrix. */
size_t linear_packed_bytes(const struct linear_shape *s);

/* Packs w [N joined, K] fp16 row-major (device) into `packed`, 16-byte aligned. */
err_t linear_pack(const struct linear_shape *s, const __half *w, void *packed, cudaStream_t stream);

/* Once per process and device, before the first launch. */
err_t linear_setup(void);

/* Where column k of a row of x stands, in halves; half: 0 hi, 1 lo. */
#ifdef __CUDACC__
__host__ __device__
#endif
    static inline size_t
    linear_x_at(int32_t n_blocks, int32_t row, int32_t k, int32_t half) {
    return (((size_t)(row / 4) * (size_t)n_blocks * 8 + (size_t)(k / 32)) * 8 +
            (size_t)(row % 4 * 2 + half)) *
               32 +
           (size_t)(k % 32);
}
static inline size_t linear_x_bytes(int32_t n_blocks, int32_t max_rows) {
    return (size_t)((max_rows + 3) / 4) * (size_t)n_blocks * 4096;
}

/* max_rows: most rows this launch must serve (1 .. 64); the batch's n_rows may be fewer, so that a
 * graph captured for a bucket serves all smaller steps. No allocation, no synchronisation. */
err_t linear_launch(const struct linear_args *a, int32_t max_rows, cudaStream_t stream);

/* The same, bit for bit, for devices that are not Hopper's: what linear_launch does there. */
err_t linear_plain_launch(const struct linear_args *a, int32_t max_rows, cudaStream_t stream);

/* Writes the parts that batch.dense names, for the rows of a.dense. Memory-bound, like the other;
 * either may come first. Launch it only when a tenant of the step may be dense. */
err_t linear_dense_launch(const struct linear_args *a, int32_t max_rows, cudaStream_t stream);

/* A set of bit planes beyond the rows' own: row `row` of x, its columns multiplied by col [K]. */
struct planes_set {
    int32_t row, reserved;
    const float *col;
};

struct planes_args {
    const float *x; /* [rows][ld_x] */
    int32_t ld_x, n_k;
    const int32_t *n_rows, *n_sets; /* device; set i < n_rows is row i as it stands */
    const struct planes_set *extra; /* device; set i >= n_rows is extra[i - n_rows] */
    __half *x16;                    /* as linear_input.x */
    struct linear_planes *planes;   /* [sets][n_blocks] */
};

/* Writes the halves and bit planes of at most max_rows rows and max_sets sets. */
err_t planes_launch(const struct planes_args *a, int32_t max_rows, int32_t max_sets,
                    cudaStream_t stream);

#endif
