/* Wide rows on the card. Each case checks, in this order:
 *   weights merged in memory are the nearest fp16 numbers to W + delta in double precision;
 *   the wide linear is near the double reference, as fp16 and added to a residual, for every group;
 *   padding between parts is zeros, nothing outside the outputs is written, every output is;
 *   a group's rows have the same bits alone, and without the rows before them;
 * then all but the first again with the product for other devices.
 * Then norm and SiLU * up against double precision. Without a device it prints why and succeeds.
 * `test_prefill quick` runs the small cases only (for the sanitizers). */
#include <algorithm>

#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/wide.cuh"
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
                                          const __half *got, int n_out, float *worst) {
    int k = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, part, n;
    if (k >= s.n_k || i >= n_out)
        return;
    double want = output_at(s, i, &part, &n) ? merged_weight(s, w, t + FIRST_PART, part, n, k) : 0;
    double v = __half2float(got[packed_at(i / 16, i % 16, k, (s.n_k + 255) / 256)]),
           half_place = fmax(fabs(want) / 2048, 3e-8);
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
    l.ld_y = f.ld_y;
    return l;
}

static void check_merge(fixture &f) {
    int tiles = f.shape.first_tile[f.c->n_parts], early = tiles / 3;
    size_t bytes = linear_packed_bytes(&f.shape);
    __half *out = device_alloc<__half>(bytes / 2);
    float *worst = device_alloc<float>(1);
    for (size_t t = 0; t < f.groups.size(); t++) {
        CUDA(cudaMemset(out, 0xff, bytes));
        CUDA(cudaMemset(worst, 0, 4));
        merge_args a = {f.shape, (const uint4 *)f.packed, {}, 0, 0, NULL};
        std::copy_n(f.deltas[t].begin() + FIRST_PART, f.c->n_parts, a.delta);
        for (int first = 0; first < tiles; first += a.n_tiles) { /* in two launches */
            a.first_tile = first, a.n_tiles = first || !early ? tiles - first : early;
            a.out = (uint4 *)out + first * (bytes / 16 / tiles);
            OK(merge_launch(&a, 2 * multiprocessors(), 0));
        }
        dim3 grid((unsigned)(f.c->n_k + 127) / 128, (unsigned)f.n_out);
        check_merge_kernel<<<grid, 128>>>(f.shape, f.w, f.d_deltas[t], out, f.n_out, worst);
        float error = host_copy(worst, 1)[0];
        if (!(error <= 1))
            fail(f.c->name, "merged weight, in half places of fp16", error, 1);
    }
    CUDA(cudaFree(out));
    CUDA(cudaFree(worst));
}

