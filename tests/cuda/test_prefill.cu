/* Wide rows on the card. Each case checks, in this order:
 *   merged weights are the nearest fp16 numbers to W + delta in double precision;
 *   the wide linear is near the double reference, as fp16 and added to a residual, for every group;
 *   padding between parts is zeros, nothing outside the outputs is written, every output is;
 *   a group's rows have the same bits alone, at another place, and with the merge started early.
 * Then norm and SiLU * up against double precision. Without a device it prints why and succeeds.
 * `test_prefill quick` runs the small cases only (for the sanitizers). */
#include <algorithm>

#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/prefill.h"
#include "tests/cuda/setup.cuh"

struct tenant_case {
    int rows, n_planes, rank;
    bool col;                /* column scales on the last plane */
    int without, dense_part; /* a part it does not change, one it gives densely; or -1 */
};
struct wide_case {
    const char *name;
    int n_parts, part_rows[3], n_k;
    std::vector<tenant_case> tenants;
};

static int failures;
static void fail(const char *name, const char *what, double got, double want) {
    printf("FAIL %s: %s: %.9g, should be %.9g\n", name, what, got, want);
    failures++;
}

enum { FIRST_PART = 1 }; /* deltas of the case stand there in a tenant's table */

struct fixture {
    const wide_case *c;
    linear_shape shape;
    int n_out, n_wide, ld_x, ld_y; /* outputs with padding between parts */
    __half *w, *packed, *x;
    std::vector<prefill_group> groups;
    std::vector<std::vector<delta>> deltas; /* of each group */
    std::vector<const delta *> d_deltas;    /* the same on the device, for the references */
    std::vector<void *> owned;
};
template <typename T> static T *own(fixture &f, T *p) {
    f.owned.push_back((void *)p);
    return p;
}
static __half *random_half(fixture &f, size_t n, float scale, uint32_t seed) {
    __half *p = own(f, device_alloc<__half>(n));
    fill_half_kernel<<<512, 256>>>(p, n, scale, seed);
    return p;
}
static float *random_float(fixture &f, size_t n, float offset, float scale, uint32_t seed) {
    float *p = own(f, device_alloc<float>(n));
    fill_float_kernel<<<512, 256>>>(p, n, offset, scale, seed);
    return p;
}

static delta make_delta(fixture &f, const tenant_case &t, int part, uint32_t seed) {
    delta d = {};
    int n = f.c->part_rows[part], k = f.c->n_k;
    if (part == t.without)
        return d;
    if (part == t.dense_part) {
        d.dense = (uint16_t *)random_half(f, (size_t)n * k, 0.04f, seed);
        return d;
    }
    d.n_planes = t.n_planes;
    for (int p = 0; p < t.n_planes; p++) {
        size_t words = plane_bytes(n, k) / 4;
        uint32_t *bits = own(f, device_alloc<uint32_t>(words));
        fill_bits_kernel<<<512, 256>>>(bits, words, seed + p); /* past N, K, too */
        d.plane[p].bits = bits;
        d.plane[p].row = random_float(f, n, 0.004f, 0.003f, seed + 10 + p);
        if (t.col && p == t.n_planes - 1)
            d.plane[p].col = random_float(f, k, 1, 0.5f, seed + 20 + p);
    }
    d.rank = t.rank;
    if (t.rank) {
        d.a = (uint16_t *)random_half(f, (size_t)t.rank * k, 0.1f, seed + 30);
        d.b = (uint16_t *)random_half(f, (size_t)n * t.rank, 0.1f, seed + 31);
    }
    return d;
}

