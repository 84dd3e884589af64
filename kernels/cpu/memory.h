/* How much memory this process may still get. */
#ifndef KERNELS_CPU_MEMORY_H
#define KERNELS_CPU_MEMORY_H

#include <stddef.h>

/* Bytes; 0 when nothing can be found out. Any thread. */
size_t memory_available(void);

#endif
