/* fp16(W + sum over planes diag(row) S diag(col) + B A), or the dense matrix of a part, from the
 * packed base and a tenant's file as it stands on the device, in the packed order again.
 *
 * Bytes: 2 N K of W and N K / 8 for each plane in, 2 N K out; sums in FP32, rounded once. A warp
 * takes 16 outputs x 128 columns at a time. In the packed order (linear_pack) lane (g, t) finds 8
 * neighbouring columns of rows g and g + 8 in two 16-byte loads; the word with their signs is held
 * by another lane of its group of four; and the columns of a matrix instruction can be dealt so
 * that the product B A falls on the same lanes. So nothing passes through shared memory. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/merge.cuh"

namespace {

enum {
    MERGE_WARPS = 8,
    COLS = 128,        /* of a piece of work: half a tile of signs */
    WORDS = COLS / 32, /* of signs in a row of the piece */
};

/* Sums of a lane: [word][row g, row g + 8][column 8 t + i of the word]. */
typedef float sums[WORDS][2][8];

struct piece {
    int tile, part, row, k, n_k; /* tile and first row within the part; first column */
    bool aligned;                /* rows of n_k fp16 start at multiples of 16 bytes */
};

/* 8 columns from k on of a row-major fp16 matrix; zeros outside. */
__device__ __forceinline__ uint4 load_row(const uint16_t *m, int row, int n_rows, int k,
                                          const piece &p) {
    if (row >= n_rows || k >= p.n_k)
        return make_uint4(0, 0, 0, 0);
    const __half *at = (const __half *)m + (size_t)row * p.n_k + k;
    if (p.aligned)
        return __ldg((const uint4 *)at);
    __half v[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = k + i < p.n_k ? at[i] : __float2half(0);
    uint4 u;
    memcpy(&u, v, 16);
    return u;
}
__device__ __forceinline__ void unpack(float (&f)[8], const uint4 &u) {
    const uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 v = __half22float2(*(const __half2 *)&w[i]);
        f[2 * i] = v.x, f[2 * i + 1] = v.y;
    }
}

__device__ __forceinline__ void load_base(sums &s, const uint4 *base, const piece &p) {
    int lane = threadIdx.x % 32, blocks = (p.n_k + TILE_COLS - 1) / TILE_COLS;
    const uint4 *at = base + ((size_t)p.tile * blocks * 16 + p.k / 16) * 32 + lane;
    uint4 v[2 * WORDS];
#pragma unroll
    for (int i = 0; i < 2 * WORDS; i++)
        v[i] = __ldcs(at + 32 * i);
#pragma unroll
    for (int j = 0; j < WORDS; j++) { /* registers alternate: rows g, g + 8 */
        unpack(s[j][0], make_uint4(v[2 * j].x, v[2 * j].z, v[2 * j + 1].x, v[2 * j + 1].z));
        unpack(s[j][1], make_uint4(v[2 * j].y, v[2 * j].w, v[2 * j + 1].y, v[2 * j + 1].w));
    }
}

__device__ __forceinline__ void add_plane(sums &s, const struct plane &plane, int n_rows,
                                          const piece &p) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int blocks = (p.n_k + TILE_COLS - 1) / TILE_COLS;
    size_t tile = (size_t)(p.row / TILE_ROWS) * blocks + p.k / TILE_COLS;
    const uint2 *words = (const uint2 *)plane.bits + (tile * 32 + lane) * 2 + p.k / COLS % 2;
    uint2 signs = __ldcs(words);
    float row[2];
    row[0] = p.row + g < n_rows ? __ldg(plane.row + p.row + g) : 0;
    row[1] = p.row + g + 8 < n_rows ? __ldg(plane.row + p.row + g + 8) : 0;
#pragma unroll
    for (int j = 0; j < WORDS; j++) {
        int k = p.k + 32 * j + 8 * t;
        uint32_t minus[2]; /* the bit of column i stands at 31 after a shift by 7 - i */
        minus[0] = ~__shfl_sync(~0u, signs.x, lane / 4 * 4 + j) << (24 - 8 * t);
        minus[1] = ~__shfl_sync(~0u, signs.y, lane / 4 * 4 + j) << (24 - 8 * t);
        float col[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            col[i] = plane.col && k + i < p.n_k ? __ldg(plane.col + k + i) : 1.0f;
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float v = row[r] * col[i];
                s[j][r][i] +=
                    __uint_as_float(__float_as_uint(v) ^ (minus[r] << (7 - i) & 0x80000000));
            }
    }
}

/* Column 2 t' + e of the i-th product of a word is column 8 t' + 2 i + e of the word: the lane's.
 */
