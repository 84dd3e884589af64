/* All linears of one decode step at the shapes of Llama-2-7B, with random weights, on this card:
 *   the measured read rate (the ceiling), cuBLAS FP16 on the base alone, and the fused linear with
 *   T distinct tenants of one row each, with T tenants as `bitdelta` fits them (column scales of
 *   each part's own, low-rank pairs), with T rows of one tenant, and with T rows of the base.
 * Everything is replayed from CUDA graphs, median of 15; the weights are read once a step and are
 * far larger than the L2. Before a mix is timed, sampled outputs of each kind of matrix are
 * compared with a double-precision reference. `quick ROWS...` and `profile ROWS` serve the tuning.
 */
#include <cublas_v2.h>

#include "tests/cuda/bench.cuh"

enum { LAYERS = 32, KINDS = 4, MATRICES = LAYERS * KINDS, MOST = 64, RANK = 16 };

struct kind {
    const char *name;
    int n_parts, part_rows[3], n_k;
};
static const struct kind kinds[KINDS] = {
    {"qkv", 3, {4096, 4096, 4096}, 4096},
    {"o", 1, {4096}, 4096},
    {"gate+up", 2, {11008, 11008}, 4096},
    {"down", 1, {4096}, 11008},
};

struct model {
    struct linear_shape shape[KINDS];
    int n_out[KINDS];
    __half *base[MATRICES];
    uint32_t *bits; /* [MOST][tenant_words] */
    size_t tenant_words, bits_at[MATRICES][3];
    float *row[KINDS]; /* [MOST][n_out] */
    __half *b;         /* [MOST][pair_halves] */
    size_t pair_halves, b_at[MATRICES][3];
    float *col; /* [MOST][3][longest K] */
    double base_bytes, tenant_bytes;
    struct linear_input in[KINDS];
    struct planes_args planes[KINDS];
    float *y[KINDS];
    struct linear_batch *batch;
    struct linear_job *jobs;   /* [MATRICES][MOST] */
    struct linear_pair *pairs; /* likewise */
    struct planes_set *extra;  /* [3 MOST] */
    int32_t *counts;
    int grid, layers, n_sets;
    bool fitted;
};
enum { LONGEST = 11008 };

static model make_model(int tenants, int layers) {
    static model m;
    m.layers = layers;
    for (int i = 0; i < layers * KINDS; i++) {
        const kind &k = kinds[i % KINDS];
        linear_shape &s = m.shape[i % KINDS];
        s = linear_shape_of(k.n_parts, k.part_rows, k.n_k);
        size_t bytes = linear_packed_bytes(&s);
        m.base[i] = device_alloc<__half>(bytes / 2);
        fill_half_kernel<<<1024, 256>>>(m.base[i], bytes / 2, 0.05f, (uint32_t)i);
        m.base_bytes += (double)bytes;
        for (int p = 0; p < k.n_parts; p++) {
            m.bits_at[i][p] = m.tenant_words;
            m.tenant_words += plane_bytes(k.part_rows[p], k.n_k) / 4;
            m.b_at[i][p] = m.pair_halves;
            m.pair_halves += (size_t)k.part_rows[p] * RANK;
        }
    }
    m.tenant_bytes = (double)m.tenant_words * 4;
    m.bits = device_alloc<uint32_t>(m.tenant_words * tenants);
    fill_bits_kernel<<<1024, 256>>>(m.bits, m.tenant_words * tenants, 3);
    m.b = device_alloc<__half>(m.pair_halves * tenants);
    fill_half_kernel<<<1024, 256>>>(m.b, m.pair_halves * tenants, 0.02f, 4);
    m.col = device_alloc<float>((size_t)MOST * 3 * LONGEST);
    fill_float_kernel<<<1024, 256>>>(m.col, (size_t)MOST * 3 * LONGEST, 1, 0.3f, 5);
    m.extra = device_alloc<planes_set>(3 * MOST);
    float *u = device_alloc<float>((size_t)MOST * 3 * RANK);
    fill_float_kernel<<<64, 256>>>(u, (size_t)MOST * 3 * RANK, 0, 1, 6);
    m.counts = device_alloc<int32_t>(2);
    for (int i = 0; i < KINDS; i++) {
        const kind &k = kinds[i];
        int blocks = tiles_of(k.n_k, 256);
        m.n_out[i] = k.part_rows[0] + k.part_rows[1] + k.part_rows[2];
        m.row[i] = device_alloc<float>((size_t)MOST * m.n_out[i]);
        fill_float_kernel<<<256, 256>>>(m.row[i], (size_t)MOST * m.n_out[i], 0.002f, 0.001f, 9);
        m.y[i] = device_alloc<float>((size_t)MOST * m.n_out[i]);
        __half *x16 = device_alloc<__half>(linear_x_bytes(blocks, MOST) / 2);
        CUDA(cudaMemset(x16, 0, linear_x_bytes(blocks, MOST)));
        linear_planes *planes = device_alloc<linear_planes>((size_t)MOST * 4 * blocks);
        float *x = device_alloc<float>((size_t)MOST * k.n_k);
        fill_float_kernel<<<256, 256>>>(x, (size_t)MOST * k.n_k, 0, 1, (uint32_t)(40 + i));
        m.in[i] = {x16, planes, u, 3 * RANK};
        m.planes[i] = {x, k.n_k, k.n_k, m.counts, m.counts + 1, m.extra, x16, planes};
    }
    m.batch = device_alloc<linear_batch>(1);
    m.jobs = device_alloc<linear_job>((size_t)MATRICES * MOST);
    m.pairs = device_alloc<linear_pair>((size_t)MATRICES * MOST);
    m.grid = multiprocessors();
    CUDA(cudaDeviceSynchronize());
    return m;
}

