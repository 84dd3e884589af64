/* AVX2, FMA, F16C. */
#include "kernels/cpu/train_isa_body.h"

static bool runs_here(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

const struct train_isa train_isa_avx2 = TRAIN_ISA_TABLE("AVX2");
