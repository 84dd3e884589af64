/* The wide linear: splits its work over launches of the product (wide.cu).
 *
 * A tenant whose parts have at most one plane without column scales goes straight to the product,
 * which merges on the way, together with all others of its kind. For any other tenant, W + delta is
 * first written to scratch in the packed order (merge.cu), a piece of the matrix at a time, and
 * multiplied as a base without deltas. */
#include <new>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/wide.cuh"

enum {
    SCRATCH_BYTES = 32 << 20,
    MERGE_BLOCKS = 2, /* of a multiprocessor */
};

struct prefill {
    char *input; /* [widest / 64][max_rows][64] fp16, in the order of wide_place */
    size_t input_bytes;
    uint4 *scratch;
    size_t scratch_bytes;
    int32_t max_rows, multiprocessors;
    bool plain; /* the product of wide_plain.cu */
};

static size_t tile_bytes(int32_t n_k) {
    return (size_t)tiles_of(n_k, TILE_COLS) * TILE_ROWS * TILE_COLS * sizeof(__half);
}

static bool is_plain(const struct delta *d, int32_t n_parts) {
    for (int32_t p = 0; d && p < n_parts; p++)
        if (d[p].dense || d[p].rank || d[p].n_planes > 1 || (d[p].n_planes && d[p].plane[0].col))
            return false;
    return true;
}

/* A run of the matrix, without groups yet. */
static struct wide_args run_of(const struct prefill *p, const struct prefill_linear *l,
                               const uint4 *base, int32_t first_tile, int32_t n_tiles) {
    struct wide_args a = {};
    a.shape = l->shape;
    a.first_tile = first_tile;
    a.n_tiles = n_tiles;
    a.base = base;
    a.input = p->input;
    a.max_rows = p->max_rows;
    a.y = l->y;
    a.residual = l->residual;
    a.ld_y = l->ld_y;
    return a;
}

static void add_group(struct wide_args *a, const struct prefill_group *g, const struct delta *d) {
    struct wide_group *to = &a->group[a->n_groups++];
    to->first = g->first;
    to->n = g->n;
    for (int32_t p = 0; p < a->shape.n_parts; p++) {
        bool plane = d && d[p].n_planes;
        to->bits[p] = plane ? d[p].plane[0].bits : NULL;
        to->row[p] = plane ? d[p].plane[0].row : NULL;
    }
}

static err_t product(const struct prefill *p, struct wide_args *a, cudaStream_t stream) {
    return p->plain ? wide_plain_launch(a, p->multiprocessors, stream)
                    : wide_launch(a, p->multiprocessors, stream);
}

/* All groups that need no scratch. */
static err_t multiply_plain(struct prefill *p, const struct prefill_linear *l,
                            cudaStream_t stream) {
    struct wide_args a = run_of(p, l, l->base, 0, l->shape.first_tile[l->shape.n_parts]);
    err_t err = 0;
    for (int32_t i = 0; i < l->n_groups && !err; i++) {
        const struct delta *d = l->groups[i].delta ? l->groups[i].delta + l->first_part : NULL;
        if (is_plain(d, l->shape.n_parts))
            add_group(&a, &l->groups[i], d);
        if (a.n_groups == WIDE_GROUPS || (a.n_groups && i + 1 == l->n_groups)) {
            err = product(p, &a, stream);
            a.n_groups = 0;
        }
    }
    return err;
}

static err_t multiply_merged(struct prefill *p, const struct prefill_linear *l,
                             const struct prefill_group *g, cudaStream_t stream) {
    int32_t tiles = l->shape.first_tile[l->shape.n_parts];
    int32_t most = (int32_t)(p->scratch_bytes / tile_bytes(l->shape.n_k));
    err_t err = 0;
    for (int32_t first = 0; first < tiles && !err; first += most) {
        struct merge_args m = {};
        m.shape = l->shape;
        m.base = l->base;
        memcpy(m.delta, g->delta + l->first_part, (size_t)l->shape.n_parts * sizeof m.delta[0]);
        m.first_tile = first;
        m.n_tiles = tiles - first < most ? tiles - first : most;
        m.out = p->scratch;
        err = merge_launch(&m, p->multiprocessors * MERGE_BLOCKS, stream);
        if (err)
            break;
        struct wide_args a = run_of(p, l, p->scratch, first, m.n_tiles);
        a.after_merge = true;
        add_group(&a, g, NULL);
        err = product(p, &a, stream);
    }
    return err;
}

err_t prefill_linear_launch(struct prefill *p, const struct prefill_linear *l,
                            cudaStream_t stream) {
    err_t err = multiply_plain(p, l, stream);
    for (int32_t i = 0; i < l->n_groups && !err; i++)
        if (l->groups[i].delta && !is_plain(l->groups[i].delta + l->first_part, l->shape.n_parts))
            err = multiply_merged(p, l, &l->groups[i], stream);
    return err;
}

char *prefill_input(const struct prefill *p, int32_t *max_rows) {
    *max_rows = p->max_rows;
    return p->input;
}

/* ---- lifetime -------------------------------------------------------------------------------- */

err_t prefill_open(struct prefill **out, const struct model_shape *shape, int32_t max_rows) {
    struct prefill *p = new (std::nothrow) prefill();
    *out = NULL;
    if (!p)
        return E_NOMEM;
    int32_t widest = 0;
    for (int32_t i = 0; i < N_PARTS; i++)
        if (part_cols(shape, (enum part)i) > widest)
            widest = part_cols(shape, (enum part)i);
    p->max_rows = tiles_of(max_rows, 8) * 8;
    p->input_bytes = ((size_t)tiles_of(widest, TILE_COLS) * TILE_COLS * (size_t)p->max_rows +
                      (size_t)WIDE_MARGIN * WIDE_COLS) *
                     sizeof(__half);
    size_t one = tile_bytes(widest); /* must fit */
    p->scratch_bytes = one > SCRATCH_BYTES ? one : SCRATCH_BYTES;
    err_t err = cudaDeviceGetAttribute(&p->multiprocessors, cudaDevAttrMultiProcessorCount, 0) ==
                        cudaSuccess
                    ? E_OK
                    : E_DEVICE;
    p->plain = !code_is_hopper();
    if (!err)
        err = p->plain ? wide_plain_setup() : wide_setup();
    if (!err && (cudaMalloc((void **)&p->input, p->input_bytes) != cudaSuccess ||
                 cudaMalloc((void **)&p->scratch, p->scratch_bytes) != cudaSuccess))
        err = E_NOMEM;
    /* Rows that no one writes are multiplied, too: into outputs that no one keeps. */
    if (!err && cudaMemset(p->input, 0, p->input_bytes) != cudaSuccess)
        err = E_DEVICE;
    if (err) {
        prefill_close(p);
        return err;
    }
    *out = p;
    return 0;
}

err_t prefill_use_plain(struct prefill *p) {
    p->plain = true;
    return wide_plain_setup();
}

void prefill_close(struct prefill *p) {
    if (!p)
        return;
    cudaFree(p->input);
    cudaFree(p->scratch);
    delete p;
}

size_t prefill_bytes(const struct prefill *p) {
    return p->input_bytes + p->scratch_bytes;
}
