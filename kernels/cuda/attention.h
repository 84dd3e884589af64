/* Keys, values and attention: rotate and append, split-KV decode for narrow rows, tiled prefill
 * for wide ones. The KV pool's layout is private to attention*.cu (attention_kv.cuh).
 *
 * Keys and values are 16-bit integers with one FP32 scale for each token and KV head: fp16's
 * memory, 16 times its resolution (docs/decisions/0002).
 *
 * Rows of q, k, v: narrow rows have the parts joined without a gap, q [H E] k [K E] v [K E]; in
 * wide rows every part starts a multiple of 16 columns (linear_shape.first_tile), which is the same
 * thing but for shapes whose H E or K E is no multiple of 16. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/step.h"

struct attention_args {
    struct gpu_step step;
    struct gpu_activations a;
    int32_t layer, n_pages;
    int32_t n_heads, n_kv_heads, head_dim; /* H, K, E; E even, at most 256 */
    int32_t max_narrow, max_context;       /* as told to attention_workspace_bytes */
    void *kv;                /* [L][n_pages] pages of attention_page_bytes(), 128-byte aligned */
    void *workspace;         /* attention_workspace_bytes(); zeroed once, at open */
    int32_t n_thread_blocks; /* multiprocessors */
};

/* One page of one layer. */
size_t attention_page_bytes(int32_t n_kv_heads, int32_t head_dim);
/* For steps of up to max_narrow narrow rows at positions below max_context. */
size_t attention_workspace_bytes(int32_t max_narrow, int32_t max_context, int32_t n_heads,
                                 int32_t head_dim);

/* Rotates q and k of rows [0, max_rows) by their tenant's angles (HF's half-split pairs), leaves q
 * in place (a.qkv, a.qkv16), stores k and v in the pages. A head with an infinity or NaN in k or v
 * makes every result that sees it NaN. rope_append_narrow comes before every attention_narrow: it
 * also resets its queue. */
err_t rope_append_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);
err_t rope_append_wide(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);

/* ctx = softmax(q k' / sqrt E) v over the keys a row may see. Narrow: q and the probabilities in 22
 * bits, the stored integers exactly, FP32 sums, a fixed split of the keys: a row's bits do not
 * depend on the batch. All that varies is device data; max_rows (at most max_narrow) sizes the
 * launch. */
err_t attention_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream);
/* Wide: fp16 tensor cores, causal within the step's rows, all earlier positions from the pages.
 * n_wide_seqs, longest: sequences, and rows of the longest one (the host knows them: wide steps are
 * not captured). */
err_t attention_wide(const struct attention_args *a, int32_t n_wide_seqs, int32_t longest,
                     cudaStream_t stream);

/* Once per process and device. */
err_t attention_setup(void);

#endif
