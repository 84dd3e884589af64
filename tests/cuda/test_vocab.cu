/* The vocabulary's ends on the card: the embedding against the CPU backend's formula, bit for bit,
 * for tenants with exact rows, dense matrices, planes with and without column scales, pairs, ids
 * past the base; rows of the head that a tenant gives itself against double precision, -inf where
 * nothing gives an id, nothing else written. Without a device it prints why and succeeds. */
#include <algorithm>

#include "kernels/cuda/rows.cuh"
#include "kernels/f16.h"
#include "tests/cuda/setup.cuh"

static int failures;
static void fail(const char *what, int row, double got, double want) {
    printf("FAIL row %d: %s: %.9g, should be %.9g\n", row, what, got, want);
    failures++;
}
static std::vector<uint16_t> halves(size_t n, uint32_t seed) {
    std::vector<uint16_t> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = half_from_float(uniform(i, seed));
    return v;
}

/* A tenant's vocabulary on both sides. */
struct vocabulary {
    int vocab; /* of the tenant */
    std::vector<int32_t> id;
    std::vector<uint16_t> row, dense, a, b;
    int n_planes, rank;
    std::vector<uint32_t> bits[2];
    std::vector<float> scale[2], col[2];
    struct vocab_matrix device;
};

static vocabulary make(int base, int dim, int vocab, int n_rows, bool dense, int n_planes, int rank,
                       uint32_t seed) {
    vocabulary v = {};
    v.vocab = vocab, v.n_planes = n_planes, v.rank = rank;
    for (int i = 0; i < n_rows; i++) /* some inside, some past the base, the very last */
        v.id.push_back(i + 1 == n_rows ? vocab - 1 : i * (vocab / n_rows) + i % 3);
    v.row = halves((size_t)n_rows * dim, seed);
    v.device.n_rows = n_rows;
    v.device.row_id = device_copy(v.id);
    v.device.row = device_copy(v.row);
    if (dense) {
        v.dense = halves((size_t)vocab * dim, seed + 1);
        v.device.dense = device_copy(v.dense);
    }
    v.device.delta.n_planes = n_planes;
    for (int p = 0; p < n_planes; p++) {
        for (size_t i = 0; i < plane_bytes(base, dim) / 4; i++)
            v.bits[p].push_back(hash32(i, seed + 2 + (uint32_t)p));
        for (int i = 0; i < base; i++)
            v.scale[p].push_back(0.1f * uniform(i, seed + 5 + (uint32_t)p));
        for (int i = 0; i < dim && p == 1; i++)
            v.col[p].push_back(1 + 0.5f * uniform(i, seed + 7));
        v.device.delta.plane[p] = {device_copy(v.bits[p]), device_copy(v.scale[p]),
                                   p == 1 ? device_copy(v.col[p]) : NULL};
    }
    if (rank) {
        v.a = halves((size_t)rank * dim, seed + 8);
        v.b = halves((size_t)base * rank, seed + 9);
        v.device.delta.rank = rank;
        v.device.delta.a = device_copy(v.a);
        v.device.delta.b = device_copy(v.b);
    }
    return v;
}

/* Element (id, j) as kernels/cpu/step.c has it. */
static float host_embed(const vocabulary &v, const std::vector<uint16_t> &base, int n_base, int dim,
                        int id, int j) {
    size_t own = (size_t)(std::lower_bound(v.id.begin(), v.id.end(), id) - v.id.begin());
    if (own < v.id.size() && v.id[own] == id)
        return half_to_float(v.row[own * dim + j]);
    if (!v.dense.empty())
        return half_to_float(v.dense[(size_t)id * dim + j]);
    if (id >= n_base)
        return NAN;
    float h = half_to_float(base[(size_t)id * dim + j]);
    for (int p = 0; p < v.n_planes; p++) {
        bool set = v.bits[p][plane_word(id, j, dim)] >> (j % 32) & 1;
        volatile float scale = v.scale[p][id] * (v.col[p].empty() ? 1.0f : v.col[p][j]);
        h += set ? scale : -scale;
    }
    for (int r = 0; r < v.rank; r++) {
        volatile float term =
            half_to_float(v.b[(size_t)id * v.rank + r]) * half_to_float(v.a[(size_t)r * dim + j]);
        h += term;
    }
    return h;
}

