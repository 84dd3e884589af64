/* Attention at the shapes of Llama-2-7B (32 heads, 32 KV heads) and Mistral-7B (32, 8), on this
 * card: the measured read rate, decode of B sequences of one row (time of attention alone, of
 * rope_append and attention, bytes against the read rate) and prefill (tensor FLOPs, the causal
 * half counted). Replays of CUDA graphs over enough layers that no page is still in the L2, median
 * of 15. Outputs of the same launches are compared with double precision before. `decode` and
 * `prefill` measure one kind; `decode N` and `prefill N` launch one case twice, for a profiler. */
#include "tests/cuda/attention_setup.cuh"
#include "tests/cuda/bench.cuh"

/* GB/s of the best of some grids. */
static double read_rate() {
    size_t n = (size_t)2 << 30;
    char *p = device_alloc<char>(n);
    CUDA(cudaMemset(p, 1, n));
    uint32_t *out = device_alloc<uint32_t>(1);
    double best = 0;
    for (int blocks = 2; blocks <= 8; blocks *= 2) {
        float ms = median_ms([&](cudaStream_t s) {
            read_kernel<<<multiprocessors() * blocks, 512, 0, s>>>((const uint4 *)p, n / 16, out);
        });
        best = std::max(best, (double)n / ms * 1e-6);
    }
    CUDA(cudaFree(p));
    CUDA(cudaFree(out));
    return best;
}

