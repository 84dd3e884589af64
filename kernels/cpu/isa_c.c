/* Plain C: runs everywhere, and is what the other sets are compared with. The loops themselves
 * stand in the *_body.h files, which this file compiles with its own instruction set (Makefile). */
#include "kernels/cpu/isa.h"

#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/delta_body.h"
#include "kernels/cpu/matmul_body.h"
#include "kernels/cpu/rows_body.h"

static bool runs_here(void) {
    return true;
}

const struct isa isa_c = {
    .name = "plain C",
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
