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
    RUN_BYTES = 512, /* of x: 32 columns of 4 rows, both halves */
    SIGN_WARPS = 8,
    BASE_WARPS = 4,
    THREADS = 32 * (BASE_WARPS + SIGN_WARPS + 2), /* and two that copy: W, x */
    ROW_FLOATS = GROUP * TILE_ROWS,
    /* What a sign warp copies at a time: tiles, then the bit planes of x. */
    PLANES = (int)sizeof(struct linear_planes),
    STEP = 8 * TILE_BYTES + 2 * PLANES,
    DEPTH = 2,               /* steps in flight of a sign warp */
    STEP_U = 8 * TILE_BYTES, /* where u stands in the step of a pair */
    NEXT_BYTES = 49152,      /* of the next matrix, asked into the L2 by a block */
    NEAR_RANK = 32,          /* low-rank pairs up to this rank go through the ring: one step */
};

/* How the warps of a block share 4 Q rows: Q quads, each with its two halves the 8 columns of a
 * product. */
template <int Q> struct config {
    static constexpr int along_rows = Q >= 8 ? 4 : Q >= 4 ? 2 : 1; /* base warps over rows */
    static constexpr int along_out = BASE_WARPS / along_rows;      /* and over output tiles */
    static constexpr int quads = Q / along_rows;                   /* of a base warp */
    static constexpr int tiles = GROUP / along_out;                /* of a base warp */
    static constexpr int sums = Q <= 2 ? 2 : 1;   /* of 128 columns, side by side */
    static constexpr int x_runs = Q <= 2 ? 8 : 4; /* columns / 32 in a slot of x */
    static constexpr int x_slot = Q * x_runs * RUN_BYTES;
    static constexpr int stage = 16384; /* of W: as many runs of a group's tiles as fit */
    /* Bytes in flight are divided as the traffic is, between W, x and the tenants' signs. */
    static constexpr int slots = Q == 1 ? 8 : Q == 2 ? 7 : Q == 4 ? 6 : 4; /* stages */
    static constexpr int x_slots = Q == 2 ? 3 : Q == 4 ? 5 : 4;
    /* Runs in a stage for a group of n tiles; a power of two. */
    __device__ static int runs(int n) {
        return min(8, stage / 1024 >> (n > 2 ? 2 : n - 1));
    }
    static constexpr size_t per_row =
        ROW_FLOATS * 4 + sizeof(struct linear_job) + sizeof(struct linear_pair);
    static constexpr size_t shared_bytes = (size_t)slots * stage + x_slots * x_slot +
                                           SIGN_WARPS * DEPTH * STEP + 4 * Q * per_row +
                                           2 * (slots + x_slots + 1) * 8;
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

/* The tiles and rows of a block, and a group of tiles: at most GROUP of one part. With many rows, H
 * blocks share their tiles and have a part of the rows each: W comes from the L2 all but once, but
 * tiles are shared out more evenly, groups are larger, and what belongs to rows is smaller. */
struct work {
    int first, end; /* tiles */
    int blocks;     /* of 256 columns */
};
struct rows {
    int first, end; /* first: a multiple of 4 */
};
struct group {
    int tile, n, part;
};

/* This block's tiles when n_blocks blocks, `h` of them on the same, share them. */
__device__ struct work share_of(int tiles, int n_blocks, int h) {
    int n = n_blocks / h, i = blockIdx.x / h;
    int each = tiles / n, more = tiles % n, first = i * each + min(i, more);
    return {first, first + each + (i < more), 0};
}
template <int H> __device__ struct work work_of(const struct linear_shape &s) {
    struct work w = share_of(s.first_tile[s.n_parts], gridDim.x, H);
    w.blocks = (s.n_k + TILE_COLS - 1) / TILE_COLS;
    return w;
}
template <int H> __device__ struct rows rows_of(int n_rows) {
    int each = (n_rows + H * 4 - 1) / (H * 4) * 4, first = blockIdx.x % H * each;
    return {first, max(first, min(first + each, n_rows))};
}
/* The group that starts at `tile`. */
__device__ struct group group_at(const struct linear_shape &s, const struct work &w, int tile) {
    int part = (tile >= s.first_tile[1]) + (tile >= s.first_tile[2]);
    int left = min(w.end, s.first_tile[part + 1]) - tile;
    int groups = (left + GROUP - 1) / GROUP;
    return {tile, (left + groups - 1) / groups, part};
}

/* Asks for what this block's successor will copy first of the stream's next matrix: part `part` of
 * `parts`, by one warp. It keeps the memory busy between two kernels. */
__device__ __noinline__ void prefetch_next(const linear_args &a, int h, int part, int parts) {
    if (!a.next.base)
        return;
    struct work w = share_of(a.next.n_tiles, max(h, min(a.n_thread_blocks, a.next.n_tiles * h)), h);
    size_t tile_bytes = (size_t)a.next.n_blocks * BASE_TILE;
    int n = min(GROUP, min(w.end, a.next.n_tiles) - w.first); /* none for surplus blocks */
    int m = threadIdx.x % 32;
    if (m >= n)
        return;
    int bytes = (int)min((size_t)(NEXT_BYTES * h / n), tile_bytes) / parts / 16 * 16;
    bulk_prefetch((const char *)a.next.base + (w.first + m) * tile_bytes + part * bytes, bytes);
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
