/* A library to preload into the daemon (fault.py): when the file named by BITDELTA_FAULT appears,
 * a kernel of its own writes to an address that nobody owns, in the context that the daemon's
 * kernels run in. From then on the device refuses every call of the process, as after any bad
 * access or an error of the memory. One thread of its own; nothing of the daemon is touched. */
#include <cuda_runtime.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static __global__ void write_astray(int *nobody) {
    *nobody = 1;
}

static void *wait_and_break(void *file) {
    while (access((const char *)file, F_OK) != 0)
        usleep(2000);
    write_astray<<<1, 1>>>((int *)(uintptr_t)16);
    cudaError_t e = cudaDeviceSynchronize();
    fprintf(stderr, "fault: %s\n", cudaGetErrorString(e));
    return NULL;
}

__attribute__((constructor)) static void start(void) {
    const char *file = getenv("BITDELTA_FAULT");
    pthread_t thread;
    if (file && pthread_create(&thread, NULL, wait_and_break, (void *)file) == 0)
        pthread_detach(thread);
}
