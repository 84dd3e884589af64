/* The wide linear: piece by piece of a matrix, W + delta of one tenant to scratch (merge.cu), then
 * one GEMM with all of that tenant's rows.
 *
 * A piece is as many outputs as the scratch takes. Merges run on a stream of their own, one piece
 * ahead, into the other half of the scratch. The GEMM is cuBLASLt's, never split along K, FP32
 * sums; its algorithm is chosen once for each (outputs, columns, rows rounded up to 64) and kept.
 */
#include <cublasLt.h>
#include <new>
#include <vector>

#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/prefill.h"

enum {
    SCRATCH_BYTES = 96 << 20, /* one of the two halves */
    WORKSPACE_BYTES = 32 << 20,
    ROWS_STEP = 64, /* rows of a GEMM are rounded up to this when its algorithm is chosen */
    BLOCKS_PER_MULTIPROCESSOR = 2,
};

struct gemm_key {
    int32_t n, k, rows, ld_w, ld_x, ld_y;
    bool residual;
};
struct gemm_choice {
    struct gemm_key key;
    cublasLtMatmulAlgo_t algo;
};

/* What the next merge makes, or has made: a piece of one tenant's matrix. */
struct merge_job {
    const struct delta *delta;
    const uint4 *base;
    int32_t first_tile, n_tiles;
};

struct prefill {
    cublasLtHandle_t blas;
    cublasLtMatmulDesc_t product;
    cudaStream_t merging;
    cudaEvent_t merged[2], used[2]; /* of each half of the scratch */
    __half *scratch[2];
    void *workspace;
    size_t scratch_bytes;
    int32_t half; /* which holds the next piece */
    bool ahead;   /* `job` is merged, or being merged, in scratch[half] */
    struct merge_job job;
    int32_t multiprocessors;
    std::vector<gemm_choice> choices;
};

static int32_t round_up(int32_t n, int32_t to) {
    return (n + to - 1) / to * to;
}

/* ---- the product ----------------------------------------------------------------------------- */

struct layouts { /* as cuBLAS sees them, column-major: y' [n, rows] = w' [k, n]' x' [k, rows] */
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

static bool make_layouts(struct layouts *l, const struct gemm_key *g, int32_t rows) {
    cudaDataType_t type = g->residual ? CUDA_R_32F : CUDA_R_16F;
    uint64_t k = (uint64_t)g->k, n = (uint64_t)g->n, m = (uint64_t)rows;
    return !cublasLtMatrixLayoutInit(&l->w, CUDA_R_16F, k, n, g->ld_w) &&
           !cublasLtMatrixLayoutInit(&l->x, CUDA_R_16F, k, m, g->ld_x) &&
           !cublasLtMatrixLayoutInit(&l->y, type, n, m, g->ld_y);
}

static const cublasLtMatmulAlgo_t *choose(struct prefill *p, const struct gemm_key *g) {
    for (const gemm_choice &c : p->choices)
        if (!memcmp(&c.key, g, sizeof *g))
            return &c.algo;
    struct layouts l;
    cublasLtMatmulPreferenceOpaque_t wish;
    uint64_t workspace = WORKSPACE_BYTES;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    cublasLtMatmulHeuristicResult_t found;
    uint32_t aligned = 16;
    int n = 0;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    if (!make_layouts(&l, g, g->rows) || cublasLtMatmulPreferenceInit(&wish) ||
        cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace, sizeof workspace) ||
        cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                             &reduction, sizeof reduction))
        return NULL;
    for (cublasLtMatmulPreferenceAttributes_t at : alignments)
        if (cublasLtMatmulPreferenceSetAttribute(&wish, at, &aligned, sizeof aligned))
            return NULL;
    if (cublasLtMatmulAlgoGetHeuristic(p->blas, p->product, &l.w, &l.x, &l.y, &l.y, &wish, 1,
                                       &found, &n) ||
        n < 1)
        return NULL;
    p->choices.push_back({*g, found.algo});
    return &p->choices.back().algo;
}

