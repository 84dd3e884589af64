#include "compress/interrupt.h"

#include <stddef.h>

static const int watched[2] = {SIGINT, SIGTERM};
static volatile sig_atomic_t came;

static void note(int signal) {
    (void)signal;
    came = 1;
}

void interrupt_watch(struct interrupt *w) {
    struct sigaction a = {.sa_handler = note, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&a.sa_mask);
    came = 0;
    for (int i = 0; i < 2; i++)
        sigaction(watched[i], &a, &w->before[i]);
}

bool interrupt_came(void) {
    return came;
}

void interrupt_end(struct interrupt *w) {
    for (int i = 0; i < 2; i++)
        sigaction(watched[i], &w->before[i], NULL);
}
