/* How the fused linear is laid out: the warps of a block and their shared memory for a number of
 * rows, and the output tiles of a block. Part of linear.cu, see there. */
#ifndef KERNELS_CUDA_LINEAR_PLAN_CUH
#define KERNELS_CUDA_LINEAR_PLAN_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear.h"

namespace {

static_assert(sizeof(struct linear_job) == 64, "copied as four times 16 bytes");

enum {
    GROUP = 4, /* tiles of 16 outputs that share the reading of x */
    BASE_TILE = TILE_ROWS * TILE_COLS * 2,
    SIGN_WARPS = 8,
    BASE_WARPS = 4,
    THREADS = 32 * (BASE_WARPS + SIGN_WARPS + 1),
    ROW_FLOATS = GROUP * TILE_ROWS,
    /* What a sign warp copies at a time: up to 8 tiles, and up to 4 bit planes of x. */
    STEP_TILES = 8,
    STEP_PLANES = 4,
    PLANES = (int)sizeof(struct linear_planes),
    STEP = STEP_TILES * TILE_BYTES + STEP_PLANES * PLANES,
};

/* How the warps of a block share a bucket of 8 N8 rows. */
template <int N8> struct config {
    static constexpr int along_rows = N8 >= 4 ? 4 : N8; /* base warps side by side over rows */
    static constexpr int along_out = BASE_WARPS / along_rows; /* and over output tiles */
    static constexpr int n8 = N8 / along_rows;                /* groups of 8 rows of a base warp */
    static constexpr int tiles = GROUP / along_out;           /* output tiles of a base warp */
    static constexpr int steps = 8 / n8;                      /* runs of 32 columns in a slot */
    static constexpr int slot = steps * 1024;                 /* bytes */
    static constexpr int per_block = 8 / steps;               /* slots along 256 columns */
    /* Bytes in flight are divided as the traffic is, between W and the tenants' signs. */
    static constexpr int slots = N8 == 1 ? 15 : N8 == 2 ? 9 : N8 == 4 ? 8 : 15;
    static constexpr int depth = N8 == 1 ? 2 : 3; /* steps in flight of a sign warp */
    static constexpr size_t shared_bytes =
        (size_t)slots * slot + SIGN_WARPS * depth * STEP +
        (size_t)N8 * 8 * (ROW_FLOATS * 4 + sizeof(struct linear_job)) + (2 * slots + 2) * 8;
    static_assert(shared_bytes <= 227 * 1024, "more than a block can have");
};

/* Shared memory: rings, each row's finished sums of the signs, barriers. */
struct layout {
    char *base, *sign;
    float *total;            /* [rows][2][32 lanes] */
    struct linear_job *jobs; /* the first 8 N8 */
    uint64_t *full, *empty, *total_full, *total_empty;
};

/* The tiles of a block, and a group of them: at most GROUP tiles of one part. */
struct work {
    int first, end; /* tiles */
    int blocks;     /* of 256 columns */
};
struct group {
    int tile, n, part;
};

__device__ struct work work_of(const struct linear_shape &s) {
    int tiles = s.first_tile[s.n_parts];
    int each = tiles / gridDim.x, more = tiles % gridDim.x, i = blockIdx.x;
    int first = i * each + min(i, more);
    return {first, first + each + (i < more), (s.n_k + TILE_COLS - 1) / TILE_COLS};
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
