/* AVX-512 with AMX tiles for the sign product (Sapphire Rapids on). The loops themselves stand in
 * the *_body.h files, which this file compiles with its own instruction set (Makefile). */
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/isa_body.h"

/* arch_prctl(2): the kernel gives a process the tile registers only when it asks. */
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

static bool runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

const struct isa isa_amx = ISA_TABLE("AVX-512 + AMX");
