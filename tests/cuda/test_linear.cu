/* The fused decode linear on the card. Each case checks, in this order:
 *   the bit planes and scales equal the integers of kernels/delta.h, computed here on the host;
 *   with a zero base the FP32 output equals the host's chain of additions bit for bit;
 *   with a base it is near the double reference, in fp16 and added to a residual;
 *   nothing outside the outputs is written, every output is, and a second run gives the same bits;
 *   each row alone, and all rows in another order, give the same bits.
 * Without a device it prints why and succeeds. `test_linear quick` runs the small cases only (for
 * the sanitizers). */
#include <algorithm>
#include <numeric>

#include "tests/cuda/setup.cuh"

struct tenant_case {
    int n_rows, n_planes;
    bool col;    /* column scales on the last plane */
    int without; /* a part it does not change, or -1 */
};
struct linear_case {
    const char *name;
    int n_parts, part_rows[3], n_k;
    std::vector<tenant_case> tenants; /* n_planes 0: rows of the base alone */
    float outlier;
};

/* A tenant's planes as made on the host. */
struct plane_data {
    std::vector<uint32_t> bits[3];
    std::vector<float> row[3], col;
    uint32_t *d_bits[3];
    float *d_row[3], *d_col;
};
struct row_data { /* a row of the case, wherever it stands in a step */
    int tenant;
    std::vector<float> x;
};

static int failures;
static void fail(const char *name, const char *what, double got, double want) {
    printf("FAIL %s: %s: %.9g, should be %.9g\n", name, what, got, want);
    failures++;
}

struct fixture {
    const linear_case *c;
    struct linear_shape shape;
    int n_blocks, n_out, ld_y;
    std::vector<std::vector<plane_data>> planes; /* [tenant][plane] */
    std::vector<row_data> rows;
    __half *zero_base, *base;
};

static uint32_t seed_of(const fixture &f, int tenant, int plane, int part) {
    return (uint32_t)(1000 + f.c->n_k + tenant * 64 + plane * 4 + part);
}

static plane_data make_plane(const fixture &f, int tenant, int plane, bool col, int without) {
    plane_data d = {};
    for (int p = 0; p < f.c->n_parts; p++) {
        if (p == without)
            continue;
        int n = f.c->part_rows[p], k = f.c->n_k;
        uint32_t seed = seed_of(f, tenant, plane, p);
        d.bits[p].assign(plane_bytes(n, k) / 4, 0);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < k; j += 32) {
                uint32_t word = hash32((uint64_t)i * 4096 + j / 32, seed);
                if (k - j < 32)
                    word &= (1u << (k - j)) - 1;
                d.bits[p][plane_word(i, j, k)] = word;
            }
        for (int i = 0; i < n; i++)
            d.row[p].push_back(0.01f + 0.005f * uniform(i, seed + 1));
        d.d_bits[p] = device_copy(d.bits[p]);
        d.d_row[p] = device_copy(d.row[p]);
    }
    if (col) {
        for (int j = 0; j < f.c->n_k; j++)
            d.col.push_back(1 + 0.5f * uniform(j, seed_of(f, tenant, plane, 3)));
        d.d_col = device_copy(d.col);
    }
    return d;
}

