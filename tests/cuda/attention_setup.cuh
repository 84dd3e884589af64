/* A step for the attention kernels: sequences with random keys, values and queries, their pages
 * scattered over a poisoned pool, and every array with a margin that must stay as it was. */
#ifndef TESTS_CUDA_ATTENTION_SETUP_CUH
#define TESTS_CUDA_ATTENTION_SETUP_CUH

#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_kv.cuh"
#include "tests/cuda/setup.cuh"

struct sequence {
    int position, n; /* rows at position .. position + n - 1; n >= WIDE_MIN: wide */
};
struct attention_case {
    const char *name;
    int n_heads, n_kv_heads, head_dim, window;
    std::vector<sequence> seqs;
};

enum { MARGIN = 8 }; /* columns past a row's end */

/* The pool and what all steps over it share. */
struct attention_pool {
    const attention_case *c;
    int n_layers, n_columns, ld_qkv, ld_ctx, n_pages, context;
    std::vector<int32_t> pages;      /* all sequences' */
    std::vector<int32_t> first_page; /* [seqs] */
    int32_t *d_pages;
    float *d_rope;
    struct gpu_tenant *d_tenant;
    char *kv;
    size_t kv_bytes;
    char *workspace;
    size_t workspace_bytes;
    int max_narrow;
};

/* Element `col` of q|k|v of a sequence's token, before rotation. Queries make some heads sharp; the
 * first token has small values, as it often has, and one token has none. */
__host__ __device__ static inline float raw_qkv(int seq, int position, int col, int n_q, int n_k) {
    float u = uniform(((uint64_t)seq << 40) + ((uint64_t)position << 16) + (uint64_t)col, 77);
    if (col < n_q)
        return u * (col / 64 % 3 == 1 ? 3.0f : 1.0f);
    if (col >= n_q + n_k)
        return position == 0 ? u * 1e-3f : position == 5 ? 0.0f : u;
    return position == 3 ? 0.0f : u * (1.0f + 0.4f * (float)(position % 7));
}

static attention_pool make_pool(const attention_case &c, int n_layers) {
    attention_pool p = {};
    p.c = &c;
    p.n_layers = n_layers;
    p.n_columns = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
    p.ld_qkv = (p.n_columns + 64 + 7) / 8 * 8; /* wide rows' parts may be padded */
    p.ld_ctx = (c.n_heads * c.head_dim + 7) / 8 * 8 + MARGIN;
    int total = 3, rows = 0;
    for (const sequence &s : c.seqs) {
        p.first_page.push_back(total - 3);
        total += tiles_of(s.position + s.n, KV_PAGE_TOKENS);
        p.context = std::max(p.context, s.position + s.n);
        rows += s.n < WIDE_MIN ? s.n : 0;
    }
    p.max_narrow = std::max(rows, 1);
    p.n_pages = total;
    std::vector<int32_t> id(total);
    for (int i = 0; i < total; i++)
        id[i] = i;
    for (int i = total - 1; i > 0; i--)
        std::swap(id[i], id[hash32((uint64_t)i, 5) % (uint32_t)(i + 1)]);
    p.pages.assign(id.begin(), id.end() - 3);
    p.d_pages = device_copy(p.pages);
    std::vector<float> rope((size_t)p.context * c.head_dim);
    for (int t = 0; t < p.context; t++)
        for (int i = 0; i < c.head_dim / 2; i++) {
            double angle = t * pow(10000.0, -2.0 * i / c.head_dim);
            rope[(size_t)t * c.head_dim + 2 * i] = (float)cos(angle);
            rope[(size_t)t * c.head_dim + 2 * i + 1] = (float)sin(angle);
        }
    p.d_rope = device_copy(rope);
    struct gpu_tenant t = {};
    t.rope = p.d_rope;
    t.context = p.context;
    t.sliding_window = c.window;
    p.d_tenant = device_copy(std::vector<gpu_tenant>{t});
    p.kv_bytes = (size_t)n_layers * p.n_pages * attention_page_bytes(c.n_kv_heads, c.head_dim);
    p.kv = device_alloc<char>(p.kv_bytes);
    CUDA(cudaMemset(p.kv, 0xff, p.kv_bytes + 16)); /* scales that nobody wrote are NaN */
    p.workspace_bytes = attention_workspace_bytes(p.max_narrow, p.context, c.n_heads, c.head_dim);
    p.workspace = device_alloc<char>(p.workspace_bytes);
    CUDA(cudaMemset(p.workspace, 0, p.workspace_bytes));
    CUDA(cudaMemset(p.workspace + p.workspace_bytes, 0xa5, 16));
    return p;
}

