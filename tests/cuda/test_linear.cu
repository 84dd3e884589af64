/* The fused decode linear on the card. Each case checks, in this order:
 *   the bit planes and scales equal the integers of kernels/delta.h, computed here on the host;
 *   with a zero base the FP32 output equals the host's chain of additions bit for bit;
 *   with a base it is near the double reference; added to what stands there, it is that sum;
 *   the kernel for other devices gives the same bits;
 *   a dense part has the bits that the same matrix has as a base;
 *   nothing outside the outputs is written, every output is, and a second run gives the same bits;
 *   each row alone, all rows in another order, and a small grid give the same bits.
 * Without a device it prints why and succeeds. `test_linear quick [NAMEPART]` runs the small cases
 * only, or some of them (for the sanitizers). */
#include <algorithm>
#include <numeric>

#include "tests/cuda/setup.cuh"

struct tenant_case {
    int n_rows, n_planes;
    bool col;      /* column scales on the last plane, each part its own */
    int without;   /* a part it does not change, or -1 */
    int rank = 0;  /* of the pair of part 0; the others' grow by one, and `without` has none */
    int dense = 0; /* parts (bits) that it gives as dense matrices */
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
    std::vector<float> row[3], col[3];
    uint32_t *d_bits[3];
    float *d_row[3], *d_col[3];
};
/* Its pair and its dense matrices. */
struct tenant_data {
    std::vector<plane_data> planes;
    int rank[3];
    std::vector<__half> b[3];
    __half *d_b[3], *d_dense[3];
};
struct row_data { /* a row of the case, wherever it stands in a step */
    int tenant;
    std::vector<float> x, u;
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
    std::vector<tenant_data> tenants;
    std::vector<row_data> rows;
    int ld_u; /* a pair's u of part p starts at p * ld_u / 3 */
    __half *zero_base, *base;
};
static int dense_of(const fixture &f, int tenant) {
    return f.c->tenants[tenant].dense & ((1 << f.c->n_parts) - 1);
}

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
    for (int p = 0; p < f.c->n_parts && col; p++) {
        if (p == without)
            continue;
        for (int j = 0; j < f.c->n_k; j++)
            d.col[p].push_back(1 + 0.5f * uniform(j, seed_of(f, tenant, plane, p) + 2));
        d.d_col[p] = device_copy(d.col[p]);
    }
    return d;
}

static std::vector<__half> random_halves(size_t n, float scale, uint32_t seed) {
    std::vector<__half> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = __float2half_rn(scale * uniform(i, seed));
    return v;
}

