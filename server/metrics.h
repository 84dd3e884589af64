/* Counters and histograms of the I/O thread, and their Prometheus text. Names and labels are fixed
 * or bounded: routes of the table, registered tenants (a capped number), never what a client sends.
 */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include <stdint.h>

#include "server/buf.h"

enum {
    METRICS_MAX_TENANTS = 1000, /* the rest is counted together as "other" */
    METRICS_MAX_ROUTES = 32,
    METRICS_BUCKETS = 22,
};

struct histogram {
    const double *bound; /* [METRICS_BUCKETS] or fewer, ends with 0 */
    uint64_t count[METRICS_BUCKETS + 1];
    double sum;
};

struct tenant_counts {
    char name[256];
    uint64_t requests, prompt_tokens, generated_tokens;
};

struct metrics {
    uint64_t http[METRICS_MAX_ROUTES][6]; /* [route][status / 100]; [0]: the client left */
    uint64_t rejected_auth, rejected_queue, rejected_params, unknown_fields, cancelled, stalled;
    uint64_t finished_stop, finished_length, finished_abort; /* answers */
    uint64_t tenant_loads, tenant_load_failures, tenant_evictions;
    struct histogram first_token_s, between_tokens_s, whole_s;
    struct tenant_counts *tenant; /* [n_tenants] owned */
    int n_tenants;
    struct tenant_counts other;
};

void metrics_init(struct metrics *m);
void metrics_free(struct metrics *m);
void histogram_add(struct histogram *h, double x);
/* One answer ended; reason: as the API names it, NULL: before its end. */
void metrics_finished(struct metrics *m, const char *reason);
/* The counters of one served name (or the shared "other"); borrowed until the next call. */
struct tenant_counts *metrics_tenant(struct metrics *m, const char *name);

struct exchange;
struct server;
void metrics_handle(struct server *s, struct exchange *x); /* GET /metrics */
/* The exposition; used by the handler and by tests. */
err_t metrics_write(const struct server *s, struct buf *out);

#endif
