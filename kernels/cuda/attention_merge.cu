/* The last step of narrow attention (attention.h): rows that see more than one split of the keys.
 *
 *   o = sum_s 2^(max_s - max) partial_s / sum_s 2^(max_s - max) sum_s,  max the largest of all
 * max_s
 *
 * Bytes: 4 E + 8 for each split of a row and head, from the L2, where they were written just now.
 * Bound: latency, the launch and one trip to the L2. A warp has 64 columns of a row's head and adds
 * the splits up in their order, so the bits depend on the row's keys alone. */
#include "kernels/cuda/attention_items.cuh"
#include "kernels/cuda/launch.h"

namespace {

enum { WARPS = 4, COLUMNS = 64 /* of a warp */, AHEAD = 8 /* splits on their way */ };

struct total {
    float max, sum;
    float2 o;
};

__device__ float larger(float a, float b) { /* NaN if one is */
    return b > a || b != b ? b : a;
}

/* Up to 32 maxima and sums, one a lane, join a total; gives the weight of each lane's. */
__device__ float join(total &s, float2 mine) {
    float most = mine.x, sum;
    for (int lanes = 1; lanes < 32; lanes *= 2)
        most = larger(most, __shfl_xor_sync(~0u, most, lanes));
    most = larger(s.max, most);
    float keep = exp2_fast(s.max - most), weight = exp2_fast(mine.x - most);
    sum = mine.y * weight;
    for (int lanes = 1; lanes < 32; lanes *= 2)
        sum += __shfl_xor_sync(~0u, sum, lanes);
    s.max = most;
    s.sum = s.sum * keep + sum;
    s.o.x *= keep, s.o.y *= keep;
    return weight;
}

/* Splits [0, n) at sums and partial, from the lane's first column on; it has none where !used. */
__device__ total add_splits(const float2 *sums, const float *partial, int n, int e, bool used,
                            int lane) {
    total s = {-INFINITY};
#pragma unroll 1
    for (int first = 0; first < n; first += 32) {
        float2 mine = first + lane < n ? __ldcg(sums + first + lane) : make_float2(-INFINITY, 0);
        float weight = 0;
#pragma unroll 1
        for (int at = first; at < min(n, first + 32); at += AHEAD, partial += AHEAD * e) {
            int left = used ? n - at : 0;
            float2 v[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                v[j] = j < left ? __ldcg((const float2 *)(partial + j * e)) : make_float2(0, 0);
            if (at == first)
                weight = join(s, mine);
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                float w = __shfl_sync(~0u, weight, at - first + j);
                s.o.x = fmaf(v[j].x, w, s.o.x);
                s.o.y = fmaf(v[j].y, w, s.o.y);
            }
        }
    }
    return s;
}

/* grid: (heads, rows, pieces of 64 columns). Code is kept short here: it is read from memory, too.
 */
__global__ void __launch_bounds__(WARPS * 32)
    merge_kernel(const __grid_constant__ attention_args a) {
    int lane = threadIdx.x % 32, head = (int)blockIdx.x * WARPS + threadIdx.x / 32;
    int row = blockIdx.y, column = (int)blockIdx.z * COLUMNS + 2 * lane, e = a.head_dim;
    splits seen = {0, 1};
    grid_launch_next();
    if (head < a.n_heads && row < a.step.counts->n_narrow) { /* tables, which no kernel writes */
        const struct gpu_row *r = a.step.row + row;
        seen = splits_of(r->position, r->tenant->sliding_window);
    }
    grid_wait();
    if (seen.n == 1)
        return;
    const workspace w = workspace_of(a);
    size_t at = w.at(a, row, head) + seen.first;
    total s = add_splits(w.sums + at, w.partial + at * e + column, seen.n, e, column < e, lane);
    float by = 1.0f / s.sum;
    if (column < e)
        *(float2 *)(a.a.ctx + (size_t)row * a.a.ld_ctx + (size_t)head * e + column) =
            make_float2(s.o.x * by, s.o.y * by);
}

} // namespace

err_t attention_merge(const struct attention_args *a, int32_t max_rows, cudaStream_t stream) {
    dim3 grid((unsigned)tiles_of(a->n_heads, WARPS), (unsigned)max_rows,
              (unsigned)tiles_of(a->head_dim, COLUMNS));
    return launch_early(merge_kernel, grid, WARPS * 32, 0, stream, *a);
}
