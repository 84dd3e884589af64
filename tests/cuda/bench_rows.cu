/* What stands around the linears of a decode step, at the shapes of Llama-2-7B, replayed from CUDA
 * graphs, median of 15:
 *   ms a step of the 128 producers, alone and as what they add to the 128 linears;
 *   us of the tables of all jobs, the embedding, and sampling.
 * Rows of the base alone, and of tenants with a plane in every matrix: without column scales, with
 * those of each part's own, and with these and pairs of rank 16, as `bitdelta` fits them.
 * Correctness is test_rows' business. */
#include <algorithm>
#include <functional>

#include "kernels/cuda/rows.h"
#include "tests/cuda/setup.cuh"

enum { LAYERS = 32, TABLES = LAYERS * N_LINEARS, TENANTS = 32, REPEATS = 15, RANK = 16 };
static const struct model_shape shape = {LAYERS, 4096, 32, 32, 128, 11008, 32000, 32000, 0, 1e-5f};

struct model {
    struct linear_shape shape[N_LINEARS];
    __half *base[TABLES];
    uint32_t *bits;
    float *row, *col;
    __half *a, *b;
    gpu_tenant *tenants; /* of one kind */
    struct job_tables *tables;
    struct gpu_activations act;
    struct gpu_step step;
    gpu_row *rows;
    gpu_counts *counts;
    float *y;
    std::vector<void *> of_kind;
};

static std::vector<int> parts_of(int which) {
    std::vector<int> p;
    for (int i = 0; i < linear_n_parts((enum linear)which); i++)
        p.push_back(linear_first_part((enum linear)which) + i);
    return p;
}

static model make_model(void) {
    model m = {};
    for (int i = 0; i < TABLES; i++) {
        int32_t n[MAX_PARTS];
        std::vector<int> parts = parts_of(i % N_LINEARS);
        for (size_t p = 0; p < parts.size(); p++)
            n[p] = part_rows(&shape, (enum part)parts[p]);
        m.shape[i % N_LINEARS] =
            linear_shape_of((int)parts.size(), n, part_cols(&shape, (enum part)parts[0]));
        size_t halves = linear_packed_bytes(&m.shape[i % N_LINEARS]) / 2;
        m.base[i] = device_alloc<__half>(halves);
        fill_half_kernel<<<1024, 256>>>(m.base[i], halves, 0.02f, (uint32_t)i);
    }
    size_t words = (size_t)TENANTS * LAYERS * 202375168 / 32 + 1024;
    m.bits = device_alloc<uint32_t>(words);
    fill_bits_kernel<<<1024, 256>>>(m.bits, words, 7);
    m.row = device_alloc<float>(11008);
    fill_float_kernel<<<16, 256>>>(m.row, 11008, 0.01f, 0.005f, 8);
    size_t cols = (size_t)TENANTS * LAYERS * (6 * 4096 + 11008);
    m.col = device_alloc<float>(cols);
    fill_float_kernel<<<1024, 256>>>(m.col, cols, 1, 0.3f, 9);
    m.a = device_alloc<__half>(cols * RANK);
    fill_half_kernel<<<1024, 256>>>(m.a, cols * RANK, 0.02f, 10);
    m.b = device_alloc<__half>((size_t)11008 * RANK);
    fill_half_kernel<<<256, 256>>>(m.b, (size_t)11008 * RANK, 0.02f, 11);
    OK(job_tables_open(&m.tables, &shape));
    m.act.ld_h = m.act.ld_ctx = 4096, m.act.ld_gate_up = 2 * 11008;
    m.act.h = device_alloc<float>(64 * 4096);
    m.act.ctx = device_alloc<float>(64 * 4096);
    m.act.gate_up = device_alloc<float>(64 * 2 * 11008);
    fill_float_kernel<<<64, 256>>>(m.act.h, 64 * 4096, 0, 1, 12);
    fill_float_kernel<<<64, 256>>>(m.act.ctx, 64 * 4096, 0, 1, 13);
    fill_float_kernel<<<64, 256>>>(m.act.gate_up, 64 * 2 * 11008, 0, 1, 14);
    m.y = device_alloc<float>(64 * 2 * 11008);
    CUDA(cudaMalloc(&m.rows, 64 * sizeof(gpu_row)));
    CUDA(cudaMalloc(&m.counts, sizeof(gpu_counts)));
    m.step.row = m.rows, m.step.counts = m.counts;
    return m;
}

