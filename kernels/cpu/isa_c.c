/* Plain C: runs everywhere, and is what the other sets are compared with. The loops themselves
 * stand in the *_body.h files, which this file compiles with its own instruction set (Makefile). */
#include "kernels/cpu/isa_body.h"

static bool runs_here(void) {
    return true;
}

const struct isa isa_c = ISA_TABLE("plain C");
