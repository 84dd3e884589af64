/* How the fused linear is laid out: the warps of a block and their shared memory for a number of
 * rows, and the output tiles of a block. Part of linear.cu, see there. */
#ifndef KERNELS_CUDA_LINEAR_PLAN_CUH
#define KERNELS_CUDA_LINEAR_PLAN_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear.h"

namespace {

static_assert(sizeof(struct linear_job) == 64, "copied as four times 16 bytes");
static_assert(sizeof(struct linear_pair) == 48, "copied as three times 16 bytes");

enum {
    GROUP = 4, /* tiles of 16 outputs that share the reading of x */
    BASE_TILE = TILE_ROWS * TILE_COLS * 2,
    RUN = 32,        /* columns of x that stand together */
    RUN_BYTES = 512, /* of 4 rows, both halves */
    SIGN_WARPS = 8,
    BASE_WARPS = 4,
    THREADS = 32 * (BASE_WARPS + SIGN_WARPS + 2), /* and two that copy: W, x */
    ROW_FLOATS = GROUP * TILE_ROWS,
    /* What a sign warp copies at a time: up to 8 tiles, and up to 4 bit planes of x. */
    STEP_TILES = 8,
    STEP_PLANES = 4,
    PLANES = (int)sizeof(struct linear_planes),
    STEP = STEP_TILES * TILE_BYTES + STEP_PLANES * PLANES,
    NEXT_BYTES = 49152, /* of the next matrix, asked into the L2 by a block */
    NEAR_RANK = 32,     /* low-rank pairs up to this rank go through the ring: one step */
};

/* How the warps of a block share a bucket of 4 Q rows: Q quads, each with its two halves the 8
 * columns of a product. */
template <int Q> struct config {
    static constexpr int along_rows = Q >= 8 ? 4 : Q >= 4 ? 2 : 1; /* base warps over rows */
    static constexpr int along_out = BASE_WARPS / along_rows;      /* and over output tiles */
    static constexpr int quads = Q / along_rows;                   /* of a base warp */
    static constexpr int tiles = GROUP / along_out;                /* of a base warp */
    static constexpr int runs = Q >= 8 ? 4 : 8;                    /* columns / 32 in a slot of W */
    static constexpr int slot = runs * 1024;                       /* bytes */
    static constexpr int per_block = 8 / runs;                     /* slots along 256 columns */
    static constexpr int x_runs = Q == 1 ? 8 : Q <= 4 ? 4 : 2;     /* columns / 32 in a slot of x */
    static constexpr int x_slot = Q * x_runs * RUN_BYTES;
    /* Bytes in flight are divided as the traffic is, between W, x and the tenants' signs. */
    static constexpr int slots = Q == 1 ? 14 : Q == 2 ? 13 : Q == 4 ? 6 : Q == 8 ? 11 : 6;
    static constexpr int x_slots = Q <= 2 ? 4 : Q <= 8 ? 3 : 2;
    static constexpr int depth = Q <= 2 ? 2 : 3; /* steps in flight of a sign warp */
    static constexpr size_t per_row =
        ROW_FLOATS * 4 + sizeof(struct linear_job) + sizeof(struct linear_pair);
    static constexpr size_t shared_bytes = (size_t)slots * slot + x_slots * x_slot +
                                           SIGN_WARPS * depth * STEP + 4 * Q * per_row +
                                           (2 * slots + 2 * x_slots + 2) * 8;
    static_assert(slots > GROUP, "a group's slots of one run of columns are held at once");
    static_assert(shared_bytes <= 227 * 1024, "more than a block can have");
};

/* Shared memory: rings, each row's finished sums of the signs, tables, barriers. */
struct layout {
    char *base, *x, *sign;
    float *total;              /* [rows][2][32 lanes] */
    struct linear_job *jobs;   /* the first 4 Q */
    struct linear_pair *pairs; /* [4 Q] */
    uint64_t *full, *empty, *x_full, *x_empty, *total_full, *total_empty;
};

/* The tiles of a block, and a group of them: at most GROUP tiles of one part. */
struct work {
    int first, end; /* tiles */
    int blocks;     /* of 256 columns */
};
struct group {
    int tile, n, part;
};

/* This block's tiles when n_blocks blocks share them. */
__device__ struct work share_of(int tiles, int n_blocks) {
    int each = tiles / n_blocks, more = tiles % n_blocks, i = blockIdx.x;
    int first = i * each + min(i, more);
    return {first, first + each + (i < more), 0};
}
__device__ struct work work_of(const struct linear_shape &s) {
    struct work w = share_of(s.first_tile[s.n_parts], gridDim.x);
    w.blocks = (s.n_k + TILE_COLS - 1) / TILE_COLS;
    return w;
}
/* The group that starts at `tile`. */
__device__ struct group group_at(const struct linear_shape &s, const struct work &w, int tile) {
    int part = (tile >= s.first_tile[1]) + (tile >= s.first_tile[2]);
    int left = min(w.end, s.first_tile[part + 1]) - tile;
    int groups = (left + GROUP - 1) / GROUP;
    return {tile, (left + groups - 1) / groups, part};
}

/* A place in a ring: slot and the parity of its current lap. */
struct place {
    int slot = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void advance(int slots) {
        if (++slot == slots) {
            slot = 0;
            parity ^= 1;
        }
    }
};

} // namespace

#endif
