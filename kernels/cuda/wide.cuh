/* The product of the wide linear, between prefill.cu (which splits the work) and wide.cu (the
 * kernel), and the order of its input. */
#ifndef KERNELS_CUDA_WIDE_CUH
#define KERNELS_CUDA_WIDE_CUH

#include "kernels/cuda/linear.h"

enum {
    WIDE_OUTS = 128,   /* outputs of a block */
    WIDE_COLS = 64,    /* columns of a stage */
    WIDE_GROUPS = 32,  /* tenants of one launch */
    WIDE_MARGIN = 256, /* rows past the last that a block may read */
};

/* Rows [first, first + n) of one tenant that has one plain plane, or none, in each part. */
struct wide_group {
    const uint32_t *bits[MAX_PARTS]; /* or NULL: no change */
    const float *row[MAX_PARTS];
    int32_t first, n;
    int32_t first_tile; /* of all tiles of rows of the launch; set at launch */
    int32_t reserved;
};
struct wide_args {
    struct linear_shape shape;
    int32_t first_tile, n_tiles; /* of 16 outputs: a run of the matrix */
    const uint4 *base;           /* packed; its first tile is first_tile */
    const char *input;           /* wide_place */
    int32_t max_rows;            /* of the input */
    __half *y;                   /* [rows][ld_y] or NULL */
    float *residual;
    int32_t ld_y, n_groups;
    struct wide_group group[WIDE_GROUPS];
    int32_t row_tiles; /* set at launch */
    bool after_merge;  /* base is what an earlier kernel of the stream wrote */
};

/* Hopper's. */
err_t wide_setup(void);
err_t wide_launch(struct wide_args *a, int32_t multiprocessors, cudaStream_t stream);
/* The same for devices that are not Hopper's, from compute capability 8.0 on (wide_plain.cu). */
err_t wide_plain_setup(void);
err_t wide_plain_launch(struct wide_args *a, int32_t multiprocessors, cudaStream_t stream);

/* Tiles of so many rows, and their place in each group. */
void wide_row_tiles(struct wide_args *a, int32_t rows);

/* The input stands as the matrix instruction wants it in shared memory: for each 64 columns, each 8
 * rows, 1024 bytes: rows of 128 bytes, in each the 16-byte pieces of columns swizzled. Within 32
 * columns the order is that of the packed base: piece q holds, for t = 0 .. 3, columns 8t + 2q and
 * 8t + 2q + 1. Columns past n_k up to a multiple of 256 are zeros. Place of piece q of columns 32 c
 * .. 32 c + 31 of a row: */
__host__ __device__ static inline size_t wide_place(int32_t max_rows, int32_t row, int32_t c,
                                                    int32_t q) {
    size_t block = (size_t)(c / 2) * (size_t)(max_rows / 8) + (size_t)(row / 8);
    return block * 1024 + (size_t)(row % 8 * 128 + ((c % 2 * 4 + q) ^ row % 8) * 16);
}

#endif
