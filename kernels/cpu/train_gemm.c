/* Blocked FP32 matrix product: blocks of C are the pool's tasks; A and B are copied into panels
 * that a register tile reads in order. Flops 2 m n k; packing moves each element of A and B once
 * per block of C. Results do not depend on the number of threads: a task computes its own block
 * alone, and sums run over k in one fixed order. */
#include <string.h>

#include "kernels/cpu/train_cpu.h"

struct job {
    const struct train_cpu *cpu;
    int32_t m, n, k, mc, nc, n_cols; /* n_cols: blocks along n */
    struct train_mat a, b;
    float *c;
    size_t ldc;
    bool add;
};

/* One block of C, m <= MC, n <= NC. */
static void block(const struct job *j, float *panels, int32_t m, int32_t n, struct train_mat a,
                  struct train_mat b, float *c) {
    const struct train_isa *isa = j->cpu->isa;
    float *pa = panels, *pb = panels + (size_t)(TRAIN_MC + 16) * TRAIN_KC;
    for (int32_t k0 = 0; k0 < j->k; k0 += TRAIN_KC) {
        int32_t kc = j->k - k0 < TRAIN_KC ? j->k - k0 : TRAIN_KC;
        struct train_mat ak = {a.p + (size_t)k0 * a.col, a.row, a.col};
        struct train_mat bk = {b.p + (size_t)k0 * b.row, b.col, b.row}; /* its rows: B's columns */
        isa->pack(ak, m, kc, isa->mr, pa);
        isa->pack(bk, n, kc, isa->nr, pb);
        for (int32_t q = 0; q < n; q += isa->nr)
            for (int32_t i = 0; i < m; i += isa->mr) {
                struct tile_out out = {c + (size_t)i * j->ldc + q, j->ldc, m - i, n - q,
                                       j->add || k0 > 0};
                isa->tile(kc, pa + (size_t)i * (size_t)kc, pb + (size_t)q * (size_t)kc, &out);
            }
    }
}

static void job_block(void *arg, int32_t task, int32_t thread) {
    const struct job *j = arg;
    int32_t i0 = task / j->n_cols * j->mc, j0 = task % j->n_cols * j->nc;
    int32_t m = j->m - i0 < j->mc ? j->m - i0 : j->mc, n = j->n - j0 < j->nc ? j->n - j0 : j->nc;
    struct train_mat a = {j->a.p + (size_t)i0 * j->a.row, j->a.row, j->a.col};
    struct train_mat b = {j->b.p + (size_t)j0 * j->b.col, j->b.row, j->b.col};
    block(j, j->cpu->panels[thread], m, n, a, b, j->c + (size_t)i0 * j->ldc + j0);
}

static int32_t blocks(int32_t n, int32_t step) {
    return (n + step - 1) / step;
}

static struct job plan(const struct train_cpu *cpu, int32_t m, int32_t n, int32_t k,
                       struct train_mat a, struct train_mat b, float *c, size_t ldc, bool add) {
    return (struct job){cpu, m, n, k, TRAIN_MC, TRAIN_NC, blocks(n, TRAIN_NC), a, b, c, ldc, add};
}

void train_cpu_gemm(struct train *t, int32_t m, int32_t n, int32_t k, struct train_mat a,
                    struct train_mat b, float *c, size_t ldc, bool add) {
    const struct train_cpu *cpu = train_cpu(t);
    struct job j = plan(cpu, m, n, k, a, b, c, ldc, add);
    /* Two blocks a thread at least, so that the last one does not keep the others waiting. */
    while (blocks(m, j.mc) * blocks(n, j.nc) < 2 * pool_threads(cpu->pool) &&
           (j.mc > 48 || j.nc > 64)) {
        if (j.nc > 64 && (j.nc >= 2 * j.mc || j.mc <= 48))
            j.nc /= 2;
        else
            j.mc = (j.mc / 2 + 11) / 12 * 12;
    }
    j.n_cols = blocks(n, j.nc);
    pool_run(cpu->pool, job_block, &j, blocks(m, j.mc) * j.n_cols);
}

void train_cpu_gemm_one(const struct train_cpu *cpu, int32_t thread, int32_t m, int32_t n,
                        int32_t k, struct train_mat a, struct train_mat b, float *c, size_t ldc,
                        bool add) {
    struct job j = plan(cpu, m, n, k, a, b, c, ldc, add);
    for (int32_t task = 0; task < blocks(m, TRAIN_MC) * j.n_cols; task++)
        job_block(&j, task, thread);
}

