/* SIGINT and SIGTERM as something to ask about, while there is work that can be put aside well. A
 * second signal ends the process at once. One watch at a time; the flag behind it is the tool's one
 * global, since a signal's handler has no argument. */
#ifndef COMPRESS_INTERRUPT_H
#define COMPRESS_INTERRUPT_H

#include <signal.h>
#include <stdbool.h>

struct interrupt {
    struct sigaction before[2];
};

void interrupt_watch(struct interrupt *w);
bool interrupt_came(void);
void interrupt_end(struct interrupt *w); /* puts back what was before */

#endif
