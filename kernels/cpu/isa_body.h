/* What every isa_*.c compiles with its own instruction set: all the loops, and the table of them.
 */
#ifndef KERNELS_CPU_ISA_BODY_H
#define KERNELS_CPU_ISA_BODY_H

#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/delta_body.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul_body.h"
#include "kernels/cpu/rows_body.h"

/* The including file defines runs_here(). */
#define ISA_TABLE(title)                                                                           \
    {                                                                                              \
        .name = title, .runs_here = runs_here, .matmul = matmul, .delta_block = delta_block,       \
        .add_scaled = add_scaled, .attention = attention, .norm = norm, .swiglu = swiglu,          \
        .widen = widen, .largest = largest, .weigh = weigh,                                        \
    }

#endif
