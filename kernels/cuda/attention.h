/* Keys, values and attention: rotate and append, split-KV decode for narrow rows, tiled prefill
 * for wide ones. The KV pool's layout is private to attention*.cu.
 *
 * Keys and values are 16-bit integers with one FP32 scale for each token and KV head: fp16's
 * memory, 16 times its resolution (docs/decisions/0002). The pool is [L][n_pages][K heads] blocks
 * of: keys [P][E] int16, values [P][E] int16, key scales [P], value scales [P]. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/step.h"

struct attention_args {
    struct gpu_step step;
    struct gpu_activations a;
    int32_t layer, n_pages;
    int32_t n_heads, n_kv_heads, head_dim; /* H, K, E; E even, at most 256 */
    void *kv;                              /* attention_page_bytes() * n_pages * L */
    void *workspace;                       /* attention_workspace_bytes(); zeroed once, at open */
    int32_t n_thread_blocks;               /* multiprocessors */
};

/* One page of one layer. */
size_t attention_page_bytes(int32_t n_kv_heads, int32_t head_dim);
/* For steps of up to max_narrow narrow rows and contexts of max_context. */
size_t attention_workspace_bytes(int32_t max_narrow, int32_t max_context, int32_t n_heads,
                                 int32_t head_dim);

/* Rotates q and k of rows [0, max_rows) by their tenant's angles (HF's half-split pairs), leaves q
 * in a.qkv, stores k and v in the pages. One launch for narrow rows, one for wide ones. */
err_t rope_append_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);
err_t rope_append_wide(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);

/* ctx = softmax(q k' / sqrt E) v over the keys a row may see. Narrow: FP32 arithmetic on q and the
 * stored integers, a fixed split of the keys, so that a row's bits do not depend on the batch. All
 * that varies is device data; max_rows sizes the launch. */
err_t attention_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);
/* Wide: fp16 tensor cores, causal within the step's rows, all earlier positions from the pages.
 * n_wide, n_wide_seqs, longest: rows, sequences, and rows of the longest sequence (host knows
 * them: wide steps are not captured). */
err_t attention_wide(const struct attention_args *a, int32_t n_wide, int32_t n_wide_seqs,
                     int32_t longest, cudaStream_t stream);

/* Once per process and device. */
err_t attention_setup(void);

#endif
