/* All linears of one prefill step at the shapes of Llama-2-7B, with random weights, on this card:
 * N tokens of 1, 2 or 8 tenants in equal shares. Beside the wide linear as it is:
 *   base    cuBLAS on W alone, all rows in one GEMM: no tenant can be cheaper
 *   merged  for each tenant, W + delta of a whole matrix to memory, then cuBLAS: what the wide
 *           linear must beat
 *   take    bringing x into the order of the wide linear, where no producer writes it so
 *   plain   the product that other devices have, here
 * Median of 5 passes, which take turns, over all 128 matrices (far more than the L2). Before a mix
 * is timed, sampled outputs of each kind of matrix are compared with a double-precision reference.
 */
#include <algorithm>
#include <cublas_v2.h>
#include <functional>

#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/prefill.h"
#include "tests/cuda/setup.cuh"

enum { LAYERS = 32, KINDS = 4, MATRICES = LAYERS * KINDS, TENANTS = 8, REPEATS = 5, MOST = 4096 };

static const struct kind {
    const char *name;
    int n_parts, part_rows[3], n_k;
} kinds[KINDS] = {
    {"qkv", 3, {4096, 4096, 4096}, 4096},
    {"o", 1, {4096}, 4096},
    {"gate+up", 2, {11008, 11008}, 4096},
    {"down", 1, {4096}, 11008},
};

struct model {
    linear_shape shape[KINDS];
    int n_out[KINDS];
    __half *base[MATRICES], *x[KINDS], *y, *whole; /* whole: scratch of one matrix */
    float *residual;
    std::vector<std::vector<delta>> tenants;
    std::vector<const delta *> d_tenants;
    double base_bytes, tenant_bytes;
    cublasHandle_t blas;
    prefill *p, *plain;
};

static model make_model(void) {
    model m = {};
    size_t words = 0, widest = 0, at = 0;
    for (int i = 0; i < MATRICES; i++) {
        const kind &k = kinds[i % KINDS];
        linear_shape &s = m.shape[i % KINDS];
        s = linear_shape_of(k.n_parts, k.part_rows, k.n_k);
        size_t bytes = linear_packed_bytes(&s);
        m.base[i] = device_alloc<__half>(bytes / 2);
        fill_half_kernel<<<1024, 256>>>(m.base[i], bytes / 2, 0.05f, (uint32_t)i);
        m.base_bytes += (double)bytes;
        m.n_out[i % KINDS] = k.part_rows[0] + k.part_rows[1] + k.part_rows[2];
        widest = std::max(widest, bytes / 2);
        for (int p = 0; p < k.n_parts; p++)
            words += plane_bytes(k.part_rows[p], k.n_k) / 4;
    }
    m.tenant_bytes = (double)words * 4;
    uint32_t *bits = device_alloc<uint32_t>(words * TENANTS);
    fill_bits_kernel<<<1024, 256>>>(bits, words * TENANTS, 3);
    float *row = device_alloc<float>(11008);
    fill_float_kernel<<<256, 256>>>(row, 11008, 0.002f, 0.001f, 9);
    for (int t = 0; t < TENANTS; t++) {
        std::vector<delta> deltas;
        for (int i = 0; i < MATRICES; i++)
            for (int p = 0; p < kinds[i % KINDS].n_parts; p++) {
                delta d = {};
                d.n_planes = 1;
                d.plane[0] = {bits + at, row, NULL};
                at += plane_bytes(kinds[i % KINDS].part_rows[p], kinds[i % KINDS].n_k) / 4;
                deltas.push_back(d);
            }
        m.d_tenants.push_back(device_copy(deltas));
        m.tenants.push_back(deltas);
    }
    for (int i = 0; i < KINDS; i++) {
        m.x[i] = device_alloc<__half>((size_t)MOST * kinds[i].n_k);
        fill_half_kernel<<<1024, 256>>>(m.x[i], (size_t)MOST * kinds[i].n_k, 1, 7 + i);
    }
    m.y = device_alloc<__half>((size_t)MOST * 22016);
    m.residual = device_alloc<float>((size_t)MOST * 4096);
    m.whole = device_alloc<__half>(widest);
    model_shape shape = {LAYERS, 4096, 32, 32, 128, 11008, 32000, 32000, 0, 1e-5f};
    OK(prefill_open(&m.p, &shape, MOST));
    OK(prefill_open(&m.plain, &shape, MOST));
    OK(prefill_use_plain(m.plain));
    if (cublasCreate(&m.blas))
        exit(1);
    void *workspace = device_alloc<char>(64 << 20);
    cublasSetWorkspace(m.blas, workspace, 64 << 20);
    CUDA(cudaDeviceSynchronize());
    return m;
}

