/* The producers of the linears' inputs and the tables of jobs on the card, for random tenants
 * (planes with and without column scales of their own, pairs, dense parts) in ragged steps. Each
 * step checks: jobs cover the rows with a delta once, in the sizes that the linear wants, and name
 * the tenants' bits, rows and pairs; dense parts stand in their own table; the two halves of x are
 * near the double reference; for ctx they are x exactly; the planes of the set that a job names for
 * a row and part are the integers of kernels/delta.h of x times that part's column scales; u is
 * near A x in double; rows of the slice alone are written; other company and another order give the
 * same bits; a row with NaN or infinities leaves the others as they are. `quick`: small cases, for
 * the sanitizers. Without a device it prints why and succeeds. */
#include <algorithm>
#include <numeric>

#include "kernels/cuda/rows.cuh"
#include "kernels/delta.h"
#include "tests/cuda/setup.cuh"

static int failures;
static void fail(const char *name, const char *what, double got, double want) {
    printf("FAIL %s: %s: %.9g, should be %.9g\n", name, what, got, want);
    failures++;
}

/* ---- tenants --------------------------------------------------------------------------------- */

struct part_data {
    struct delta delta; /* device pointers; bits, rows, b and dense are never followed: made up */
    std::vector<std::vector<float>> col; /* [plane], empty: none */
    std::vector<__half> a;
};
struct tenant_data {
    std::vector<part_data> part; /* [L * N_PARTS], then the head */
    std::vector<float> norm;
    float eps;
};
struct world {
    const char *name;
    struct model_shape shape;
    std::vector<tenant_data> tenants;
    std::vector<gpu_tenant> host;
    gpu_tenant *device;
    struct job_tables *tables;
};

static uint32_t counter = 1;
static int random_below(int n) {
    return (int)(hash32(counter++, 99) % (uint32_t)n);
}
template <typename T> static const T *made_up() {
    return (const T *)(uintptr_t)(0x100000000ull + 256ull * counter++);
}

static part_data make_part(int n, int k, int kind, const std::vector<float> &shared,
                           const float *d_shared) {
    part_data p = {};
    if (kind == 0)
        return p;
    if (random_below(9) == 0) {
        p.delta.dense = made_up<uint16_t>();
        return p;
    }
    p.delta.n_planes = kind == 1 ? 1 : random_below(4);
    for (int i = 0; i < p.delta.n_planes; i++) {
        int which = kind == 1 ? 0 : random_below(4);
        p.delta.plane[i].bits = made_up<uint32_t>();
        p.delta.plane[i].row = made_up<float>();
        p.col.emplace_back();
        if (which == 1) {
            p.col[i] = shared;
            p.delta.plane[i].col = d_shared;
        } else if (which > 1) {
            for (int j = 0; j < k; j++)
                p.col[i].push_back(1 + 0.7f * uniform(j, counter));
            counter++;
            p.delta.plane[i].col = device_copy(p.col[i]);
        }
    }
    if (kind > 1 && random_below(2)) {
        p.delta.rank = 1 + random_below(std::min({n, k, 44}) / 2);
        for (int i = 0; i < p.delta.rank * k; i++)
            p.a.push_back(__float2half_rn(uniform(i, counter)));
        counter++;
        p.delta.a = (const uint16_t *)device_copy(p.a);
        p.delta.b = made_up<uint16_t>();
    }
    return p;
}

