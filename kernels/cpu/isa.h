/* The inner loops of the CPU backend, once per instruction set, chosen once at open. Every function
 * is pure arithmetic on the memory it is given: no allocation, no threads, no globals.
 *
 * Sums run over sixteen FP32 lanes along k in ascending order and end in one fixed tree
 * (lanes.h), whatever the number of rows: that is what makes a row's bits independent of its
 * neighbours. */
#ifndef KERNELS_CPU_ISA_H
#define KERNELS_CPU_ISA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum {
    UNIT_ROWS = 256,       /* most output rows of one work unit */
    UNIT_TOKENS = 256,     /* most rows of the step that a unit takes at a time */
    DELTA_ROWS = 32,       /* rows of the step that share one read of a tile of signs */
    DELTA_PLANES = 4,      /* planes that share one look at x */
    DELTA_TABLE = 64 * 16, /* entries of the tables of a column block, at most */
    QUERIES = 16,          /* queries that share one read of a KV page */
};

/* Scratch of one thread, allocated at open. */
struct scratch {
    float *delta;    /* [DELTA_PLANES, DELTA_ROWS, UNIT_ROWS] */
    int32_t *table;  /* [64, 16] partial sums of 4 columns each */
    uint32_t *bits;  /* [DELTA_PLANES, UNIT_ROWS / 16, 8, 16] words of a column block, a row per
                        lane, and 64 bytes */
    int8_t *bytes;   /* [2, DELTA_ROWS, 256] high and low bytes of x */
    int8_t *signs;   /* [2, 64, 16, 4] a tile of signs, widened */
    int32_t *cells;  /* [2, 2, 2, 16, 16] their products */
    const float **x; /* [UNIT_TOKENS] row pointers */
    float **y;       /* [UNIT_TOKENS] */
    float *context;  /* [QUERIES, head_dim rounded up to 16] attention accumulators */
    float *gather;   /* [UNIT_ROWS] */
};

/* y[c][r] = (add ? y[c][r] : 0) + sum over k of w[r][k] x[c][k]; r < n_out, c < n_x. */
struct matmul_args {
    const uint16_t *w; /* [n_out, k] fp16 */
    int32_t n_out, k, n_x;
    const float *const *x; /* [n_x] -> [k] */
    float *const *y;       /* [n_x] -> [n_out] */
    bool add;
};

/* One block of 256 columns for n_x rows of x and the planes of a tenant that share their column
 * scales (delta.h): acc[p][c][r] += s * I for the 16 n_tiles output rows. */
struct delta_args {
    const uint32_t *bits[DELTA_PLANES]; /* first tiles; those of the next 16 rows: tile_stride on */
    const uint32_t *next[DELTA_PLANES]; /* tiles to fetch meanwhile, laid out alike, or NULL */
    size_t tile_stride;
    int32_t n_planes, n_tiles, n_x;
    int32_t k0, n_k;       /* the block is columns [k0, k0 + n_k), n_k <= 256 */
    const float *const *x; /* [n_x] -> [K] */
    const float *col;      /* [K] or NULL */
    float *acc;            /* [n_planes, n_x, 16 n_tiles] */
};

/* Attention of n_q queries that share a kv head, over pages that hold positions from
 * first_page * P; query i sees positions from[i] .. to[i]. */
struct attention_args {
    const float *kv;         /* first page of this layer and kv head */
    size_t page_stride;      /* floats between pages */
    const int32_t *pages;    /* [..] page numbers of the sequence */
    int32_t n_q, e;          /* queries, head dim */
    float scale;             /* 1 / sqrt(e) */
    const float *q[QUERIES]; /* [e] */
    float *out[QUERIES];     /* [e] */
    int32_t from[QUERIES], to[QUERIES];
};

struct isa {
    const char *name;
    bool (*runs_here)(void);
    void (*matmul)(const struct matmul_args *a);
    void (*delta_block)(const struct delta_args *a, struct scratch *s);
    /* y[c][r] += row[r] * acc[c][r] for r < n; rows of acc are ld_acc apart. */
    void (*add_scaled)(const float *row, const float *acc, int32_t n_x, int32_t ld_acc, int32_t n,
                       float *const *y);
    void (*attention)(const struct attention_args *a, struct scratch *s);
    /* out[i] = h[i] / rms(h) * w[i] */
    void (*norm)(const float *h, const float *w, float eps, int32_t n, float *out);
    /* out[i] = silu(gate[i]) * up[i] */
    void (*swiglu)(const float *gate, const float *up, int32_t n, float *out);
    /* Halves to floats. */
    void (*widen)(const uint16_t *h, int32_t n, float *out);
    /* The largest of z[0..n) (its lowest index in *at), and in *finite whether none is NaN or +inf.
     */
    float (*largest)(const float *z, int32_t n, int32_t *at, bool *finite);
    /* w[i] = e^((z[i] - max) * scale); returns their sum, in order of i by sixteens. */
    double (*weigh)(const float *z, float max, float scale, int32_t n, float *w);
};

extern const struct isa isa_c, isa_avx2, isa_avx512, isa_amx;

/* KV page of one layer and kv head, in floats: keys transposed [E, P], then values [P, E']
 * with E' = E rounded up to 16. */
static inline int32_t kv_lanes(int32_t e) {
    return (e + 15) / 16 * 16;
}
static inline size_t kv_head_floats(int32_t e) {
    return (size_t)KV_PAGE_TOKENS * (size_t)(e + kv_lanes(e));
}

#endif