static fixture make_fixture(const linear_case &c) {
    fixture f = {};
    f.c = &c;
    f.shape = linear_shape_of(c.n_parts, c.part_rows, c.n_k);
    f.n_blocks = tiles_of(c.n_k, TILE_COLS);
    for (int p = 0; p < c.n_parts; p++)
        f.n_out += c.part_rows[p];
    f.ld_y = f.n_out + 5;
    for (size_t t = 0; t < c.tenants.size(); t++) {
        f.planes.emplace_back();
        const tenant_case &tc = c.tenants[t];
        for (int p = 0; p < tc.n_planes; p++)
            f.planes[t].push_back(
                make_plane(f, (int)t, p, tc.col && p + 1 == tc.n_planes, tc.without));
        for (int i = 0; i < tc.n_rows; i++) {
            row_data r = {(int)t, {}};
            uint32_t seed = (uint32_t)(77 + f.rows.size());
            for (int k = 0; k < c.n_k; k++) {
                float v = uniform(k, seed) + 0.5f * uniform(k, seed + 500);
                r.x.push_back(hash32(k, seed + 900) % 97 == 0 ? v * c.outlier : v);
            }
            f.rows.push_back(r);
        }
    }
    std::vector<__half> w((size_t)f.n_out * c.n_k);
    for (size_t i = 0; i < w.size(); i++)
        w[i] = __float2half_rn(0.05f * uniform(i, 5));
    __half *d_w = device_copy(w);
    size_t bytes = linear_packed_bytes(&f.shape);
    f.base = device_alloc<__half>(bytes / 2);
    f.zero_base = device_alloc<__half>(bytes / 2);
    CUDA(cudaMemset(f.base, 0xff, bytes));
    CUDA(cudaMemset(f.zero_base, 0, bytes));
    OK(linear_pack(&f.shape, d_w, f.base, 0));
    std::vector<__half> packed = host_copy(f.base, bytes / 2);
    for (int n = 0; n < f.n_out; n += 1 + f.n_out / 37)
        for (int k = 0; k < c.n_k; k++) {
            int i = n, p = 0;
            while (i >= c.part_rows[p])
                i -= c.part_rows[p++];
            size_t at = packed_at(f.shape.first_tile[p] + i / 16, i % 16, k, f.n_blocks);
            if (__half2float(packed[at]) != __half2float(w[(size_t)n * c.n_k + k])) {
                fail(c.name, "packed base", __half2float(packed[at]),
                     __half2float(w[(size_t)n * c.n_k + k]));
                return f;
            }
        }
    CUDA(cudaFree(d_w));
    return f;
}

/* ---- a step: some of the rows in some order -------------------------------------------------- */

struct rows_step {
    std::vector<int> order; /* rows of the fixture; rows of a tenant stand together */
    struct linear_args args;
    std::vector<struct planes_set> extra;
    int n_sets;
    size_t y_elements;
    std::vector<void *> owned;
};
template <typename T> static T *own(rows_step &s, T *p) {
    s.owned.push_back((void *)p);
    return p;
}

/* Jobs [phases][jobs]: plane p of every tenant in phase p. */
static void add_jobs(const fixture &f, rows_step &s, std::vector<linear_job> &jobs,
                     linear_batch &batch) {
    int n_rows = (int)s.order.size();
    for (int r : s.order)
        batch.n_phases = std::max(batch.n_phases, (int)f.planes[f.rows[r].tenant].size());
    for (int p = 0; p < batch.n_phases; p++) {
        for (int r = 0, n = 1; r < n_rows; r += n, n = 1) {
            int tenant = f.rows[s.order[r]].tenant;
            while (r + n < n_rows && n < linear_job_rows(n_rows) &&
                   f.rows[s.order[r + n]].tenant == tenant)
                n++;
            if (f.planes[tenant].empty())
                continue;
            linear_job j = {};
            j.first_row = j.first_set = r, j.n_rows = n;
            if (p < (int)f.planes[tenant].size()) {
                const plane_data &d = f.planes[tenant][p];
                for (int i = 0; i < f.c->n_parts; i++)
                    j.bits[i] = d.d_bits[i], j.row[i] = d.d_row[i];
                if (d.d_col) {
                    j.first_set = n_rows + (int)s.extra.size();
                    for (int i = 0; i < n; i++)
                        s.extra.push_back({r + i, 0, d.d_col});
                }
            }
            jobs.push_back(j);
            memset(batch.has_delta + r, 1, (size_t)n);
        }
        if (p == 0)
            batch.n_jobs = (int)jobs.size();
    }
}