/* A step of some rows of some sequences; the tables and activations on the device. */
struct piece {
    int seq, position, n;
};
struct attention_step {
    std::vector<piece> narrow, wide;
    int n_narrow, n_wide, longest;
    std::vector<int> row_seq, row_position; /* of each row */
    struct attention_args args;
    std::vector<void *> owned;
};

static __global__ void fill_qkv_kernel(const gpu_row *row, int n_narrow, float *qkv, __half *qkv16,
                                       int ld, int n_q, int n_k, int *identity) {
    int r = blockIdx.x, k0 = n_q, v0 = n_q + n_k;
    int k16 = (n_q + 15) / 16 * 16, v16 = k16 + (n_k + 15) / 16 * 16;
    for (int i = threadIdx.x; i < n_q + 2 * n_k; i += blockDim.x) {
        float v = raw_qkv(identity[row[r].seq], row[r].position, i, n_q, n_k);
        int wide = i < k0 ? i : i < v0 ? i - k0 + k16 : i - v0 + v16;
        if (r < n_narrow)
            qkv[(size_t)r * ld + i] = v;
        else
            qkv16[(size_t)(r - n_narrow) * ld + wide] = __float2half_rn(v);
    }
}

template <typename T> static T *own(attention_step &s, T *p) {
    s.owned.push_back(p);
    return p;
}

/* force: 0 by size, > 0 all wide, < 0 all narrow. */
static attention_step make_attention_step(const attention_pool &p, const std::vector<piece> &pieces,
                                          int layer, int force = 0) {
    attention_step s = {};
    for (const piece &i : pieces)
        (force > 0 || (force == 0 && i.n >= WIDE_MIN) ? s.wide : s.narrow).push_back(i);
    std::vector<gpu_row> rows;
    std::vector<gpu_seq> seqs;
    std::vector<int> identity;
    for (const auto *list : {&s.narrow, &s.wide}) {
        for (const piece &i : *list) {
            seqs.push_back({(int32_t)rows.size(), i.n, i.position, p.first_page[i.seq]});
            identity.push_back(i.seq);
            for (int r = 0; r < i.n; r++) {
                gpu_row row = {};
                row.tenant = p.d_tenant;
                row.position = i.position + r;
                row.seq = (int32_t)seqs.size() - 1;
                rows.push_back(row);
                s.row_seq.push_back(i.seq);
                s.row_position.push_back(i.position + r);
            }
            if (list == &s.wide)
                s.longest = std::max(s.longest, i.n);
        }
        if (list == &s.narrow)
            s.n_narrow = (int)rows.size();
    }
    s.n_wide = (int)rows.size() - s.n_narrow;
    struct gpu_counts counts = {};
    counts.n_narrow = s.n_narrow, counts.n_wide = s.n_wide;
    counts.n_narrow_seqs = (int32_t)s.narrow.size(), counts.n_wide_seqs = (int32_t)s.wide.size();
    struct attention_args &a = s.args;
    a.step.counts = own(s, device_copy(std::vector<gpu_counts>{counts}));
    a.step.row = own(s, device_copy(rows));
    a.step.seq = own(s, device_copy(seqs));
    a.step.page = p.d_pages;
    a.a.ld_qkv = p.ld_qkv, a.a.ld_ctx = p.ld_ctx;
    a.a.qkv = own(s, device_alloc<float>((size_t)s.n_narrow * p.ld_qkv));
    a.a.qkv16 = own(s, device_alloc<__half>((size_t)s.n_wide * p.ld_qkv));
    a.a.ctx = own(s, device_alloc<float>((size_t)(s.n_narrow + 1) * p.ld_ctx));
    a.a.ctx16 = own(s, device_alloc<__half>((size_t)(s.n_wide + 1) * p.ld_ctx));
    CUDA(cudaMemset(a.a.qkv, 0xff, (size_t)s.n_narrow * p.ld_qkv * 4));
    CUDA(cudaMemset(a.a.qkv16, 0xff, (size_t)s.n_wide * p.ld_qkv * 2));
    const attention_case &c = *p.c;
    a.layer = layer, a.n_pages = p.n_pages;
    a.n_heads = c.n_heads, a.n_kv_heads = c.n_kv_heads, a.head_dim = c.head_dim;
    a.max_narrow = p.max_narrow, a.max_context = p.context;
    a.kv = p.kv, a.workspace = p.workspace;
    a.n_thread_blocks = multiprocessors();
    int *d_identity = own(s, device_copy(identity));
    if (!rows.empty())
        fill_qkv_kernel<<<(unsigned)rows.size(), 256>>>(a.step.row, s.n_narrow, a.a.qkv, a.a.qkv16,
                                                        p.ld_qkv, c.n_heads * c.head_dim,
                                                        c.n_kv_heads * c.head_dim, d_identity);
    CUDA(cudaGetLastError());
    return s;
}