/* kind 0: the base; 1: a plain plane in every matrix; 2: anything. */
static void add_tenant(world &w, int kind) {
    const model_shape &s = w.shape;
    tenant_data t = {};
    for (int i = 0; i < (2 * s.n_layers + 1) * s.dim; i++)
        t.norm.push_back(1 + 0.5f * uniform(i, counter));
    t.eps = 1e-5f * (float)(1 + random_below(5));
    counter++;
    std::vector<struct delta> deltas;
    for (int l = 0; l < s.n_layers; l++)
        for (int which = 0; which < N_LINEARS; which++) {
            enum part first = linear_first_part((enum linear)which);
            std::vector<float> shared;
            for (int j = 0; j < part_cols(&s, first); j++)
                shared.push_back(1 + 0.3f * uniform(j, counter));
            counter++;
            const float *d_shared = kind == 2 ? device_copy(shared) : NULL;
            for (int i = 0; i < linear_n_parts((enum linear)which); i++) {
                enum part p = (enum part)(first + i);
                t.part.push_back(
                    make_part(part_rows(&s, p), part_cols(&s, p), kind, shared, d_shared));
                deltas.push_back(t.part.back().delta);
            }
        }
    t.part.push_back(make_part(s.vocab, s.dim, kind, {}, NULL));
    if (t.part.back().delta.dense || t.part.back().delta.n_planes == 0)
        t.part.back() = make_part(s.vocab, s.dim, 1, {}, NULL);
    gpu_tenant g = {};
    g.norm = device_copy(t.norm);
    g.norm_eps = t.eps;
    g.vocab = s.vocab;
    g.delta = kind ? device_copy(deltas) : NULL;
    g.head.delta = t.part.back().delta;
    g.head.dense = t.part.back().delta.dense;
    w.tenants.push_back(t);
    w.host.push_back(g);
}

static world make_world(const char *name, struct model_shape shape, std::vector<int> kinds) {
    world w = {name, shape, {}, {}, NULL, NULL};
    for (int kind : kinds)
        add_tenant(w, kind);
    w.device = device_copy(w.host);
    OK(job_tables_open(&w.tables, &shape));
    return w;
}

/* ---- a step ---------------------------------------------------------------------------------- */

struct one_row { /* of any step; its activations come from `seed` */
    int tenant;
    uint32_t seed;
    bool bad; /* has a NaN and infinities */
};
/* What a linear was given for a row, in an order that does not depend on the step. */
struct row_result {
    std::vector<uint16_t> x;
    std::vector<linear_planes> planes; /* [part][plane][block] */
    std::vector<float> u;
};

struct step_data {
    const world *w;
    std::vector<one_row> rows;
    int first, n; /* of the slice */
    std::vector<float> h, ctx, gate_up;
    struct gpu_activations a;
    struct gpu_step step;
    int32_t *row_of_logit;
    std::vector<void *> owned;
};
template <typename T> static T *own(step_data &s, T *p) {
    s.owned.push_back((void *)p);
    return p;
}

static float activation(const one_row &r, int i, int n, int salt) {
    if (r.bad && i == n / 3)
        return salt == 1 ? NAN : INFINITY;
    float v = uniform(i, r.seed + (uint32_t)salt);
    return hash32(i, r.seed + 7) % 97 == 0 ? v * 90 : hash32(i, r.seed + 8) % 41 == 0 ? 0 : v;
}
static void fill_rows(const step_data &s, std::vector<float> &to, int n, int ld, int salt) {
    to.assign(s.rows.size() * (size_t)ld, 0);
    for (size_t r = 0; r < s.rows.size(); r++)
        for (int i = 0; i < n; i++)
            to[r * ld + i] = activation(s.rows[r], i, n, salt);
}