static void run(int base, int dim) {
    std::vector<uint16_t> embed = halves((size_t)base * dim, 1);
    std::vector<vocabulary> all;
    all.push_back(make(base, dim, base, 0, false, 0, 0, 10));
    all.push_back(make(base, dim, base, 5, false, 1, 0, 30));
    all.push_back(make(base, dim, base + 19, 21, false, 2, 7, 50));
    all.push_back(make(base, dim, base + 40, 3, true, 0, 0, 70));
    all.push_back(make(base, dim, base - 11, 2, false, 0, 5, 90));
    std::vector<gpu_tenant> tenants;
    std::vector<float> ones(3 * dim, 1);
    float *norm = device_copy(ones);
    for (auto &v : all) {
        gpu_tenant t = {};
        t.embed = t.head = v.device;
        t.vocab = v.vocab, t.norm = norm, t.norm_eps = 1e-6f;
        tenants.push_back(t);
    }
    gpu_tenant *d_tenants = device_copy(tenants);
    int n = 60, ld = base + 64, ld_h = (dim + 15) / 8 * 8;
    std::vector<gpu_row> rows;
    for (int i = 0; i < n; i++) {
        const vocabulary &v = all[i % 5];
        int id = i < 5 ? v.vocab - 1 : (int)(hash32(i, 3) % (uint32_t)v.vocab);
        if (i >= 30 && !v.id.empty())
            id = v.id[i % v.id.size()];
        rows.push_back({d_tenants + i % 5, id, 0, 0, 0});
    }
    gpu_counts counts = {};
    counts.n_narrow = n - 7, counts.n_wide = 7, counts.n_logits = n;
    struct gpu_step step = {};
    step.row = device_copy(rows);
    step.counts = device_copy(std::vector<gpu_counts>{counts});
    struct gpu_activations a = {};
    std::vector<float> h((size_t)(n + 1) * ld_h, -7.5f), z((size_t)(n + 1) * ld, -7.5f);
    a.ld_h = ld_h;
    a.h = device_copy(h);
    float *d_z = device_copy(z);
    OK(embed_launch(&step, &a, (const __half *)device_copy(embed), dim, base, n + 1, 0));
    h = host_copy(a.h, h.size());
    for (int i = 0; i <= n; i++)
        for (int j = 0; j < ld_h; j++) {
            float want = i < n && j < dim
                             ? host_embed(all[i % 5], embed, base, dim, rows[i].token, j)
                             : -7.5f;
            float got = h[(size_t)i * ld_h + j];
            if (memcmp(&got, &want, 4) && !(got != got && want != want)) {
                fail("embedding", i, got, want);
                break;
            }
        }

    /* The head's input is then the norm of these rows; those that are not finite say so. */
    struct model_shape shape = {1, dim, 1, 1, dim, dim, base, ld, 0, 1e-6f};
    struct job_tables *t;
    OK(job_tables_open(&t, &shape));
    std::vector<int32_t> row_of_logit(n);
    for (int i = 0; i < n; i++)
        row_of_logit[i] = i;
    OK(job_tables_head_launch(t, &step, device_copy(row_of_logit), 0, 0));
    struct linear_args fill = {};
    OK(produce_launch(t, &a, N_LINEARS, SLICE_ROWS, &fill, 0));
    OK(own_logits_launch(t, d_z, ld, SLICE_ROWS, 0));
    z = host_copy(d_z, z.size());
    int blocks = tiles_of(dim, 256);
    std::vector<__half> x = host_copy(t->x, linear_x_bytes(blocks, SLICE_ROWS) / 2);
    for (int i = 0; i <= n; i++)
        for (int id = 0; id < ld; id++) {
            const vocabulary &v = all[i % 5];
            float got = z[(size_t)i * ld + id];
            auto own = std::lower_bound(v.id.begin(), v.id.end(), id);
            if (i < n && own != v.id.end() && *own == id) {
                double want = 0, size = 0;
                const uint16_t *w = &v.row[(size_t)(own - v.id.begin()) * dim];
                for (int k = 0; k < dim; k++) {
                    double term = half_to_float(w[k]) *
                                  ((double)__half2float(x[linear_x_at(blocks, i, k, 0)]) +
                                   (double)__half2float(x[linear_x_at(blocks, i, k, 1)]));
                    want += term, size += fabs(term);
                }
                if (want == want ? !(fabs(got - want) <= 1e-6 * size) : got == got)
                    fail("own row's logit", i, got, want);
                continue;
            }
            bool nothing = i < n && v.dense.empty() && id >= base && id < v.vocab;
            if (nothing ? got != -INFINITY : got != -7.5f) {
                fail("logit of an id that is not the tenant's own", i, got, -7.5);
                break;
            }
        }
    job_tables_close(t);
    printf("  vocabulary %d of %d, %d failures so far\n", base, dim, failures);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need_device();
    run(96, 256);
    run(1000, 300);
    run(3001, 768);
    CUDA(cudaDeviceSynchronize());
    printf(failures ? "%d FAILED\n" : "all good\n", failures);
    return failures != 0;
}
