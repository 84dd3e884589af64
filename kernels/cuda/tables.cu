/* From the rows of a step to the tables of a pass on the device. A pass is filled row by row into
 * host arrays; then they are packed, one behind the other, into pinned memory that the device can
 * read, and one kernel copies each to its fixed place. The pinned memory holds all passes of a
 * step, so none waits for another. */
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/cuda.h"

enum {
    SLOT = 16,        /* the fetch kernel moves this much at a time */
    FETCH_BLOCKS = 8, /* the bus is the limit */
};

static size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* ---- where tables stand ---------------------------------------------------------------------- */

static size_t carve(size_t *at, size_t bytes) {
    size_t from = *at;
    *at += aligned(bytes);
    return from;
}

/* Histories of the penalties cannot be longer than what the KV pool holds; biases and bans are
 * bounded for each request. */
enum { SAMPLE_ROW_BYTES = 4096 };

err_t tables_open(struct tables *t, const struct cuda *c, int32_t max_rows, int32_t max_pages) {
    size_t rows = (size_t)max_rows, slices = (size_t)tiles_of(max_rows, SLICE_ROWS), at = 0;
    *t = {};
    t->max_rows = max_rows;
    t->max_pages = max_pages;
    t->sample_bytes =
        aligned(rows * SAMPLE_ROW_BYTES + (size_t)c->n_pages * KV_PAGE_TOKENS * sizeof(int32_t));
    t->counts = carve(&at, sizeof(struct gpu_counts));
    t->row = carve(&at, rows * sizeof(struct gpu_row));
    t->group = carve(&at, rows * sizeof(struct gpu_group));
    t->seq = carve(&at, rows * sizeof(struct gpu_seq));
    t->page = carve(&at, (size_t)max_pages * sizeof(int32_t));
    t->row_of_logit = carve(&at, rows * sizeof(int32_t));
    t->n_logits = carve(&at, slices * SLOT);
    t->sample = carve(&at, t->sample_bytes);
    t->bytes = at;
    if (cudaMalloc((void **)&t->device, t->bytes) == cudaSuccess &&
        cudaMemset(t->device, 0, t->bytes) == cudaSuccess)
        return E_OK;
    cudaGetLastError();
    return E_NOMEM;
}

void tables_close(struct tables *t) {
    cudaFree(t->device);
    *t = {};
}

struct gpu_step tables_step(const struct tables *t) {
    return {
        (const struct gpu_counts *)(t->device + t->counts),
        (const struct gpu_row *)(t->device + t->row),
        (const struct gpu_group *)(t->device + t->group),
        (const struct gpu_seq *)(t->device + t->seq),
        (const int32_t *)(t->device + t->page),
    };
}

/* ---- the host's side of a pass --------------------------------------------------------------- */

err_t pass_open(struct cuda *c) {
    size_t rows = (size_t)c->max_rows, at = 0;
    size_t pages = (size_t)c->n_pages + rows;
    size_t row = carve(&at, rows * sizeof(struct gpu_row));
    size_t group = carve(&at, rows * sizeof(struct gpu_group));
    size_t merge = carve(&at, rows * sizeof(struct prefill_group));
    size_t seq = carve(&at, rows * sizeof(struct gpu_seq));
    size_t page = carve(&at, pages * sizeof(int32_t));
    size_t logit = carve(&at, rows * sizeof(int32_t));
    size_t row_of_logit = carve(&at, rows * sizeof(int32_t));
    size_t how = carve(&at, rows * sizeof(struct logit_row));
    size_t vocab = carve(&at, rows * sizeof(int32_t));
    size_t row_group = carve(&at, rows * sizeof(int32_t));
    size_t logit_of_row = carve(&at, rows * sizeof(int32_t));
    size_t result_of = carve(&at, rows * sizeof(int32_t));
    size_t sample_at = carve(&at, rows * sizeof(size_t));
    char *block = (char *)calloc(1, at);
    if (!block)
        return E_NOMEM;
    c->pass_block = block;
    c->pass.row = (struct gpu_row *)(block + row);
    c->pass.group = (struct gpu_group *)(block + group);
    c->pass.merge = (struct prefill_group *)(block + merge);
    c->pass.seq = (struct gpu_seq *)(block + seq);
    c->pass.page = (int32_t *)(block + page);
    c->pass.logit = (int32_t *)(block + logit);
    c->pass.row_of_logit = (int32_t *)(block + row_of_logit);
    c->pass.how = (struct logit_row *)(block + how);
    c->pass.vocab = (int32_t *)(block + vocab);
    c->row_group = (int32_t *)(block + row_group);
    c->logit_of_row = (int32_t *)(block + logit_of_row);
    c->result_of = (int32_t *)(block + result_of);
    c->pass.sample_at = (size_t *)(block + sample_at);
    size_t passes = (size_t)tiles_of(c->max_rows, SLICE_ROWS) + 1;
    c->pinned_bytes =
        rows * (sizeof(struct gpu_row) + sizeof(struct gpu_group) + sizeof(struct gpu_seq) + 16) +
        pages * sizeof(int32_t) + c->wide.sample_bytes + 2 * passes * 16 * SLOT;
    if (cudaHostAlloc((void **)&c->pinned, c->pinned_bytes, cudaHostAllocMapped) == cudaSuccess &&
        cudaHostAlloc((void **)&c->results, rows * sizeof *c->results, cudaHostAllocMapped) ==
            cudaSuccess)
        return E_OK;
    cudaGetLastError();
    return E_NOMEM;
}