enum { BASE, PLANES, COLUMNS, PAIRS };
/* Tenants that change nothing; with a plane in every matrix; and column scales; and pairs. */
static void set_tenants(model &m, int kind) {
    for (void *p : m.of_kind)
        CUDA(cudaFree(p));
    m.of_kind.clear();
    float *norm = device_alloc<float>((2 * LAYERS + 1) * 4096);
    fill_float_kernel<<<64, 256>>>(norm, (2 * LAYERS + 1) * 4096, 1, 0.3f, 15);
    m.of_kind.push_back(norm);
    std::vector<gpu_tenant> tenants;
    size_t word = 0, col = 0;
    for (int t = 0; t < TENANTS; t++) {
        std::vector<struct delta> deltas;
        for (int i = 0; i < LAYERS * N_PARTS; i++) {
            struct delta d = {};
            enum part p = (enum part)(i % N_PARTS);
            d.n_planes = 1;
            d.plane[0] = {m.bits + word, m.row, kind >= COLUMNS ? m.col + col : NULL};
            if (kind == PAIRS) {
                d.rank = RANK;
                d.a = (const uint16_t *)m.a + col * RANK;
                d.b = (const uint16_t *)m.b;
            }
            word += plane_bytes(part_rows(&shape, p), part_cols(&shape, p)) / 4;
            col += (size_t)part_cols(&shape, p);
            deltas.push_back(d);
        }
        gpu_tenant g = {};
        g.norm = norm, g.norm_eps = 1e-5f, g.vocab = 32000;
        g.delta = kind == BASE ? NULL : device_copy(deltas);
        m.of_kind.push_back((void *)g.delta);
        tenants.push_back(g);
    }
    m.tenants = device_copy(tenants);
    m.of_kind.push_back(m.tenants);
}

static void set_rows(model &m, int n) {
    std::vector<gpu_row> rows(64);
    for (int i = 0; i < n; i++)
        rows[i].tenant = m.tenants + (n <= TENANTS ? i : i * TENANTS / n), rows[i].token = i * 7;
    CUDA(cudaMemcpy(m.rows, rows.data(), 64 * sizeof rows[0], cudaMemcpyHostToDevice));
    gpu_counts c = {};
    c.n_narrow = c.n_logits = n;
    CUDA(cudaMemcpy(m.counts, &c, sizeof c, cudaMemcpyHostToDevice));
}

