/* What every train_isa_*.c compiles with its own instruction set: all the loops, and their table.
 */
#ifndef KERNELS_CPU_TRAIN_ISA_BODY_H
#define KERNELS_CPU_TRAIN_ISA_BODY_H

#include "kernels/cpu/train_gemm_body.h"
#include "kernels/cpu/train_plane_body.h"

/* The including file defines runs_here(). */
#define TRAIN_ISA_TABLE(title)                                                                     \
    {                                                                                              \
        .name = title, .runs_here = runs_here, .mr = TILE_MR, .nr = TILE_NR, .pack = pack,         \
        .tile = tile, .tile_turned = tile_turned, .norm = norm, .norm_back = norm_back,            \
        .swiglu = swiglu, .swiglu_back = swiglu_back, .axpy = axpy, .softmax = softmax,            \
        .softmax_back = softmax_back, .decode = decode, .widen = widen, .distil = distil,          \
        .largest = largest, .weigh = weigh, .adam = adam, .plane_add = plane_add,                  \
        .plane_grad = plane_grad, .plane_square = plane_square, .plane_move = plane_move,          \
        .plane_start = plane_start, .size_row = size_row, .size_cols = size_cols,                  \
    }

#endif