/* ---- few rows -------------------------------------------------------------------------------- */

/* Up to here y = x W' is made as (W x')': x is packed, once for all threads, and W is read in the
 * order in which it lies. Packing W, which is read from memory, would take longer than the
 * product. The sums are the same, number by number. */
enum { FEW_ROWS = 256, TURNED_COLS = 48 };

struct turned {
    const struct train_cpu *cpu;
    int32_t rows, padded; /* of x; whole panels of it */
    const float *x;
    const struct train_weights *w;
    float *packed, *y; /* packed: of each TRAIN_KC columns all panels */
    bool add;
};

static int32_t depth(const struct turned *j, int32_t k0) {
    return j->w->k - k0 < TRAIN_KC ? j->w->k - k0 : TRAIN_KC;
}

static void pack_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct turned *j = arg;
    int32_t k0 = task * TRAIN_KC;
    struct train_mat x = {j->x + k0, (size_t)j->w->k, 1};
    j->cpu->isa->pack(x, j->rows, depth(j, k0), j->cpu->isa->nr,
                      j->packed + (size_t)k0 * (size_t)j->padded);
}

static void turned_task(void *arg, int32_t task, int32_t thread) {
    const struct turned *j = arg;
    const struct train_isa *isa = j->cpu->isa;
    float *own = j->cpu->panels[thread]; /* [mr, depth] of W, its rows side by side */
    size_t n = (size_t)j->w->n, k = (size_t)j->w->k;
    int32_t end = (task + 1) * TURNED_COLS < j->w->n ? (task + 1) * TURNED_COLS : j->w->n;
    for (int32_t i = task * TURNED_COLS; i < end; i += isa->mr)
        for (int32_t k0 = 0; k0 < j->w->k; k0 += TRAIN_KC) {
            int32_t kc = depth(j, k0), cols = end - i < isa->mr ? end - i : isa->mr;
            const float *w = (const float *)j->w->w + (size_t)i * k + (size_t)k0;
            for (int32_t r = 0; r < isa->mr; r++)
                memcpy(own + (size_t)r * (size_t)kc, w + (size_t)(r < cols ? r : 0) * k,
                       (size_t)kc * sizeof *own);
            const float *x = j->packed + (size_t)k0 * (size_t)j->padded;
            for (int32_t q = 0; q < j->rows; q += isa->nr) {
                struct tile_out out = {j->y + (size_t)q * n + (size_t)i, n, j->rows - q, cols,
                                       j->add || k0 > 0};
                isa->tile_turned(kc, own, (size_t)kc, x + (size_t)q * (size_t)kc, &out);
            }
        }
}

static void product_of_few(struct train_cpu *cpu, int32_t rows, const float *x,
                           const struct train_weights *w, float *y, bool add) {
    struct turned j = {cpu, rows, blocks(rows, cpu->isa->nr) * cpu->isa->nr, x, w, NULL, y, add};
    j.packed = train_cpu_work(cpu, (size_t)j.padded * (size_t)w->k);
    if (!j.packed)
        return;
    pool_run(cpu->pool, pack_task, &j, blocks(w->k, TRAIN_KC));
    pool_run(cpu->pool, turned_task, &j, blocks(w->n, TURNED_COLS));
}

void train_cpu_product(struct train *t, int32_t rows, const float *x, const struct train_weights *w,
                       float *y, bool add) {
    size_t k = (size_t)w->k;
    if (rows <= FEW_ROWS) {
        product_of_few(train_cpu(t), rows, x, w, y, add);
        return;
    }
    train_cpu_gemm(t, rows, w->n, w->k, train_mat(x, k), train_mat_t(w->w, k), y, (size_t)w->n,
                   add);
}

void train_cpu_product_dx(struct train *t, int32_t rows, const float *dy,
                          const struct train_weights *w, float *dx, bool add) {
    size_t n = (size_t)w->n, k = (size_t)w->k;
    train_cpu_gemm(t, rows, w->k, w->n, train_mat(dy, n), train_mat(w->w, k), dx, k, add);
}

void train_cpu_product_dw(struct train *t, int32_t rows, const float *dy, int32_t n, const float *x,
                          int32_t k, float *dw) {
    train_cpu_gemm(t, n, k, rows, train_mat_t(dy, (size_t)n), train_mat(x, (size_t)k), dw,
                   (size_t)k, false);
}