static fixture make_fixture(const wide_case &c) {
    fixture f = {};
    f.c = &c;
    f.shape = linear_shape_of(c.n_parts, c.part_rows, c.n_k);
    int rows = 0;
    for (int p = 0; p < c.n_parts; p++)
        rows += c.part_rows[p];
    f.n_out = f.shape.first_tile[c.n_parts - 1] * TILE_ROWS + c.part_rows[c.n_parts - 1];
    f.ld_x = (c.n_k + 7) / 8 * 8 + 8;
    f.ld_y = (f.n_out + 7) / 8 * 8 + 8;
    f.w = random_half(f, (size_t)rows * c.n_k, 0.05f, 5);
    f.packed = own(f, device_alloc<__half>(linear_packed_bytes(&f.shape) / 2));
    OK(linear_pack(&f.shape, f.w, f.packed, 0));
    for (size_t t = 0; t < c.tenants.size(); t++) {
        std::vector<delta> d(FIRST_PART + c.n_parts);
        for (int p = 0; p < c.n_parts; p++)
            d[FIRST_PART + p] =
                make_delta(f, c.tenants[t], p, (uint32_t)(1000 + c.n_k + t * 300 + p * 100));
        f.deltas.push_back(d);
        f.d_deltas.push_back(own(f, device_copy(d)));
        f.groups.push_back({NULL, f.n_wide, c.tenants[t].rows});
        f.n_wide += c.tenants[t].rows;
    }
    for (size_t t = 0; t < c.tenants.size(); t++)
        f.groups[t].delta = f.deltas[t].data();
    f.x = random_half(f, (size_t)f.n_wide * f.ld_x, 1, 6);
    CUDA(cudaDeviceSynchronize());
    return f;
}

/* ---- references in double -------------------------------------------------------------------- */

__device__ static double merged_weight(const linear_shape &s, const __half *w, const delta *deltas,
                                       int part, int n, int k) {
    size_t before = 0;
    for (int p = 0; p < part; p++)
        before += s.part_rows[p];
    const delta &d = deltas[part];
    if (d.dense)
        return __half2float(((const __half *)d.dense)[(size_t)n * s.n_k + k]);
    double v = __half2float(w[(before + n) * s.n_k + k]);
    for (int p = 0; p < d.n_planes; p++) {
        uint32_t word = d.plane[p].bits[sign_word(n, k, (s.n_k + 255) / 256)];
        double size = (double)d.plane[p].row[n] * (d.plane[p].col ? d.plane[p].col[k] : 1.0f);
        v += word >> (k % 32) & 1 ? size : -size;
    }
    for (int r = 0; r < d.rank; r++)
        v += (double)__half2float(((const __half *)d.b)[(size_t)n * d.rank + r]) *
             (double)__half2float(((const __half *)d.a)[(size_t)r * s.n_k + k]);
    return v;
}

/* Output i of padded order: its part and row; false between parts. */
__host__ __device__ static bool output_at(const linear_shape &s, int i, int *part, int *n) {
    for (*part = 0; i / TILE_ROWS >= s.first_tile[*part + 1];)
        ++*part;
    *n = i - s.first_tile[*part] * TILE_ROWS;
    return *n < s.part_rows[*part];
}

/* Largest error in units of half a place of fp16, over all merged weights. */
__global__ static void check_merge_kernel(linear_shape s, const __half *w, const delta *t,
                                          const __half *got, int ld, int n_out, float *worst) {
    int k = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, part, n;
    if (k >= s.n_k || i >= n_out)
        return;
    double want = output_at(s, i, &part, &n) ? merged_weight(s, w, t + FIRST_PART, part, n, k) : 0;
    double v = __half2float(got[(size_t)i * ld + k]), half_place = fmax(fabs(want) / 2048, 3e-8);
    /* FP32 sums before the rounding: of the pair's products, too */
    double sums = t[FIRST_PART].rank ? 2e-7 : 2e-8;
    float error = (float)(fmax(fabs(v - want) - sums, 0.0) / half_place);
    atomicMax((int *)worst, __float_as_int(v == v ? error : 1e9f));
}