static rows_step make_step(const fixture &f, const std::vector<int> &order) {
    rows_step s = {};
    s.order = order;
    int n = (int)order.size(), k = f.c->n_k;
    std::vector<linear_job> jobs;
    linear_batch batch = {};
    batch.n_rows = n;
    add_jobs(f, s, jobs, batch);
    s.n_sets = n + (int)s.extra.size();
    std::vector<float> x;
    for (int r : order)
        x.insert(x.end(), f.rows[r].x.begin(), f.rows[r].x.end());
    std::vector<int32_t> counts = {n, s.n_sets};
    int32_t *d_counts = own(s, device_copy(counts));
    size_t sets = (size_t)s.n_sets * f.n_blocks;
    struct planes_args p = {};
    p.x = own(s, device_copy(x));
    p.ld_x = k, p.n_k = k, p.n_rows = d_counts, p.n_sets = d_counts + 1;
    p.extra = own(s, device_copy(s.extra));
    p.x16 = own(s, device_alloc<__half>((size_t)n * f.n_blocks * 256));
    p.planes = own(s, device_alloc<linear_planes>(sets));
    OK(planes_launch(&p, n, s.n_sets, 0));
    s.args.shape = f.shape;
    s.args.in = {p.x16, p.planes};
    s.args.base = (const uint4 *)f.base;
    s.args.batch = own(s, device_copy(std::vector<linear_batch>{batch}));
    s.args.jobs = own(s, device_copy(jobs));
    s.args.ld_y = f.ld_y;
    s.args.n_thread_blocks = multiprocessors();
    s.y_elements = (size_t)(n + 1) * f.ld_y;
    CUDA(cudaDeviceSynchronize());
    return s;
}
static void free_step(rows_step &s) {
    for (void *p : s.owned)
        CUDA(cudaFree(p));
}