static step_data make_step(const world &w, const std::vector<one_row> &rows, int first) {
    const model_shape &m = w.shape;
    step_data s = {};
    s.w = &w, s.rows = rows, s.first = first;
    s.n = std::min((int)rows.size() - first, (int)SLICE_ROWS);
    s.a.ld_h = (m.dim + 15) / 8 * 8, s.a.ld_ctx = (m.n_heads * m.head_dim + 7) / 8 * 8;
    s.a.ld_gate_up = (2 * m.ffn_dim + 7) / 8 * 8;
    fill_rows(s, s.h, m.dim, s.a.ld_h, 1);
    fill_rows(s, s.ctx, m.n_heads * m.head_dim, s.a.ld_ctx, 2);
    fill_rows(s, s.gate_up, 2 * m.ffn_dim, s.a.ld_gate_up, 3);
    s.a.h = own(s, device_copy(s.h));
    s.a.ctx = own(s, device_copy(s.ctx));
    s.a.gate_up = own(s, device_copy(s.gate_up));
    std::vector<gpu_row> table;
    std::vector<int32_t> logits;
    for (size_t i = 0; i < rows.size(); i++) {
        gpu_row r = {w.device + rows[i].tenant, 0, 0, 0, 0};
        table.push_back(r);
        logits.push_back((int32_t)(rows.size() - 1 - i)); /* backwards, to see the gathering */
    }
    gpu_counts counts = {};
    counts.n_narrow = counts.n_logits = (int32_t)rows.size();
    s.step.counts = own(s, device_copy(std::vector<gpu_counts>{counts}));
    s.step.row = own(s, device_copy(table));
    s.row_of_logit = own(s, device_copy(logits));
    return s;
}
static void free_step(step_data &s) {
    for (void *p : s.owned)
        CUDA(cudaFree(p));
}

/* ---- references ------------------------------------------------------------------------------ */

static bool is_head(const world &w, int table) {
    return table == w.shape.n_layers * N_LINEARS;
}
static int n_parts_of(const world &w, int table) {
    return is_head(w, table) ? 1 : linear_n_parts((enum linear)(table % N_LINEARS));
}
static const part_data &part_of(const world &w, int tenant, int table, int i) {
    int first = is_head(w, table) ? w.shape.n_layers * N_PARTS
                                  : table / N_LINEARS * N_PARTS +
                                        linear_first_part((enum linear)(table % N_LINEARS));
    return w.tenants[tenant].part[first + i];
}
/* Row of the step that row r of the slice is. */
static int source_of(const step_data &s, int table, int r) {
    return is_head(*s.w, table) ? (int)s.rows.size() - 1 - (s.first + r) : s.first + r;
}

static std::vector<double> reference_x(const step_data &s, int table, int r) {
    const model_shape &m = s.w->shape;
    int row = source_of(s, table, r);
    enum linear which = is_head(*s.w, table) ? LINEAR_QKV : (enum linear)(table % N_LINEARS);
    std::vector<double> x;
    if (which == LINEAR_O) {
        for (int k = 0; k < m.n_heads * m.head_dim; k++)
            x.push_back(s.ctx[(size_t)row * s.a.ld_ctx + k]);
    } else if (which == LINEAR_DOWN) {
        const float *g = &s.gate_up[(size_t)row * s.a.ld_gate_up];
        for (int k = 0; k < m.ffn_dim; k++)
            x.push_back(g[k] / (1 + exp(-(double)g[k])) * g[m.ffn_dim + k]);
    } else {
        const float *h = &s.h[(size_t)row * s.a.ld_h];
        const tenant_data &t = s.w->tenants[s.rows[row].tenant];
        int index = is_head(*s.w, table)
                        ? 2 * m.n_layers
                        : table / N_LINEARS * 2 + (which == LINEAR_GATE_UP ? 1 : 0);
        double sum = 0;
        for (int k = 0; k < m.dim; k++)
            sum += (double)h[k] * h[k];
        for (int k = 0; k < m.dim; k++)
            x.push_back(h[k] / sqrt(sum / m.dim + t.eps) * t.norm[(size_t)index * m.dim + k]);
    }
    return x;
}

/* The definition in kernels/delta.h for columns 256 b ... of x * col. */
static float host_block(const std::vector<float> &x, const std::vector<float> &col, int b, int *q,
                        int *sum) {
    float m = 0, v[256] = {};
    for (int i = 0; i < 256 && b * 256 + i < (int)x.size(); i++) {
        v[i] = col.empty() ? x[b * 256 + i] : x[b * 256 + i] * col[b * 256 + i];
        m = fmaxf(m, fabsf(v[i]));
    }
    int e = delta_exponent(m);
    *sum = 0;
    for (int i = 0; i < 256; i++) {
        q[i] = std::min(std::max((int)rint(ldexp(v[i], -e)), -DELTA_MAX_Q), (int)DELTA_MAX_Q);
        *sum += q[i];
    }
    return delta_pow2(e);
}

