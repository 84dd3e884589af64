/* Rotary positions and the append of keys and values (attention.h).
 *
 *   (v_i, v_{i+E/2}) <- (v_i c - v_{i+E/2} s, v_{i+E/2} c + v_i s),  c, s of the row's tenant and
 * position stored: round(v 32767 / max|v|) + 32768, scale max|v| / 32767, one for each token and KV
 * head
 *
 * Bytes per row: reads (H + 2 K) E elements, writes H E elements and K (4 E' + 8); FLOPs: next to
 * none; bound: latency for few rows, device memory for many. A team of lanes has a row and a head
 * of q, k or v: 16 with four neighbouring pairs each, or, where E is no multiple of eight or more
 * than 128, 32 with every 32nd pair. */
#include "kernels/cuda/attention_kv.cuh"
#include "kernels/cuda/launch.h"

namespace {

enum { THREADS = 256, PAIRS = 4 /* of a lane */ };
static_assert(PAIRS * 2 * 32 >= MOST_HEAD_DIM, "a warp holds a head");
/* Values of less than this keep an absolute, not a relative precision: attention takes the
 * logarithm of their scale. */
constexpr float LEAST_VALUE_SCALE = 0x1p-60f;

/* Four neighbours. */
__device__ void load4(const float *p, float (&v)[PAIRS]) {
    *(float4 *)v = *(const float4 *)p;
}
__device__ void load4(const __half *p, float (&v)[PAIRS]) {
    uint2 w = *(const uint2 *)p;
    float2 low = __half22float2(*(__half2 *)&w.x), high = __half22float2(*(__half2 *)&w.y);
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
}
__device__ void store4(float *p, const float (&v)[PAIRS]) {
    *(float4 *)p = *(const float4 *)v;
}
__device__ void store4(__half *p, const float (&v)[PAIRS]) {
    __half2 low = __floats2half2_rn(v[0], v[1]), high = __floats2half2_rn(v[2], v[3]);
    *(uint2 *)p = make_uint2(*(uint32_t *)&low, *(uint32_t *)&high);
}

/* A team's lane: pairs (i, i + E/2) for i = first + j step, j < n. LANES 16: step 1; 32: step 32.
 */
template <int LANES> struct team {
    int first, n;
    __device__ team(int half, int lane) {
        first = LANES == 16 ? 4 * lane : lane;
        n = LANES == 16 ? (first < half ? 4 : 0) : max(0, (half - lane + 31) / 32);
    }
    __device__ int column(int j) const {
        return LANES == 16 ? first + j : first + 32 * j;
    }
};

template <int LANES, typename T>
__device__ void load_pairs(const team<LANES> &t, const T *from, float (&v)[PAIRS]) {
    if (LANES == 16 && t.n)
        load4(from + t.first, v);
#pragma unroll
    for (int j = 0; j < PAIRS && LANES == 32; j++)
        if (j < t.n)
            v[j] = (float)from[t.column(j)];
}
template <int LANES, typename T>
__device__ void store_pairs(const team<LANES> &t, T *to, const float (&v)[PAIRS]) {
    if (LANES == 16 && t.n)
        store4(to + t.first, v);
#pragma unroll
    for (int j = 0; j < PAIRS && LANES == 32; j++)
        if (j < t.n)
            to[t.column(j)] = (T)v[j];
}

/* Largest magnitude of the team's numbers; a NaN counts as larger than all. */
template <int LANES>
__device__ float magnitude(const float (&low)[PAIRS], const float (&high)[PAIRS]) {
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
        most = max(
            most, max(__float_as_uint(low[j]) & 0x7fffffff, __float_as_uint(high[j]) & 0x7fffffff));
#pragma unroll
    for (int lanes = 1; lanes < LANES; lanes *= 2)
        most = max(most, __shfl_xor_sync(~0u, most, lanes));
    return __uint_as_float(most);
}

/* One half of a head into its token's place of the keys or values. */
template <int LANES>
__device__ void store_integers(const team<LANES> &t, char *to, int e, int token, int first,
                               const float (&v)[PAIRS], float inverse) {
    uint16_t q[PAIRS];
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
        q[j] =
            (uint16_t)(__float2int_rn(fminf(fmaxf(v[j] * inverse, -32767.0f), 32767.0f)) + 32768);
    if (LANES == 16 && t.n)
        *(uint2 *)(to + kv_element_at(e, token, first + t.first)) =
            make_uint2(q[0] | (uint32_t)q[1] << 16, q[2] | (uint32_t)q[3] << 16);
#pragma unroll
    for (int j = 0; j < PAIRS && LANES == 32; j++)
        if (j < t.n)
            *(uint16_t *)(to + kv_element_at(e, token, first + t.column(j))) = q[j];
}

/* Row `row` of the step, whose q, k, v stand at qkv; gap: columns to which parts are padded. All
 * lanes of a warp come here, with head past the last one if there is nothing to do. What hangs on
 * the step's tables, three trips one after the other, is read before the wait for q, k, v. */
template <int LANES, typename T>
__device__ void rope_head(const attention_args &a, int row, T *qkv, int head, int gap) {
    int e = a.head_dim, half = e / 2, H = a.n_heads, K = a.n_kv_heads, lane = threadIdx.x % LANES;
    int first_k = (H * e + gap - 1) / gap * gap, first_v = first_k + (K * e + gap - 1) / gap * gap;
    bool used = head < H + 2 * K, value = head >= H + K;
    int kv = value ? head - H - K : head - H;
    T *from = qkv + (head < H ? head * e : (value ? first_v : first_k) + kv * e);
    team<LANES> t(used ? half : 0, lane);
    const struct gpu_row r = a.step.row[row];
    const float2 *angle = (const float2 *)r.tenant->rope + (size_t)r.position * half;
    float2 cs[PAIRS];
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
        cs[j] = value || j >= t.n ? make_float2(1, 0) : angle[t.column(j)];
    int page = 0, token = r.position % KV_PAGE_TOKENS;
    if (used && head >= H)
        page = a.step.page[a.step.seq[r.seq].first_page + r.position / KV_PAGE_TOKENS];
    grid_wait();
    float x[PAIRS] = {}, y[PAIRS] = {}, low[PAIRS] = {}, high[PAIRS] = {};
    load_pairs(t, from, x);
    load_pairs(t, from + half, y);
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        low[j] = value ? x[j] : x[j] * cs[j].x - y[j] * cs[j].y;
        high[j] = value ? y[j] : y[j] * cs[j].x + x[j] * cs[j].y;
    }
    if (used && head < H) {
        store_pairs(t, from, low);
        store_pairs(t, from + half, high);
    }
    float most = magnitude<LANES>(low, high);
    if (!used || head < H)
        return;
    float scale = most * (1.0f / 32767.0f);
    if (value)
        scale = fmaxf(scale, LEAST_VALUE_SCALE);
    if (!(most < INFINITY))
        scale = NAN;
    float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    char *block = kv_block(a, page, kv), *to = block + (value ? kv_values_at(e) : kv_keys_at());
    store_integers(t, to, e, token, 0, low, inverse);
    store_integers(t, to, e, token, half, high, inverse);
    for (int i = e + lane; i < kv_padded(e); i += LANES)
        *(uint16_t *)(to + kv_element_at(e, token, i)) = 32768;
    if (lane == 0)
        ((float *)block)[token + (value ? KV_PAGE_TOKENS : 0)] = scale;
}

