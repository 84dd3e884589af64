/* The arithmetic of one decode or prefill step, behind one table of operators with two backends:
 * kernels/cpu (the embedded default and the oracle) and kernels/cuda (loaded at run time).
 *
 * Mental model. The engine opens a backend on a model shape, places weights on it, and then repeats
 *     begin(step) -> embed -> per layer: norm, linear, rope_append, attention, linear, ... -> head
 * -> end The backend owns the activations: an operator names the layer and the matrix, never a
 * buffer, so a backend may fuse, reorder or capture the sequence as long as the results are those
 * of the formulas.
 *
 * Batch invariance is part of the contract: what an operator computes for a row depends on that
 * row, its tenant and its own sequence alone, never on the number, order or tenants of the other
 * rows, nor on how a prompt was cut into chunks. It holds bit for bit within one backend and
 * instruction set.
 *
 * Shape letters, used everywhere: T rows (tokens) in the step, D model dim, H query heads, K kv
 * heads, E head dim, F ffn dim, V vocabulary, L layers, P tokens in a KV page; a matrix is W [N, K]
 * (out, in). Thread: the step's functions are called by the engine thread alone; what places, binds
 * and counts memory by any threads at once, beside it. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    KV_PAGE_TOKENS = 32, /* P */
    MAX_PLANES = 8,      /* sign planes of one matrix */
    MAX_PARTS = 3,       /* matrices joined along N: q|k|v, gate|up */
    MAX_TOP = 20,        /* alternatives reported per token */
    TILE_ROWS = 16,      /* a tile of sign bits: 16 rows x 256 columns, 512 bytes */
    TILE_COLS = 256,
    TILE_BYTES = 512,
    WINDOW_BYTES = 1 << 20, /* most that goes to the device in one piece */
};

/* ---- model shape ---------------------------------------------------------------------------- */

struct model_shape {
    int32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim; /* L D H K E F */
    int32_t vocab;                                                 /* V of the base */
    int32_t max_vocab;      /* widest vocabulary a tenant may have; logits are this wide */
    int32_t sliding_window; /* of the base, as is norm_eps: rows use those of their tenant */
    float norm_eps;
    bool tied; /* the base's lm_head is its embedding */
};

/* The matrices that run as one product. Parts are joined along N in this order. */
enum linear { LINEAR_QKV, LINEAR_O, LINEAR_GATE_UP, LINEAR_DOWN, N_LINEARS };
/* The checkpoint's own matrices; a delta belongs to one of these. */
enum part { PART_Q, PART_K, PART_V, PART_O, PART_GATE, PART_UP, PART_DOWN, N_PARTS };
enum norm { NORM_ATTN, NORM_FFN }; /* the final norm belongs to head() */

/* ---- weights ---------------------------------------------------------------------------------
 * The base's matrices are given to the backend, which keeps them in a form of its own. Those of a
 * tenant stand as the pointers below say in memory from reserve(), borrowed while the tenant is
 * bound. */

/* One sign plane: contributes  diag(row) S diag(col) x.  S is +1 where the bit is set, else -1.
 * bits: [ceil(N/16)][ceil(K/256)] tiles in the A-fragment order of mma.m16n8k256 (PTX ISA, "Matrix
 * fragments for mma.m16n8k256"): a tile is 32 lanes x 4 words; with g = lane/4, t = lane%4 the
 * words are (row g, w t), (row g+8, w t), (row g, w t+4), (row g+8, w t+4), where word w holds
 * columns 32w..32w+31 of the tile, lowest column in the lowest bit. Rows and columns past N, K are
 * zero bits. */
struct plane {
    const uint32_t *bits;
    const float *row; /* [N] */
    const float *col; /* [K], or NULL: all ones */
};

/* What a tenant changes in one part: y += sum of planes + B (A x), or y = dense x when dense is
 * set. */
struct delta {
    int32_t n_planes, rank;
    struct plane plane[MAX_PLANES];
    const uint16_t *a;     /* [rank, K] fp16 */
    const uint16_t *b;     /* [N, rank] fp16 */
    const uint16_t *dense; /* [N, K] fp16, or NULL */
};

/* A tenant's embedding or lm_head [vocab, D]. Row i is, in this order of precedence:
 * rows (if i stands in row_id), dense (if set), else base row i plus the delta's planes and low
 * rank. */
struct vocab_matrix {
    const uint16_t *dense; /* [vocab, D] fp16, or NULL */
    int32_t n_rows;
    const int32_t *row_id; /* [n_rows] ascending; device memory */
    const uint16_t *row;   /* [n_rows, D] fp16 */
    struct delta delta;    /* planes cover [base vocab, D] */
};

/* Everything that computing a row of this tenant needs. The base itself is one of these with no
 * deltas. Norm weights are never shared silently: they are always given. */