/* ---- one table of one step ------------------------------------------------------------------- */

struct table_copy {
    linear_batch batch;
    std::vector<linear_job> jobs;
    std::vector<linear_pair> pairs;
    std::vector<linear_dense> dense;
    std::vector<__half> x;
    std::vector<linear_planes> planes;
    std::vector<float> u;
    int n_blocks, n_k;
};

static table_copy run_table(step_data &s, int table, int max_rows) {
    struct job_tables *t = s.w->tables;
    struct job_table at = table_at(t->base, table);
    table_copy c = {};
    c.n_k = table_shape(&s.w->shape, table).n_k;
    c.n_blocks = tiles_of(c.n_k, 256);
    size_t n_sets = (size_t)((char *)t->u - (char *)t->planes) / sizeof(linear_planes);
    CUDA(cudaMemset(t->x, 0xff, linear_x_bytes(t->max_blocks, SLICE_ROWS)));
    CUDA(cudaMemset(t->planes, 0xff, n_sets * sizeof(linear_planes)));
    CUDA(cudaMemset(t->u, 0xff, (size_t)SLICE_ROWS * t->ld_u * 4));
    struct linear_args fill = {};
    OK(produce_launch(t, &s.a, table, max_rows, &fill, 0));
    CUDA(cudaDeviceSynchronize());
    if (fill.jobs != at.jobs || fill.batch != at.batch || fill.pairs != at.pairs ||
        fill.dense != at.dense || fill.in.planes != t->planes || fill.in.ld_u != t->ld_u)
        fail(s.w->name, "arguments of the linear", 0, 1);
    c.batch = host_copy(at.batch, 1)[0];
    c.jobs = host_copy(at.jobs, (size_t)(c.batch.n_jobs * c.batch.n_phases));
    c.pairs = host_copy(at.pairs, (size_t)c.batch.n_jobs);
    c.dense = host_copy(at.dense, (size_t)c.batch.n_dense);
    c.x = host_copy(t->x, linear_x_bytes(c.n_blocks, SLICE_ROWS) / 2);
    c.planes = host_copy(t->planes, n_sets);
    c.u = host_copy(t->u, (size_t)SLICE_ROWS * t->ld_u);
    return c;
}

/* Jobs cover exactly the rows with a change, each of one tenant and small enough. Gives each row's
 * job, or -1. */
