/* Rotary positions and the append of keys and values (attention.h).
 *
 *   (v_i, v_{i+E/2}) <- (v_i c - v_{i+E/2} s, v_{i+E/2} c + v_i s),  c, s of the row's tenant and
 * position stored: round(v 32767 / max|v|) + 32768, scale max|v| / 32767, one for each token and KV
 * head
 *
 * Bytes per row: reads (H + 2 K) E elements, writes H E elements and K (4 E' + 8); FLOPs: next to
 * none; bound: latency. One warp for a row and a head of q, k or v. */
#include "kernels/cuda/attention_kv.cuh"

namespace {

enum { WARPS = 8, PAIRS = MOST_HEAD_DIM / 2 / 32 /* of a lane */ };
/* Values of less than this keep an absolute, not a relative precision: attention takes the
 * logarithm of their scale. */
constexpr float LEAST_VALUE_SCALE = 0x1p-60f;

__device__ float load(const float *p) {
    return *p;
}
__device__ float load(const __half *p) {
    return __half2float(*p);
}
__device__ void store(float *p, float v) {
    *p = v;
}
__device__ void store(__half *p, float v) {
    *p = __float2half_rn(v);
}

/* Largest magnitude of the warp's numbers; a NaN counts as larger than all. */
__device__ float warp_magnitude(const float (&v)[PAIRS][2]) {
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
        most = max(most, max(__float_as_uint(v[j][0]) & 0x7fffffff,
                             __float_as_uint(v[j][1]) & 0x7fffffff));
    return __uint_as_float(__reduce_max_sync(~0u, most));
}

__device__ void append(char *block, int e, int token, bool value, const float (&v)[PAIRS][2],
                       int lane) {
    float most = warp_magnitude(v), scale = most * (1.0f / 32767.0f);
    if (value)
        scale = fmaxf(scale, LEAST_VALUE_SCALE);
    if (!(most < INFINITY))
        scale = NAN;
    float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    char *to = block + (value ? kv_values_at(e) : kv_keys_at());
    int half = e / 2;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int i = lane + 32 * j;
        if (i >= half)
            break;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int q = __float2int_rn(fminf(fmaxf(v[j][h] * inverse, -32767.0f), 32767.0f));
            *(uint16_t *)(to + kv_element_at(e, token, i + h * half)) = (uint16_t)(q + 32768);
        }
    }
    for (int i = e + lane; i < kv_padded(e); i += 32)
        *(uint16_t *)(to + kv_element_at(e, token, i)) = 32768;
    if (lane == 0)
        ((float *)block)[token + (value ? KV_PAGE_TOKENS : 0)] = scale;
}

/* Row `row` of the step, whose q, k, v stand at qkv; gap: columns to which parts are padded. */
template <typename T>
__device__ void rope_head(const attention_args &a, int row, T *qkv, int head, int gap, int lane) {
    int e = a.head_dim, half = e / 2, H = a.n_heads, K = a.n_kv_heads;
    int first_k = (H * e + gap - 1) / gap * gap, first_v = first_k + (K * e + gap - 1) / gap * gap;
    bool value = head >= H + K;
    int kv = value ? head - H - K : head - H;
    T *from = qkv + (head < H ? head * e : (value ? first_v : first_k) + kv * e);
    const struct gpu_row r = a.step.row[row];
    const float2 *angle = (const float2 *)r.tenant->rope + (size_t)r.position * half;
    float v[PAIRS][2] = {};
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int i = lane + 32 * j;
        if (i >= half)
            break;
        float x = load(from + i), y = load(from + i + half);
        float2 cs = value ? make_float2(1, 0) : angle[i];
        v[j][0] = value ? x : x * cs.x - y * cs.y;
        v[j][1] = value ? y : y * cs.x + x * cs.y;
        if (head < H) {
            store(from + i, v[j][0]);
            store(from + i + half, v[j][1]);
        }
    }
    if (head >= H) {
        int page = a.step.page[a.step.seq[r.seq].first_page + r.position / KV_PAGE_TOKENS];
        append(kv_block(a, page, kv), e, r.position % KV_PAGE_TOKENS, value, v, lane);
    }
}

__global__ void __launch_bounds__(WARPS * 32)
    rope_append_narrow_kernel(const __grid_constant__ attention_args a) {
    grid_launch_next();
    grid_wait();
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        *(int32_t *)a.workspace = 0; /* attention_narrow's queue */
    int row = blockIdx.y, head = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row < a.step.counts->n_narrow && head < a.n_heads + 2 * a.n_kv_heads)
        rope_head(a, row, a.a.qkv + (size_t)row * a.a.ld_qkv, head, 1, threadIdx.x % 32);
}

__global__ void __launch_bounds__(WARPS * 32)
    rope_append_wide_kernel(const __grid_constant__ attention_args a) {
    grid_launch_next();
    grid_wait();
    int row = blockIdx.y, head = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row < a.step.counts->n_wide && head < a.n_heads + 2 * a.n_kv_heads)
        rope_head(a, a.step.counts->n_narrow + row, a.a.qkv16 + (size_t)row * a.a.ld_qkv, head,
                  TILE_ROWS, threadIdx.x % 32);
}

err_t launch(void (*kernel)(attention_args), const struct attention_args *a, int32_t max_rows,
             cudaStream_t stream) {
    int32_t heads = a->n_heads + 2 * a->n_kv_heads;
    if (max_rows < 1 || max_rows > 65535 || a->head_dim % 2 || a->head_dim > MOST_HEAD_DIM)
        return E_INVAL;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)tiles_of(heads, WARPS), (unsigned)max_rows);
    config.blockDim = dim3(WARPS * 32);
    config.stream = stream;
    cudaLaunchAttribute early[1];
    early[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, *a) == cudaSuccess ? 0 : E_DEVICE;
}

} // namespace

size_t attention_page_bytes(int32_t n_kv_heads, int32_t head_dim) {
    return (size_t)n_kv_heads * kv_block_bytes(head_dim);
}

err_t rope_append_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream) {
    return launch(rope_append_narrow_kernel, a, max_rows, stream);
}

err_t rope_append_wide(const struct attention_args *a, int32_t max_rows, cudaStream_t stream) {
    return launch(rope_append_wide_kernel, a, max_rows, stream);
}