struct tenant_weights {
    const float *norm;      /* [2L + 1, D]: attn, ffn of layer 0, 1, ...; final */
    const float *rope;      /* [context, E/2, 2] cos, sin of each position */
    int32_t context;        /* positions in rope */
    int32_t vocab;          /* rows of embedding and lm_head */
    int32_t sliding_window; /* 0: none; else a query at p sees keys p-window+1 .. p */
    float norm_eps;
    bool tied;           /* lm_head is this tenant's embedding; `head` is ignored */
    struct delta *delta; /* [L * N_PARTS], host memory; NULL: no deltas */
    struct vocab_matrix embed, head;
    void *bound; /* the backend's, from bind_tenant to unbind_tenant */
};

/* ---- one step -------------------------------------------------------------------------------- */

/* Rows [first, first + n) belong to this tenant. Groups cover all rows; each tenant has one group.
 */
struct row_group {
    const struct tenant_weights *tenant;
    int32_t first, n;
};

/* Rows [first, first + n) are positions position .. position + n - 1 of one sequence, whose KV
 * pages are pages[0 ..]; the pages hold all earlier positions, and space for these. */
struct row_seq {
    int32_t first, n, position;
    const int32_t *pages;
};

struct logit_bias {
    int32_t id;
    float bias;
};

/* What to do with the logits of one row. Order of the operations, as vLLM has it: report
 * log-probabilities from the raw logits; then bias and masks, repetition, frequency and presence
 * penalties, temperature, min_p, top_k, top_p, draw. temperature 0 takes the largest (lowest id
 * wins). The draw uses a counter-based generator keyed by (seed, draw), so it does not depend on
 * the batch. */
struct logit_row {
    int32_t row;                           /* row of the step */
    int32_t target;                        /* >= 0: score this id, draw nothing */
    float temperature, top_p, min_p;       /* top_p 1, min_p 0: off */
    int32_t top_k;                         /* <= 0: off */
    float presence, frequency, repetition; /* 0, 0, 1: off */
    uint64_t seed, draw;
    const int32_t *history;        /* [n_history] prompt then output ids, for the penalties */
    int32_t n_prompt, n_history;   /* presence and frequency count output ids only */
    const struct logit_bias *bias; /* [n_bias] */
    int32_t n_bias;
    const int32_t *banned; /* [n_banned] never drawn (EOS before min_tokens) */
    int32_t n_banned;
    int32_t n_top; /* -1: no log-probabilities wanted; 0 .. MAX_TOP alternatives */
};

struct sampled {
    int32_t token; /* drawn, or the target */
    bool finite;   /* false: the row's logits hold NaN or +inf, or nothing can be drawn */
    float logprob; /* of token; raw model distribution; 0 when n_top is -1 */
    int32_t n_top;
    int32_t top_id[MAX_TOP]; /* descending, ties by lower id */
    float top_logprob[MAX_TOP];
};

struct step {
    int32_t n_rows, n_groups, n_seqs, n_logits;
    const int32_t *token;          /* [n_rows] */
    const struct row_group *group; /* [n_groups] */
    const struct row_seq *seq;     /* [n_seqs] in row order */
    const struct logit_row *logit; /* [n_logits] in row order */
    struct sampled *sampled;       /* [n_logits] written by end() */
};

/* ---- the operators --------------------------------------------------------------------------- */

struct kernels; /* one backend opened on one device */

struct kernels_ops {
    const char *name; /* "cpu" or "cuda" */

    void (*close)(struct kernels *k);
    /* One line for people: instruction set and threads, or card. Borrowed. */
    const char *(*describe)(const struct kernels *k);

    /* Device memory for weights, aligned to 256 bytes; what it holds is undefined. E_NOMEM. */
    err_t (*reserve)(struct kernels *k, size_t bytes, void **device);
    void (*release)(struct kernels *k, void *device, size_t bytes);
    /* The way into it: stage gives a window, host memory to write what shall stand in `device` ..
     * `device` + bytes - 1 (of one reservation; at most WINDOW_BYTES), and commit, which must
     * follow, sends it off. stage may wait for windows of others, so a thread has one at a time.
     * On the CPU the window is the place itself. settle waits until all that was committed before
     * has arrived. E_DEVICE. */
    err_t (*stage)(struct kernels *k, void *device, size_t bytes, void **window);
    err_t (*commit)(struct kernels *k, void *device, void *window, size_t bytes);
    err_t (*settle)(struct kernels *k);
    size_t (*memory_used)(const struct kernels *k); /* bytes of weights, KV and activations */
    /* Bytes that reserve and kv_open could still get (CPU: MemAvailable within the cgroup's limit)
     */
    size_t (*memory_free)(const struct kernels *k);
    size_t (*kv_page_bytes)(const struct kernels *k); /* one KV page: keys and values, all layers */

    /* Takes matrix i of the base (base_matrix_bytes), fp16 row-major in a block from host_block():
     * the block is the backend's from here on, also on failure. Each once, all before the first
     * step; the order is free. */
    err_t (*place_base)(struct kernels *k, int32_t i, void *block);
    /* Makes a tenant fit for steps; its weights have arrived and stay until unbind_tenant, whose
     * caller knows that no step uses it. E_UNSUPPORTED: a tenant that the backend cannot do. */
    err_t (*bind_tenant)(struct kernels *k, struct tenant_weights *t, struct why *why);
    void (*unbind_tenant)(struct kernels *k, struct tenant_weights *t);
    /* Once, after the base is placed and before the first step. */
    err_t (*kv_open)(struct kernels *k, int32_t n_pages);

