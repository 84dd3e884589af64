/* The pass of sums.cuh. */
#include "kernels/cuda_train/sums.cuh"

#include "kernels/cuda_train/reduce.cuh"
#include "kernels/cuda_train/signs.cuh"

template <int VEC, bool SIGNED>
static __device__ __forceinline__ void add(const struct sums_args &a, size_t at,
                                           const float (&u)[VEC], float v, float2 &row,
                                           float2 (&col)[VEC]) {
    float x[VEC];
    uint16_t sign[VEC];
    load(x, a.x + at);
    if (SIGNED)
        load(sign, a.sign, at);
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        float y = !SIGNED ? fabsf(x[i]) : sign_is_minus(sign[i]) ? -x[i] : x[i];
        row.x += y * u[i];
        col[i].x += y * v;
        if (SIGNED) {
            float r = x[i] * u[i], c = x[i] * v;
            row.y += r * r;
            col[i].y += c * c;
        }
    }
}

template <int VEC, bool SIGNED>
__global__ void __launch_bounds__(32 * SUM_WARPS) sums_kernel(struct sums_args a) {
    __shared__ float2 part[SUM_WARPS][32 * VEC];
    int32_t lane = (int32_t)threadIdx.x % 32, warp = (int32_t)threadIdx.x / 32;
    int32_t n0 = (int32_t)blockIdx.y * SUM_ROWS + warp * 8, first = (int32_t)blockIdx.x * STRIP;
    float2 row[8] = {};
    float v[8];
#pragma unroll
    for (int r = 0; r < 8; r++) {
        float x = a.v && n0 + r < a.n ? a.v[a.one_row ? 0 : n0 + r] : a.logs ? 0 : 1;
        v[r] = a.logs ? expf(x) : x;
    }
    for (int32_t at = first; at < first + STRIP && at < a.k; at += 32 * VEC) {
        int32_t k = at + lane * VEC;
        float2 col[VEC] = {};
        if (k < a.k) {
            float u[VEC];
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                float x = a.u ? a.u[k + i] : a.logs ? 0 : 1;
                u[i] = a.logs ? expf(x) : x;
            }
#pragma unroll
            for (int r = 0; r < 8; r++)
                if (n0 + r < a.n)
                    add<VEC, SIGNED>(a, (size_t)(n0 + r) * (size_t)a.k + (size_t)k, u, v[r], row[r],
                                     col);
        }
        __syncthreads(); /* the last round's sums are read */
#pragma unroll
        for (int i = 0; i < VEC; i++)
            part[warp][lane * VEC + i] = col[i];
        __syncthreads();
        int32_t mine = (int32_t)threadIdx.x;
        if (mine < 32 * VEC && at + mine < a.k) {
            float2 sum = part[0][mine];
            for (int w = 1; w < SUM_WARPS; w++)
                sum.x += part[w][mine].x, sum.y += part[w][mine].y;
            a.col_part[(size_t)blockIdx.y * (size_t)a.k + (size_t)(at + mine)] = sum;
        }
    }
#pragma unroll
    for (int r = 0; r < 8; r++) {
        float2 sum = {warp_sum(row[r].x), warp_sum(row[r].y)};
        if (lane == 0 && n0 + r < a.n)
            a.row_part[(size_t)blockIdx.x * (size_t)a.n + (size_t)(n0 + r)] = sum;
    }
}

bool sums_launch(struct cuda_train *c, struct sums_args *a) {
    size_t rows = (size_t)sum_strips(a->k) * (size_t)a->n,
           cols = (size_t)sum_blocks(a->n) * (size_t)a->k;
    a->row_part =
        (float2 *)cuda_train_scratch(c, SCRATCH_PARTS, (rows + cols) * sizeof *a->row_part);
    if (!a->row_part)
        return false;
    a->col_part = a->row_part + rows;
    dim3 grid(sum_strips(a->k), sum_blocks(a->n));
    bool wide = a->k % 4 == 0 && (uintptr_t)a->x % 16 == 0;
    if (wide && a->sign)
        sums_kernel<4, true><<<grid, 32 * SUM_WARPS, 0, c->stream>>>(*a);
    else if (wide)
        sums_kernel<4, false><<<grid, 32 * SUM_WARPS, 0, c->stream>>>(*a);
    else if (a->sign)
        sums_kernel<1, true><<<grid, 32 * SUM_WARPS, 0, c->stream>>>(*a);
    else
        sums_kernel<1, false><<<grid, 32 * SUM_WARPS, 0, c->stream>>>(*a);
    cuda_train_launched(c, "sums");
    return !c->error;
}
