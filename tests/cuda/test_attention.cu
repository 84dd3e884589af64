/* rope_append and attention on the card. Each case, a step of narrow and wide rows over scattered
 * pages of a poisoned pool, checks in this order:
 *   q as rotated, and every stored key and value, against double precision from the raw numbers;
 *   ctx against double precision from the rotated q and the stored integers;
 *   all of ctx is written and nothing beside it; no foreign page, other layer or byte past the
 *   workspace changes; a second run gives the same bits;
 *   so does a graph of rope_append and attention, replayed;
 *   narrow rows: the same bits for each sequence alone, in reverse order, and each row by itself;
 *   the kernels for other devices: narrow rows the same bits, wide rows against double precision.
 * Without a device it prints why and succeeds. `test_attention quick` runs the small cases only,
 * `quick N` one of them (for the sanitizers). */
#include "tests/cuda/attention_setup.cuh"

enum { LAYERS = 2, LAYER = 1 };

static int failures;
static void fail(const char *name, const char *what, double got, double want) {
    printf("FAIL %s: %s: %.9g, should be %.9g\n", name, what, got, want);
    failures++;
}

/* Of a head's output. Wide rows: probabilities and outputs rounded to fp16. */
static const double NARROW_ERROR = 2e-5, WIDE_ERROR = 1.5e-3;

static void check_append(const attention_pool &p, const attention_step &s) {
    const attention_case &c = *p.c;
    int *d_identity = device_copy(s.row_seq), *d_worst = device_copy(std::vector<int>{0, 0, 0});
    int rows = s.n_narrow + s.n_wide;
    check_append_kernel<<<dim3((unsigned)rows, (unsigned)(c.n_heads + 2 * c.n_kv_heads)), 32>>>(
        s.args, s.n_narrow, d_identity, d_worst);
    CUDA(cudaDeviceSynchronize());
    std::vector<int> worst = host_copy(d_worst, 3);
    if (!(worst[0] < 1.02e6)) /* half a step, and FP32 rotation's rounding */
        fail(c.name, "stored keys and values, in half steps", worst[0] * 1e-6, 1);
    if (!(worst[1] < 2))
        fail(c.name, "rotated q, relative", worst[1] * 1e-6, 1e-6);
    if (!(worst[2] < 1000))
        fail(c.name, "rotated fp16 q, relative", worst[2] * 1e-6, 1e-3);
    CUDA(cudaFree(d_identity));
    CUDA(cudaFree(d_worst));
}

struct results {
    std::vector<float> ctx;
    std::vector<__half> ctx16;
};

static results run(const attention_pool &p, const attention_step &s, bool plain = false) {
    size_t n = (size_t)(s.n_narrow + 1) * p.ld_ctx, n16 = (size_t)(s.n_wide + 1) * p.ld_ctx;
    CUDA(cudaMemset(s.args.a.ctx, 0xff, n * 4));
    CUDA(cudaMemset(s.args.a.ctx16, 0xff, n16 * 2));
    int32_t queue = 0; /* what rope_append_narrow does, without rotating q again */
    CUDA(cudaMemcpy(p.workspace, &queue, 4, cudaMemcpyHostToDevice));
    attend(s, 0, plain);
    CUDA(cudaDeviceSynchronize());
    return {host_copy(s.args.a.ctx, n), host_copy(s.args.a.ctx16, n16)};
}

static bool poisoned(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)p)[i] != 0xff)
            return false;
    return true;
}

static void check_margins(const attention_pool &p, const attention_step &s, const results &r) {
    int n = p.c->n_heads * p.c->head_dim, rest = p.ld_ctx - n;
    for (int row = 0; row <= s.n_narrow; row++) {
        const float *v = &r.ctx[(size_t)row * p.ld_ctx];
        bool last = row == s.n_narrow;
        if (!poisoned(last ? v : v + n, (size_t)(last ? p.ld_ctx : rest) * 4))
            fail(p.c->name, "written beside ctx", row, 0);
        for (int i = 0; i < n && !last; i++)
            if (!(fabs(v[i]) < 1e3))
                return fail(p.c->name, "ctx not written", v[i], i);
    }
    for (int row = 0; row <= s.n_wide; row++) {
        const __half *v = &r.ctx16[(size_t)row * p.ld_ctx];
        bool last = row == s.n_wide;
        if (!poisoned(last ? v : v + n, (size_t)(last ? p.ld_ctx : rest) * 2))
            fail(p.c->name, "written beside ctx16", row, 0);
        for (int i = 0; i < n && !last; i++)
            if (!(fabs(__half2float(v[i])) < 1e3))
                return fail(p.c->name, "ctx16 not written", row, i);
    }
}