    err_t (*begin)(struct kernels *k, const struct step *step);      /* step: borrowed until end */
    void (*embed)(struct kernels *k);                                /* h = E[token] */
    void (*norm)(struct kernels *k, int32_t layer, enum norm which); /* x = h / rms(h) * w */
    /* QKV: qkv = W x.  O: h += W ctx.  GATE_UP: gu = W x.  DOWN: h += W act.  W: base + tenant
     * delta */
    void (*linear)(struct kernels *k, int32_t layer, enum linear which);
    void (*rope_append)(struct kernels *k,
                        int32_t layer);                  /* rotate q, k; append k, v to the pages */
    void (*attention)(struct kernels *k, int32_t layer); /* ctx = softmax(q k' / sqrt E) v */
    void (*swiglu)(struct kernels *k);                   /* act = silu(gate) * up */
    void (*head)(struct kernels *k);                     /* final norm, lm_head, sampling */
    /* Waits for the step's results. E_DEVICE is sticky: the process must end. */
    err_t (*end)(struct kernels *k);
};

struct kernels {
    const struct kernels_ops *ops;
};

/* shape: copied. max_rows: most rows of one step. threads: CPU threads, 0 = all cores.
 * Errors: E_NOMEM, E_UNSUPPORTED (a shape the backend cannot do), E_DEVICE (no such device). */
err_t kernels_cpu_open(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                       int32_t threads, struct why *why);

/* The CUDA backend's door, found by name in libbitdelta_cuda.so; threads is not used.
 * E_UNSUPPORTED: no device that it is built for. */
err_t kernels_cuda_open(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                        int32_t threads, struct why *why);

/* Page-aligned, zeroed host memory; free with host_block_free unless place_base took it. */
void *host_block(size_t bytes);
void host_block_free(void *block, size_t bytes);

/* ---- shape helpers --------------------------------------------------------------------------- */

static inline int32_t tiles_of(int32_t n, int32_t tile) {
    return (n + tile - 1) / tile;
}
/* Bytes of the sign bits of an [n, k] matrix. */
static inline size_t plane_bytes(int32_t n, int32_t k) {
    return (size_t)tiles_of(n, TILE_ROWS) * (size_t)tiles_of(k, TILE_COLS) * TILE_BYTES;
}
/* Index of the 32-bit word that holds row n, column k; the bit is k % 32. */
static inline size_t plane_word(int32_t n, int32_t k, int32_t k_cols) {
    size_t tile =
        (size_t)(n / TILE_ROWS) * (size_t)tiles_of(k_cols, TILE_COLS) + (size_t)(k / TILE_COLS);
    int32_t r = n % TILE_ROWS, w = k % TILE_COLS / 32;
    int32_t lane = r % 8 * 4 + w % 4, slot = w / 4 * 2 + r / 8;
    return tile * (TILE_BYTES / 4) + (size_t)(lane * 4 + slot);
}
/* Rows (out) and columns (in) of a part; the parts of a linear and their order. */
static inline int32_t part_rows(const struct model_shape *s, enum part p) {
    switch (p) {
    case PART_Q:
        return s->n_heads * s->head_dim;
    case PART_K:
    case PART_V:
        return s->n_kv_heads * s->head_dim;
    case PART_O:
    case PART_DOWN:
        return s->dim;
    default:
        return s->ffn_dim;
    }
}
static inline int32_t part_cols(const struct model_shape *s, enum part p) {
    return p == PART_O ? s->n_heads * s->head_dim : p == PART_DOWN ? s->ffn_dim : s->dim;
}
static inline enum part linear_first_part(enum linear which) {
    static const enum part first[N_LINEARS] = {PART_Q, PART_O, PART_GATE, PART_DOWN};
    return first[which];
}
static inline int32_t linear_n_parts(enum linear which) {
    static const int32_t n[N_LINEARS] = {3, 1, 2, 1};
    return n[which];
}
/* Rows of a joined matrix. */
static inline int32_t linear_rows(const struct model_shape *s, enum linear which) {
    int32_t n = 0;
    for (int32_t i = 0; i < linear_n_parts(which); i++)
        n += part_rows(s, (enum part)((int32_t)linear_first_part(which) + i));
    return n;
}
/* The base's matrices: layer * N_LINEARS + which, then the embedding, then the lm_head unless it is
 * tied. */
static inline int32_t base_embed(const struct model_shape *s) {
    return s->n_layers * N_LINEARS;
}
static inline int32_t base_matrices(const struct model_shape *s) {
    return base_embed(s) + (s->tied ? 1 : 2);
}
static inline size_t base_matrix_bytes(const struct model_shape *s, int32_t i) {
    enum linear which = (enum linear)(i % N_LINEARS);
    size_t n = (size_t)s->vocab, k = (size_t)s->dim;
    if (i < base_embed(s)) {
        n = (size_t)linear_rows(s, which);
        k = (size_t)part_cols(s, linear_first_part(which));
    }
    return n * k * sizeof(uint16_t);
}

#ifdef __cplusplus
}
#endif

#endif
