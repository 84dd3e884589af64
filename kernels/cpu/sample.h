/* From one row of logits to one token: `struct logit_row` says what, in which order. */
#ifndef KERNELS_CPU_SAMPLE_H
#define KERNELS_CPU_SAMPLE_H

#include "kernels/cpu/isa.h"

struct sample_scratch {
    float *weight, *raw; /* [vocab] each */
    int32_t *id;         /* [vocab] */
};

/* z [vocab]: raw logits, destroyed. Any thread. */
void sample_row(const struct isa *isa, float *z, int32_t vocab, const struct logit_row *how,
                const struct sample_scratch *scratch, struct sampled *out);

#endif