static std::vector<int> check_jobs(const step_data &s, int table, const table_copy &c) {
    std::vector<int> job_of(s.n, -1);
    const char *name = s.w->name;
    if (c.batch.n_rows != s.n)
        fail(name, "rows of the batch", c.batch.n_rows, s.n);
    for (int j = 0; j < c.batch.n_jobs; j++) {
        const linear_job &job = c.jobs[j];
        if (job.n_rows < 1 || job.n_rows > linear_job_rows(s.n) || job.first_row < 0 ||
            job.first_row + job.n_rows > s.n) {
            fail(name, "rows of a job", job.n_rows, linear_job_rows(s.n));
            continue;
        }
        for (int r = job.first_row; r < job.first_row + job.n_rows; r++) {
            if (job_of[r] >= 0 || s.rows[source_of(s, table, r)].tenant !=
                                      s.rows[source_of(s, table, job.first_row)].tenant)
                fail(name, "a job's row is another's", r, j);
            job_of[r] = j;
        }
        for (int p = 1; p < c.batch.n_phases; p++)
            if (c.jobs[p * c.batch.n_jobs + j].first_row != job.first_row ||
                c.jobs[p * c.batch.n_jobs + j].n_rows != job.n_rows)
                fail(name, "rows of a later phase's job", j, p);
    }
    for (int r = 0; r < s.n; r++) {
        int tenant = s.rows[source_of(s, table, r)].tenant, dense = 0;
        bool changes = false;
        for (int i = 0; i < n_parts_of(*s.w, table); i++) {
            const struct delta &d = part_of(*s.w, tenant, table, i).delta;
            dense |= d.dense ? 1 << i : 0;
            changes |= !d.dense && (d.n_planes || d.rank);
        }
        if (changes != (job_of[r] >= 0) || changes != c.batch.has_delta[r])
            fail(name, "has a job", job_of[r], changes);
        if (c.batch.dense[r] != dense)
            fail(name, "dense parts", c.batch.dense[r], dense);
        int found = 0;
        for (const linear_dense &d : c.dense)
            if (r >= d.first_row && r < d.first_row + d.n_rows)
                for (int i = 0; i < n_parts_of(*s.w, table); i++) {
                    const uint16_t *want = part_of(*s.w, tenant, table, i).delta.dense;
                    found |= want && (const uint16_t *)d.w[i] == want &&
                                     d.n_out[i] == table_shape(&s.w->shape, table).part_rows[i]
                                 ? 1 << i
                                 : 0;
                    if (!want && d.w[i])
                        fail(name, "a part is not dense", r, i);
                }
        if (found != dense)
            fail(name, "table of dense parts", found, dense);
    }
    return job_of;
}

/* The integers of a set, against x * col. Exact where the linear's x is known exactly. */
static void check_set(const step_data &s, const table_copy &c, int set, const std::vector<float> &x,
                      const std::vector<float> &col, bool exact) {
    for (int b = 0; b < c.n_blocks; b++) {
        int q[256], sum, off = 0, got_sum = 0;
        float scale = host_block(x, col, b, q, &sum);
        const linear_planes &got = c.planes[(size_t)set * c.n_blocks + b];
        /* A maximum next to a power of two may fall on its other side when x is not exact. */
        double ratio = exact ? 1 : (double)got.scale / scale;
        for (int k = 0; k < 256; k++) {
            int v = plane_value(c.planes.data(), set, c.n_blocks, b * 256 + k);
            got_sum += v;
            if (exact ? v != q[k] : fabs(v * ratio - q[k]) > 1.01) {
                fail(s.w->name, "integer of the planes", v, q[k]);
                return;
            }
            off += v != q[k];
        }
        if ((exact && got.scale != scale) || got.sum != (float)got_sum ||
            (!exact && ratio == 1 && off > 16))
            fail(s.w->name, "scale, sum, or too many integers off", off, 0);
    }
}

static void check_pairs(const step_data &s, int table, const table_copy &c, int r, int job,
                        const std::vector<double> &x) {
    int tenant = s.rows[source_of(s, table, r)].tenant;
    for (int i = 0; i < n_parts_of(*s.w, table); i++) {
        const part_data &p = part_of(*s.w, tenant, table, i);
        const linear_pair &pair = c.pairs[job];
        int rank = p.delta.dense ? 0 : p.delta.rank;
        if (pair.rank[i] != rank ||
            (rank && ((const uint16_t *)pair.b[i] != p.delta.b || pair.first_u[i] % 4 != 0))) {
            fail(s.w->name, "pair", pair.rank[i], rank);
            continue;
        }
        for (int j = 0; j < rank; j++) {
            double want = 0, size = 0;
            for (int k = 0; k < c.n_k; k++) {
                double term = (double)__half2float(p.a[(size_t)j * c.n_k + k]) * x[k];
                want += term, size += fabs(term);
            }
            double got = c.u[(size_t)r * s.w->tables->ld_u + pair.first_u[i] + j];
            if (!(fabs(got - want) <= 1e-6 * size)) {
                fail(s.w->name, "A x", got, want);
                return;
            }
        }
    }
}

