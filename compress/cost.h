/* What a command took: the time of its phases, and the most memory of device and host. Owner and
 * caller: the tool's main thread. */
#ifndef COMPRESS_COST_H
#define COMPRESS_COST_H

#include <jansson.h>

#include "kernels/train.h"

enum { COST_PHASES = 16 };

struct cost {
    char device[96];     /* what computed; "": nothing to tell */
    double device_bytes; /* the most taken at once; 0: host memory alone */
    int32_t n_phases;
    struct {
        const char *name; /* borrowed: a constant */
        double seconds;
    } phase[COST_PHASES];
};

/* Before anything is taken of the device. */
void cost_begin(struct cost *c, const struct train *t);
/* What was taken of the device up to now. */
void cost_look(struct cost *c, const struct train *t);
/* Adds to the phase of that name. */
void cost_add(struct cost *c, const char *phase, int64_t us);
void cost_print(const struct cost *c);
json_t *cost_json(const struct cost *c); /* given to the caller */

#endif
