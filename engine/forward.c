/* The Llama decoder from top to bottom; every formula is in kernels/kernels.h. */
#include "engine/forward.h"

err_t forward_step(struct kernels *k, int32_t n_layers, const struct step *step) {
    const struct kernels_ops *op = k->ops;
    err_t e = op->begin(k, step);
    if (e)
        return e;
    op->embed(k);
    for (int32_t layer = 0; layer < n_layers; layer++) {
        op->norm(k, layer, NORM_ATTN);
        op->linear(k, layer, LINEAR_QKV);
        op->rope_append(k, layer);
        op->attention(k, layer);
        op->linear(k, layer, LINEAR_O);
        op->norm(k, layer, NORM_FFN);
        op->linear(k, layer, LINEAR_GATE_UP);
        op->swiglu(k);
        op->linear(k, layer, LINEAR_DOWN);
    }
    op->head(k);
    return op->end(k);
}