template <int LANES>
__global__ void __launch_bounds__(THREADS, 8)
    rope_append_narrow_kernel(const __grid_constant__ attention_args a) {
    grid_launch_next();
    int row = blockIdx.y, head = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (row < a.step.counts->n_narrow)
        rope_head<LANES>(a, row, a.a.qkv + (size_t)row * a.a.ld_qkv, head, 1);
    else
        grid_wait();
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        *(int32_t *)a.workspace = 0; /* attention_narrow's queue */
}

template <int LANES>
__global__ void __launch_bounds__(THREADS)
    rope_append_wide_kernel(const __grid_constant__ attention_args a) {
    grid_launch_next();
    int row = blockIdx.y, head = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (row < a.step.counts->n_wide)
        rope_head<LANES>(a, a.step.counts->n_narrow + row, a.a.qkv16 + (size_t)row * a.a.ld_qkv,
                         head, TILE_ROWS);
    else
        grid_wait();
}

/* Whether four neighbouring pairs fit a lane, and a head 16 lanes. */
bool by_four(const struct attention_args *a) {
    return a->head_dim % 8 == 0 && a->head_dim <= 128;
}

err_t launch(void (*kernel)(attention_args), const struct attention_args *a, int32_t max_rows,
             cudaStream_t stream) {
    int32_t heads = a->n_heads + 2 * a->n_kv_heads, lanes = by_four(a) ? 16 : 32;
    if (max_rows < 1 || max_rows > 65535 || a->head_dim % 2 || a->head_dim > MOST_HEAD_DIM)
        return E_INVAL;
    dim3 grid((unsigned)tiles_of(heads, THREADS / lanes), (unsigned)max_rows);
    return launch_early(kernel, grid, THREADS, 0, stream, *a);
}

} // namespace

size_t attention_page_bytes(int32_t n_kv_heads, int32_t head_dim) {
    return (size_t)n_kv_heads * kv_block_bytes(head_dim);
}

err_t rope_append_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream) {
    return launch(by_four(a) ? rope_append_narrow_kernel<16> : rope_append_narrow_kernel<32>, a,
                  max_rows, stream);
}

err_t rope_append_wide(const struct attention_args *a, int32_t max_rows, cudaStream_t stream) {
    return launch(by_four(a) ? rope_append_wide_kernel<16> : rope_append_wide_kernel<32>, a,
                  max_rows, stream);
}
