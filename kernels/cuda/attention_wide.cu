/* Attention of wide rows: tiles of 64 queries of one head over the pages (attention.h).
 *
 *   o = sum_t e^(q.k_t / sqrt E) v_t / sum_t e^(q.k_t / sqrt E),  t the keys that the row may see
 *
 * FLOPs: 4 E for each query head, row and key it sees. Bytes: each tile reads its keys and values
 * once, (4 E' + 8) / 64 a query and key, nearly all from the L2. Bound: the tensor cores.
 *
 * A warp has 16 queries, their sums and the probabilities in registers. The pages' integers become
 * fp16 on their way to the tensor core; a key's scale multiplies its column of the scores, a
 * value's scale the probability, both in FP32. */
#include "kernels/cuda/attention_kv.cuh"

namespace {

enum { WARPS = 4, THREADS = WARPS * 32, WARP_ROWS = 16, TILE = WARPS * WARP_ROWS, STAGES = 3 };
/* Probabilities are kept times 2^15: the small ones stay clear of fp16's subnormals. */
constexpr float P_EXPONENT = 15;

template <int STEPS> struct sums {
    uint32_t q[STEPS][4];
    int lo[2], hi[2]; /* keys that rows g, g + 8 see; none when lo > hi */
    float max[2], sum[2];
    float o[2 * STEPS][4];
};

__device__ float larger(float a, float b) { /* NaN if one is */
    return b > a || b != b ? b : a;
}

template <int STEPS>
__device__ void start_sums(const attention_args &a, const gpu_seq &seq, int first_wide, int row,
                           int head, int window, sums<STEPS> &s, int lane) {
    int t = lane % 4, e = a.head_dim;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = row + lane / 4 + 8 * h;
        bool used = r < seq.n;
        const __half *q = a.a.qkv16 +
                          (size_t)(seq.first - first_wide + (used ? r : 0)) * a.a.ld_qkv +
                          (size_t)head * e;
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int i = 16 * k + 8 * j + 2 * t;
                s.q[k][2 * j + h] = used && i < e ? *(const uint32_t *)(q + i) : 0;
            }
        s.hi[h] = used ? seq.position + r : -1;
        s.lo[h] = window > 0 && s.hi[h] >= window ? s.hi[h] - window + 1 : 0;
        s.max[h] = -INFINITY;
        s.sum[h] = 0;
    }
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s.o[n][i] = 0;
}

template <int STEPS>
__device__ void page_scores(const sums<STEPS> &s, const char *stage, int steps, int lane,
                            float (&score)[4][4]) {
    uint32_t from = shared_address(stage) + kv_keys_at() + lane % 8 * 16 + lane / 8 % 2 * 128 +
                    lane / 16 * 256 * steps;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[n][i] = 0;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k >= steps)
            break;
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            uint32_t w[4];
            load_matrices(w, from + n * 256 * steps + k * 256);
#pragma unroll
            for (int j = 0; j < 2; j++)
                mma_f16(score[n + j], s.q[k][0], s.q[k][1], s.q[k][2], s.q[k][3], kv_half(w[2 * j]),
                        kv_half(w[2 * j + 1]));
        }
    }
}

/* score -> p, an A operand for each 16 keys; the rows' maxima (of p times the value's scale, as in
 * attention_narrow.cu) and sums follow. */
template <int STEPS>
__device__ void page_softmax(sums<STEPS> &s, const char *stage, int first_key, float unit, int lane,
                             float (&score)[4][4], uint32_t (&p)[2][4]) {
    const float *key_scale = (const float *)stage, *value_scale = key_scale + KV_PAGE_TOKENS;
    float scale[4][2], most[2] = {-INFINITY, -INFINITY}, keep[2], base[2], sum[2] = {};
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int token = 8 * n + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = first_key + token + i % 2, h = i / 2;
            bool seen = key >= s.lo[h] && key <= s.hi[h];
            float vs = key <= s.hi[1] || key <= s.hi[0] ? value_scale[token + i % 2] : 1.0f;
            score[n][i] = seen ? score[n][i] * (key_scale[token + i % 2] * unit) : -INFINITY;
            scale[n][i % 2] = vs;
            most[h] = larger(most[h], score[n][i] + log2_fast(vs));
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        most[h] = larger(most[h], __shfl_xor_sync(~0u, most[h], 1));
        most[h] = larger(most[h], __shfl_xor_sync(~0u, most[h], 2));
        most[h] = larger(most[h], s.max[h]);
        base[h] = most[h] == -INFINITY ? 0.0f : most[h]; /* nothing seen so far */
        keep[h] = exp2_fast(s.max[h] - base[h]);
        s.max[h] = most[h];
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = exp2_fast(score[n][2 * h] - base[h] + P_EXPONENT);
            float y = exp2_fast(score[n][2 * h + 1] - base[h] + P_EXPONENT);
            sum[h] += x + y;
            __half2 v = __floats2half2_rn(x * scale[n][0], y * scale[n][1]);
            p[n / 2][n % 2 * 2 + h] = *(uint32_t *)&v;
        }
#pragma unroll
    for (int h = 0; h < 2; h++)
        s.sum[h] = s.sum[h] * keep[h] + sum[h];
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s.o[n][i] *= keep[i / 2];
}