void pass_close(struct cuda *c) {
    free(c->pass_block);
    cudaFreeHost(c->pinned);
    cudaFreeHost(c->results);
}

void pass_clear(struct pass *p) {
    p->counts = {};
    p->n_pages = 0;
    p->last_group = NULL;
    p->last_seq = -1;
    p->longest = 0;
    p->dense = false;
}

static void add_group(struct pass *p, const struct row_group *g, int32_t row, int32_t *n_groups) {
    const struct cuda_tenant *t = (const struct cuda_tenant *)g->tenant->bound;
    if (p->last_group != g) {
        p->merge[*n_groups] = {g->tenant->delta, row, 0};
        p->group[(*n_groups)++] = {t->device, row, 0};
        p->dense |= t->host.has_dense || t->host.head.dense;
        p->last_group = g;
    }
}

static void add_logit(struct cuda *c, int32_t i, int32_t row, int32_t vocab) {
    struct pass *p = &c->pass;
    int32_t at = p->counts.n_logits++;
    p->logit[at] = i;
    p->row_of_logit[at] = row;
    p->how[at] = c->step->logit[i];
    p->vocab[at] = vocab;
}

void pass_add(struct cuda *c, int32_t seq, int32_t from, int32_t n, bool wide) {
    const struct step *step = c->step;
    const struct row_seq *s = &step->seq[seq];
    const struct row_group *g = &step->group[c->row_group[from]];
    const struct gpu_tenant *tenant = ((const struct cuda_tenant *)g->tenant->bound)->device;
    struct pass *p = &c->pass;
    int32_t *n_rows = wide ? &p->counts.n_wide : &p->counts.n_narrow;
    int32_t *n_groups = wide ? &p->counts.n_wide_groups : &p->counts.n_narrow_groups;
    int32_t *n_seqs = wide ? &p->counts.n_wide_seqs : &p->counts.n_narrow_seqs;
    int32_t position = s->position + from - s->first;
    int32_t pages = tiles_of(position + n, KV_PAGE_TOKENS);
    add_group(p, g, *n_rows, n_groups);
    p->group[*n_groups - 1].n += n;
    p->merge[*n_groups - 1].n += n;
    p->seq[*n_seqs] = {*n_rows, n, position, p->n_pages};
    memcpy(p->page + p->n_pages, s->pages, (size_t)pages * sizeof *p->page);
    p->n_pages += pages;
    p->longest = n > p->longest ? n : p->longest;
    for (int32_t i = 0; i < n; i++) {
        int32_t row = (*n_rows)++, logit = c->logit_of_row[from + i];
        p->row[row] = {tenant, step->token[from + i], position + i, *n_seqs, *n_groups - 1};
        if (logit >= 0)
            add_logit(c, logit, row, g->tenant->vocab);
    }
    (*n_seqs)++;
}

/* ---- to the device --------------------------------------------------------------------------- */

enum { PIECES = 24 };

/* What one launch copies. */
struct fetch {
    int32_t n_pieces;
    struct {
        uint32_t from, bytes; /* multiples of SLOT */
        size_t to;
    } piece[PIECES];
};