/* T rows of n_tenants tenants (0: of the base alone), in equal shares. fitted: with column scales
 * of each part's own and low-rank pairs. */
static void set_mix(model &m, int rows, int n_tenants, bool fitted) {
    linear_batch b = {};
    b.n_rows = rows;
    std::vector<linear_job> jobs((size_t)MATRICES * MOST);
    std::vector<linear_pair> pairs((size_t)MATRICES * MOST);
    std::vector<planes_set> extra(3 * MOST);
    int n_jobs = 0;
    for (int i = 0; i < m.layers * KINDS; i++) {
        n_jobs = 0;
        for (int t = 0; t < n_tenants; t++)
            for (int r = rows * t / n_tenants, end = rows * (t + 1) / n_tenants; r < end;) {
                linear_pair &pair = pairs[(size_t)i * MOST + n_jobs];
                linear_job &j = jobs[(size_t)i * MOST + n_jobs++];
                const kind &k = kinds[i % KINDS];
                j.first_row = (int16_t)r;
                j.n_rows = (int16_t)std::min(end - r, linear_job_rows(rows));
                float *row = m.row[i % KINDS] + (size_t)t * m.n_out[i % KINDS];
                for (int p = 0; p < k.n_parts; row += k.part_rows[p++]) {
                    j.bits[p] = m.bits + m.tenant_words * t + m.bits_at[i][p];
                    j.row[p] = row, j.first_set[p] = fitted ? rows * (1 + p) + r : r;
                    pair.b[p] = m.b + m.pair_halves * t + m.b_at[i][p];
                    pair.rank[p] = RANK, pair.first_u[p] = p * RANK;
                }
                r += j.n_rows;
            }
    }
    if (n_tenants) {
        b.n_phases = 1, b.n_jobs = n_jobs;
        memset(b.has_delta, 1, (size_t)rows);
    }
    for (int p = 0; p < 3 && n_tenants; p++)
        for (int r = 0; r < rows; r++) {
            int t = r * n_tenants / rows;
            extra[rows * p + r] = {r, 0, m.col + ((size_t)t * 3 + p) * LONGEST};
        }
    m.fitted = fitted;
    m.n_sets = fitted ? 4 * rows : rows;
    int32_t counts[2] = {rows, m.n_sets};
    CUDA(cudaMemcpy(m.extra, extra.data(), extra.size() * sizeof extra[0], cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(m.pairs, pairs.data(), pairs.size() * sizeof pairs[0], cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(m.batch, &b, sizeof b, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(m.jobs, jobs.data(), jobs.size() * sizeof jobs[0], cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(m.counts, counts, sizeof counts, cudaMemcpyHostToDevice));
}

/* Largest relative error of 96 sampled outputs of each row against double precision. */
static double sampled_error(const linear_args &a, int rows, int n_out) {
    std::vector<int> sample;
    for (int j = 0; j < 96; j++)
        sample.push_back((int)(hash32(j, 8) % (uint32_t)n_out));
    int *d_sample = device_copy(sample);
    double *d_want = device_alloc<double>(96 * (size_t)rows);
    reference_kernel<<<dim3(3, (unsigned)rows), 32>>>(a, d_sample, 96, d_want);
    std::vector<double> want = host_copy(d_want, 96 * (size_t)rows);
    std::vector<float> y = host_copy(a.y, (size_t)rows * a.ld_y);
    double error = 0, norm = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 96; j++) {
            double w = want[(size_t)r * 96 + j];
            double d = (double)y[(size_t)r * a.ld_y + sample[j]] - w;
            error += d * d, norm += w * w;
        }
    CUDA(cudaFree(d_sample));
    CUDA(cudaFree(d_want));
    return sqrt(error / norm);
}

static linear_args args_of(const model &m, int i) {
    linear_args a = {};
    a.shape = m.shape[i % KINDS];
    a.in = m.in[i % KINDS];
    a.base = (const uint4 *)m.base[i];
    a.batch = m.batch;
    a.jobs = m.jobs + (size_t)i * MOST;
    a.pairs = m.fitted ? m.pairs + (size_t)i * MOST : NULL;
    a.y = m.y[i % KINDS];
    a.ld_y = m.n_out[i % KINDS];
    a.n_thread_blocks = m.grid;
    int next = (i + 1) % (m.layers * KINDS), last = kinds[next % KINDS].n_parts;
    a.next = {(const uint4 *)m.base[next], m.shape[next % KINDS].first_tile[last],
              tiles_of(m.shape[next % KINDS].n_k, 256)};
    return a;
}

static void check_mix(const model &m, int rows) {
    for (int i = 0; i < KINDS; i++) {
        linear_args a = args_of(m, i + KINDS * (m.layers - 1));
        CUDA(cudaMemset(a.y, 0xff, (size_t)MOST * m.n_out[i] * 4));
        OK(planes_launch(&m.planes[i], rows, m.n_sets, 0));
        OK(linear_launch(&a, rows, 0));
        double error = sampled_error(a, rows, m.n_out[i]);
        if (!(error < 3e-6)) {
            printf("%s, %d rows: relative error %.2e\n", kinds[i].name, rows, error);
            exit(1);
        }
    }
}

static float fused_ms(model &m, int rows, bool with_planes, int kind = -1, bool plain = false) {
    return median_ms([&](cudaStream_t s) {
        for (int i = 0; i < MATRICES; i++) {
            if (kind >= 0 && i % KINDS != kind)
                continue;
            linear_args a = args_of(m, i);
            if (kind >= 0)
                a.next.base = (const uint4 *)m.base[(i + KINDS) % MATRICES],
                a.next.n_tiles = a.shape.first_tile[a.shape.n_parts],
                a.next.n_blocks = tiles_of(a.shape.n_k, 256);
            if (with_planes)
                OK(planes_launch(&m.planes[i % KINDS], rows, m.n_sets, s));
            OK(plain ? linear_plain_launch(&a, rows, s) : linear_launch(&a, rows, s));
        }
    });
}

static float cublas_ms(model &m, int rows) {
    static cublasHandle_t h;
    static void *workspace = device_alloc<char>(64 << 20);
    if (!h && cublasCreate(&h) != CUBLAS_STATUS_SUCCESS)
        exit(1);
    cublasSetWorkspace(h, workspace, 64 << 20);
    return median_ms([&](cudaStream_t s) {
        cublasSetStream(h, s);
        float one = 1, zero = 0;
        for (int i = 0; i < MATRICES; i++) {
            int n = m.n_out[i % KINDS], k = kinds[i % KINDS].n_k;
            if (cublasGemmEx(h, CUBLAS_OP_T, CUBLAS_OP_N, n, rows, k, &one, m.base[i], CUDA_R_16F,
                             k, m.in[i % KINDS].x, CUDA_R_16F, k, &zero, m.y[i % KINDS], CUDA_R_16F,
                             n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT))
                exit(1);
        }
    });
}

static double read_rate(const model &m) {
    uint32_t *out = device_alloc<uint32_t>(1);
    size_t bytes = (size_t)16 << 30; /* of the sign planes */
    double rate = 0;
    for (int blocks : {2, 4, 8, 16}) {
        float ms = median_ms([&](cudaStream_t s) {
            read_kernel<<<132 * blocks, 512, 0, s>>>((const uint4 *)m.bits, bytes / 16, out);
        });
        rate = std::max(rate, (double)bytes / ms / 1e6);
    }
    return rate;
}

/* For comparing variants, T tenants of one row: in all and by kind of matrix, fitted, T rows of one
 * tenant, the base. */
static void quick(model &m, int n, char **rows) {
    double rate = read_rate(m);
    printf("read rate %.0f GB/s\n%4s %8s %6s  %-36s %8s %8s %8s\n", rate, "T", "tenants", "floor",
           "qkv, o, gate+up, down: us, of floor", "fitted", "1 tenant", "base");
    for (int i = 0; i < n; i++) {
        int t = atoi(rows[i]);
        set_mix(m, t, t, false);
        check_mix(m, t);
        double floor = (m.base_bytes + t * m.tenant_bytes) / rate / 1e6;
        float all = fused_ms(m, t, false);
        printf("%4d %8.3f %5.1f%% ", t, all, 100 * floor / all);
        for (int j = 0; j < KINDS; j++) {
            double bytes = 2.0 * m.n_out[j] * kinds[j].n_k * (1 + t / 16.0);
            float us = fused_ms(m, t, false, j) * 1e3f / LAYERS;
            printf(" %5.1f %2.0f%%", us, 100 * bytes / rate / 1e3 / us);
        }
        set_mix(m, t, t, true);
        check_mix(m, t);
        float fitted = fused_ms(m, t, false);
        set_mix(m, t, 1, false);
        check_mix(m, t);
        float one = fused_ms(m, t, false);
        set_mix(m, t, 0, false);
        check_mix(m, t);
        printf("  %8.3f %8.3f %8.3f\n", fitted, one, fused_ms(m, t, false));
    }
}

/* A head of 32000 x 4096 that each of T tenants of one row gives as a dense matrix. */
static void dense_table(model &m, double rate) {
    enum { N = 32000 };
    const int part_rows[1] = {N};
    linear_args a = args_of(m, 0);
    a.shape = linear_shape_of(1, part_rows, kinds[0].n_k);
    a.pairs = NULL, a.next.base = NULL, a.ld_y = N;
    a.y = device_alloc<float>((size_t)8 * N);
    size_t matrix = (size_t)N * kinds[0].n_k;
    for (int t : {1, 2, 4, 8}) {
        linear_batch batch = {};
        batch.n_rows = batch.n_dense = t;
        std::vector<linear_dense> dense(t);
        for (int i = 0; i < t; i++) {
            dense[i].w[0] = m.b + matrix * i, dense[i].n_out[0] = N;
            dense[i].first_row = i, dense[i].n_rows = 1;
            batch.dense[i] = 1;
        }
        struct linear_dense *d_dense = device_copy(dense);
        a.dense = d_dense;
        CUDA(cudaMemcpy(m.batch, &batch, sizeof batch, cudaMemcpyHostToDevice));
        OK(linear_dense_launch(&a, t, 0));
        double error = sampled_error(a, t, N);
        if (!(error < 3e-6)) {
            printf("dense, %d tenants: relative error %.2e\n", t, error);
            exit(1);
        }
        float ms = median_ms([&](cudaStream_t s) { OK(linear_dense_launch(&a, t, s)); });
        double floor = 2.0 * (double)matrix * t / rate / 1e6;
        printf("dense head of %d tenants: %.3f ms, floor %.3f, %.1f%% of it\n", t, ms, floor,
               100 * floor / ms);
        CUDA(cudaFree(d_dense));
    }
}

static void table(model &m) {
    double rate = read_rate(m);
    printf("read rate %.0f GB/s; base %.2f GB, tenant %.3f GB, %d blocks\n", rate,
           m.base_bytes / 1e9, m.tenant_bytes / 1e9, m.grid);
    printf("%4s %9s %9s %9s %7s %9s %9s %9s %9s %9s\n", "T", "cuBLAS", "T tenants", "floor",
           "of it", "fitted", "+ planes", "1 tenant", "base", "int8");
    for (int t : {1, 2, 4, 8, 16, 32, 64}) {
        set_mix(m, t, t, false);
        check_mix(m, t);
        float blas = cublas_ms(m, t);
        float many = fused_ms(m, t, false), planes = fused_ms(m, t, true);
        float int8 = fused_ms(m, t, false, -1, true);
        set_mix(m, t, t, true);
        check_mix(m, t);
        float fitted = fused_ms(m, t, false);
        set_mix(m, t, 1, false);
        check_mix(m, t);
        float one = fused_ms(m, t, false);
        set_mix(m, t, 0, false);
        check_mix(m, t);
        float none = fused_ms(m, t, false);
        double floor = (m.base_bytes + t * m.tenant_bytes) / rate / 1e6;
        printf("%4d %9.3f %9.3f %9.3f %6.1f%% %9.3f %9.3f %9.3f %9.3f %9.3f\n", t, blas, many,
               floor, 100 * floor / many, fitted, planes, one, none, int8);
    }
    dense_table(m, rate);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    OK(linear_setup());
    bool profile = argc > 2 && !strcmp(argv[1], "profile");
    static model m = make_model(profile ? atoi(argv[2]) : MOST, profile ? 1 : LAYERS);
    if (profile) { /* one launch of each kind, for a profiler */
        set_mix(m, atoi(argv[2]), atoi(argv[2]), false);
        check_mix(m, atoi(argv[2]));
    } else if (argc > 1 && !strcmp(argv[1], "quick"))
        quick(m, argc - 2, argv + 2);
    else
        table(m);
    CUDA(cudaDeviceSynchronize());
    return 0;
}