/* Resets the queue, as rope_append_narrow does. */
static __global__ void reset_kernel(int32_t *queue) {
    grid_launch_next();
    grid_wait();
    *queue = 0;
}
static void reset(int32_t *queue, cudaStream_t stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(1);
    config.stream = stream;
    cudaLaunchAttribute early[1];
    early[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = early;
    config.numAttrs = 1;
    CUDA(cudaLaunchKernelEx(&config, reset_kernel, queue));
}

/* Relative error of the step's outputs at some rows. */
static void check(const attention_pool &p, const attention_step &s, double allowed) {
    const attention_case &c = *p.c;
    int rows = s.n_narrow + s.n_wide, e = c.head_dim;
    std::vector<int> sample = {0, rows / 3, rows - 1};
    int *d_sample = device_copy(sample);
    double *d_want = device_alloc<double>(sample.size() * c.n_heads * e);
    CUDA(cudaFuncSetAttribute(reference_attention_kernel,
                              cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10));
    reference_attention_kernel<<<dim3(3, (unsigned)c.n_heads), 256, (size_t)(p.context + 8) * 8>>>(
        s.args, s.n_narrow, d_sample, d_want);
    CUDA(cudaDeviceSynchronize());
    std::vector<double> want = host_copy(d_want, sample.size() * c.n_heads * e);
    double error = 0, norm = 0;
    for (size_t i = 0; i < sample.size(); i++)
        for (int j = 0; j < c.n_heads * e; j++) {
            double w = want[i * c.n_heads * e + j], g;
            if (sample[i] < s.n_narrow) {
                g = host_copy(s.args.a.ctx + (size_t)sample[i] * p.ld_ctx + j, 1)[0];
            } else {
                size_t row = (size_t)(sample[i] - s.n_narrow);
                g = __half2float(host_copy(s.args.a.ctx16 + row * p.ld_ctx + j, 1)[0]);
            }
            error += (g - w) * (g - w), norm += w * w;
        }
    if (!(sqrt(error / norm) < allowed)) {
        printf("%s: relative error %.2e\n", c.name, sqrt(error / norm));
        exit(1);
    }
    CUDA(cudaFree(d_sample));
    CUDA(cudaFree(d_want));
}

/* All layers hold the same keys: rows of layer 0 copied. */
static void copy_layers(const attention_pool &p) {
    size_t layer = p.kv_bytes / (size_t)p.n_layers;
    for (int i = 1; i < p.n_layers; i++)
        CUDA(cudaMemcpy(p.kv + i * layer, p.kv, layer, cudaMemcpyDeviceToDevice));
}

static int seen(const attention_case &c, int position) {
    return c.window > 0 ? std::min(position + 1, c.window) : position + 1;
}

static void decode(const attention_case &c, double rate) {
    double bytes = 0, context = 0;
    for (const sequence &q : c.seqs)
        bytes += (double)seen(c, q.position) * c.n_kv_heads * (4 * c.head_dim + 8),
            context += q.position + 1;
    double stored = context * c.n_kv_heads * (4 * c.head_dim + 8);
    int layers = (int)std::min(64.0, std::max(2.0, 400e6 / stored)), launches = 2 * layers;
    attention_pool p = make_pool(c, layers);
    fill_history(p, 0, false);
    attention_step s = make_attention_step(p, all_pieces(c), 0);
    append_rows(s);
    copy_layers(p);
    attend(s);
    check(p, s, 2e-5);
    float alone = median_ms([&](cudaStream_t stream) {
        for (int i = 0; i < launches; i++) {
            attention_step layer = s;
            layer.args.layer = i % layers;
            reset((int32_t *)p.workspace, stream);
            attend(layer, stream);
        }
    });
    float both = median_ms([&](cudaStream_t stream) {
        for (int i = 0; i < launches; i++) {
            attention_step layer = s;
            layer.args.layer = i % layers;
            append_rows(layer, stream);
            attend(layer, stream);
        }
    });
    double us = alone / launches * 1e3, floor = bytes / rate * 1e-3;
    printf("%-34s %8.1f us  floor %7.1f us  %5.0f GB/s  %5.1f %%   with rope %8.1f us\n", c.name,
           us, floor, bytes / us * 1e-3, 100 * floor / us, both / launches * 1e3);
    free_step(s);
    free_pool(p);
}

static void prefill(const attention_case &c) {
    double flops = 0;
    for (const sequence &q : c.seqs)
        for (int i = 0; i < q.n; i++)
            flops += 4.0 * c.head_dim * c.n_heads * seen(c, q.position + i);
    attention_pool p = make_pool(c, 1);
    fill_history(p, 0, true);
    attention_step s = make_attention_step(p, all_pieces(c), 0);
    append_rows(s);
    attend(s);
    check(p, s, 1.5e-3);
    float ms = median_ms([&](cudaStream_t stream) { attend(s, stream); });
    float rope = median_ms([&](cudaStream_t stream) { append_rows(s, stream); });
    printf("%-34s %8.1f us  %5.0f TFLOP/s    rope %8.1f us\n", c.name, ms * 1e3, flops / ms * 1e-9,
           rope * 1e3);
    free_step(s);
    free_pool(p);
}

static std::vector<sequence> same(int n, int context) {
    return std::vector<sequence>((size_t)n, {context - 1, 1});
}

/* Two launches of a case's attention, for a profiler. */
static void profile(const attention_case &c) {
    attention_pool p = make_pool(c, 1);
    fill_history(p, 0, c.seqs[0].n >= WIDE_MIN);
    attention_step s = make_attention_step(p, all_pieces(c), 0);
    for (int i = 0; i < 2; i++) {
        append_rows(s);
        attend(s);
        CUDA(cudaDeviceSynchronize());
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    OK(attention_setup());
    std::vector<sequence> mixed;
    for (int i = 0; i < 64; i++)
        mixed.push_back({i % 8 == 5 ? 8191 : i * 5 % 13, 1});
    std::vector<attention_case> decodes = {
        {"7B, 32 x 512", 32, 32, 128, 0, same(32, 512)},
        {"7B, 32 x 2048", 32, 32, 128, 0, same(32, 2048)},
        {"7B, 1 x 512", 32, 32, 128, 0, same(1, 512)},
        {"7B, 1 x 8192", 32, 32, 128, 0, same(1, 8192)},
        {"Mistral, 32 x 512", 32, 8, 128, 4096, same(32, 512)},
        {"Mistral, 32 x 2048", 32, 8, 128, 4096, same(32, 2048)},
        {"Mistral, 1 x 8192, window 4096", 32, 8, 128, 4096, same(1, 8192)},
        {"GQA 8, 32 x 2048", 64, 8, 128, 0, same(32, 2048)},
        {"E 64, GQA 4, 32 x 2048", 32, 8, 64, 0, same(32, 2048)},
        {"7B, 8 of 64 at 8192, others < 13", 32, 32, 128, 0, mixed},
        {"7B, 16 x 4 rows at 1024", 32, 32, 128, 0, std::vector<sequence>(16, {1020, 4})},
        {"Mistral, 64 rows at 2048", 32, 8, 128, 4096, {{1984, 64}}},
    };
    std::vector<attention_case> prefills = {
        {"7B, prefill 2048", 32, 32, 128, 0, {{0, 2048}}},
        {"7B, prefill 8192", 32, 32, 128, 0, {{0, 8192}}},
        {"Mistral, prefill 8192", 32, 8, 128, 4096, {{0, 8192}}},
        {"GQA 4, prefill 8192", 32, 8, 128, 0, {{0, 8192}}},
        {"7B, 1024 rows at 7168", 32, 32, 128, 0, {{7168, 1024}}},
        {"7B, 8 x 512", 32, 32, 128, 0, std::vector<sequence>(8, {0, 512})},
        {"E 64, prefill 8192", 32, 32, 64, 0, {{0, 8192}}},
    };
    if (argc > 2) {
        profile((!strcmp(argv[1], "decode") ? decodes : prefills)[(size_t)atoi(argv[2])]);
        return 0;
    }
    double rate = read_rate();
    printf("read rate %.0f GB/s\n", rate);
    for (const attention_case &c : decodes)
        if (argc < 2 || !strcmp(argv[1], "decode"))
            decode(c, rate);
    for (const attention_case &c : prefills)
        if (argc < 2 || !strcmp(argv[1], "prefill"))
            prefill(c);
    return 0;
}