static __global__ void fetch_kernel(const __grid_constant__ struct fetch f, const char *pinned,
                                    char *device) {
    uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    for (int32_t i = 0; i < f.n_pieces; i++)
        for (uint32_t at = thread * 16; at < f.piece[i].bytes; at += threads * 16)
            *(uint4 *)(device + f.piece[i].to + at) =
                __ldcv((const uint4 *)(pinned + f.piece[i].from + at));
}

static void launch(struct cuda *c, struct fetch *f, const struct tables *t) {
    if (f->n_pieces > 0) {
        fetch_kernel<<<FETCH_BLOCKS, 256, 0, c->stream>>>(*f, c->pinned, t->device);
        CUDA_NOTE(c, cudaGetLastError());
    }
    f->n_pieces = 0;
}

/* Takes room in the pinned memory, to be filled before the next call, for what goes to offset `to`
 * of the tables. NULL: no room. */
static char *add_piece(struct cuda *c, struct fetch *f, const struct tables *t, size_t bytes,
                       size_t to) {
    size_t padded = (bytes + SLOT - 1) / SLOT * SLOT;
    if (c->pinned_used + padded > c->pinned_bytes)
        return NULL;
    if (f->n_pieces == PIECES)
        launch(c, f, t);
    char *p = c->pinned + c->pinned_used;
    f->piece[f->n_pieces++] = {(uint32_t)c->pinned_used, (uint32_t)padded, to};
    c->pinned_used += padded;
    return p;
}

static err_t copy_piece(struct cuda *c, struct fetch *f, const struct tables *t, const void *data,
                        size_t bytes, size_t to) {
    char *p = bytes ? add_piece(c, f, t, bytes, to) : NULL;
    if (p)
        memcpy(p, data, bytes);
    return p || !bytes ? E_OK : E_NOMEM;
}

/* Samples in slices, as the head computes them; the number of each slice stands in a slot. */
static err_t add_samples(struct cuda *c, struct fetch *f, const struct tables *t) {
    struct pass *p = &c->pass;
    size_t used = 0;
    err_t e = E_OK;
    for (int32_t i = 0; !e && i < tiles_of(p->counts.n_logits, SLICE_ROWS); i++) {
        int32_t first = i * SLICE_ROWS, left = p->counts.n_logits - first;
        int32_t n = left < SLICE_ROWS ? left : SLICE_ROWS;
        size_t bytes = sample_packed_bytes(p->how + first, n);
        p->sample_at[i] = t->sample + used;
        used += aligned(bytes);
        char *piece = used <= t->sample_bytes ? add_piece(c, f, t, bytes, p->sample_at[i]) : NULL;
        if (!piece)
            return E_NOMEM;
        sample_pack(p->how + first, p->vocab + first, n, piece, t->device + p->sample_at[i]);
        e = copy_piece(c, f, t, &n, sizeof n, t->n_logits + (size_t)i * SLOT);
    }
    return e;
}

err_t pass_send(struct cuda *c, const struct tables *t) {
    const struct pass *p = &c->pass;
    struct fetch f = {};
    size_t rows = (size_t)(p->counts.n_narrow + p->counts.n_wide);
    size_t groups = (size_t)(p->counts.n_narrow_groups + p->counts.n_wide_groups);
    size_t seqs = (size_t)(p->counts.n_narrow_seqs + p->counts.n_wide_seqs);
    size_t logits = (size_t)p->counts.n_logits;
    err_t e = p->n_pages <= t->max_pages ? E_OK : E_NOMEM;
    if (!e)
        e = copy_piece(c, &f, t, &p->counts, sizeof p->counts, t->counts);
    if (!e)
        e = copy_piece(c, &f, t, p->row, rows * sizeof *p->row, t->row);
    if (!e)
        e = copy_piece(c, &f, t, p->group, groups * sizeof *p->group, t->group);
    if (!e)
        e = copy_piece(c, &f, t, p->seq, seqs * sizeof *p->seq, t->seq);
    if (!e)
        e = copy_piece(c, &f, t, p->page, (size_t)p->n_pages * sizeof *p->page, t->page);
    if (!e)
        e = copy_piece(c, &f, t, p->row_of_logit, logits * sizeof *p->row_of_logit,
                       t->row_of_logit);
    if (!e)
        e = add_samples(c, &f, t);
    if (e)
        return e;
    launch(c, &f, t);
    memcpy(c->result_of + c->n_results, p->logit, logits * sizeof *p->logit);
    return E_OK;
}
