/* AVX-512 (F, BW, VL, DQ). */
#include "kernels/cpu/train_isa_body.h"

static bool runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const struct train_isa train_isa_avx512 = TRAIN_ISA_TABLE("AVX-512");
