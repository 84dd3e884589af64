/* The CUDA backend's state, shared by its own files (open, tenant, tables, pass, memory). Owned by
 * the engine thread; other threads touch the arena, the windows, `error` and, before the first
 * step, the base.
 *
 * A step is cut into passes. Narrow rows go in passes of at most SLICE_ROWS rows, each a whole
 * forward from embedding to sampling that is one replay of a captured graph; all wide rows together
 * are one pass more, which the engine's own sequence of operators launches. A pass reads its tables
 * (rows, groups, sequences, pages, sampling) at fixed device addresses, to which a kernel copies
 * them from pinned host memory, so no graph is ever captured again. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include <atomic>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/step.h"

enum {
    BUCKETS = 7,  /* 1, 2, 4 .. 64 rows */
    VARIANTS = 2, /* some tenant of the pass has dense parts, or none */
    GRAPH_PARTS = 3,
};

/* What tenant_weights.bound points to. */
struct cuda_tenant {
    struct gpu_tenant host;    /* as on the device */
    struct gpu_tenant *device; /* followed by the deltas [L * N_PARTS]; one piece of the arena */
    size_t bytes;
};

/* The tables of a pass in host memory, filled row by row, then packed into pinned memory. Arrays
 * hold max_rows elements, pages what all sequences can have. */
struct pass {
    struct gpu_counts counts;
    struct gpu_row *row;
    struct gpu_group *group;     /* as in gpu_step; of one class here */
    struct prefill_group *merge; /* [n_wide_groups] the same for wide rows, as the merge wants it */
    struct gpu_seq *seq;
    int32_t *page, n_pages;
    int32_t *logit;        /* [n_logits] index in step->logit */
    int32_t *row_of_logit; /* [n_logits] row of the pass */
    struct logit_row *how; /* [n_logits] */
    int32_t *vocab;        /* [n_logits] of each logit's tenant */
    size_t *sample_at;     /* [slices of SLICE_ROWS logits] offset of their samples in tables */
    const struct row_group *last_group; /* of the row added last */
    int32_t last_seq;
    int32_t longest; /* rows of the longest sequence */
    bool dense;      /* some tenant has dense parts */
};

/* Where the tables of a pass stand in device memory, and room for them. */
struct tables {
    char *device; /* owned */
    size_t bytes;
    int32_t max_rows, max_pages;
    size_t counts, row, group, seq, page, row_of_logit, n_logits, sample; /* offsets */
    size_t sample_bytes; /* of all slices of logits together */
};

struct cuda {
    struct kernels base; /* first: a struct kernels * is this */
    struct model_shape shape;
    int32_t max_rows, n_thread_blocks;
    char description[160];
    std::atomic<int> error; /* sticky */
    cudaStream_t stream;    /* the steps' */
    struct arena arena;
    struct windows windows;

    /* The base: one block. */
    char *weights; /* owned */
    size_t weights_bytes;
    struct linear_shape linear_shape[N_LINEARS], head_shape;
    const uint4 **linear;    /* [L * N_LINEARS] packed */
    const uint4 *head;       /* packed */
    const __half *embed;     /* [V, D] */
    __half *staging;         /* the matrix that is being packed; until kv_open */
    pthread_mutex_t packing; /* guards staging */

    /* Activations and scratch: one block. */
    char *block; /* owned */
    size_t block_bytes;
    struct gpu_activations a;
    float *logits; /* [SLICE_ROWS][ld_logits] */
    int32_t ld_logits;
    void *sample_workspace;
    struct sampled *sampled; /* [SLICE_ROWS] device */
    struct job_tables *jobs;
    struct prefill *prefill;

    /* From kv_open on. */
    void *kv; /* owned */
    size_t kv_bytes;
    int32_t n_pages, max_context; /* positions that attention has scratch for */
    void *attention_workspace;    /* owned */
    size_t attention_bytes;
    struct tables narrow, wide;
    cudaGraphExec_t graph[BUCKETS][VARIANTS][GRAPH_PARTS];

    /* One step. */
    const struct step *step;           /* between begin and end */
    struct pass pass;                  /* the one being filled; after begin the wide one */
    void *pass_block;                  /* owned: its arrays */
    int32_t *row_group, *logit_of_row; /* [max_rows] of the step; owned */
    char *pinned;                      /* owned: tables of all passes of a step, device-mapped */
    size_t pinned_bytes, pinned_used;
    struct sampled *results; /* [max_rows] owned, pinned: as `sampled` */
    int32_t *result_of;      /* [max_rows] owned: index in step->logit of each result */
    int32_t n_results;
};

static inline struct cuda *cuda_of(struct kernels *k) {
    return (struct cuda *)k;
}

/* Remembers the first error of a step's launches; E_DEVICE stays for good. */
void cuda_note(struct cuda *c, err_t e, const char *what);
void cuda_note_call(struct cuda *c, cudaError_t e, const char *what);
#define CUDA_NOTE(c, call) cuda_note_call((c), (call), #call)

/* open.cu: see above. tenant.cu */
err_t cuda_bind_tenant(struct kernels *k, struct tenant_weights *t, struct why *why);
void cuda_unbind_tenant(struct kernels *k, struct tenant_weights *t);

/* tables.cu: rows of a step in passes, passes in device memory. */
err_t tables_open(struct tables *t, const struct cuda *c, int32_t max_rows, int32_t max_pages);
void tables_close(struct tables *t);
struct gpu_step tables_step(const struct tables *t);
err_t pass_open(struct cuda *c);
void pass_close(struct cuda *c);
void pass_clear(struct pass *p);
/* Adds rows [from, from + n) of the step, of sequence `seq` and its tenant. */
void pass_add(struct cuda *c, int32_t seq, int32_t from, int32_t n, bool wide);
/* Packs the pass and launches the copy of its tables; results of its logits come next. */
err_t pass_send(struct cuda *c, const struct tables *t);

/* step.cu: the step's door. */
err_t cuda_begin(struct kernels *k, const struct step *step);
err_t cuda_end(struct kernels *k);

/* pass.cu: the operators, and the graphs of narrow passes. */
err_t graphs_open(struct cuda *c);
void graphs_close(struct cuda *c);
err_t narrow_pass(struct cuda *c); /* sends c->pass and replays its graph */
void cuda_embed(struct kernels *k);
void cuda_norm(struct kernels *k, int32_t layer, enum norm which);
void cuda_linear(struct kernels *k, int32_t layer, enum linear which);
void cuda_rope_append(struct kernels *k, int32_t layer);
void cuda_attention(struct kernels *k, int32_t layer);
void cuda_swiglu(struct kernels *k);
void cuda_head(struct kernels *k);

#endif
