/* Sampling on the card against the CPU backend's: the same logits and the same wishes, thousands of
 * random rows, tokens and flags equal, log-probabilities within 2e-6 of their size (the CPU adds
 * sixteen weights in FP32 at a time). Logits with and without ties, -inf, NaN, +inf; every
 * parameter alone and together; vocabularies from 5 to 262144. Also: the same bits alone and among
 * others, in any row of the batch; nothing written past the results. `quick`: small vocabularies,
 * for the sanitizers. Without a device it prints why and succeeds. */
#include "kernels/cuda/rows.h"
#include "tests/cuda/setup.cuh"

extern "C" {
#include "kernels/cpu/sample.h"
}

static int failures;
static void fail(const char *what, int row, double got, double want) {
    printf("FAIL row %d: %s: %.9g, should be %.9g\n", row, what, got, want);
    failures++;
}
static uint32_t counter = 1;
static uint32_t random32(void) {
    return hash32(counter++, 4242);
}
static int below(int n) {
    return (int)(random32() % (uint32_t)n);
}
static float random_unit(void) {
    return (float)(random32() >> 8) * 0x1p-24f;
}

/* ---- rows ------------------------------------------------------------------------------------ */

struct test_row {
    std::vector<float> z;
    struct logit_row how;
    std::vector<int32_t> history, banned;
    std::vector<struct logit_bias> bias;
    int vocab;
};

/* Logits of several characters: spread, flat, with ties, coarse, with holes. */
static void fill_logits(std::vector<float> &z, int kind) {
    float width = kind % 4 == 0 ? 3 : kind % 4 == 1 ? 12 : kind % 4 == 2 ? 0.01f : 40;
    uint32_t seed = random32();
    for (size_t i = 0; i < z.size(); i++) {
        float v = uniform(i, seed) + uniform(i, seed + 1) + uniform(i, seed + 2);
        z[i] = v * width + 5;
        if (kind % 3 == 1) /* ties, zeros of both signs among them */
            z[i] = rintf(z[i]) * (hash32(i, seed) & 1 ? 1.0f : 1.0000001f) - 5;
        if (kind % 5 == 2 && hash32(i, seed + 3) % 3 == 0)
            z[i] = -INFINITY;
        if (kind % 7 == 3)
            z[i] = 1.5f; /* all alike */
        if (kind % 11 == 4 && hash32(i, seed + 4) % 31 == 0)
            z[i] = -0.0f;
    }
    if (kind % 13 == 5)
        z[below((int)z.size())] = NAN;
    if (kind % 13 == 6)
        z[below((int)z.size())] = INFINITY;
    if (kind % 29 == 7)
        z.assign(z.size(), -INFINITY);
    if (kind % 29 == 8)
        z[below((int)z.size())] = 200;
}

static test_row make_row(int vocab, int kind) {
    test_row r = {};
    r.vocab = vocab;
    r.z.resize(vocab);
    fill_logits(r.z, kind);
    struct logit_row &h = r.how;
    h.target = -1, h.top_p = 1, h.repetition = 1, h.n_top = -1;
    h.seed = random32() | (uint64_t)random32() << 32;
    h.draw = random32() % 1000;
    if (below(3)) {
        static const float t[] = {1, 0.7f, 0.1f, 1.3f, 4, 1e-3f};
        h.temperature = t[below(6)];
    }
    if (below(2))
        h.top_p = below(5) ? random_unit() : below(2) ? 0.999f : 0;
    if (below(2))
        h.top_k = 1 + below(below(2) ? 60 : 2 * vocab);
    if (below(4) == 0)
        h.min_p = random_unit() * (below(2) ? 0.1f : 1);
    if (below(3) == 0)
        h.n_top = below(MAX_TOP + 1);
    if (below(9) == 0)
        h.target = below(vocab + 2);
    for (int n = below(4) ? 0 : below(40); n > 0; n--)
        r.bias.push_back({below(vocab + 2) - 1, 10 * random_unit() - 5});
    if (!r.bias.empty() && below(2))
        r.bias.push_back(r.bias[0]); /* an id twice: both count, in their order */
    for (int n = below(4) ? 0 : below(5); n > 0; n--)
        r.banned.push_back(below(vocab + 2) - 1);
    if (below(3) == 0) {
        for (int n = below(3000); n > 0; n--)
            r.history.push_back(below(below(2) ? 20 : vocab + 2) - 1);
        h.n_prompt = below((int)r.history.size() + 1);
        h.repetition = below(2) ? 1 : 0.5f + random_unit();
        h.frequency = below(2) ? 0 : 2 * random_unit() - 1;
        h.presence = below(2) ? 0 : 2 * random_unit() - 1;
    }
    return r;
}
static void point(std::vector<test_row> &rows) {
    for (test_row &r : rows) {
        r.how.history = r.history.data(), r.how.n_history = (int32_t)r.history.size();
        r.how.bias = r.bias.data(), r.how.n_bias = (int32_t)r.bias.size();
        r.how.banned = r.banned.data(), r.how.n_banned = (int32_t)r.banned.size();
    }
}

/* ---- both backends --------------------------------------------------------------------------- */