__global__ static void reference_kernel(linear_shape s, const __half *w, const delta *t,
                                        const __half *x, int ld_x, const int *sample, int n_sample,
                                        double *out) {
    int i = blockIdx.x, row = blockIdx.y, part, n;
    double sum = 0;
    if (output_at(s, sample[i], &part, &n))
        for (int k = threadIdx.x; k < s.n_k; k += 32)
            sum += merged_weight(s, w, t + FIRST_PART, part, n, k) *
                   (double)__half2float(x[(size_t)row * ld_x + k]);
    for (int d = 16; d; d >>= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x == 0)
        out[(size_t)row * n_sample + i] = sum;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static prefill_linear linear_of(const fixture &f, const std::vector<prefill_group> &groups) {
    prefill_linear l = {};
    l.shape = f.shape;
    l.base = (const uint4 *)f.packed;
    l.first_part = FIRST_PART;
    l.groups = groups.data();
    l.n_groups = (int)groups.size();
    l.x = f.x, l.ld_x = f.ld_x, l.ld_y = f.ld_y;
    return l;
}

static void check_merge(fixture &f) {
    int tiles = f.shape.first_tile[f.c->n_parts], ld = (f.c->n_k + 7) / 8 * 8, early = tiles / 3;
    __half *out = device_alloc<__half>((size_t)tiles * 16 * ld);
    float *worst = device_alloc<float>(1);
    for (size_t t = 0; t < f.groups.size(); t++) {
        CUDA(cudaMemset(out, 0xff, (size_t)tiles * 16 * ld * 2));
        CUDA(cudaMemset(worst, 0, 4));
        merge_args a = {f.shape, (const uint4 *)f.packed, {}, 0, 0, out, ld};
        std::copy_n(f.deltas[t].begin() + FIRST_PART, f.c->n_parts, a.delta);
        for (int first : {0, early}) { /* in two launches */
            a.first_tile = first, a.n_tiles = first ? tiles - first : early;
            a.out = out + (size_t)first * 16 * ld;
            if (a.n_tiles > 0 && (first || early))
                OK(merge_launch(&a, 2 * multiprocessors(), 0));
        }
        if (!early) {
            a.first_tile = 0, a.n_tiles = tiles, a.out = out;
            OK(merge_launch(&a, 2 * multiprocessors(), 0));
        }
        dim3 grid((unsigned)(f.c->n_k + 127) / 128, (unsigned)f.n_out);
        check_merge_kernel<<<grid, 128>>>(f.shape, f.w, f.d_deltas[t], out, ld, f.n_out, worst);
        float error = host_copy(worst, 1)[0];
        if (!(error <= 1))
            fail(f.c->name, "merged weight, in half places of fp16", error, 1);
    }
    CUDA(cudaFree(out));
    CUDA(cudaFree(worst));
}

/* y of all groups into poisoned memory, guards checked. */
static std::vector<uint16_t> run_half(fixture &f, prefill *p,
                                      const std::vector<prefill_group> &groups, bool early) {
    std::vector<uint16_t> y((size_t)(f.n_wide + 1) * f.ld_y, 0xffff);
    uint16_t *d = device_copy(y);
    prefill_linear l = linear_of(f, groups);
    l.y = (__half *)d;
    if (early)
        OK(prefill_linear_next(p, &l));
    OK(prefill_linear_launch(p, &l, 0));
    CUDA(cudaStreamSynchronize(0));
    y = host_copy(d, y.size());
    CUDA(cudaFree(d));
    std::vector<bool> row_used(f.n_wide + 1);
    for (const prefill_group &g : groups)
        std::fill_n(row_used.begin() + g.first, g.n, true);
    for (size_t i = 0; i < y.size(); i++) {
        bool output = row_used[i / f.ld_y] && i % f.ld_y < (size_t)f.n_out;
        if (output == (y[i] == 0xffff)) {
            fail(f.c->name, output ? "output not written" : "written outside", (double)i, 0);
            break;
        }
    }
    return y;
}

static std::vector<double> reference(fixture &f, const prefill_group &g, const delta *deltas,
                                     const std::vector<int> &sample) {
    int *d_sample = device_copy(sample);
    double *d = device_alloc<double>(sample.size() * g.n);
    reference_kernel<<<dim3((unsigned)sample.size(), (unsigned)g.n), 32>>>(
        f.shape, f.w, deltas, f.x + (size_t)g.first * f.ld_x, f.ld_x, d_sample, (int)sample.size(),
        d);
    std::vector<double> want = host_copy(d, sample.size() * g.n);
    CUDA(cudaFree(d_sample));
    CUDA(cudaFree(d));
    return want;
}

static void check_values(fixture &f, prefill *p, const std::vector<uint16_t> &y) {
    std::vector<int> sample;
    for (int i = 0; i < f.n_out; i += 1 + f.n_out / 127)
        sample.push_back(i);
    if (f.n_out > 1)
        sample.push_back(f.n_out - 1);
    std::vector<float> r((size_t)(f.n_wide + 1) * f.ld_y, 0.5f);
    float *d = device_copy(r);
    prefill_linear l = linear_of(f, f.groups);
    l.residual = d;
    OK(prefill_linear_launch(p, &l, 0));
    CUDA(cudaStreamSynchronize(0));
    r = host_copy(d, r.size());
    CUDA(cudaFree(d));
    for (size_t i = 0; i < r.size(); i++)
        if ((i / f.ld_y >= (size_t)f.n_wide || i % f.ld_y >= (size_t)f.n_out) && r[i] != 0.5f) {
            fail(f.c->name, "written outside the residual", (double)i, 0);
            break;
        }
    double worst = 0, worst_residual = 0;
    for (const prefill_group &g : f.groups) {
        std::vector<double> want = reference(f, g, f.d_deltas[&g - f.groups.data()], sample);
        double error = 0, residual = 0, norm = 0;
        for (int row = 0; row < g.n; row++)
            for (size_t i = 0; i < sample.size(); i++) {
                size_t at = (size_t)(g.first + row) * f.ld_y + sample[i];
                double w = want[row * sample.size() + i], e, e2 = r[at] - 0.5 - w;
                __half h;
                memcpy(&h, &y[at], 2);
                e = __half2float(h) - w;
                error += e * e, residual += e2 * e2, norm += w * w;
                int part, n;
                if (!output_at(f.shape, sample[i], &part, &n) && (e != 0 || e2 != 0))
                    fail(f.c->name, "padding between parts", e, 0);
            }
        worst = std::max(worst, sqrt(error / norm));
        worst_residual = std::max(worst_residual, sqrt(residual / norm));
        if (!(sqrt(error / norm) < 5e-4 && sqrt(residual / norm) < 4e-4))
            fail(f.c->name, "relative error against double", sqrt(error / norm), 5e-4);
    }
    printf("  %-34s rows %4d, relative error %.1e, residual %.1e\n", f.c->name, f.n_wide, worst,
           worst_residual);
}

static void run_case(const wide_case &c) {
    fixture f = make_fixture(c);
    int widest = std::max(c.n_k, f.n_out);
    model_shape shape = {1, widest, 1, 1, widest, widest, 1, 1, 0, 0};
    prefill *p;
    OK(prefill_open(&p, &shape));
    check_merge(f);
    std::vector<uint16_t> y = run_half(f, p, f.groups, false);
    check_values(f, p, y);
    if (run_half(f, p, f.groups, true) != y)
        fail(c.name, "with the merge started early the bits differ", 1, 0);
    for (const prefill_group &g : f.groups) {
        std::vector<uint16_t> alone = run_half(f, p, {g}, false);
        if (memcmp(&alone[(size_t)g.first * f.ld_y], &y[(size_t)g.first * f.ld_y],
                   (size_t)g.n * f.ld_y * 2))
            fail(c.name, "a group alone has other bits", g.first, g.n);
    }
    prefill_close(p);
    for (void *o : f.owned)
        CUDA(cudaFree(o));
}

/* ---- norm, SiLU * up ------------------------------------------------------------------------- */

static void check_norm(int dim, int n_narrow, int n_wide) {
    int rows = n_narrow + n_wide, ld = (dim + 7) / 8 * 8 + 8;
    std::vector<float> h((size_t)rows * ld), w[2];
    for (size_t i = 0; i < h.size(); i++)
        h[i] = 3 * uniform(i, 2);
    std::vector<gpu_tenant> tenants(2);
    for (int t = 0; t < 2; t++) {
        for (int i = 0; i < 3 * dim; i++)
            w[t].push_back(1 + 0.5f * uniform(i, 4 + t));
        tenants[t].norm = device_copy(w[t]);
        tenants[t].norm_eps = t ? 1e-5f : 1e-2f;
    }
    gpu_tenant *d_tenants = device_copy(tenants);
    std::vector<gpu_row> row(rows);
    for (int r = 0; r < rows; r++)
        row[r].tenant = d_tenants + r % 2;
    gpu_step s = {};
    s.row = device_copy(row);
    gpu_activations a = {};
    a.h = device_copy(h), a.ld_h = ld;
    std::vector<uint16_t> x((size_t)(n_wide + 1) * ld, 0xffff);
    a.x16 = (__half *)device_copy(x);
    OK(prefill_norm(&s, &a, 2, dim, n_narrow, n_wide, 0));
    std::vector<__half> got = host_copy(a.x16, x.size());
    for (int r = 0; r <= n_wide; r++) {
        double sum = 0;
        const float *in = &h[(size_t)(n_narrow + (r < n_wide ? r : 0)) * ld];
        int t = (n_narrow + r) % 2;
        for (int i = 0; i < dim; i++)
            sum += (double)in[i] * in[i];
        for (int i = 0; i < ld; i++) {
            double want = in[i < dim ? i : 0] / sqrt(sum / dim + tenants[t].norm_eps);
            want *= w[t][2 * dim + (i < dim ? i : 0)];
            double v = __half2float(got[(size_t)r * ld + i]);
            bool written = r < n_wide && i < dim;
            if (written ? !(fabs(v - want) < 5e-4 * fabs(want) + 1e-6) : v == v) {
                fail("norm", written ? "value" : "written outside", v, want);
                return;
            }
        }
    }
    printf("  norm of %d\n", dim);
}

static void check_swiglu(int ffn, int rows) {
    int up = tiles_of(ffn, 16) * 16, ld = up + (ffn + 7) / 8 * 8 + 8,
        ld_act = (ffn + 7) / 8 * 8 + 8;
    __half *in = device_alloc<__half>((size_t)rows * ld);
    fill_half_kernel<<<64, 256>>>(in, (size_t)rows * ld, 8, 3);
    std::vector<uint16_t> act((size_t)(rows + 1) * ld_act, 0xffff);
    gpu_activations a = {};
    a.gate_up16 = in, a.act16 = (__half *)device_copy(act), a.ld_gate_up = ld, a.ld_act = ld_act;
    OK(prefill_swiglu(&a, ffn, rows, 0));
    std::vector<__half> got = host_copy(a.act16, act.size()), x = host_copy(in, (size_t)rows * ld);
    for (size_t i = 0; i < got.size(); i++) {
        size_t r = i / ld_act, c = i % ld_act;
        double v = __half2float(got[i]), want = NAN;
        if ((int)r < rows && (int)c < ffn) {
            double g = __half2float(x[r * ld + c]);
            want = g / (1 + exp(-g)) * __half2float(x[r * ld + up + c]);
        } else if ((int)r < rows && (int)c < (ffn + 7) / 8 * 8) {
            continue;
        }
        if (want == want ? !(fabs(v - want) < 6e-4 * fabs(want) + 1e-5) : v == v) {
            fail("swiglu", want == want ? "value" : "written outside", v, want);
            return;
        }
    }
    printf("  silu * up of %d\n", ffn);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    OK(linear_setup());
    bool quick = argc > 1 && !strcmp(argv[1], "quick");
    std::vector<wide_case> cases = {
        {"one output, one column", 1, {1}, 1, {{65, 1, 0, false, -1, -1}}},
        {"tails of N and K", 1, {37}, 300, {{65, 1, 0, false, -1, -1}, {71, 0, 0, false, -1, -1}}},
        {"three parts, uneven",
         3,
         {48, 19, 33},
         520,
         {{66, 2, 0, true, 1, -1}, {129, 1, 3, false, 0, -1}, {65, 0, 0, false, -1, -1}}},
        {"five planes, column scales, rank 1",
         1,
         {160},
         768,
         {{100, 5, 1, true, -1, -1}, {65, 8, 0, true, -1, -1}}},
        {"rows of 4098, ranks 17 and 64",
         1,
         {300},
         4098,
         {{67, 1, 17, false, -1, -1}, {80, 0, 64, false, -1, -1}}},
        {"dense parts",
         2,
         {96, 80},
         300,
         {{70, 1, 0, false, -1, 1}, {65, 2, 16, true, 1, 0}, {90, 1, 0, false, -1, -1}}},
        {"dense, aligned", 2, {64, 40}, 512, {{70, 1, 5, false, -1, 0}}},
    };
    std::vector<wide_case> large = {
        {"7B qkv", 3, {4096, 4096, 4096}, 4096, {{2048, 1, 0, false, -1, -1}}},
        {"7B o, 4 tenants",
         1,
         {4096},
         4096,
         {{65, 1, 0, false, -1, -1},
          {300, 2, 64, true, -1, -1},
          {129, 0, 0, false, -1, -1},
          {513, 1, 16, false, -1, -1}}},
        {"7B gate+up",
         2,
         {11008, 11008},
         4096,
         {{257, 1, 0, false, -1, -1}, {700, 1, 0, false, 1, -1}}},
        {"7B down", 1, {4096}, 11008, {{1000, 1, 0, false, -1, -1}, {95, 1, 0, true, -1, -1}}},
    };
    for (auto &c : cases)
        run_case(c);
    for (size_t i = 0; i < large.size() && !quick; i++)
        run_case(large[i]);
    for (int dim : {300, 302, 4096, 8192})
        check_norm(dim, 3, 70);
    for (int ffn : {37, 11008})
        check_swiglu(ffn, 66);
    CUDA(cudaDeviceSynchronize());
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