/* Median ms of a graph of what `record` launches. */
static double time_graph(const std::function<void(cudaStream_t)> &record) {
    static cudaStream_t s;
    if (!s)
        CUDA(cudaStreamCreate(&s));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t a, b;
    CUDA(cudaEventCreate(&a));
    CUDA(cudaEventCreate(&b));
    CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    record(s);
    CUDA(cudaStreamEndCapture(s, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < REPEATS + 2; i++) {
        float ms;
        CUDA(cudaEventRecord(a, s));
        CUDA(cudaGraphLaunch(exec, s));
        CUDA(cudaEventRecord(b, s));
        CUDA(cudaEventSynchronize(b));
        CUDA(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2)
            times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(a));
    CUDA(cudaEventDestroy(b));
    return times[REPEATS / 2];
}

static void record_tables(model &m, cudaStream_t s) {
    OK(job_tables_launch(m.tables, &m.step, 0, s));
    OK(embed_launch(&m.step, &m.act, m.base[0], 4096, 4096, 64, s));
}
static void record_linear(model &m, int i, int n, struct linear_args l, cudaStream_t s) {
    l.shape = m.shape[i % N_LINEARS];
    l.base = (const uint4 *)m.base[i];
    l.y = m.y;
    l.ld_y = 2 * 11008;
    l.n_thread_blocks = multiprocessors();
    if (i + 1 < TABLES) {
        const struct linear_shape &next = m.shape[(i + 1) % N_LINEARS];
        l.next = {(const uint4 *)m.base[i + 1], next.first_tile[next.n_parts],
                  tiles_of(next.n_k, 256)};
    }
    OK(linear_launch(&l, n, s));
}
static void record_producers(model &m, int n, bool linear, cudaStream_t s) {
    for (int i = 0; i < TABLES; i++) {
        struct linear_args l = {};
        OK(produce_launch(m.tables, &m.act, i, n, &l, s));
        if (linear)
            record_linear(m, i, n, l, s);
    }
}
/* The linears alone read what a run before left. */
static double time_linears(model &m, int n) {
    std::vector<linear_args> args(TABLES);
    for (int i = 0; i < TABLES; i++)
        OK(produce_launch(m.tables, &m.act, i, n, &args[i], 0));
    CUDA(cudaDeviceSynchronize());
    return time_graph([&](cudaStream_t s) {
        for (int i = 0; i < TABLES; i++)
            record_linear(m, i, n, args[i], s);
    });
}

/* ---- sampling -------------------------------------------------------------------------------- */

static void bench_sampling(int vocab) {
    static const struct {
        const char *name;
        struct logit_row how;
    } wishes[] = {
        {"greedy", {0, -1, 0, 1, 0, 0, 0, 0, 1, 1, 1, NULL, 0, 0, NULL, 0, NULL, 0, -1}},
        {"greedy, 5 alternatives",
         {0, -1, 0, 1, 0, 0, 0, 0, 1, 1, 1, NULL, 0, 0, NULL, 0, NULL, 0, 5}},
        {"greedy, 20 alternatives",
         {0, -1, 0, 1, 0, 0, 0, 0, 1, 1, 1, NULL, 0, 0, NULL, 0, NULL, 0, 20}},
        {"temperature 1", {0, -1, 1, 1, 0, 0, 0, 0, 1, 1, 1, NULL, 0, 0, NULL, 0, NULL, 0, -1}},
        {"top_p 0.9", {0, -1, 1, 0.9f, 0, 0, 0, 0, 1, 1, 1, NULL, 0, 0, NULL, 0, NULL, 0, -1}},
        {"top_k 50, top_p 0.9",
         {0, -1, 1, 0.9f, 0, 50, 0, 0, 1, 1, 1, NULL, 0, 0, NULL, 0, NULL, 0, -1}},
        {"temperature 4, top_p 0.99",
         {0, -1, 4, 0.99f, 0, 0, 0, 0, 1, 1, 1, NULL, 0, 0, NULL, 0, NULL, 0, -1}},
    };
    float *z = device_alloc<float>((size_t)64 * vocab);
    fill_float_kernel<<<1024, 256>>>(z, (size_t)64 * vocab, 0, 12, 77);
    struct sample_args a = {};
    a.logits = z, a.ld = vocab;
    a.out = device_alloc<struct sampled>(64);
    int32_t *n_logits = device_alloc<int32_t>(1);
    a.n_logits = n_logits;
    CUDA(cudaMalloc(&a.workspace, sample_workspace_bytes(64, vocab)));
    char *packed = device_alloc<char>(64 * 1024);
    a.rows = (const struct sample_row *)packed;
    for (auto &w : wishes) {
        printf("  %6d %-26s", vocab, w.name);
        for (int32_t n : {1, 16, 64}) {
            std::vector<struct logit_row> how(n, w.how);
            std::vector<int32_t> vocabs(n, vocab);
            for (int i = 0; i < n; i++)
                how[i].draw = (uint64_t)i;
            std::vector<char> host(sample_packed_bytes(how.data(), n));
            sample_pack(how.data(), vocabs.data(), n, host.data(), packed);
            CUDA(cudaMemcpy(packed, host.data(), host.size(), cudaMemcpyHostToDevice));
            CUDA(cudaMemcpy(n_logits, &n, 4, cudaMemcpyHostToDevice));
            double ms = time_graph([&](cudaStream_t s) {
                for (int i = 0; i < 20; i++)
                    OK(sample_launch(&a, n, s));
            });
            printf(" %8.1f", ms / 20 * 1e3);
        }
        printf("\n");
    }
    CUDA(cudaFree(z));
    CUDA(cudaFree(a.workspace));
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    OK(linear_setup());
    printf("sampling, us a launch: vocabulary, wish, 1, 16, 64 rows\n");
    for (int vocab : {32000, 128256})
        bench_sampling(vocab);
    model m = make_model();
    static const char *kinds[] = {"base alone", "planes", "own columns", "and pairs, rank 16"};
    printf(
        "7B, ms a step\n%-20s rows  producers  linears  both   added   tables and embedding, us\n",
        "");
    for (int kind = BASE; kind <= PAIRS; kind++) {
        set_tenants(m, kind);
        for (int n : {1, 4, 16, 32, 64}) {
            set_rows(m, n);
            record_tables(m, 0);
            CUDA(cudaDeviceSynchronize());
            double tables = time_graph([&](cudaStream_t s) { record_tables(m, s); });
            double alone = time_graph([&](cudaStream_t s) { record_producers(m, n, false, s); });
            double linears = time_linears(m, n);
            double both = time_graph([&](cudaStream_t s) { record_producers(m, n, true, s); });
            printf("%-20s %4d %10.3f %8.3f %7.3f %6.3f %10.1f\n", kinds[kind], n, alone, linears,
                   both, both - linears, tables * 1e3);
        }
    }
    return 0;
}