/* Rows to look at: the first and last ones of every piece, and some between. */
static std::vector<int> sample_rows(const attention_step &s) {
    std::vector<int> v;
    int first = 0;
    for (const auto *list : {&s.narrow, &s.wide})
        for (const piece &i : *list) {
            int step = list == &s.narrow ? 1 + i.n / 8 : 1 + i.n / 23;
            for (int r = 0; r < i.n; r += step)
                v.push_back(first + r);
            v.push_back(first + i.n - 1);
            first += i.n;
        }
    return v;
}

static void check_values(const attention_pool &p, const attention_step &s, const results &r,
                         const char *kernels) {
    const attention_case &c = *p.c;
    std::vector<int> sample = sample_rows(s);
    int *d_sample = device_copy(sample), e = c.head_dim;
    double *d_want = device_alloc<double>(sample.size() * c.n_heads * e);
    CUDA(cudaFuncSetAttribute(reference_attention_kernel,
                              cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10));
    reference_attention_kernel<<<dim3((unsigned)sample.size(), (unsigned)c.n_heads), 256,
                                 (size_t)(p.context + 8) * 8>>>(s.args, s.n_narrow, d_sample,
                                                                d_want);
    CUDA(cudaDeviceSynchronize());
    std::vector<double> want = host_copy(d_want, sample.size() * c.n_heads * e);
    double worst[2] = {};
    for (size_t i = 0; i < sample.size(); i++)
        for (int h = 0; h < c.n_heads; h++) {
            double error = 0, norm = 0;
            bool wide = sample[i] >= s.n_narrow;
            size_t row = (size_t)(wide ? sample[i] - s.n_narrow : sample[i]);
            for (int j = 0; j < e; j++) {
                size_t at = row * p.ld_ctx + h * e + j;
                double w = want[(i * c.n_heads + h) * e + j];
                double g = wide ? (double)__half2float(r.ctx16[at]) : (double)r.ctx[at];
                error += (g - w) * (g - w), norm += w * w;
            }
            double relative = sqrt(error / norm);
            if (!(relative <= (wide ? WIDE_ERROR : NARROW_ERROR))) {
                fail(c.name, wide ? "wide, relative error of a head" : "relative error of a head",
                     relative, wide ? WIDE_ERROR : NARROW_ERROR);
                printf("  sequence %d, position %d, head %d\n", s.row_seq[sample[i]],
                       s.row_position[sample[i]], h);
                i = sample.size();
                break;
            }
            worst[wide] = std::max(worst[wide], relative);
        }
    printf("  %-36s %-6s %3d narrow rows %.1e, %4d wide %.1e\n", c.name, kernels, s.n_narrow,
           worst[0], s.n_wide, worst[1]);
    CUDA(cudaFree(d_sample));
    CUDA(cudaFree(d_want));
}

/* Nothing outside the sequences' pages of this layer was written. */
static void check_pool(const attention_pool &p) {
    size_t page = attention_page_bytes(p.c->n_kv_heads, p.c->head_dim);
    std::vector<char> kv = host_copy(p.kv, p.kv_bytes + 16);
    for (size_t i = 0; i < (size_t)LAYERS * p.n_pages; i++) {
        bool ours = i / p.n_pages == LAYER && std::find(p.pages.begin(), p.pages.end(),
                                                        (int)(i % p.n_pages)) != p.pages.end();
        if (!ours && !poisoned(&kv[i * page], page))
            return fail(p.c->name, "a foreign page changed", (double)i, 0);
    }
    if (!poisoned(&kv[p.kv_bytes], 16))
        fail(p.c->name, "written past the pool", 1, 0);
    std::vector<char> w = host_copy(p.workspace, p.workspace_bytes + 16);
    for (int i = 0; i < 16; i++)
        if (w[p.workspace_bytes + i] != (char)0xa5)
            return fail(p.c->name, "written past the workspace", i, 0);
}