static tenant_data make_tenant(const fixture &f, int tenant) {
    const tenant_case &c = f.c->tenants[tenant];
    tenant_data d = {};
    int dense = dense_of(f, tenant);
    for (int p = 0; p < c.n_planes; p++)
        d.planes.push_back(make_plane(f, tenant, p, c.col && p + 1 == c.n_planes, c.without));
    for (int p = 0; p < f.c->n_parts; p++) {
        size_t n = (size_t)f.c->part_rows[p];
        uint32_t seed = seed_of(f, tenant, 50, p);
        if (c.rank && p != c.without && !(dense >> p & 1)) {
            d.rank[p] = c.rank + p;
            d.b[p] = random_halves(n * d.rank[p], 0.1f, seed);
            d.d_b[p] = device_copy(d.b[p]);
        }
        if (dense >> p & 1)
            d.d_dense[p] = device_copy(random_halves(n * f.c->n_k, 0.06f, seed));
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
    for (const tenant_case &t : c.tenants)
        f.ld_u = std::max(f.ld_u, 3 * ((t.rank + 5) / 4 * 4));
    for (size_t t = 0; t < c.tenants.size(); t++) {
        f.tenants.push_back(make_tenant(f, (int)t));
        const tenant_case &tc = c.tenants[t];
        for (int i = 0; i < tc.n_rows; i++) {
            row_data r = {(int)t, {}, {}};
            uint32_t seed = (uint32_t)(77 + f.rows.size());
            for (int k = 0; k < c.n_k; k++) {
                float v = uniform(k, seed) + 0.5f * uniform(k, seed + 500);
                r.x.push_back(hash32(k, seed + 900) % 97 == 0 ? v * c.outlier : v);
            }
            for (int j = 0; j < f.ld_u; j++)
                r.u.push_back(uniform(j, seed + 300));
            f.rows.push_back(r);
        }
    }
    std::vector<__half> w = random_halves((size_t)f.n_out * c.n_k, 0.05f, 5);
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
    int n_sets, n_dense;
    size_t y_elements;
    std::vector<void *> owned;
};
template <typename T> static T *own(rows_step &s, T *p) {
    s.owned.push_back((void *)p);
    return p;
}

/* One job: plane `phase` of its tenant, if it has one; in phase 0 the pair stands beside it. */
static linear_job make_job(const fixture &f, rows_step &s, int phase, int first, int n) {
    const tenant_data &t = f.tenants[f.rows[s.order[first]].tenant];
    int n_rows = (int)s.order.size(), dense = dense_of(f, f.rows[s.order[first]].tenant);
    linear_job j = {};
    j.first_row = (int16_t)first, j.n_rows = (int16_t)n;
    for (int i = 0; i < f.c->n_parts && phase < (int)t.planes.size(); i++) {
        const plane_data &d = t.planes[phase];
        if (dense >> i & 1)
            continue;
        j.bits[i] = d.d_bits[i], j.row[i] = d.d_row[i], j.first_set[i] = first;
        if (d.d_col[i]) {
            j.first_set[i] = n_rows + (int)s.extra.size();
            for (int r = 0; r < n; r++)
                s.extra.push_back({first + r, 0, d.d_col[i]});
        }
    }
    return j;
}

struct tables {
    std::vector<linear_job> jobs;
    std::vector<linear_pair> pairs;
    std::vector<linear_dense> dense;
    linear_batch batch;
};

/* Jobs [phases][jobs]: plane p of every tenant in phase p. */
static void add_jobs(const fixture &f, rows_step &s, tables &t) {
    int n_rows = (int)s.order.size();
    t.batch.n_rows = n_rows;
    for (int r : s.order) {
        const tenant_data &d = f.tenants[f.rows[r].tenant];
        bool pair = d.d_b[0] || d.d_b[1] || d.d_b[2];
        t.batch.n_phases = std::max({t.batch.n_phases, (int)d.planes.size(), (int)pair});
    }
    for (int p = 0; p < t.batch.n_phases; p++) {
        for (int r = 0, n = 1; r < n_rows; r += n, n = 1) {
            int tenant = f.rows[s.order[r]].tenant;
            while (r + n < n_rows && n < linear_job_rows(n_rows) &&
                   f.rows[s.order[r + n]].tenant == tenant)
                n++;
            const tenant_data &d = f.tenants[tenant];
            if (d.planes.empty() && !f.c->tenants[tenant].rank)
                continue;
            t.jobs.push_back(make_job(f, s, p, r, n));
            if (p)
                continue;
            linear_pair pair = {};
            for (int i = 0; i < f.c->n_parts; i++)
                pair.b[i] = d.d_b[i], pair.rank[i] = d.rank[i], pair.first_u[i] = i * f.ld_u / 3;
            t.pairs.push_back(pair);
            memset(t.batch.has_delta + r, 1, (size_t)n);
        }
        if (p == 0)
            t.batch.n_jobs = (int)t.jobs.size();
    }
}
/* One entry for each tenant's rows, however many. */
static void add_dense(const fixture &f, const rows_step &s, tables &t) {
    int n_rows = (int)s.order.size();
    for (int r = 0, n = 1; r < n_rows; r += n, n = 1) {
        int tenant = f.rows[s.order[r]].tenant;
        while (r + n < n_rows && f.rows[s.order[r + n]].tenant == tenant)
            n++;
        if (!dense_of(f, tenant))
            continue;
        linear_dense d = {};
        for (int i = 0; i < f.c->n_parts; i++)
            d.w[i] = f.tenants[tenant].d_dense[i], d.n_out[i] = f.c->part_rows[i];
        d.first_row = r, d.n_rows = n;
        t.dense.push_back(d);
        memset(t.batch.dense + r, dense_of(f, tenant), (size_t)n);
    }
    t.batch.n_dense = (int)t.dense.size();
}

static rows_step make_step(const fixture &f, const std::vector<int> &order) {
    rows_step s = {};
    s.order = order;
    int n = (int)order.size(), k = f.c->n_k;
    tables t = {};
    add_jobs(f, s, t);
    add_dense(f, s, t);
    s.n_sets = n + (int)s.extra.size();
    std::vector<float> x, u;
    for (int r : order) {
        x.insert(x.end(), f.rows[r].x.begin(), f.rows[r].x.end());
        u.insert(u.end(), f.rows[r].u.begin(), f.rows[r].u.end());
    }
    std::vector<int32_t> counts = {n, s.n_sets};
    int32_t *d_counts = own(s, device_copy(counts));
    size_t sets = (size_t)s.n_sets * f.n_blocks, x_bytes = linear_x_bytes(f.n_blocks, n);
    struct planes_args p = {};
    p.x = own(s, device_copy(x));
    p.ld_x = k, p.n_k = k, p.n_rows = d_counts, p.n_sets = d_counts + 1;
    p.extra = own(s, device_copy(s.extra));
    p.x16 = own(s, device_alloc<__half>(x_bytes / 2));
    p.planes = own(s, device_alloc<linear_planes>(sets));
    CUDA(cudaMemset(p.x16, 0xff, x_bytes)); /* NaN: rows past the last must not matter */
    OK(planes_launch(&p, n, s.n_sets, 0));
    s.args.shape = f.shape;
    s.args.in = {p.x16, p.planes, own(s, device_copy(u)), f.ld_u};
    s.args.base = (const uint4 *)f.base;
    s.args.batch = own(s, device_copy(std::vector<linear_batch>{t.batch}));
    s.args.jobs = own(s, device_copy(t.jobs));
    s.args.pairs = f.ld_u ? own(s, device_copy(t.pairs)) : NULL;
    s.args.dense = own(s, device_copy(t.dense));
    s.args.ld_y = f.ld_y;
    s.args.n_thread_blocks = multiprocessors();
    s.n_dense = t.batch.n_dense;
    s.y_elements = (size_t)(n + 1) * f.ld_y;
    CUDA(cudaDeviceSynchronize());
    return s;
}
static void free_step(rows_step &s) {
    for (void *p : s.owned)
        CUDA(cudaFree(p));
}

/* What a launch of the step may write: 1 by the fused linear, 2 as a dense part, 0 nothing. */
static int writer_of(const fixture &f, const rows_step &s, size_t i) {
    size_t row = i / f.ld_y;
    int n = (int)(i % f.ld_y), part = 0;
    if (row >= s.order.size() || n >= f.n_out)
        return 0;
    while (n >= f.c->part_rows[part])
        n -= f.c->part_rows[part++];
    return dense_of(f, f.rows[s.order[row]].tenant) >> part & 1 ? 2 : 1;
}

enum { POISON = 0x7fedcba9 }; /* a NaN that no arithmetic makes */

/* Runs into poisoned memory, or adds to 0.5; checks after each launch what was written. */
static std::vector<float> run(const fixture &f, rows_step &s, const __half *base, bool add,
                              int max_rows, bool plain = false) {
    std::vector<uint32_t> y(s.y_elements, POISON), half(s.y_elements);
    for (size_t i = 0; i < y.size() && add; i++)
        y[i] = writer_of(f, s, i) ? 0x3f000000 : POISON;
    std::vector<uint32_t> before = y;
    uint32_t *d = device_copy(y);
    s.args.base = (const uint4 *)base, s.args.y = (float *)d, s.args.add = add;
    for (int launch = 1; launch <= 1 + (s.n_dense > 0); launch++) {
        if (launch == 1 && plain)
            OK(linear_plain_launch(&s.args, max_rows, 0));
        else if (launch == 1)
            OK(linear_launch(&s.args, max_rows, 0));
        else
            OK(linear_dense_launch(&s.args, max_rows, 0));
        y = host_copy(d, s.y_elements);
        for (size_t i = 0; i < y.size(); i++) {
            bool may = writer_of(f, s, i) == launch;
            if (may ? y[i] == POISON : y[i] != before[i]) {
                fail(f.c->name, may ? "output not written" : "written outside", (double)i, launch);
                break;
            }
        }
        before = y;
    }
    CUDA(cudaFree(d));
    std::vector<float> v(y.size());
    memcpy(v.data(), y.data(), y.size() * 4);
    return v;
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

/* Both halves of x, exactly. */
static bool check_halves(const fixture &f, const rows_step &s) {
    int n_rows = (int)s.order.size();
    std::vector<__half> x = host_copy(s.args.in.x, linear_x_bytes(f.n_blocks, n_rows) / 2);
    for (int r = 0; r < n_rows; r++)
        for (int k = 0; k < f.n_blocks * 256; k++) {
            float want = k < f.c->n_k ? f.rows[s.order[r]].x[k] : 0;
            float hi = __half2float(__float2half_rn(want));
            float lo = __half2float(__float2half_rn(want - hi));
            float got_hi = __half2float(x[linear_x_at(f.n_blocks, r, k, 0)]);
            float got_lo = __half2float(x[linear_x_at(f.n_blocks, r, k, 1)]);
            if (got_hi != hi || got_lo != lo) {
                fail(f.c->name, "halves of x", got_hi + got_lo, want);
                return false;
            }
        }
    return true;
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

/* Bit for bit: the planes of row r alone, as the CPU would add them. */
static float host_planes(const fixture &f, int r, int part, int n) {
    const row_data &row = f.rows[r];
    const std::vector<plane_data> &planes = f.tenants[row.tenant].planes;
    float y = 0;
    for (size_t p = 0; p < planes.size(); p++) {
        const plane_data &d = planes[p];
        if (d.bits[part].empty())
            continue;
        float acc = 0;
        for (int b = 0; b < f.n_blocks; b++) {
            float v[256];
            int q[256], count = std::min(256, f.c->n_k - b * 256), sum = 0;
            for (int k = 0; k < count; k++)
                v[k] = row.x[b * 256 + k] * (d.col[part].empty() ? 1.0f : d.col[part][b * 256 + k]);
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
/* And its pair, ascending. */
static float host_delta(const fixture &f, int r, int n) {
    int part = 0;
    while (n >= f.c->part_rows[part])
        n -= f.c->part_rows[part++];
    const tenant_data &t = f.tenants[f.rows[r].tenant];
    float y = host_planes(f, r, part, n), pair = 0;
    for (int j = 0; j < t.rank[part]; j++)
        pair = fmaf(__half2float(t.b[part][(size_t)n * t.rank[part] + j]),
                    f.rows[r].u[part * f.ld_u / 3 + j], pair);
    return t.rank[part] ? y + pair : y;
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, 4) == 0 || (a == 0 && b == 0);
}

/* The deltas alone, and what adding to something gives. */
static void check_bits(const fixture &f, rows_step &s, int max_rows) {
    int n_rows = (int)s.order.size(), skip = 1 + f.n_out / 61;
    std::vector<float> delta = run(f, s, f.zero_base, false, max_rows);
    for (int r = 0; r < n_rows; r++)
        for (int n = r % skip; n < f.n_out; n += skip) {
            size_t at = (size_t)r * f.ld_y + n;
            float want = host_delta(f, s.order[r], n);
            if (writer_of(f, s, at) == 1 && !same_bits(want, delta[at])) {
                fail(f.c->name, "delta, bit for bit", delta[at], want);
                return;
            }
        }
    std::vector<float> y = run(f, s, f.base, false, max_rows);
    std::vector<float> sum = run(f, s, f.base, true, max_rows);
    for (size_t i = 0; i < y.size(); i++)
        if (writer_of(f, s, i) && !same_bits(sum[i], 0.5f + y[i])) {
            fail(f.c->name, "added to 0.5", sum[i], 0.5f + y[i]);
            return;
        }
}

/* A part's dense matrix packed as the base gives the same bits through the fused linear. */
static void check_dense(const fixture &f, rows_step &s, const std::vector<float> &y) {
    struct linear_args args = s.args;
    std::vector<linear_dense> dense = host_copy(s.args.dense, (size_t)s.n_dense);
    linear_batch plain = {};
    plain.n_rows = (int)s.order.size();
    struct linear_batch *batch = device_copy(std::vector<linear_batch>{plain});
    for (const linear_dense &d : dense)
        for (int p = 0, at = 0; p < f.c->n_parts; at += f.c->part_rows[p++]) {
            if (!d.w[p])
                continue;
            args.shape = linear_shape_of(1, &f.c->part_rows[p], f.c->n_k);
            void *packed = device_alloc<char>(linear_packed_bytes(&args.shape));
            OK(linear_pack(&args.shape, d.w[p], packed, 0));
            float *out = device_alloc<float>((size_t)plain.n_rows * f.c->part_rows[p]);
            args.base = (const uint4 *)packed, args.y = out, args.ld_y = f.c->part_rows[p];
            args.add = false, args.batch = batch;
            OK(linear_launch(&args, plain.n_rows, 0));
            std::vector<float> want = host_copy(out, (size_t)plain.n_rows * args.ld_y);
            for (int r = d.first_row; r < d.first_row + d.n_rows; r++)
                if (memcmp(&want[(size_t)r * args.ld_y], &y[(size_t)r * f.ld_y + at],
                           (size_t)args.ld_y * 4)) {
                    fail(f.c->name, "a dense part differs from the same base, row", r, p);
                    break;
                }
            CUDA(cudaFree(packed));
            CUDA(cudaFree(out));
        }
    CUDA(cudaFree(batch));
}

static void check_values(const fixture &f, rows_step &s, int max_rows) {
    int n_rows = (int)s.order.size();
    std::vector<int> sample(f.n_out);
    std::iota(sample.begin(), sample.end(), 0);
    int *d_sample = own(s, device_copy(sample));
    double *d_want = own(s, device_alloc<double>((size_t)n_rows * f.n_out));
    std::vector<float> y = run(f, s, f.base, false, max_rows);
    std::vector<float> again = run(f, s, f.base, false, max_rows);
    reference_kernel<<<dim3((unsigned)(f.n_out + 127) / 128, (unsigned)n_rows), 128>>>(
        s.args, d_sample, f.n_out, d_want);
    std::vector<double> want = host_copy(d_want, (size_t)n_rows * f.n_out);
    if (memcmp(y.data(), again.data(), y.size() * 4))
        fail(f.c->name, "a second run's bits differ", 1, 0);
    std::vector<float> plain = run(f, s, f.base, false, max_rows, true);
    for (size_t i = 0; i < y.size(); i++)
        if (memcmp(&y[i], &plain[i], 4)) {
            fail(f.c->name, "the kernel for other devices gives other bits", plain[i], y[i]);
            break;
        }
    double error = 0, norm = 0;
    for (int r = 0; r < n_rows; r++)
        for (int n = 0; n < f.n_out; n++) {
            double w = want[(size_t)r * f.n_out + n], g = y[(size_t)r * f.ld_y + n];
            error += (g - w) * (g - w), norm += w * w;
        }
    /* FP32 sums of fp16 products over K <= 11008 terms: about sqrt(K) 2^-24. */
    double relative = sqrt(error / norm);
    if (!(relative < 3e-6))
        fail(f.c->name, "relative error against double", relative, 3e-6);
    if (s.n_dense)
        check_dense(f, s, y);
    printf("  %-34s rows %2d, relative error %.1e\n", f.c->name, n_rows, relative);
}

/* The same row has the same bits in any company. */
static void check_company(const fixture &f, const std::vector<float> &all, const rows_step &s,
                          const std::vector<int> &order, int max_rows, const char *what) {
    rows_step other = make_step(f, order);
    std::vector<float> y = run(f, other, f.base, false, max_rows);
    for (size_t i = 0; i < order.size(); i++) {
        size_t at = (size_t)(std::find(s.order.begin(), s.order.end(), order[i]) - s.order.begin());
        if (memcmp(&y[i * f.ld_y], &all[at * f.ld_y], (size_t)f.n_out * 4)) {
            fail(f.c->name, what, (double)i, (double)at);
            break;
        }
    }
    free_step(other);
}

static void free_fixture(fixture &f) {
    CUDA(cudaFree(f.base));
    CUDA(cudaFree(f.zero_base));
    for (tenant_data &t : f.tenants)
        for (int p = 0; p < 3; p++) {
            CUDA(cudaFree(t.d_b[p]));
            CUDA(cudaFree(t.d_dense[p]));
            for (plane_data &d : t.planes) {
                CUDA(cudaFree(d.d_bits[p]));
                CUDA(cudaFree(d.d_row[p]));
                CUDA(cudaFree(d.d_col[p]));
            }
        }
}

static void run_case(const linear_case &c) {
    fixture f = make_fixture(c);
    std::vector<int> order(f.rows.size());
    std::iota(order.begin(), order.end(), 0);
    rows_step s = make_step(f, order);
    int n = (int)order.size();
    if (check_halves(f, s) && check_planes(f, s)) {
        check_bits(f, s, n);
        check_values(f, s, n);
        std::vector<float> all = run(f, s, f.base, false, n);
        if (n < LINEAR_MAX_ROWS) {
            rows_step wide = make_step(f, order);
            std::vector<float> y = run(f, wide, f.base, false, LINEAR_MAX_ROWS);
            if (memcmp(y.data(), all.data(), y.size() * 4))
                fail(c.name, "the widest launch gives other bits", 1, 0);
            free_step(wide);
        }
        s.args.n_thread_blocks = 3; /* more tiles a block: every ring goes round */
        std::vector<float> few = run(f, s, f.base, false, n);
        s.args.n_thread_blocks = multiprocessors();
        if (memcmp(few.data(), all.data(), few.size() * 4))
            fail(c.name, "three blocks give other bits", 1, 0);
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
    free_fixture(f);
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
        {"planes and pairs, own columns",
         3,
         {80, 40, 24},
         512,
         {{1, 1, true, -1, 16}, {5, 1, true, 1, 4}, {2, 2, true, -1, 31}, {3, 0, false, -1, 7}},
         20},
        {"pairs of large and odd rank",
         2,
         {70, 64},
         256,
         {{6, 0, false, -1, 33}, {1, 1, false, -1, 130}, {1, 1, false, 0, 1}},
         1},
        {"dense parts beside planes",
         3,
         {64, 41, 30},
         552,
         {{3, 1, true, -1, 5, 2}, {2, 0, false, -1}, {9, 0, false, -1, 0, 7}, {7, 2, false, -1}},
         30},
        {"dense, K no multiple of 8",
         1,
         {50},
         300,
         {{2, 0, false, -1, 0, 1}, {2, 1, false, -1}},
         1},
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
        {"7B qkv, 30 fitted tenants",
         3,
         {4096, 4096, 4096},
         4096,
         std::vector<tenant_case>(30, {1, 1, true, -1, 16}),
         100},
        {"7B o, one dense tenant of 40 rows",
         1,
         {4096},
         4096,
         {{40, 0, false, -1, 0, 1}, {3, 1, false, -1}},
         100},
    };
    if (!quick)
        cases.insert(cases.end(), large.begin(), large.end());
    for (auto &c : cases)
        if (argc < 3 || strstr(c.name, argv[2]))
            run_case(c);
    CUDA(cudaDeviceSynchronize());
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
