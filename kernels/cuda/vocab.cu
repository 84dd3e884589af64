/* The two ends of a step where vocabularies are looked up row by row: the embedding, and what a
 * tenant's lm_head has that is neither the base's nor a delta.
 *
 *   embed       h = row[i] of the tenant's own rows, else dense, else E[i] + planes + B A, in the
 *               CPU's order of operations: the same FP32 bits
 *   own_logits  z[id] = own row . x, one warp for a row; -inf for ids past what anything gives
 *
 * Bytes: a few rows of D. Bound: latency (row -> tenant -> matrix -> row of it). */
#include "kernels/cuda/rows.cuh"

namespace {

enum { THREADS = 256, OWN_BLOCKS = 32 };

/* The tenant's own row of this id, or NULL. */
__device__ const __half *find_row(const struct vocab_matrix *m, int32_t id, int32_t dim) {
    int32_t lo = 0, hi = m->n_rows;
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if (m->row_id[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < m->n_rows && m->row_id[lo] == id ? (const __half *)m->row + (size_t)lo * dim : NULL;
}

/* Element (id, j) of the delta, added to h as the CPU adds it. */
__device__ float add_delta(const struct delta *d, int32_t id, int32_t j, int32_t dim, float h) {
    int32_t r = id % TILE_ROWS, w = j % TILE_COLS / 32;
    size_t tile = (size_t)(id / TILE_ROWS) * ((dim + TILE_COLS - 1) / TILE_COLS) + j / TILE_COLS;
    size_t word = tile * (TILE_BYTES / 4) + (r % 8 * 4 + w % 4) * 4 + w / 4 * 2 + r / 8;
    for (int32_t i = 0; i < d->n_planes; i++) {
        const struct plane *p = &d->plane[i];
        float scale = p->col ? __fmul_rn(p->row[id], p->col[j]) : p->row[id];
        h = __fadd_rn(h, p->bits[word] >> (j % 32) & 1 ? scale : -scale);
    }
    const __half *a = (const __half *)d->a, *b = (const __half *)d->b + (size_t)id * d->rank;
    for (int32_t i = 0; i < d->rank; i++)
        h = __fadd_rn(h, __fmul_rn(__half2float(b[i]), __half2float(a[(size_t)i * dim + j])));
    return h;
}

__global__ void __launch_bounds__(THREADS)
    embed_kernel(const struct gpu_step s, float *h, int32_t ld_h, const __half *embed, int32_t dim,
                 int32_t vocab) {
    int row = blockIdx.x;
    if (row >= s.counts->n_narrow + s.counts->n_wide)
        return;
    const struct vocab_matrix *m = &s.row[row].tenant->embed;
    int32_t id = s.row[row].token;
    const __half *own = find_row(m, id, dim);
    if (!own && m->dense)
        own = (const __half *)m->dense + (size_t)id * dim;
    const __half *from = own ? own : id < vocab ? embed + (size_t)id * dim : NULL;
    for (int32_t j = threadIdx.x; j < dim; j += THREADS) {
        /* A file that promised a row it lacks: not finite. */
        float v = from ? __half2float(from[j]) : __int_as_float(0x7fc00000);
        if (from && !own)
            v = add_delta(&m->delta, id, j, dim, v);
        h[(size_t)row * ld_h + j] = v;
    }
}

/* w . x of a row of the head's input, by one warp. */
__device__ float dot_row(const __half *w, const __half *x, int row, int dim) {
    int lane = threadIdx.x % 32, n_blocks = (dim + TILE_COLS - 1) / TILE_COLS;
    float sum = 0;
    for (int k = lane; k < dim; k += 32) {
        const __half *at = x + linear_x_at(n_blocks, row, k, 0);
        sum = fmaf(__half2float(w[k]), __half2float(at[0]) + __half2float(at[32]), sum);
    }
    for (int d = 16; d; d >>= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
}

__global__ void __launch_bounds__(THREADS)
    own_logits_kernel(const struct job_table table, const __half *x, int32_t dim, int32_t vocab,
                      float *logits, int32_t ld) {
    int row = blockIdx.y, warp = (blockIdx.x * THREADS + threadIdx.x) / 32;
    grid_launch_next();
    grid_wait();
    if (row >= table.batch->n_rows)
        return;
    const struct row_work *w = table.row + row;
    const struct vocab_matrix *m = w->own;
    float *z = logits + (size_t)row * ld;
    for (int i = warp; i < m->n_rows; i += OWN_BLOCKS * THREADS / 32) {
        int32_t id = m->row_id[i];
        if (id >= w->vocab)
            continue;
        float v = dot_row((const __half *)m->row + (size_t)i * dim, x, row, dim);
        if (threadIdx.x % 32 == 0)
            z[id] = v;
    }
    if (m->dense)
        return;
    for (int32_t id = vocab + blockIdx.x * THREADS + threadIdx.x; id < w->vocab;
         id += OWN_BLOCKS * THREADS)
        if (!find_row(m, id, dim))
            z[id] = __int_as_float(0xff800000);
}

} // namespace

err_t embed_launch(const struct gpu_step *s, const struct gpu_activations *a, const __half *embed,
                   int32_t dim, int32_t vocab, int32_t max_rows, cudaStream_t stream) {
    if (max_rows < 1)
        return E_INVAL;
    /* Not before the tables are complete: later kernels read them before they wait. */
    return launch_early(embed_kernel, dim3((unsigned)max_rows), THREADS, 0, false, stream, *s, a->h,
                        a->ld_h, embed, dim, vocab);
}

err_t own_logits_launch(struct job_tables *t, float *logits, int32_t ld, int32_t max_rows,
                        cudaStream_t stream) {
    if (max_rows < 1 || max_rows > SLICE_ROWS)
        return E_INVAL;
    return launch_early(own_logits_kernel, dim3(OWN_BLOCKS, (unsigned)max_rows), THREADS, 0, true,
                        stream, table_at(t->base, t->n_tables - 1), t->x, t->shape.dim,
                        t->shape.vocab, logits, ld);
}