static void free_step(attention_step &s) {
    CUDA(cudaDeviceSynchronize());
    for (void *p : s.owned)
        CUDA(cudaFree(p));
    s.owned.clear();
}
static void free_pool(attention_pool &p) {
    CUDA(cudaFree(p.d_pages));
    CUDA(cudaFree(p.d_rope));
    CUDA(cudaFree(p.d_tenant));
    CUDA(cudaFree(p.kv));
    CUDA(cudaFree(p.workspace));
}

static void append_rows(const attention_step &s, cudaStream_t stream = 0) {
    if (s.n_narrow)
        OK(rope_append_narrow(&s.args, s.n_narrow, stream));
    if (s.n_wide)
        OK(rope_append_wide(&s.args, s.n_wide, stream));
}
/* plain: by the kernels for devices other than Hopper's. */
static void attend(const attention_step &s, cudaStream_t stream = 0, bool plain = false) {
    int32_t n = (int32_t)s.wide.size();
    if (s.n_narrow)
        OK(plain ? attention_plain_narrow(&s.args, s.n_narrow, stream)
                 : attention_narrow(&s.args, s.n_narrow, stream));
    if (s.n_wide)
        OK(plain ? attention_plain_wide(&s.args, n, s.longest, stream)
                 : attention_wide(&s.args, n, s.longest, stream));
}
/* Fills the pages with everything before the case's rows; wide: as fp16 rows. */
static void fill_history(const attention_pool &p, int layer, bool wide) {
    for (size_t i = 0; i < p.c->seqs.size(); i++)
        for (int at = 0, n; at < p.c->seqs[i].position; at += n) {
            n = std::min(p.c->seqs[i].position - at, 2048);
            attention_step s = make_attention_step(p, {{(int)i, at, n}}, layer, wide ? 1 : -1);
            append_rows(s);
            free_step(s);
        }
}
static std::vector<piece> all_pieces(const attention_case &c) {
    std::vector<piece> v;
    for (size_t i = 0; i < c.seqs.size(); i++)
        v.push_back({(int)i, c.seqs[i].position, c.seqs[i].n});
    return v;
}

/* ---- references in double -------------------------------------------------------------------- */

/* The stored element (position, i) of a KV head; which: 0 keys, 1 values. half: its integer rounded
 * to fp16 (as multiples of 2^-24), as wide rows see it. */
__device__ static inline double stored(const attention_args &a, const int32_t *pages, int position,
                                       int kv, int which, int i, bool half = false) {
    const char *block = kv_block(a, pages[position / KV_PAGE_TOKENS], kv);
    int token = position % KV_PAGE_TOKENS, e = a.head_dim;
    double scale = ((const float *)block)[token + which * KV_PAGE_TOKENS];
    const char *at = block + (which ? kv_values_at(e) : kv_keys_at()) + kv_element_at(e, token, i);
    double v = (double)*(const uint16_t *)at - 32768;
    if (half)
        v = (double)__half2float(__double2half(v / KV_UNIT)) * KV_UNIT;
    return v * scale;
}