static int first_part(int i) {
    return i / KINDS * N_PARTS + linear_first_part((enum linear)(i % KINDS));
}

static std::vector<prefill_group> equal_shares(const model &m, int rows, int n_tenants) {
    std::vector<prefill_group> groups;
    for (int t = 0; t < n_tenants; t++) {
        int first = rows * t / n_tenants, end = rows * (t + 1) / n_tenants;
        groups.push_back({m.tenants[t].data(), first, end - first});
    }
    return groups;
}

static prefill_linear linear_of(const model &m, int i, const std::vector<prefill_group> &groups) {
    int kind = i % KINDS;
    prefill_linear l = {};
    l.shape = m.shape[kind];
    l.base = (const uint4 *)m.base[i];
    l.first_part = first_part(i);
    l.groups = groups.data(), l.n_groups = (int)groups.size();
    bool residual = kind == LINEAR_O || kind == LINEAR_DOWN;
    l.y = residual ? NULL : m.y;
    l.residual = m.residual;
    l.ld_y = m.n_out[kind];
    return l;
}

/* ---- correctness ----------------------------------------------------------------------------- */

__global__ static void reference_kernel(linear_shape s, const __half *base, const delta *deltas,
                                        const __half *x, const int *sample, double *out) {
    int n = sample[blockIdx.x], part = 0, blocks = s.n_k / 256, row = blockIdx.y;
    double sum = 0;
    while (n / 16 >= s.first_tile[part + 1])
        part++;
    int in_part = n - s.first_tile[part] * 16;
    const plane &p = deltas[part].plane[0];
    for (int k = threadIdx.x; k < s.n_k; k += 32) {
        double w = __half2float(base[packed_at(n / 16, n % 16, k, blocks)]);
        uint32_t word = p.bits[sign_word(in_part, k, blocks)];
        w += word >> (k % 32) & 1 ? p.row[in_part] : -p.row[in_part];
        sum += w * (double)__half2float(x[(size_t)row * s.n_k + k]);
    }
    for (int d = 16; d; d >>= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x == 0)
        out[row * gridDim.x + blockIdx.x] = sum;
}

static void check(const model &m, const std::vector<prefill_group> &groups, int tenants) {
    enum { SAMPLES = 64 };
    for (int kind = 0; kind < KINDS; kind++) {
        int i = kind + KINDS * (LAYERS - 1), rows = groups.back().first + groups.back().n;
        prefill_linear l = linear_of(m, i, groups);
        CUDA(cudaMemset(m.y, 0xff, (size_t)rows * l.ld_y * 2));
        CUDA(cudaMemset(m.residual, 0, (size_t)rows * 4096 * 4));
        OK(prefill_take(m.p, m.x[kind], kinds[kind].n_k, kinds[kind].n_k, rows, 0));
        OK(prefill_linear_launch(m.p, &l, 0));
        std::vector<int> sample;
        for (int j = 0; j < SAMPLES; j++)
            sample.push_back((int)(hash32(j, 8) % (uint32_t)m.n_out[kind]));
        int *d_sample = device_copy(sample);
        double error = 0, norm = 0;
        for (int t = 0; t < tenants; t++) {
            const prefill_group &g = groups[t];
            double *d_want = device_alloc<double>((size_t)SAMPLES * g.n);
            reference_kernel<<<dim3(SAMPLES, (unsigned)g.n), 32>>>(
                l.shape, m.base[i], m.d_tenants[t] + l.first_part,
                m.x[kind] + (size_t)g.first * kinds[kind].n_k, d_sample, d_want);
            std::vector<double> want = host_copy(d_want, (size_t)SAMPLES * g.n);
            std::vector<__half> y16;
            std::vector<float> y32;
            size_t first = (size_t)g.first * l.ld_y, n = (size_t)g.n * l.ld_y;
            if (l.y)
                y16 = host_copy(l.y + first, n);
            else
                y32 = host_copy(m.residual + first, n);
            for (int r = 0; r < g.n; r++)
                for (int j = 0; j < SAMPLES; j++) {
                    size_t at = (size_t)r * l.ld_y + sample[j];
                    double w = want[(size_t)r * SAMPLES + j];
                    double d = (l.y ? (double)__half2float(y16[at]) : (double)y32[at]) - w;
                    error += d * d, norm += w * w;
                }
            CUDA(cudaFree(d_want));
        }
        CUDA(cudaFree(d_sample));
        if (!(sqrt(error / norm) < 5e-4)) {
            printf("%s, %d rows, %d tenants: relative error %.2e\n", kinds[kind].name, rows,
                   tenants, sqrt(error / norm));
            exit(1);
        }
    }
}