/* Checks row r and gives what the linear would read of it. */
static row_result check_row(const step_data &s, int table, const table_copy &c, int r, int job) {
    row_result out;
    const one_row &row = s.rows[source_of(s, table, r)];
    std::vector<double> want = reference_x(s, table, r);
    bool exact = !is_head(*s.w, table) && table % N_LINEARS == LINEAR_O;
    std::vector<float> x;
    double error = 0, size = 0;
    for (int k = 0; k < c.n_blocks * 256; k++) {
        uint16_t half[2];
        memcpy(half, &c.x[linear_x_at(c.n_blocks, r, k, 0)], 2);
        memcpy(half + 1, &c.x[linear_x_at(c.n_blocks, r, k, 1)], 2);
        out.x.insert(out.x.end(), half, half + 2);
        double v = (double)__half2float(c.x[linear_x_at(c.n_blocks, r, k, 0)]) +
                   (double)__half2float(c.x[linear_x_at(c.n_blocks, r, k, 1)]);
        if (k >= c.n_k) {
            if (half[0] || half[1])
                fail(s.w->name, "x past K", v, 0);
            continue;
        }
        x.push_back(exact ? (float)want[k] : (float)v);
        error = std::max(error, fabs(v - want[k]) / (fabs(want[k]) + 0.1));
        size = std::max(size, fabs(want[k]));
    }
    if (!row.bad && !(error < 2e-6))
        fail(s.w->name, "x, relative error", error, 2e-6);
    for (int i = 0; job >= 0 && i < n_parts_of(*s.w, table); i++) {
        const part_data &p = part_of(*s.w, row.tenant, table, i);
        int planes = p.delta.dense ? 0 : p.delta.n_planes;
        for (int plane = 0; plane < c.batch.n_phases; plane++) {
            const linear_job &j = c.jobs[plane * c.batch.n_jobs + job];
            if (plane >= planes) {
                if (j.bits[i] || j.row[i])
                    fail(s.w->name, "a plane that is not there", plane, planes);
                continue;
            }
            if (j.bits[i] != p.delta.plane[plane].bits || j.row[i] != p.delta.plane[plane].row)
                fail(s.w->name, "bits of a job", plane, i);
            int set = j.first_set[i] + r - j.first_row;
            bool nan = false;
            for (int b = 0; b < c.n_blocks; b++)
                nan |= isnan(c.planes[(size_t)set * c.n_blocks + b].scale);
            if (nan != row.bad)
                fail(s.w->name, "a block that is not finite", nan, row.bad);
            if (!row.bad)
                check_set(s, c, set, x, p.col[plane], exact);
            for (int b = 0; b < c.n_blocks; b++)
                out.planes.push_back(c.planes[(size_t)set * c.n_blocks + b]);
        }
        if (!row.bad)
            check_pairs(s, table, c, r, job, want);
        int rank = p.delta.dense ? 0 : p.delta.rank;
        for (int k = 0; k < rank; k++)
            out.u.push_back(c.u[(size_t)r * s.w->tables->ld_u + c.pairs[job].first_u[i] + k]);
    }
    return out;
}

static bool same(const row_result &a, const row_result &b) {
    return a.x == b.x && a.planes.size() == b.planes.size() && a.u.size() == b.u.size() &&
           !memcmp(a.planes.data(), b.planes.data(), a.planes.size() * sizeof a.planes[0]) &&
           !memcmp(a.u.data(), b.u.data(), a.u.size() * sizeof a.u[0]);
}

/* Runs a table of the step; results by the rows' seeds. */
typedef std::vector<std::pair<uint32_t, row_result>> results;
static results check_table(step_data &s, int table, int max_rows) {
    table_copy c = run_table(s, table, max_rows);
    std::vector<int> jobs = check_jobs(s, table, c);
    results out;
    for (int r = 0; r < s.n; r++)
        out.push_back({s.rows[source_of(s, table, r)].seed, check_row(s, table, c, r, jobs[r])});
    /* What a row past the last holds is read but free; written it must not be. */
    for (int r = s.n; r < SLICE_ROWS; r++)
        for (int k = 0; k < c.n_k; k += 37) {
            uint16_t half;
            memcpy(&half, &c.x[linear_x_at(c.n_blocks, r, k, 0)], 2);
            if (half != 0xffff) {
                fail(s.w->name, "a row past the last was written", r, s.n);
                return out;
            }
        }
    return out;
}