/* y [rows][ld_y] from column `at` on, n columns. */
static err_t multiply(struct prefill *p, const struct prefill_linear *l,
                      const struct prefill_group *group, const __half *w, int32_t ld_w, int32_t at,
                      int32_t n, cudaStream_t stream) {
    struct gemm_key g;
    memset(&g, 0, sizeof g); /* compared as bytes */
    g.n = n, g.k = l->shape.n_k, g.rows = round_up(group->n, ROWS_STEP);
    g.ld_w = ld_w, g.ld_x = l->ld_x, g.ld_y = l->ld_y, g.residual = !l->y;
    const cublasLtMatmulAlgo_t *algo = choose(p, &g);
    struct layouts t;
    if (!algo || !make_layouts(&t, &g, group->n))
        return E_DEVICE;
    float one = 1, beta = l->y ? 0 : 1;
    size_t first = (size_t)group->first * l->ld_y + at;
    void *y = l->y ? (void *)(l->y + first) : (void *)(l->residual + first);
    const __half *x = l->x + (size_t)group->first * l->ld_x;
    return cublasLtMatmul(p->blas, p->product, &one, w, &t.w, x, &t.x, &beta, y, &t.y, y, &t.y,
                          algo, p->workspace, WORKSPACE_BYTES, stream)
               ? E_DEVICE
               : 0;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

/* Piece `index` of the launch, pieces of a group side by side; false: past the end. */
static bool piece_of(const struct prefill *p, const struct prefill_linear *l, int32_t index,
                     struct merge_job *job, int32_t *group) {
    int32_t tiles = l->shape.first_tile[l->shape.n_parts];
    size_t tile_bytes = (size_t)round_up(l->shape.n_k, 8) * TILE_ROWS * sizeof(__half);
    int32_t most = (int32_t)(p->scratch_bytes / tile_bytes), pieces = tiles_of(tiles, most);
    int32_t each = round_up(tiles_of(tiles, pieces), 8); /* 128 outputs: a GEMM's tile */
    if (each > most)
        each = most;
    pieces = tiles_of(tiles, each);
    *group = index / pieces;
    if (*group >= l->n_groups)
        return false;
    job->delta = l->groups[*group].delta;
    job->base = l->base;
    job->first_tile = index % pieces * each;
    job->n_tiles = tiles - job->first_tile < each ? tiles - job->first_tile : each;
    return true;
}

/* Starts the merge of a piece in scratch[half]. */
static err_t merge_ahead(struct prefill *p, const struct prefill_linear *l,
                         const struct merge_job *job) {
    struct merge_args a = {};
    a.shape = l->shape;
    a.base = job->base;
    if (job->delta)
        memcpy(a.delta, job->delta + l->first_part, (size_t)l->shape.n_parts * sizeof a.delta[0]);
    a.first_tile = job->first_tile;
    a.n_tiles = job->n_tiles;
    a.out = p->scratch[p->half];
    a.ld = round_up(l->shape.n_k, 8);
    if (cudaStreamWaitEvent(p->merging, p->used[p->half], 0) != cudaSuccess)
        return E_DEVICE;
    err_t err = merge_launch(&a, p->multiprocessors * BLOCKS_PER_MULTIPROCESSOR, p->merging);
    if (!err && cudaEventRecord(p->merged[p->half], p->merging) != cudaSuccess)
        err = E_DEVICE;
    p->ahead = !err;
    p->job = *job;
    return err;
}

err_t prefill_linear_next(struct prefill *p, const struct prefill_linear *l) {
    struct merge_job job;
    int32_t group;
    return piece_of(p, l, 0, &job, &group) ? merge_ahead(p, l, &job) : 0;
}

err_t prefill_linear_launch(struct prefill *p, const struct prefill_linear *l,
                            cudaStream_t stream) {
    struct merge_job job, next;
    int32_t group, next_group, ld = round_up(l->shape.n_k, 8);
    const struct linear_shape *s = &l->shape;
    int32_t last_part = s->n_parts - 1;
    int32_t n_out = s->first_tile[last_part] * TILE_ROWS + s->part_rows[last_part];
    bool more = piece_of(p, l, 0, &job, &group);
    err_t err = 0;
    if (more && !(p->ahead && p->job.delta == job.delta && p->job.base == job.base))
        err = merge_ahead(p, l, &job);
    for (int32_t i = 1; more && !err; i++) {
        int32_t half = p->half, at = job.first_tile * TILE_ROWS, n = job.n_tiles * TILE_ROWS;
        if (cudaStreamWaitEvent(stream, p->merged[half], 0) != cudaSuccess)
            return E_DEVICE;
        err = multiply(p, l, &l->groups[group], p->scratch[half], ld, at,
                       n < n_out - at ? n : n_out - at, stream);
        if (err || cudaEventRecord(p->used[half], stream) != cudaSuccess)
            return E_DEVICE;
        p->half = 1 - half, p->ahead = false;
        more = piece_of(p, l, i, &next, &next_group);
        if (more)
            err = merge_ahead(p, l, &next);
        job = next, group = next_group;
    }
    return err;
}

/* ---- lifetime -------------------------------------------------------------------------------- */

err_t prefill_open(struct prefill **out, const struct model_shape *shape) {
    struct prefill *p = new (std::nothrow) prefill();
    *out = NULL;
    if (!p)
        return E_NOMEM;
    /* One tile of the widest matrix must fit. */
    int32_t widest = 0;
    for (int32_t i = 0; i < N_PARTS; i++)
        if (part_cols(shape, (enum part)i) > widest)
            widest = part_cols(shape, (enum part)i);
    size_t tile_bytes = (size_t)round_up(widest, 8) * TILE_ROWS * sizeof(__half);
    p->scratch_bytes = tile_bytes > SCRATCH_BYTES ? tile_bytes : SCRATCH_BYTES;
    cublasOperation_t transposed = CUBLAS_OP_T;
    bool ok = cudaDeviceGetAttribute(&p->multiprocessors, cudaDevAttrMultiProcessorCount, 0) ==
                  cudaSuccess &&
              cudaStreamCreateWithFlags(&p->merging, cudaStreamNonBlocking) == cudaSuccess &&
              !cublasLtCreate(&p->blas) &&
              !cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) &&
              !cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                              sizeof transposed);
    for (int i = 0; i < 2; i++)
        ok = ok && cudaEventCreateWithFlags(&p->merged[i], cudaEventDisableTiming) == cudaSuccess &&
             cudaEventCreateWithFlags(&p->used[i], cudaEventDisableTiming) == cudaSuccess;
    bool fits = ok && cudaMalloc((void **)&p->scratch[0], p->scratch_bytes) == cudaSuccess &&
                cudaMalloc((void **)&p->scratch[1], p->scratch_bytes) == cudaSuccess &&
                cudaMalloc(&p->workspace, WORKSPACE_BYTES) == cudaSuccess;
    if (!fits) {
        prefill_close(p);
        return ok ? E_NOMEM : E_DEVICE;
    }
    *out = p;
    return 0;
}

void prefill_close(struct prefill *p) {
    if (!p)
        return;
    if (p->merging)
        cudaStreamSynchronize(p->merging);
    for (int i = 0; i < 2; i++) {
        cudaFree(p->scratch[i]);
        if (p->merged[i])
            cudaEventDestroy(p->merged[i]);
        if (p->used[i])
            cudaEventDestroy(p->used[i]);
    }
    cudaFree(p->workspace);
    if (p->product)
        cublasLtMatmulDescDestroy(p->product);
    if (p->blas)
        cublasLtDestroy(p->blas);
    if (p->merging)
        cudaStreamDestroy(p->merging);
    delete p;
}

size_t prefill_bytes(const struct prefill *p) {
    return 2 * p->scratch_bytes + WORKSPACE_BYTES;
}