/* out[sample][head][e]: attention of rows sample[.] from the rotated q of the step and the stored
 * integers. One block a row and head. Shared: [keys] doubles. */
static __global__ void reference_attention_kernel(attention_args a, int n_narrow, const int *sample,
                                                  double *out) {
    extern __shared__ double score[];
    __shared__ double sum;
    int r = sample[blockIdx.x], head = blockIdx.y, e = a.head_dim;
    int kv = head / (a.n_heads / a.n_kv_heads);
    const gpu_row row = a.step.row[r];
    const int32_t *pages = a.step.page + a.step.seq[row.seq].first_page;
    int window = row.tenant->sliding_window;
    int lo = window > 0 && row.position >= window ? row.position - window + 1 : 0;
    for (int t = lo + threadIdx.x; t <= row.position; t += blockDim.x) {
        double x = 0;
        for (int i = 0; i < e; i++) {
            double q = r < n_narrow
                           ? (double)a.a.qkv[(size_t)r * a.a.ld_qkv + head * e + i]
                           : (double)__half2float(
                                 a.a.qkv16[(size_t)(r - n_narrow) * a.a.ld_qkv + head * e + i]);
            x += q * stored(a, pages, t, kv, 0, i, r >= n_narrow);
        }
        score[t - lo] = x / sqrt((double)e);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double most = -1e300, total = 0;
        for (int t = 0; t <= row.position - lo; t++)
            most = fmax(most, score[t]);
        for (int t = 0; t <= row.position - lo; t++)
            total += score[t] = exp(score[t] - most);
        sum = total;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < e; i += blockDim.x) {
        double o = 0;
        for (int t = lo; t <= row.position; t++)
            o += score[t - lo] * stored(a, pages, t, kv, 1, i, r >= n_narrow);
        out[((size_t)blockIdx.x * a.n_heads + head) * e + i] = o / sum;
    }
}

/* worst: largest |stored - exact| / (scale / 2) over rows' keys and values; then largest error of
 * q relative to its head's largest. wide: the row's inputs were fp16. */
static __global__ void check_append_kernel(attention_args a, int n_narrow, const int *identity,
                                           int *worst) {
    int r = blockIdx.x, head = blockIdx.y, e = a.head_dim, half = e / 2;
    int n_q = a.n_heads * e, n_k = a.n_kv_heads * e, H = a.n_heads, K = a.n_kv_heads;
    const gpu_row row = a.step.row[r];
    const int32_t *pages = a.step.page + a.step.seq[row.seq].first_page;
    bool value = head >= H + K, wide = r >= n_narrow;
    double most = 0, error = 0;
    for (int i = threadIdx.x; i < e; i += 32) {
        float x = raw_qkv(identity[r], row.position, head * e + i % half, n_q, n_k);
        float y = raw_qkv(identity[r], row.position, head * e + i % half + half, n_q, n_k);
        if (wide)
            x = __half2float(__float2half_rn(x)), y = __half2float(__float2half_rn(y));
        const float *cs = row.tenant->rope + (size_t)row.position * e + 2 * (i % half);
        double v = i < half ? (double)x * cs[0] - (double)y * cs[1]
                            : (double)y * cs[0] + (double)x * cs[1];
        if (value)
            v = i < half ? x : y;
        double got;
        if (head >= H)
            got = stored(a, pages, row.position, (head - H) % K, value, i);
        else if (wide)
            got = __half2float(a.a.qkv16[(size_t)(r - n_narrow) * a.a.ld_qkv + head * e + i]);
        else
            got = a.a.qkv[(size_t)r * a.a.ld_qkv + head * e + i];
        most = fmax(most, fabs(v));
        error = got == got ? fmax(error, fabs(got - v)) : 1e300;
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        most = fmax(most, __shfl_xor_sync(~0u, most, lanes));
        error = fmax(error, __shfl_xor_sync(~0u, error, lanes));
    }
    if (threadIdx.x == 0) { /* in millionths */
        double relative = most > 0 ? error / most : error;
        relative = head >= H ? relative * 65534 : relative;
        atomicMax(worst + (head >= H ? 0 : wide ? 2 : 1), (int)fmin(relative * 1e6, 2e9));
    }
}

#endif