template <int STEPS>
__device__ void page_values(sums<STEPS> &s, const char *stage, int steps, int lane,
                            const uint32_t (&p)[2][4]) {
    uint32_t from = shared_address(stage) + KV_SCALE_BYTES + 1024 * steps + lane % 8 * 16 +
                    lane / 8 % 2 * 256 * steps + lane / 16 * 128;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            if (k >= steps)
                break;
            uint32_t w[4];
            load_matrices_transposed(w, from + half * 512 * steps + k * 256);
#pragma unroll
            for (int j = 0; j < 2; j++)
                mma_f16(s.o[2 * k + j], p[half][0], p[half][1], p[half][2], p[half][3],
                        kv_half(w[2 * j]), kv_half(w[2 * j + 1]));
        }
}

template <int STEPS>
__device__ void write_rows(const attention_args &a, const gpu_seq &seq, int first_wide, int row,
                           int head, sums<STEPS> &s, int lane) {
    int e = a.head_dim;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = row + lane / 4 + 8 * h;
        s.sum[h] += __shfl_xor_sync(~0u, s.sum[h], 1);
        s.sum[h] += __shfl_xor_sync(~0u, s.sum[h], 2);
        if (r >= seq.n)
            continue;
        __half *out =
            a.a.ctx16 + (size_t)(seq.first - first_wide + r) * a.a.ld_ctx + (size_t)head * e;
        float by = KV_UNIT / s.sum[h];
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            int i = 8 * n + lane % 4 * 2;
            if (i < e)
                *(__half2 *)(out + i) =
                    __floats2half2_rn(s.o[n][2 * h] * by, s.o[n][2 * h + 1] * by);
        }
    }
}

/* grid: (tiles of the longest sequence, H, sequences); the tiles with most keys come first. */
template <int STEPS>
__global__ void __launch_bounds__(THREADS)
    attention_wide_kernel(const __grid_constant__ attention_args a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ uint64_t full[STAGES];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int steps = STEPS == 16 ? kv_padded(a.head_dim) / 16 : STEPS;
    int bytes = (int)kv_block_bytes(a.head_dim);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            barrier_init(full + i, 1);
        barrier_init_fence();
    }
    grid_launch_next();
    grid_wait();
    if ((int)blockIdx.z >= a.step.counts->n_wide_seqs)
        return;
    const gpu_seq seq = a.step.seq[a.step.counts->n_narrow_seqs + blockIdx.z];
    int first_wide = a.step.counts->n_narrow, window = a.step.row[seq.first].tenant->sliding_window;
    int first = (int)(gridDim.x - 1 - blockIdx.x) * TILE, head = blockIdx.y;
    if (first >= seq.n)
        return;
    int kv = head / (a.n_heads / a.n_kv_heads), last = min(seq.n - 1, first + TILE - 1);
    int lo = seq.position + first;
    lo = window > 0 && lo >= window ? lo - window + 1 : 0;
    int page = lo / KV_PAGE_TOKENS, end = (seq.position + last) / KV_PAGE_TOKENS + 1;
    __syncthreads();

    int32_t n_copied = page;
    auto copy = [&]() {
        if (n_copied < end && threadIdx.x == 0) {
            int slot = (n_copied - page) % STAGES;
            int id = a.step.page[seq.first_page + n_copied];
            barrier_arrive_expect(full + slot, bytes);
            bulk_copy(shared + slot * bytes, kv_block(a, id, kv), bytes, full + slot,
                      policy_evict_normal());
        }
        n_copied++;
    };
    for (int i = 0; i < STAGES - 1; i++)
        copy();
    sums<STEPS> s;
    start_sums(a, seq, first_wide, first + warp * WARP_ROWS, head, window, s, lane);
    float unit = KV_UNIT * 1.4426950408889634f * rsqrtf((float)a.head_dim);
    for (int i = 0; page + i < end; i++) {
        const char *stage = shared + i % STAGES * bytes;
        barrier_wait(full + i % STAGES, i / STAGES & 1);
        __syncthreads(); /* all are done with the page before */
        copy();
        float score[4][4];
        uint32_t p[2][4];
        page_scores(s, stage, steps, lane, score);
        page_softmax(s, stage, (page + i) * KV_PAGE_TOKENS, unit, lane, score, p);
        page_values(s, stage, steps, lane, p);
    }
    write_rows(a, seq, first_wide, first + warp * WARP_ROWS, head, s, lane);
}

struct variant {
    int32_t steps;
    void (*kernel)(attention_args);
};
const struct variant variants[] = {
    {4, attention_wide_kernel<4>}, {5, attention_wide_kernel<5>},   {6, attention_wide_kernel<6>},
    {8, attention_wide_kernel<8>}, {16, attention_wide_kernel<16>},
};

} // namespace

err_t attention_wide_setup(void) {
    for (const struct variant &v : variants)
        if (cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 STAGES * (int)kv_block_bytes(v.steps * 16)) != cudaSuccess)
            return E_DEVICE;
    return 0;
}

err_t attention_wide(const struct attention_args *a, int32_t n_wide_seqs, int32_t longest,
                     cudaStream_t stream) {
    if (n_wide_seqs < 1 || n_wide_seqs > 65535 || longest < 1 || a->head_dim % 2 ||
        a->head_dim > MOST_HEAD_DIM || a->n_heads % a->n_kv_heads)
        return E_INVAL;
    const struct variant *v = variants;
    while (v->steps < 16 && v->steps * 16 != kv_padded(a->head_dim))
        v++;
    cudaLaunchConfig_t config = {};
    config.gridDim =
        dim3((unsigned)(longest + TILE - 1) / TILE, (unsigned)a->n_heads, (unsigned)n_wide_seqs);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = STAGES * kv_block_bytes(a->head_dim);
    config.stream = stream;
    cudaLaunchAttribute early[1];
    early[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, v->kernel, *a) == cudaSuccess ? 0 : E_DEVICE;
}
