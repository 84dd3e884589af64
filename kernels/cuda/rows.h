/* What stands around the fused linear for narrow rows: the embedding, the producers of a linear's
 * input (norm, attention's output, SiLU * up, each with the two fp16 halves, the bit planes and
 * the low-rank products A x that the linear wants), the tables of jobs, and the head's sampling.
 * Everything that depends on the mix of tenants is device data: a captured graph serves all. */
#ifndef KERNELS_CUDA_ROWS_H
#define KERNELS_CUDA_ROWS_H

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step.h"

/* h = E[token] of both classes: exact rows, dense, or base row + planes + pair.
 * embed [vocab, dim] of the base. */
err_t embed_launch(const struct gpu_step *s, const struct gpu_activations *a, const __half *embed,
                   int32_t dim, int32_t vocab, int32_t max_rows, cudaStream_t stream);

/* What the linears of one slice of at most SLICE_ROWS narrow rows read, for all layers: jobs, pairs
 * and batch of every (layer, which) and of the head, made on the device from the rows' tenants,
 * and the linears' inputs. A step of more narrow rows has several slices, each with tables of its
 * own or one after the other. Definitions of a phase, a job, a set of planes: linear.h.
 *
 * Table layer * N_LINEARS + which; the head's is L * N_LINEARS. Column scales are the same where
 * their pointers are. Memory is taken at open, nothing later. */
struct job_tables; /* host memory, with the device addresses */
err_t job_tables_open(struct job_tables **out, const struct model_shape *shape);
void job_tables_close(struct job_tables *t);         /* NULL: nothing */
size_t job_tables_bytes(const struct job_tables *t); /* device memory held */

/* Fills the tables of all layers for narrow rows first_row ... of the step. These two are launched
 * without overlap, and so must be the next kernel after them (embed_launch is): later kernels
 * read the tables before they wait for the kernel before them. */
err_t job_tables_launch(struct job_tables *t, const struct gpu_step *s, int32_t first_row,
                        cudaStream_t stream);
/* Fills the head's table for logits first_logit ... of the step; row_of_logit: [n_logits] device,
 * the row of the step whose logits these are, narrow or wide. Logits of one tenant side by side
 * share its bits. */
err_t job_tables_head_launch(struct job_tables *t, const struct gpu_step *s,
                             const int32_t *row_of_logit, int32_t first_logit, cudaStream_t stream);

/* Makes the input of the table's linear for its first max_rows rows: the norm of h, ctx as it
 * stands, or silu(gate) * up, as two fp16 halves, bit planes and A x. Fills in `fill` what comes
 * from the tables: in, batch, jobs, pairs, dense. Rows of `a` are those of the step (not of the
 * slice). */
err_t produce_launch(struct job_tables *t, const struct gpu_activations *a, int32_t table,
                     int32_t max_rows, struct linear_args *fill, cudaStream_t stream);

/* What a tenant gives itself, after the head's linear and linear_dense_launch: exact rows of the
 * vocabulary; -inf for ids that nothing gives. logits [rows][ld] */
err_t own_logits_launch(struct job_tables *t, float *logits, int32_t ld, int32_t max_rows,
                        cudaStream_t stream);

/* Log-probabilities, penalties and the draw of up to max_logits rows of logits, as struct logit_row
 * says and as the CPU backend computes: the same tokens from the same logits, but for sums of
 * doubles in another order (sample.cuh). One launch. */
enum { SAMPLE_MAX_VOCAB = 1 << 19 };
struct sample_row; /* device form of logit_row; sample_pack writes it */
struct sample_args {
    float *logits; /* [rows][ld], destroyed; ld: a multiple of 4, at most SAMPLE_MAX_VOCAB */
    int32_t ld;
    const int32_t *n_logits;       /* device */
    const struct sample_row *rows; /* device [n_logits] */
    struct sampled *out;           /* device [n_logits] */
    void *workspace;               /* sample_workspace_bytes(max_logits, ld); 16-byte aligned */
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