/* y of all groups into poisoned memory, guards checked. */
static std::vector<uint16_t> run_half(fixture &f, prefill *p,
                                      const std::vector<prefill_group> &groups) {
    std::vector<uint16_t> y((size_t)(f.n_wide + 1) * f.ld_y, 0xffff);
    uint16_t *d = device_copy(y);
    prefill_linear l = linear_of(f, groups);
    l.y = (__half *)d;
    OK(prefill_take(p, f.x, f.ld_x, f.c->n_k, f.n_wide, 0));
    OK(prefill_linear_launch(p, &l, 0));
    CUDA(cudaStreamSynchronize(0));
    y = host_copy(d, y.size());
    CUDA(cudaFree(d));
    std::vector<bool> row_used(f.n_wide + 1);
    for (const prefill_group &g : groups)
        std::fill_n(row_used.begin() + g.first, g.n, true);
    for (size_t i = 0; i < y.size(); i++) {
        bool output = row_used[i / f.ld_y] && i % f.ld_y < (size_t)(f.n_out + 7) / 8 * 8;
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
    OK(prefill_take(p, f.x, f.ld_x, f.c->n_k, f.n_wide, 0));
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

static void run_case(const wide_case &c, bool plain) {
    fixture f = make_fixture(c);
    int widest = std::max(c.n_k, f.n_out);
    model_shape shape = {1, widest, 1, 1, widest, widest, 1, 1, 0, 0};
    prefill *p;
    OK(prefill_open(&p, &shape, f.n_wide));
    if (plain)
        OK(prefill_use_plain(p));
    else
        check_merge(f);
    std::vector<uint16_t> y = run_half(f, p, f.groups);
    check_values(f, p, y);
    if (run_half(f, p, f.groups) != y)
        fail(c.name, "a second run's bits differ", 1, 0);
    for (const prefill_group &g : f.groups) {
        for (int without : {0, 5}) {
            std::vector<uint16_t> alone =
                run_half(f, p, {{g.delta, g.first + without, g.n - without}});
            size_t at = (size_t)(g.first + without) * f.ld_y;
            if (memcmp(&alone[at], &y[at], (size_t)(g.n - without) * f.ld_y * 2))
                fail(c.name, "some rows of a group alone have other bits", g.first, without);
        }
    }
    prefill_close(p);
    for (void *o : f.owned)
        CUDA(cudaFree(o));
}

/* ---- norm, SiLU * up ------------------------------------------------------------------------- */

struct input {
    prefill *p;
    int rows, n_k;
};
static input make_input(int rows, int n_k) {
    input in = {NULL, rows, n_k};
    model_shape shape = {1, n_k, 1, 1, n_k, n_k, 1, 1, 0, 0};
    int max_rows;
    OK(prefill_open(&in.p, &shape, rows));
    char *at = prefill_input(in.p, &max_rows);
    CUDA(cudaMemset(at, 0xff, (size_t)max_rows * n_k * 2));
    return in;
}
/* want(row, k) for all columns; zeros after them. */
template <typename F> static void check_input(input &in, const char *name, F want) {
    int max_rows, padded = tiles_of(in.n_k, 256) * 256;
    const char *d = prefill_input(in.p, &max_rows);
    std::vector<char> got = host_copy(d, (size_t)padded * max_rows * 2);
    for (int r = 0; r < in.rows; r++)
        for (int k = 0; k < padded; k++) {
            int t = k % 32 / 8, q = k % 8 / 2;
            __half h;
            memcpy(&h, &got[wide_place(max_rows, r, k / 32, q) + (size_t)(t * 4 + k % 2 * 2)], 2);
            double v = __half2float(h), w = k < in.n_k ? want(r, k) : 0;
            if (k < in.n_k ? !(fabs(v - w) < 6e-4 * fabs(w) + 1e-5) : v != 0) {
                fail(name, k < in.n_k ? "value" : "padding", v, w);
                return;
            }
        }
    printf("  %s of %d\n", name, in.n_k);
    prefill_close(in.p);
}

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
    input in = make_input(n_wide, dim);
    OK(prefill_norm(in.p, &s, &a, 2, dim, n_narrow, n_wide, 0));
    std::vector<double> scale;
    for (int r = 0; r < n_wide; r++) {
        double sum = 0;
        for (int i = 0; i < dim; i++)
            sum += pow(h[(size_t)(n_narrow + r) * ld + i], 2);
        scale.push_back(1 / sqrt(sum / dim + tenants[(n_narrow + r) % 2].norm_eps));
    }
    check_input(in, "norm", [&](int r, int k) {
        return h[(size_t)(n_narrow + r) * ld + k] * scale[r] * w[(n_narrow + r) % 2][2 * dim + k];
    });
}

static void check_swiglu(int ffn, int rows) {
    int up = tiles_of(ffn, 16) * 16, ld = up + (ffn + 7) / 8 * 8 + 8;
    __half *gate_up = device_alloc<__half>((size_t)rows * ld);
    fill_half_kernel<<<64, 256>>>(gate_up, (size_t)rows * ld, 8, 3);
    gpu_activations a = {};
    a.gate_up16 = gate_up, a.ld_gate_up = ld;
    input in = make_input(rows, ffn);
    OK(prefill_swiglu(in.p, &a, ffn, rows, 0));
    std::vector<__half> x = host_copy(gate_up, (size_t)rows * ld);
    check_input(in, "silu * up", [&](int r, int k) {
        double g = __half2float(x[(size_t)r * ld + k]);
        return g / (1 + exp(-g)) * __half2float(x[(size_t)r * ld + up + k]);
    });
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
    for (bool plain : {false, true}) {
        printf("%s\n", plain ? "the product for other devices:" : "the product for this device:");
        for (auto &c : cases)
            run_case(c, plain);
        for (size_t i = 0; i < large.size() && !quick; i++)
            run_case(large[i], plain);
    }
    for (int dim : {300, 302, 4096, 8192})
        check_norm(dim, 3, 70);
    for (int ffn : {37, 11008})
        check_swiglu(ffn, 66);
    CUDA(cudaDeviceSynchronize());
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
