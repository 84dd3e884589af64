/* AVX-512 (F, BW, VL, DQ). The loops themselves stand in the *_body.h files, which this
 * file compiles with its own instruction set (Makefile). */
#include "kernels/cpu/isa_body.h"

static bool runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const struct isa isa_avx512 = ISA_TABLE("AVX-512");
