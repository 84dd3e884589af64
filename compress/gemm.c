/* Blocked FP32 matrix product: C = A B with A and B copied into panels that a register-tile loop
 * reads in order (Goto and van de Geijn's scheme). The tile is 12 x 32 with AVX-512, 6 x 16 with
 * AVX2 and in plain C, chosen at run time. Flops 2 m n k; the packing moves each element of A and B
 * once per block of C, a tenth of the time at the block sizes below. */
#include "compress/gemm.h"

#include <stdlib.h>
#include <string.h>

/* A block of C is at most MC x NC, its products run over KC of k at a time: the panels fit L2. */
enum { MC = 192, NC = 512, KC = 256 };
enum { SCRATCH = (MC + 16 + NC + 32) * KC }; /* floats; both panels, with room for a last tile */

typedef float vec16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float vec8 __attribute__((vector_size(32), aligned(4), may_alias));

/* acc [MR, NV * lanes] = sum over k of a[k][MR] (x) b[k][NV * lanes]; out: row-major, contiguous.
 */
#define TILE(name, TARGET, VEC, LANES, MR, NV)                                                     \
    TARGET static void name(int32_t k, const float *a, const float *b, float *out) {               \
        VEC acc[MR][NV];                                                                           \
        for (int i = 0; i < MR; i++)                                                               \
            for (int j = 0; j < NV; j++)                                                           \
                acc[i][j] = (VEC){0};                                                              \
        for (int32_t l = 0; l < k; l++, a += MR, b += NV * LANES) {                                \
            VEC x[NV];                                                                             \
            for (int j = 0; j < NV; j++)                                                           \
                x[j] = *(const VEC *)(b + j * LANES);                                              \
            _Pragma("GCC unroll 16") for (int i = 0; i < MR; i++)                                  \
                _Pragma("GCC unroll 2") for (int j = 0; j < NV; j++) acc[i][j] += a[i] * x[j];     \
        }                                                                                          \
        for (int i = 0; i < MR; i++)                                                               \
            for (int j = 0; j < NV; j++)                                                           \
                *(VEC *)(out + (i * NV + j) * LANES) = acc[i][j];                                  \
    }

enum { MAX_MR = 12, MAX_NR = 32 };

struct tile {
    int32_t mr, nr;
    void (*run)(int32_t k, const float *a, const float *b, float *out);
};

TILE(tile_plain, , vec8, 8, 6, 2)
#ifdef __x86_64__
TILE(tile_avx2, __attribute__((target("avx2,fma"), optimize("O3"))), vec8, 8, 6, 2)
TILE(tile_avx512, __attribute__((target("avx512f,fma"), optimize("O3"))), vec16, 16, 12, 2)
#endif