/* `may_differ`: rows that were made bad in one of the two. */
static void compare(const world &w, const results &all, const results &some, const char *what) {
    for (auto &one : some)
        for (auto &other : all)
            if (one.first == other.first && !same(one.second, other.second)) {
                fail(w.name, what, one.first, 0);
                return;
            }
}

static void run_step(const world &w, std::vector<one_row> rows, int first) {
    std::vector<int> tables = {
        0, 1, 2, 3, w.shape.n_layers * N_LINEARS - 2, w.shape.n_layers * N_LINEARS};
    step_data s = make_step(w, rows, first);
    OK(job_tables_launch(w.tables, &s.step, first, 0));
    OK(job_tables_head_launch(w.tables, &s.step, s.row_of_logit, first, 0));
    std::vector<results> all;
    for (int table : tables)
        all.push_back(check_table(s, table, s.n));

    std::vector<one_row> reversed(rows.rbegin(), rows.rend()), thin, bad = rows;
    for (size_t i = 0; i < rows.size(); i += 3)
        thin.push_back(rows[i]);
    one_row &hurt = bad[rows.size() / 2];
    hurt.bad = true, hurt.seed += 1000000;
    for (auto &other : {reversed, thin, bad}) {
        if ((int)other.size() <= first)
            continue;
        step_data o = make_step(w, other, first);
        OK(job_tables_launch(w.tables, &o.step, first, 0));
        OK(job_tables_head_launch(w.tables, &o.step, o.row_of_logit, first, 0));
        for (size_t i = 0; i < tables.size(); i++)
            compare(w, all[i], check_table(o, tables[i], SLICE_ROWS), "other company, other bits");
        free_step(o);
    }
    free_step(s);
}

/* Runs of 1 to 5 rows of random tenants. */
static std::vector<one_row> ragged(const world &w, int n) {
    std::vector<one_row> rows;
    while ((int)rows.size() < n) {
        int tenant = random_below((int)w.tenants.size()), run = 1 + random_below(5);
        for (; run && (int)rows.size() < n; run--)
            rows.push_back({tenant, 1000u + 10 * counter++, false});
    }
    return rows;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    bool quick = argc > 1 && !strcmp(argv[1], "quick");
    struct model_shape odd = {2, 300, 3, 1, 100, 520, 1000, 1000, 0, 1e-5f};
    struct model_shape small = {2, 256, 4, 2, 64, 768, 512, 512, 0, 1e-5f};
    struct model_shape large = {1, 4096, 32, 32, 128, 11008, 512, 512, 0, 1e-5f};
    std::vector<struct model_shape> shapes = {odd, small, large};
    const char *names[] = {"D 300, F 520", "D 256, F 768", "7B"};
    for (int i = 0; i < (quick ? 2 : 3); i++) {
        world w = make_world(names[i], shapes[i], {0, 1, 2, 2, 2});
        for (int n : {1, 2, 9, 23, 64})
            if (!quick || n < 23)
                run_step(w, ragged(w, n), 0);
        if (!quick)
            run_step(w, ragged(w, 70), 64);
        std::vector<one_row> alike;
        for (int r = 0; r < (quick ? 5 : 64); r++)
            alike.push_back({4, 5000u + 10 * (uint32_t)r, false});
        run_step(w, alike, 0);
        printf("  %-14s producers and tables, %d failures so far\n", names[i], failures);
        job_tables_close(w.tables);
    }
    CUDA(cudaDeviceSynchronize());
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
