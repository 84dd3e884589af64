/* AVX2 with FMA and F16C: any x86-64 server since 2013. The loops themselves stand in the *_body.h
 * files, which this file compiles with its own instruction set (Makefile). */
#include "kernels/cpu/isa_body.h"

static bool runs_here(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

const struct isa isa_avx2 = ISA_TABLE("AVX2");
