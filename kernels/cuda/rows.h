/* What stands around the fused linear for narrow rows: the embedding, the producers of a linear's
 * input (norm, attention's output, SiLU * up, each with the two fp16 halves, the bit planes and
 * the low-rank products A x that the linear wants), the tables of jobs, and the head's sampling.
 * Everything that depends on the mix of tenants is device data: a captured graph serves all. */
#ifndef KERNELS_CUDA_ROWS_H
#define KERNELS_CUDA_ROWS_H

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step.h"

/* h = E[token] of both classes: exact rows, dense, or base row + planes + pair. */
err_t embed_launch(const struct gpu_step *s, const struct gpu_activations *a, const __half *embed,
                   int32_t dim, int32_t max_rows, cudaStream_t stream);

/* Tables for the linears of one slice of narrow rows, all layers: filled on the device from the
 * rows' tenants by one launch at the start of a step. Table of (layer, which): jobs[MAX_PHASES *
 * SLICE_ROWS], one linear_batch, the extra sets of planes. The head's matrix is the last table.
 * Definitions of a phase, a job, a set: linear.h. */
struct job_tables; /* device addresses of all tables; host memory */
err_t job_tables_open(struct job_tables **out, const struct model_shape *shape);
void job_tables_close(struct job_tables *t);
size_t job_tables_bytes(const struct job_tables *t);
/* first_row: of the slice. */
err_t job_tables_launch(struct job_tables *t, const struct gpu_step *s, int32_t first_row,
                        int32_t max_rows, cudaStream_t stream);

/* The kinds of input; the source is FP32 rows of the activations. */
enum producer { PRODUCE_NORM, PRODUCE_CTX, PRODUCE_SWIGLU };

/* Makes the linear's input for rows [first_row, first_row + max_rows) and its arguments' `in`,
 * `batch` and `jobs`; table: layer * N_LINEARS + which, or L * N_LINEARS for the head. For the
 * head, rows are those of the step's logits (gathered), the norm is the final one. */
struct producer_args {
    struct gpu_step step;
    struct gpu_activations a;
    enum producer kind;
    int32_t norm_index; /* of PRODUCE_NORM */
    int32_t n_k, table, first_row;
    const int32_t *gather; /* head: row of each logit; else NULL */
    const int32_t *n_rows; /* device: rows of the slice */
};
err_t produce_launch(struct job_tables *t, const struct producer_args *p, int32_t max_rows,
                     struct linear_args *fill, cudaStream_t stream);

/* Log-probabilities, penalties and the draw of up to max_logits rows of logits [rows][ld] FP32, as
 * struct logit_row says and as the CPU backend computes; results [n_logits] in device memory. */
struct sample_row; /* device form of logit_row; sample_pack writes it */
struct sample_args {
    const float *logits;
    int32_t ld;
    const int32_t *n_logits;       /* device */
    const struct sample_row *rows; /* device [n_logits] */
    struct sampled *out;           /* device [n_logits] */
    void *workspace;               /* sample_workspace_bytes(max_logits, ld) */
};
size_t sample_workspace_bytes(int32_t max_logits, int32_t ld);
/* vocab [n]: of each row's tenant; logits past it do not count. Bytes that sample_pack needs for
 * these rows; then packs them (histories, biases and bans included) to host memory `to`, with
 * pointers as they will be when it stands at `device`. */
size_t sample_packed_bytes(const struct logit_row *rows, int32_t n);
void sample_pack(const struct logit_row *rows, const int32_t *vocab, int32_t n, void *to,
                 void *device);
err_t sample_launch(const struct sample_args *a, int32_t max_logits, cudaStream_t stream);

#endif