static struct sampled on_cpu(const test_row &r) {
    const struct isa *isa = isa_avx512.runs_here() ? &isa_avx512
                            : isa_avx2.runs_here() ? &isa_avx2
                                                   : &isa_c;
    std::vector<float> z = r.z, weight(r.vocab), raw(r.vocab);
    std::vector<int32_t> id(r.vocab);
    struct sample_scratch scratch = {weight.data(), raw.data(), id.data()};
    struct sampled out;
    sample_row(isa, z.data(), r.vocab, &r.how, &scratch, &out);
    return out;
}

static std::vector<struct sampled> on_gpu(const std::vector<test_row> &rows, int ld,
                                          int max_logits) {
    int n = (int)rows.size();
    std::vector<float> z((size_t)n * ld, NAN);
    std::vector<struct logit_row> how;
    std::vector<int32_t> vocab;
    for (int i = 0; i < n; i++) {
        std::copy(rows[i].z.begin(), rows[i].z.end(), z.begin() + (size_t)i * ld);
        how.push_back(rows[i].how);
        vocab.push_back(rows[i].vocab);
    }
    size_t bytes = sample_packed_bytes(how.data(), n);
    std::vector<char> packed(bytes + 16, 0x5a);
    char *d_packed = device_alloc<char>(bytes + 16);
    sample_pack(how.data(), vocab.data(), n, packed.data(), d_packed);
    for (size_t i = bytes; i < packed.size(); i++)
        if (packed[i] != 0x5a)
            fail("packed past the end", 0, (double)i, (double)bytes);
    CUDA(cudaMemcpy(d_packed, packed.data(), packed.size(), cudaMemcpyHostToDevice));
    std::vector<struct sampled> out(max_logits + 1);
    memset(out.data(), 0x77, out.size() * sizeof out[0]);
    struct sample_args a = {};
    a.logits = device_copy(z), a.ld = ld;
    int32_t *d_n = device_copy(std::vector<int32_t>{n});
    a.n_logits = d_n;
    a.rows = (const struct sample_row *)d_packed;
    a.out = device_copy(out);
    CUDA(cudaMalloc(&a.workspace, sample_workspace_bytes(max_logits, ld)));
    OK(sample_launch(&a, max_logits, 0));
    CUDA(cudaDeviceSynchronize());
    out = host_copy(a.out, out.size());
    for (size_t i = n; i < out.size(); i++)
        if (out[i].token != 0x77777777)
            fail("a result past the last row", (int)i, out[i].token, 0x77777777);
    out.resize(n);
    CUDA(cudaFree(a.logits));
    CUDA(cudaFree(d_n));
    CUDA(cudaFree(d_packed));
    CUDA(cudaFree(a.out));
    CUDA(cudaFree(a.workspace));
    return out;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static bool near(float got, float want) {
    return got == want || fabs((double)got - want) <= 2e-6 * (1 + fabs((double)want));
}
static void check_row(int i, const test_row &r, const struct sampled &got) {
    struct sampled want = on_cpu(r);
    if (got.finite != want.finite)
        fail("finite", i, got.finite, want.finite);
    else if (got.token != want.token)
        fail("token", i, got.token, want.token);
    else if (got.n_top != want.n_top)
        fail("alternatives", i, got.n_top, want.n_top);
    else if (!near(got.logprob, want.logprob))
        fail("log-probability", i, got.logprob, want.logprob);
    for (int j = 0; j < want.n_top; j++)
        if (got.top_id[j] != want.top_id[j] || !near(got.top_logprob[j], want.top_logprob[j])) {
            fail("alternative", i, got.top_id[j], want.top_id[j]);
            break;
        }
}

static void run_rows(int vocab, int n, bool different) {
    std::vector<test_row> rows;
    int ld = (vocab + 7) / 4 * 4;
    for (int i = 0; i < n; i++)
        rows.push_back(make_row(different ? 1 + below(vocab) : vocab, (int)(random32() % 10007)));
    point(rows);
    std::vector<struct sampled> got = on_gpu(rows, ld, n);
    for (int i = 0; i < n; i++)
        check_row(i, rows[i], got[i]);
    /* Alone, and in another place, in a larger launch. */
    std::vector<test_row> some = {rows[n - 1], rows[n / 2], rows[0]};
    point(some);
    std::vector<struct sampled> other = on_gpu(some, ld, 8);
    int at[] = {n - 1, n / 2, 0};
    for (int i = 0; i < 3; i++)
        if (memcmp(&other[i], &got[at[i]], sizeof got[0]))
            fail("other company, other bits", at[i], other[i].token, got[at[i]].token);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    bool quick = argc > 1 && !strcmp(argv[1], "quick");
    int total = 0;
    struct {
        int vocab, n, times;
    } cases[] = {{5, 64, 20},     {40, 64, 20},   {1000, 64, 20},  {4099, 64, 10},
                 {32000, 64, 12}, {32016, 64, 4}, {128256, 32, 3}, {262144, 16, 3}};
    for (int i = 0; i < (quick ? 3 : 8); i++) {
        for (int j = 0; j < (quick ? 1 : cases[i].times); j++) {
            run_rows(cases[i].vocab, cases[i].n, j % 3 == 2);
            total += cases[i].n;
        }
        printf("  vocabulary %6d: %d rows so far, %d failures\n", cases[i].vocab, total, failures);
    }
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
