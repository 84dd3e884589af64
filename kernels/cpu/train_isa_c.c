/* Plain C, for any machine. */
#include "kernels/cpu/train_isa_body.h"

static bool runs_here(void) {
    return true;
}

const struct train_isa train_isa_c = TRAIN_ISA_TABLE("plain C");