/* Runs into poisoned memory; checks that only the outputs were written. */
static std::vector<float> run_float(const fixture &f, rows_step &s, const __half *base,
                                    int max_rows) {
    std::vector<float> y(s.y_elements, -77.25f);
    for (size_t r = 0; r < s.order.size(); r++)
        std::fill_n(y.begin() + r * f.ld_y, f.n_out, 0.0f);
    float *d = device_copy(y);
    s.args.base = (const uint4 *)base, s.args.residual = d, s.args.y = NULL;
    OK(linear_launch(&s.args, max_rows, 0));
    y = host_copy(d, s.y_elements);
    CUDA(cudaFree(d));
    for (size_t i = 0; i < y.size(); i++)
        if ((i / f.ld_y >= s.order.size() || i % f.ld_y >= (size_t)f.n_out) && y[i] != -77.25f) {
            fail(f.c->name, "written outside the residual", (double)i, 0);
            break;
        }
    return y;
}
static std::vector<uint16_t> run_half(const fixture &f, rows_step &s, int max_rows) {
    std::vector<uint16_t> y(s.y_elements, 0xffff);
    uint16_t *d = device_copy(y);
    s.args.base = (const uint4 *)f.base, s.args.y = (__half *)d;
    OK(linear_launch(&s.args, max_rows, 0));
    y = host_copy(d, s.y_elements);
    CUDA(cudaFree(d));
    for (size_t i = 0; i < y.size(); i++) {
        bool output = i / f.ld_y < s.order.size() && i % f.ld_y < (size_t)f.n_out;
        if (output == (y[i] == 0xffff)) {
            fail(f.c->name, output ? "output not written" : "written outside", (double)i, 0);
            break;
        }
    }
    return y;
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* The definition in kernels/delta.h, in the plainest words. */
static float host_block(const float *v, int n, int *q) {
    float m = 0;
    for (int i = 0; i < n; i++)
        m = fmaxf(m, fabsf(v[i]));
    int e = m > 0 ? std::max(ilogbf(m) - 14, -100) : -100;
    for (int i = 0; i < 256; i++)
        q[i] = i < n ? std::min(std::max((int)rint(ldexp(v[i], -e)), -32767), 32767) : 0;
    return ldexpf(1, e);
}

static bool check_planes(const fixture &f, const rows_step &s) {
    size_t sets = (size_t)s.n_sets * f.n_blocks;
    std::vector<linear_planes> planes = host_copy(s.args.in.planes, sets);
    int n_rows = (int)s.order.size();
    for (int i = 0; i < s.n_sets; i++) {
        int row = i < n_rows ? i : s.extra[i - n_rows].row;
        std::vector<float> v = f.rows[s.order[row]].x;
        if (i >= n_rows) {
            std::vector<float> col = host_copy(s.extra[i - n_rows].col, v.size());
            for (size_t k = 0; k < v.size(); k++)
                v[k] *= col[k];
        }
        for (int b = 0; b < f.n_blocks; b++) {
            int q[256], sum = 0;
            float e = host_block(v.data() + b * 256, std::min(256, f.c->n_k - b * 256), q);
            for (int k = 0; k < 256; k++) {
                int got = plane_value(planes.data(), i, f.n_blocks, b * 256 + k);
                sum += q[k];
                if (got != q[k]) {
                    fail(f.c->name, "integer of the planes", got, q[k]);
                    return false;
                }
            }
            const linear_planes &got = planes[(size_t)i * f.n_blocks + b];
            if (got.scale != e || got.sum != (float)sum) {
                fail(f.c->name, "scale and sum of a block", got.scale, e);
                return false;
            }
        }
    }
    return true;
}

/* Bit for bit: the deltas of row r alone, as the CPU would add them. */
static float host_delta(const fixture &f, int r, int n) {
    int part = 0;
    while (n >= f.c->part_rows[part])
        n -= f.c->part_rows[part++];
    const row_data &row = f.rows[r];
    float y = 0;
    for (size_t p = 0; p < f.planes[row.tenant].size(); p++) {
        const plane_data &d = f.planes[row.tenant][p];
        if (d.bits[part].empty())
            continue;
        float acc = 0;
        for (int b = 0; b < f.n_blocks; b++) {
            float v[256];
            int q[256], count = std::min(256, f.c->n_k - b * 256), sum = 0;
            for (int k = 0; k < count; k++)
                v[k] = row.x[b * 256 + k] * (d.col.empty() ? 1.0f : d.col[b * 256 + k]);
            float s = host_block(v, count, q);
            for (int k = 0; k < count; k++) {
                uint32_t word = d.bits[part][plane_word(n, b * 256 + k, f.c->n_k)];
                sum += word >> (k % 32) & 1 ? q[k] : -q[k];
            }
            acc += s * (float)sum;
        }
        y = p ? fmaf(d.row[part][n], acc, y) : d.row[part][n] * acc;
    }
    return y;
}

static void check_values(const fixture &f, rows_step &s, int max_rows) {
    int n_rows = (int)s.order.size(), skip = 1 + f.n_out / 61;
    std::vector<float> delta = run_float(f, s, f.zero_base, max_rows);
    for (int r = 0; r < n_rows; r++)
        for (int n = r % skip; n < f.n_out; n += skip) {
            float want = host_delta(f, s.order[r], n), got = delta[(size_t)r * f.ld_y + n];
            if (memcmp(&want, &got, 4) && !(want == 0 && got == 0)) {
                fail(f.c->name, "delta, bit for bit", got, want);
                return;
            }
        }
    std::vector<int> sample(f.n_out);
    std::iota(sample.begin(), sample.end(), 0);
    int *d_sample = own(s, device_copy(sample));
    double *d_want = own(s, device_alloc<double>((size_t)n_rows * f.n_out));
    std::vector<uint16_t> half = run_half(f, s, max_rows), again = run_half(f, s, max_rows);
    std::vector<float> y = run_float(f, s, f.base, max_rows);
    reference_kernel<<<dim3((unsigned)(f.n_out + 127) / 128, (unsigned)n_rows), 128>>>(
        s.args, d_sample, f.n_out, d_want);
    std::vector<double> want = host_copy(d_want, (size_t)n_rows * f.n_out);
    if (half != again)
        fail(f.c->name, "a second run's bits differ", 1, 0);
    double error = 0, norm = 0;
    for (int r = 0; r < n_rows; r++)
        for (int n = 0; n < f.n_out; n++) {
            double w = want[(size_t)r * f.n_out + n], g = y[(size_t)r * f.ld_y + n];
            error += (g - w) * (g - w), norm += w * w;
            __half h;
            memcpy(&h, &half[(size_t)r * f.ld_y + n], 2);
            __half from_float = __float2half_rn((float)g);
            if (memcmp(&h, &from_float, 2)) {
                fail(f.c->name, "fp16 output is not the rounded fp32 one", __half2float(h), g);
                return;
            }
        }
    /* FP32 sums of fp16 products over K <= 11008 terms: about sqrt(K) 2^-24. */
    double relative = sqrt(error / norm);
    if (!(relative < 3e-6))
        fail(f.c->name, "relative error against double", relative, 3e-6);
    printf("  %-34s rows %2d, relative error %.1e\n", f.c->name, n_rows, relative);
}

/* The same row has the same bits in any company. */
static void check_company(const fixture &f, const std::vector<uint16_t> &all, const rows_step &s,
                          const std::vector<int> &order, int max_rows, const char *what) {
    rows_step other = make_step(f, order);
    std::vector<uint16_t> y = run_half(f, other, max_rows);
    for (size_t i = 0; i < order.size(); i++) {
        size_t at = (size_t)(std::find(s.order.begin(), s.order.end(), order[i]) - s.order.begin());
        if (memcmp(&y[i * f.ld_y], &all[at * f.ld_y], (size_t)f.n_out * 2)) {
            fail(f.c->name, what, (double)i, (double)at);
            break;
        }
    }
    free_step(other);
}

static void run_case(const linear_case &c) {
    fixture f = make_fixture(c);
    std::vector<int> order(f.rows.size());
    std::iota(order.begin(), order.end(), 0);
    rows_step s = make_step(f, order);
    int n = (int)order.size();
    if (check_planes(f, s)) {
        check_values(f, s, n);
        std::vector<uint16_t> all = run_half(f, s, n);
        if (n < LINEAR_MAX_ROWS) {
            rows_step wide = make_step(f, order);
            if (run_half(f, wide, LINEAR_MAX_ROWS) != all)
                fail(c.name, "the widest launch gives other bits", 1, 0);
            free_step(wide);
        }
        for (int r = 0; r < n; r += 1 + n / 9)
            check_company(f, all, s, {r}, 1, "a row alone has other bits");
        std::vector<int> reversed(order.rbegin(), order.rend()), odd;
        check_company(f, all, s, reversed, n, "rows in reverse have other bits");
        for (int r = 1; r < n; r += 2)
            odd.push_back(r);
        if (!odd.empty())
            check_company(f, all, s, odd, (int)odd.size(), "every other row has other bits");
    }
    free_step(s);
    CUDA(cudaFree(f.base));
    CUDA(cudaFree(f.zero_base));
    for (auto &t : f.planes)
        for (auto &d : t) {
            for (int p = 0; p < 3; p++) {
                CUDA(cudaFree(d.d_bits[p]));
                CUDA(cudaFree(d.d_row[p]));
            }
            CUDA(cudaFree(d.d_col));
        }
}

static std::vector<tenant_case> tenants(int n, int rows, int planes) {
    return std::vector<tenant_case>(n, {rows, planes, false, -1});
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    OK(linear_setup());
    bool quick = argc > 1 && !strcmp(argv[1], "quick");
    std::vector<linear_case> cases = {
        {"one output, one column", 1, {1}, 1, tenants(1, 1, 1), 1},
        {"tails of N and K", 1, {37}, 300, {{1, 1, false, -1}, {2, 0, false, -1}}, 1},
        {"three parts, uneven", 3, {48, 19, 33}, 520, {{2, 2, true, 1}, {1, 1, false, 0}}, 50},
        {"the base alone", 2, {64, 64}, 256, {{3, 0, false, -1}}, 1},
        {"five planes, column scales", 1, {160}, 768, {{3, 5, true, -1}, {2, 1, true, -1}}, 300},
        {"16 tenants", 3, {256, 64, 64}, 768, tenants(16, 1, 1), 10},
        {"one tenant, 64 rows", 2, {192, 192}, 1024, tenants(1, 64, 1), 10},
    };
    std::vector<linear_case> large = {
        {"mixed rows, all kinds",
         3,
         {512, 128, 128},
         1280,
         {{5, 1, false, -1},
          {7, 0, false, -1},
          {1, 3, true, -1},
          {19, 1, false, 2},
          {2, 2, true, 0}},
         1000},
        {"7B down, 1 row", 1, {4096}, 11008, tenants(1, 1, 1), 100},
        {"7B qkv, 5 tenants", 3, {4096, 4096, 4096}, 4096, tenants(5, 1, 1), 100},
        {"7B o, 16 tenants", 1, {4096}, 4096, tenants(16, 1, 1), 100},
        {"7B gate+up, 23 rows",
         2,
         {11008, 11008},
         4096,
         {{20, 1, false, -1}, {3, 2, false, -1}},
         9},
        {"7B down, 64 tenants", 1, {4096}, 11008, tenants(64, 1, 1), 100},
    };
    for (auto &c : cases)
        run_case(c);
    for (size_t i = 0; i < large.size() && !quick; i++)
        run_case(large[i]);
    CUDA(cudaDeviceSynchronize());
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
