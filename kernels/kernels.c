/* Host memory that weights are read into and placed from. */
#include "kernels/kernels.h"

#include <sys/mman.h>

void *host_block(size_t bytes) {
    void *p =
        mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    /* Weights are streamed from end to end every step: small pages would cost a TLB miss each 4 KB.
     * A wish only; failure is harmless. */
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

void host_block_free(void *block, size_t bytes) {
    if (block)
        munmap(block, bytes ? bytes : 1);
}