/* The same narrow rows in other company. */
static void check_company(const attention_pool &p, const attention_step &s, const results &all,
                          const std::vector<piece> &pieces, const char *what) {
    attention_step other = make_attention_step(p, pieces, LAYER, -1);
    append_rows(other); /* the same bits once more */
    results r = run(p, other);
    for (int i = 0; i < other.n_narrow; i++)
        for (int j = 0; j < s.n_narrow; j++)
            if (s.row_seq[j] == other.row_seq[i] && s.row_position[j] == other.row_position[i] &&
                memcmp(&r.ctx[(size_t)i * p.ld_ctx], &all.ctx[(size_t)j * p.ld_ctx],
                       (size_t)p.c->n_heads * p.c->head_dim * 4)) {
                fail(p.c->name, what, s.row_position[j], s.row_seq[j]);
                i = other.n_narrow;
                break;
            }
    free_step(other);
}

/* rope_append and attention as an engine launches them, replayed from a graph, each kernel starting
 * before the last has ended. qkv, qkv16: the rows before rotation. */
static void check_graph(const attention_pool &p, const attention_step &s, const results &want,
                        const float *qkv, const __half *qkv16) {
    size_t n = (size_t)(s.n_narrow + 1) * p.ld_ctx, n16 = (size_t)(s.n_wide + 1) * p.ld_ctx;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CUDA(cudaMemcpyAsync(s.args.a.qkv, qkv, (size_t)s.n_narrow * p.ld_qkv * 4,
                         cudaMemcpyDeviceToDevice, stream));
    CUDA(cudaMemcpyAsync(s.args.a.qkv16, qkv16, (size_t)s.n_wide * p.ld_qkv * 2,
                         cudaMemcpyDeviceToDevice, stream));
    append_rows(s, stream);
    attend(s, stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 3; i++) {
        CUDA(cudaMemsetAsync(s.args.a.ctx, 0xff, n * 4, stream));
        CUDA(cudaMemsetAsync(s.args.a.ctx16, 0xff, n16 * 2, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaStreamSynchronize(stream));
        std::vector<float> ctx = host_copy(s.args.a.ctx, n);
        std::vector<__half> ctx16 = host_copy(s.args.a.ctx16, n16);
        if (memcmp(ctx.data(), want.ctx.data(), n * 4) ||
            memcmp(ctx16.data(), want.ctx16.data(), n16 * 2))
            fail(p.c->name, "a replayed graph gives other bits", i, 0);
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
}

static void run_case(const attention_case &c) {
    attention_pool p = make_pool(c, LAYERS);
    fill_history(p, LAYER, c.seqs.size() % 2);
    attention_step s = make_attention_step(p, all_pieces(c), LAYER);
    CUDA(cudaDeviceSynchronize());
    float *qkv = own(s, device_copy(host_copy(s.args.a.qkv, (size_t)s.n_narrow * p.ld_qkv)));
    __half *qkv16 = own(s, device_copy(host_copy(s.args.a.qkv16, (size_t)s.n_wide * p.ld_qkv)));
    append_rows(s);
    CUDA(cudaDeviceSynchronize());
    check_append(p, s);
    results r = run(p, s), again = run(p, s);
    check_margins(p, s, r);
    check_values(p, s, r, "");
    results plain = run(p, s, true);
    check_margins(p, s, plain);
    if (memcmp(r.ctx.data(), plain.ctx.data(), r.ctx.size() * 4))
        fail(c.name, "the kernel for other devices has other bits", 1, 0);
    if (s.n_wide)
        check_values(p, s, plain, "plain");
    if (memcmp(r.ctx.data(), again.ctx.data(), r.ctx.size() * 4) ||
        memcmp(r.ctx16.data(), again.ctx16.data(), r.ctx16.size() * 2))
        fail(c.name, "a second run's bits differ", 1, 0);
    check_graph(p, s, r, qkv, qkv16);
    std::vector<piece> reversed(s.narrow.rbegin(), s.narrow.rend());
    if (!reversed.empty())
        check_company(p, s, r, reversed, "sequences in reverse have other bits");
    for (size_t i = 0; i < s.narrow.size(); i += 1 + s.narrow.size() / 7) {
        const piece &one = s.narrow[i];
        check_company(p, s, r, {one}, "a sequence alone has other bits");
        for (int row = 0; row < one.n && one.n > 1; row += 1 + one.n / 5)
            check_company(p, s, r, {{one.seq, one.position + row, 1}},
                          "a row by itself has other bits");
    }
    check_pool(p);
    free_step(s);
    free_pool(p);
}

static std::vector<sequence> spread(int n, int first, int step, int rows) {
    std::vector<sequence> v;
    for (int i = 0; i < n; i++)
        v.push_back({first + i * step, rows});
    return v;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    OK(attention_setup());
    bool quick = argc > 1 && !strcmp(argv[1], "quick");
    std::vector<attention_case> cases = {
        {"one token", 1, 1, 64, 0, {{0, 1}}},
        {"toy, E 2", 2, 1, 2, 0, {{0, 1}, {40, 3}, {0, 70}}},
        {"toy, E 20, parts no multiple of 16", 3, 3, 20, 0, {{7, 2}, {300, 1}, {33, 66}}},
        {"edges of pages and splits",
         4,
         2,
         64,
         0,
         {{30, 1}, {31, 1}, {32, 1}, {254, 1}, {255, 1}, {256, 1}, {511, 1}, {254, 4}}},
        {"window within and over splits",
         4,
         4,
         64,
         100,
         {{98, 1}, {99, 1}, {100, 1}, {310, 1}, {255, 30}, {200, 100}}},
        {"E 80, prompt", 5, 5, 80, 0, {{0, 64}, {0, 65}, {1, 66}}},
        {"GQA 3, E 96", 6, 2, 96, 0, {{500, 3}, {0, 1}, {31, 97}}},
        {"GQA 8, E 128, ragged", 8, 1, 128, 0, {{257, 7}, {0, 9}, {70, 129}, {0, 191}}},
        {"E 256", 2, 1, 256, 300, {{290, 5}, {600, 1}, {250, 90}}},
    };
    std::vector<attention_case> large = {
        {"7B, 32 mixed sequences", 32, 32, 128, 0, spread(32, 0, 67, 1)},
        {"Mistral, 8k, window",
         32,
         8,
         128,
         4096,
         {{8190, 1}, {4095, 1}, {4096, 2}, {1, 1}, {0, 1}, {6000, 8}}},
        {"MHA 8k", 16, 16, 128, 0, {{8191, 1}, {8000, 64}}},
        {"GQA 8, 64 rows at 3000", 64, 8, 128, 0, {{3000, 64}, {17, 33}, {0, 64}}},
        {"100 sequences, E 64, GQA 2", 4, 2, 64, 0, spread(100, 3, 11, 1)},
        {"prefill 2048", 8, 8, 128, 0, {{0, 2048}}},
        {"prefill, chunk at 3001", 8, 2, 128, 0, {{3001, 1000}, {0, 333}, {511, 512}, {40, 1}}},
        {"prefill, window", 8, 2, 128, 777, {{3001, 1000}, {0, 2000}}},
        {"prefill E 64", 8, 8, 64, 0, {{100, 1100}}},
        {"prefill E 96 and 8k", 4, 2, 96, 0, {{7000, 1100}}},
    };
    for (size_t i = 0; i < cases.size(); i++)
        if (argc < 3 || (int)i == atoi(argv[2]))
            run_case(cases[i]);
    for (size_t i = 0; i < large.size() && !quick; i++)
        run_case(large[i]);
    CUDA(cudaDeviceSynchronize());
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
