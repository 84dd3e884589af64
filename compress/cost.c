#include "compress/cost.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

void cost_begin(struct cost *c, const struct train *t) {
    *c = (struct cost){0};
    snprintf(c->device, sizeof c->device, "%s", t->ops->describe(t));
}

void cost_look(struct cost *c, const struct train *t) {
    c->device_bytes = (double)t->ops->memory_most(t);
}

void cost_add(struct cost *c, const char *phase, int64_t us) {
    int32_t i = 0;
    while (i < c->n_phases && strcmp(c->phase[i].name, phase) != 0)
        i++;
    if (i == COST_PHASES)
        return;
    c->n_phases = i < c->n_phases ? c->n_phases : i + 1;
    c->phase[i].name = phase;
    c->phase[i].seconds += (double)us / 1e6;
}

static double host_bytes(void) {
    struct rusage use;
    return getrusage(RUSAGE_SELF, &use) == 0 ? (double)use.ru_maxrss * 1024 : 0;
}

static double total(const struct cost *c) {
    double sum = 0;
    for (int32_t i = 0; i < c->n_phases; i++)
        sum += c->phase[i].seconds;
    return sum;
}

void cost_print(const struct cost *c) {
    if (!c->device[0])
        return;
    printf("\nTook %.1f s on %s:", total(c), c->device);
    for (int32_t i = 0; i < c->n_phases; i++)
        printf("%s %s %.1f", i ? "," : "", c->phase[i].name, c->phase[i].seconds);
    printf(". Most memory:");
    if (c->device_bytes > 0)
        printf(" %.1f GB of the device,", c->device_bytes / 1e9);
    printf(" %.1f GB of the host.\n", host_bytes() / 1e9);
}

json_t *cost_json(const struct cost *c) {
    json_t *phases = json_object();
    for (int32_t i = 0; i < c->n_phases; i++)
        json_object_set_new(phases, c->phase[i].name, json_real(c->phase[i].seconds));
    return json_pack("{s:s, s:f, s:o, s:f, s:f}", "device", c->device, "seconds", total(c),
                     "phases", phases, "device_bytes", c->device_bytes, "host_bytes", host_bytes());
}
