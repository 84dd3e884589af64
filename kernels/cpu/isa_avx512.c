/* AVX-512 (F, BW, VL, DQ). The loops themselves stand in the *_body.h files, which this
 * file compiles with its own instruction set (Makefile). */
#include "kernels/cpu/isa.h"

#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/delta_body.h"
#include "kernels/cpu/matmul_body.h"
#include "kernels/cpu/rows_body.h"

static bool runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const struct isa isa_avx512 = {
    .name = "AVX-512",
    .runs_here = runs_here,
    .matmul = matmul,
    .delta_block = delta_block,
    .add_scaled = add_scaled,
    .attention = attention,
    .norm = norm,
    .swiglu = swiglu,
    .widen = widen,
    .largest = largest,
    .weigh = weigh,
};