/* ---- timing ---------------------------------------------------------------------------------- */

static float pass_ms(const std::function<void()> &pass) {
    static cudaEvent_t a, b;
    if (!a) {
        CUDA(cudaEventCreate(&a));
        CUDA(cudaEventCreate(&b));
    }
    float ms;
    CUDA(cudaEventRecord(a, 0));
    pass();
    CUDA(cudaEventRecord(b, 0));
    CUDA(cudaEventSynchronize(b));
    CUDA(cudaEventElapsedTime(&ms, a, b));
    return ms;
}
/* Medians of passes that take turns, so that all meet the card as warm as the others leave it. */
static std::vector<float> medians(const std::vector<std::function<void()>> &passes) {
    std::vector<std::vector<float>> ms(passes.size());
    for (int r = -1; r < REPEATS; r++)
        for (size_t i = 0; i < passes.size(); i++) {
            float t = pass_ms(passes[i]);
            if (r >= 0)
                ms[i].push_back(t);
        }
    std::vector<float> median;
    for (auto &m : ms) {
        std::sort(m.begin(), m.end());
        median.push_back(m[REPEATS / 2]);
    }
    return median;
}

static void gemm(const model &m, int kind, const __half *w, int first, int rows) {
    float one = 1, zero = 0;
    int n = m.n_out[kind], k = kinds[kind].n_k;
    if (cublasGemmEx(m.blas, CUBLAS_OP_T, CUBLAS_OP_N, n, rows, k, &one, w, CUDA_R_16F, k,
                     m.x[kind] + (size_t)first * k, CUDA_R_16F, k, &zero, m.y + (size_t)first * n,
                     CUDA_R_16F, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT))
        exit(1);
}
static void merge_whole(const model &m, int i, const delta *deltas) {
    int kind = i % KINDS;
    merge_args a = {m.shape[kind],
                    (const uint4 *)m.base[i],
                    {},
                    0,
                    m.shape[kind].first_tile[kinds[kind].n_parts],
                    (uint4 *)m.whole};
    std::copy_n(deltas + first_part(i), kinds[kind].n_parts, a.delta);
    OK(merge_launch(&a, 2 * multiprocessors(), 0));
}

static void wide_pass(const model &m, prefill *p, const std::vector<prefill_group> &groups) {
    for (int i = 0; i < MATRICES; i++) {
        prefill_linear l = linear_of(m, i, groups);
        OK(prefill_linear_launch(p, &l, 0));
    }
}
static void base_pass(const model &m, int rows) {
    for (int i = 0; i < MATRICES; i++)
        gemm(m, i % KINDS, m.base[i], 0, rows);
}
/* Also leaves an input of random numbers for wide_pass: a product with zeros takes less power. */
static void take_pass(const model &m, prefill *p, int rows) {
    for (int i = 0; i < MATRICES; i++) {
        int k = kinds[i % KINDS].n_k;
        OK(prefill_take(p, m.x[i % KINDS], k, k, rows, 0));
    }
}
static void merged_pass(const model &m, const std::vector<prefill_group> &groups) {
    for (int i = 0; i < MATRICES; i++)
        for (const prefill_group &g : groups) {
            merge_whole(m, i, g.delta);
            gemm(m, i % KINDS, m.whole, g.first, g.n);
        }
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    OK(linear_setup());
    model m = make_model();
    printf("base %.2f GB, tenant %.3f GB; ms\n", m.base_bytes / 1e9, m.tenant_bytes / 1e9);
    printf("%7s %7s %9s %9s %9s %9s %9s %8s %9s\n", "tokens", "tenants", "base", "TFLOP/s",
           "merged", "take", "wide", "of base", "plain");
    for (int tenants : {1, 2, 8})
        for (int rows : {128, 256, 512, 1024, 2048, 4096}) {
            if (rows / tenants < WIDE_MIN)
                continue;
            std::vector<prefill_group> groups = equal_shares(m, rows, tenants);
            check(m, groups, tenants);
            take_pass(m, m.plain, rows);
            std::vector<float> ms =
                medians({[&] { base_pass(m, rows); }, [&] { merged_pass(m, groups); },
                         [&] { take_pass(m, m.p, rows); }, [&] { wide_pass(m, m.p, groups); },
                         [&] { wide_pass(m, m.plain, groups); }});
            float base = ms[0], merged = ms[1], take = ms[2], wide = ms[3];
            printf("%7d %7d %9.2f %9.0f %9.2f %9.2f %9.2f %7.1f%% %9.2f\n", rows, tenants, base,
                   m.base_bytes * rows / base / 1e9, merged, take, wide, 100 * base / wide, ms[4]);
        }
    CUDA(cudaDeviceSynchronize());
    return 0;
}