static struct tile pick_tile(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f"))
        return (struct tile){12, 32, tile_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (struct tile){6, 16, tile_avx2};
#endif
    return (struct tile){6, 16, tile_plain};
}

err_t gemm_open(struct gemm *g, int32_t threads) {
    *g = (struct gemm){0};
    err_t e = pool_open(&g->pool, threads);
    if (e)
        return e;
    g->scratch = calloc((size_t)pool_threads(g->pool), sizeof *g->scratch);
    for (int32_t i = 0; g->scratch && i < pool_threads(g->pool); i++)
        if (!(g->scratch[i] = aligned_alloc(64, SCRATCH * sizeof(float))))
            e = E_NOMEM;
    if (!g->scratch || e) {
        gemm_close(g);
        return E_NOMEM;
    }
    return 0;
}

void gemm_close(struct gemm *g) {
    for (int32_t i = 0; g->scratch && i < pool_threads(g->pool); i++)
        free(g->scratch[i]);
    free(g->scratch);
    pool_close(g->pool);
    *g = (struct gemm){0};
}

/* Copies x [rows, k] into panels of `step` rows, k-major: panel[l * step + r]; missing rows are 0.
 */
static void pack(struct mat x, int32_t rows, int32_t k, int32_t step, float *panel) {
    for (int32_t r0 = 0; r0 < rows; r0 += step, panel += (size_t)step * (size_t)k) {
        int32_t n = rows - r0 < step ? rows - r0 : step;
        const float *src = x.p + (size_t)r0 * x.row;
        if (n < step)
            memset(panel, 0, (size_t)step * (size_t)k * sizeof *panel);
        if (x.row == 1) {
            for (int32_t l = 0; l < k; l++)
                memcpy(panel + (size_t)l * (size_t)step, src + (size_t)l * x.col,
                       (size_t)n * sizeof *panel);
            continue;
        }
        for (int32_t r = 0; r < n; r++)
            for (int32_t l = 0; l < k; l++)
                panel[(size_t)l * (size_t)step + (size_t)r] =
                    src[(size_t)r * x.row + (size_t)l * x.col];
    }
}

/* One block of C, m <= MC, n <= NC. */
static void block(struct tile t, float *scratch, int32_t m, int32_t n, int32_t k, struct mat a,
                  struct mat b, float *c, size_t ldc, bool add) {
    float *pa = scratch, *pb = scratch + (size_t)(MC + 16) * KC;
    float out[MAX_MR * MAX_NR];
    for (int32_t k0 = 0; k0 < k; k0 += KC) {
        int32_t kc = k - k0 < KC ? k - k0 : KC;
        struct mat ak = {a.p + (size_t)k0 * a.col, a.row, a.col};
        struct mat bk = {b.p + (size_t)k0 * b.row, b.col,
                         b.row}; /* rows of pack are columns of B */
        pack(ak, m, kc, t.mr, pa);
        pack(bk, n, kc, t.nr, pb);
        bool plus = add || k0 > 0;
        for (int32_t j = 0; j < n; j += t.nr)
            for (int32_t i = 0; i < m; i += t.mr) {
                t.run(kc, pa + (size_t)i * (size_t)kc, pb + (size_t)j * (size_t)kc, out);
                int32_t rows = m - i < t.mr ? m - i : t.mr, cols = n - j < t.nr ? n - j : t.nr;
                for (int32_t r = 0; r < rows; r++) {
                    float *dst = c + (size_t)(i + r) * ldc + j, *src = out + r * t.nr;
                    if (plus)
                        for (int32_t q = 0; q < cols; q++)
                            dst[q] += src[q];
                    else
                        memcpy(dst, src, (size_t)cols * sizeof *dst);
                }
            }
    }
}

struct job {
    const struct gemm *gemm;
    struct tile tile;
    int32_t m, n, k, mc, nc, n_cols; /* n_cols: blocks along n */
    struct mat a, b;
    float *c;
    size_t ldc;
    bool add;
};

static void job_block(void *arg, int32_t task, int32_t thread) {
    const struct job *j = arg;
    int32_t i0 = task / j->n_cols * j->mc, j0 = task % j->n_cols * j->nc;
    int32_t m = j->m - i0 < j->mc ? j->m - i0 : j->mc, n = j->n - j0 < j->nc ? j->n - j0 : j->nc;
    struct mat a = {j->a.p + (size_t)i0 * j->a.row, j->a.row, j->a.col};
    struct mat b = {j->b.p + (size_t)j0 * j->b.col, j->b.row, j->b.col};
    block(j->tile, j->gemm->scratch[thread], m, n, j->k, a, b, j->c + (size_t)i0 * j->ldc + j0,
          j->ldc, j->add);
}

static int32_t blocks(int32_t n, int32_t step) {
    return (n + step - 1) / step;
}

static struct job plan(const struct gemm *g, int32_t m, int32_t n, int32_t k, struct mat a,
                       struct mat b, float *c, size_t ldc, bool add) {
    return (struct job){g, pick_tile(), m, n, k, MC, NC, blocks(n, NC), a, b, c, ldc, add};
}

void gemm(const struct gemm *g, int32_t m, int32_t n, int32_t k, struct mat a, struct mat b,
          float *c, size_t ldc, bool add) {
    struct job j = plan(g, m, n, k, a, b, c, ldc, add);
    /* Two blocks a thread at least, so that the last one does not keep the others waiting. */
    while (blocks(m, j.mc) * blocks(n, j.nc) < 2 * pool_threads(g->pool) &&
           (j.mc > 48 || j.nc > 64)) {
        if (j.nc > 64 && (j.nc >= 2 * j.mc || j.mc <= 48))
            j.nc /= 2;
        else
            j.mc = (j.mc / 2 + 11) / 12 * 12;
    }
    j.n_cols = blocks(n, j.nc);
    pool_run(g->pool, job_block, &j, blocks(m, j.mc) * j.n_cols);
}

void gemm_one(const struct gemm *g, int32_t thread, int32_t m, int32_t n, int32_t k, struct mat a,
              struct mat b, float *c, size_t ldc, bool add) {
    struct job j = plan(g, m, n, k, a, b, c, ldc, add);
    for (int32_t task = 0; task < blocks(m, MC) * j.n_cols; task++)
        job_block(&j, task, thread);
}