__device__ __forceinline__ void add_pair(sums &s, const struct delta &d, int n_rows,
                                         const piece &p) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t pick = g % 2 ? 0x7632 : 0x5410;
    for (int first = 0; first < d.rank; first += 16) {
        uint32_t b[4]; /* B: rows g, g + 8 at ranks 2t, 2t + 1; the same at 2t + 8, 2t + 9 */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = p.row + g + i % 2 * 8, rank = first + 2 * t + i / 2 * 8;
            const __half *at = (const __half *)d.b + (size_t)row * d.rank + rank;
            __half2 v = __floats2half2_rn(0, 0);
            if (row < n_rows && rank < d.rank)
                v = __halves2half2(at[0], rank + 1 < d.rank ? at[1] : __float2half(0));
            memcpy(&b[i], &v, 4);
        }
#pragma unroll
        for (int j = 0; j < WORDS; j++) {
            int k = p.k + 32 * j + g / 2 * 8, rank = first + 2 * t;
            uint4 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[i] = load_row(d.a, rank + i % 2 + i / 2 * 8, d.rank, k, p);
            const uint32_t(*w)[4] = (const uint32_t(*)[4])a;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float c[4] = {s[j][0][2 * i], s[j][0][2 * i + 1], s[j][1][2 * i],
                              s[j][1][2 * i + 1]};
                mma_f16(c, b[0], b[1], b[2], b[3], __byte_perm(w[0][i], w[1][i], pick),
                        __byte_perm(w[2][i], w[3][i], pick));
                s[j][0][2 * i] = c[0], s[j][0][2 * i + 1] = c[1];
                s[j][1][2 * i] = c[2], s[j][1][2 * i + 1] = c[3];
            }
        }
    }
}

__device__ __forceinline__ void store(const sums &s, uint4 *out) {
    uint32_t v[WORDS][2][4];
#pragma unroll
    for (int j = 0; j < WORDS; j++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            __half2 two = __floats2half2_rn(s[j][i / 4][i % 4 * 2], s[j][i / 4][i % 4 * 2 + 1]);
            memcpy(&v[j][i / 4][i % 4], &two, 4);
        }
#pragma unroll
    for (int j = 0; j < 2 * WORDS; j++) {
        const uint32_t(&w)[2][4] = v[j / 2];
        int i = j % 2 * 2;
        out[32 * j + threadIdx.x % 32] = make_uint4(w[0][i], w[1][i], w[0][i + 1], w[1][i + 1]);
    }
}

__global__ void __launch_bounds__(32 * MERGE_WARPS, 2)
    merge_kernel(const __grid_constant__ merge_args a) {
    grid_launch_next();
    grid_wait(); /* the scratch may be what an earlier product reads */
    int pieces = (a.shape.n_k + TILE_COLS - 1) / TILE_COLS * (TILE_COLS / COLS);
    int warp = threadIdx.x / 32 + blockIdx.x * MERGE_WARPS, warps = gridDim.x * MERGE_WARPS;
    for (int i = warp; i < a.n_tiles * pieces; i += warps) {
        piece p;
        p.tile = a.first_tile + i / pieces;
        p.part = (p.tile >= a.shape.first_tile[1]) + (p.tile >= a.shape.first_tile[2]);
        p.row = (p.tile - a.shape.first_tile[p.part]) * TILE_ROWS;
        p.k = i % pieces * COLS;
        p.n_k = a.shape.n_k;
        p.aligned = p.n_k % 8 == 0;
        const struct delta &d = a.delta[p.part];
        int n_rows = a.shape.part_rows[p.part];
        sums s;
        if (d.dense) {
            int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
            for (int j = 0; j < 2 * WORDS; j++)
                unpack(s[j / 2][j % 2], load_row(d.dense, p.row + g + j % 2 * 8, n_rows,
                                                 p.k + j / 2 * 32 + 8 * t, p));
        } else {
            load_base(s, a.base, p);
            for (int n = 0; n < d.n_planes; n++)
                add_plane(s, d.plane[n], n_rows, p);
            if (d.rank)
                add_pair(s, d, n_rows, p);
        }
        store(s, a.out + (size_t)i * (2 * WORDS * 32));
    }
}

} // namespace

err_t merge_launch(const struct merge_args *a, int32_t n_thread_blocks, cudaStream_t stream) {
    int pieces = tiles_of(a->shape.n_k, TILE_COLS) * (TILE_COLS / COLS);
    int blocks = tiles_of(a->n_tiles * pieces, MERGE_WARPS);
    return launch_early(merge_kernel,
                        dim3((unsigned)(blocks < n_thread_blocks ? blocks : n_thread_blocks)),
                        32 * MERGE_WARPS, 0, stream, *a);
}
