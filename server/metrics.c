#include "server/metrics.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "server/generation.h"
#include "server/route.h"
#include "server/server.h"

/* The bounds that dashboards for other servers expect for these three. */
static const double first_token_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                            1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 0};
static const double between_bounds[] = {.005, .01, .025, .05, .075, .1,  .15, .2,
                                        .3,   .4,  .5,   .75, 1,    2.5, 5,   0};
static const double whole_bounds[] = {.05, .1, .3, .5, .8, 1,  1.5, 2,   2.5, 5, 10,
                                      15,  20, 30, 40, 50, 60, 120, 240, 480, 0};

void metrics_init(struct metrics *m) {
    *m = (struct metrics){.first_token_s.bound = first_token_bounds,
                          .between_tokens_s.bound = between_bounds,
                          .whole_s.bound = whole_bounds};
    strcpy(m->other.name, "other");
}

void metrics_free(struct metrics *m) {
    free(m->tenant);
    m->tenant = NULL;
    m->n_tenants = 0;
}

void histogram_add(struct histogram *h, double x) {
    int i = 0;
    while (h->bound[i] > 0 && x > h->bound[i])
        i++;
    h->count[i]++;
    h->sum += x;
}

void metrics_finished(struct metrics *m, const char *reason) {
    if (!reason)
        m->finished_abort++;
    else if (strcmp(reason, "length") == 0)
        m->finished_length++;
    else
        m->finished_stop++;
}

struct tenant_counts *metrics_tenant(struct metrics *m, const char *name) {
    for (int i = 0; i < m->n_tenants; i++)
        if (strcmp(m->tenant[i].name, name) == 0)
            return &m->tenant[i];
    if (m->n_tenants == METRICS_MAX_TENANTS)
        return &m->other;
    if ((m->n_tenants & (m->n_tenants - 1)) == 0) { /* a power of two: full */
        size_t cap = m->n_tenants ? 2 * (size_t)m->n_tenants : 1;
        struct tenant_counts *grown = realloc(m->tenant, cap * sizeof *grown);
        if (!grown)
            return &m->other;
        m->tenant = grown;
    }
    struct tenant_counts *t = &m->tenant[m->n_tenants++];
    *t = (struct tenant_counts){0};
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}

/* --- exposition ----------------------------------------------------------------------------- */

static void head(struct buf *out, const char *name, const char *type, const char *help) {
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void value(struct buf *out, const char *name, const char *type, const char *help, double x) {
    head(out, name, type, help);
    buf_printf(out, "%s %.17g\n", name, x);
}

/* A label's value with what the format asks to be escaped. */
static const char *escape(const char *text, char out[600]) {
    size_t n = 0;
    for (; *text && n < 590; text++) {
        if (*text == '"' || *text == '\\' || *text == '\n')
            out[n++] = '\\';
        out[n++] = *text == '\n' ? 'n' : *text;
    }
    out[n] = 0;
    return out;
}

static void histogram(struct buf *out, const char *name, const char *help, const char *labels,
                      const struct histogram *h) {
    uint64_t total = 0;
    const char *comma = *labels ? "," : "";
    head(out, name, "histogram", help);
    for (int i = 0;; i++) {
        total += h->count[i];
        if (h->bound[i] <= 0)
            break;
        buf_printf(out, "%s_bucket{%s%sle=\"%g\"} %" PRIu64 "\n", name, labels, comma, h->bound[i],
                   total);
    }
    buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", name, labels, comma, total);
    if (*labels) {
        buf_printf(out, "%s_sum{%s} %.9g\n", name, labels, h->sum);
        buf_printf(out, "%s_count{%s} %" PRIu64 "\n", name, labels, total);
    } else {
        buf_printf(out, "%s_sum %.9g\n%s_count %" PRIu64 "\n", name, h->sum, name, total);
    }
}

static void write_http(const struct server *s, struct buf *out) {
    static const char *const classes[] = {"none", "1xx", "2xx", "3xx", "4xx", "5xx"};
    const char *name = "bitdeltad_http_requests_total";
    head(out, name, "counter", "Requests by route and class of status; none: the client left.");
    for (int i = 0; i <= n_routes; i++)
        for (int k = 0; k < 6; k++)
            if (s->metrics.http[i][k])
                buf_printf(out, "%s{method=\"%s\",route=\"%s\",status=\"%s\"} %" PRIu64 "\n", name,
                           i < n_routes ? routes[i].method : "other",
                           i < n_routes ? routes[i].path : "other", classes[k],
                           s->metrics.http[i][k]);
    const struct http_stats *h = http_stats(s->http);
    value(out, "bitdeltad_http_connections", "gauge", "Open connections.", h->connections);
    value(out, "bitdeltad_http_connections_total", "counter", "Connections accepted.",
          (double)h->accepted);
    value(out, "bitdeltad_http_body_bytes", "gauge", "Bytes of bodies being received.",
          (double)h->body_bytes);
    name = "bitdeltad_rejected_total";
    head(out, name, "counter", "Requests refused, by reason.");
    const struct {
        const char *reason;
        uint64_t n;
    } reasons[] = {{"auth", s->metrics.rejected_auth},
                   {"queue_full", s->metrics.rejected_queue},
                   {"params", s->metrics.rejected_params},
                   {"connections", h->over_limit},
                   {"timeout", h->timed_out},
                   {"malformed", h->malformed},
                   {"client_left", s->metrics.cancelled},
                   {"client_stalled", s->metrics.stalled}};
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        buf_printf(out, "%s{reason=\"%s\"} %" PRIu64 "\n", name, reasons[i].reason, reasons[i].n);
    value(out, "bitdeltad_unknown_fields_total", "counter",
          "Fields of requests that were not known and were ignored.",
          (double)s->metrics.unknown_fields);
}

static void write_engine(const struct server *s, const struct engine_stats *e, struct buf *out) {
    value(out, "bitdeltad_engine_steps_total", "counter", "Steps of the engine.", (double)e->steps);
    value(out, "bitdeltad_engine_step_seconds_total", "counter", "Time spent in steps.",
          (double)e->step_us / 1e6);
    value(out, "bitdeltad_engine_heartbeat_age_seconds", "gauge",
          "Since when the engine's thread has not gone round its loop.",
          (double)(mono_us() - e->heartbeat_us) / 1e6);
    value(out, "bitdeltad_kv_pages", "gauge", "KV pages in all.", e->kv_pages);
    value(out, "bitdeltad_kv_pages_used", "gauge", "KV pages in use.", e->kv_pages_used);
    value(out, "bitdeltad_step_rows", "gauge", "Rows of the last step.", e->last_rows);
    value(out, "bitdeltad_step_tenants", "gauge", "Distinct tenants of the last step.",
          e->last_tenants);
    value(out, "bitdeltad_device_bytes", "gauge", "Device memory in use.", (double)e->device_bytes);
    value(out, "bitdeltad_tenant_bytes", "gauge", "Memory of the tenants.",
          (double)e->tenant_bytes);
    value(out, "bitdeltad_tenants", "gauge", "Tenants registered.", s->registry.n);
    value(out, "bitdeltad_tenant_loads_total", "counter", "Tenant files loaded.",
          (double)s->metrics.tenant_loads);
    value(out, "bitdeltad_tenant_load_failures_total", "counter", "Tenant files refused.",
          (double)s->metrics.tenant_load_failures);
    value(out, "bitdeltad_tenant_evictions_total", "counter",
          "Tenants that went away to make room for others.", (double)s->metrics.tenant_evictions);
}

static void write_residency(const struct server *s, struct buf *out) {
    static const char name[] = "bitdeltad_tenant_resident_bytes";
    char label[600];
    head(out, name, "gauge",
         "Device memory that a registered tenant holds; 0: it is away until it is asked for.");
    for (int i = 0; i < s->registry.n && i < METRICS_MAX_TENANTS; i++)
        buf_printf(out, "%s{tenant=\"%s\"} %zu\n", name,
                   escape(s->registry.tenants[i]->name, label),
                   s->registry.tenants[i]->away ? 0 : s->registry.tenants[i]->info->bytes);
}

static void write_tenants(const struct server *s, struct buf *out) {
    static const struct {
        const char *name, *help;
        size_t at;
    } columns[] = {
        {"bitdeltad_tenant_requests_total", "Completions asked for.",
         offsetof(struct tenant_counts, requests)},
        {"bitdeltad_tenant_prompt_tokens_total",
         "Prompt tokens of completions that ended or were cut short.",
         offsetof(struct tenant_counts, prompt_tokens)},
        {"bitdeltad_tenant_generated_tokens_total",
         "Tokens of completions that ended or were cut short.",
         offsetof(struct tenant_counts, generated_tokens)},
    };
    char label[600];
    for (size_t k = 0; k < sizeof columns / sizeof *columns; k++) {
        head(out, columns[k].name, "counter", columns[k].help);
        for (int i = 0; i <= s->metrics.n_tenants; i++) {
            const struct tenant_counts *t =
                i < s->metrics.n_tenants ? &s->metrics.tenant[i] : &s->metrics.other;
            uint64_t n;
            memcpy(&n, (const char *)t + columns[k].at, sizeof n);
            if (t != &s->metrics.other || n)
                buf_printf(out, "%s{tenant=\"%s\"} %" PRIu64 "\n", columns[k].name,
                           escape(t->name, label), n);
        }
    }
}

/* One sample under the name and labels that gateways and dashboards look for. */
static void alias(struct buf *out, const char *name, const char *type, const char *labels,
                  double x) {
    buf_printf(out, "# TYPE %s %s\n%s{%s} %.17g\n", name, type, name, labels, x);
}

static void write_aliases(const struct server *s, const struct engine_stats *e, struct buf *out) {
    char label[600], labels[700];
    snprintf(labels, sizeof labels, "model_name=\"%s\",engine=\"0\"",
             escape(s->registry.base->name, label));
    alias(out, "vllm:num_requests_running", "gauge", labels, e->running);
    alias(out, "vllm:num_requests_waiting", "gauge", labels, e->waiting);
    alias(out, "vllm:kv_cache_usage_perc", "gauge", labels,
          e->kv_pages ? (double)e->kv_pages_used / e->kv_pages : 0);
    alias(out, "vllm:num_preemptions_total", "counter", labels, (double)e->preemptions);
    alias(out, "vllm:prompt_tokens_total", "counter", labels, (double)e->prompt_tokens);
    alias(out, "vllm:generation_tokens_total", "counter", labels, (double)e->generated_tokens);
    const char *success = "vllm:request_success_total";
    buf_printf(out, "# TYPE %s counter\n", success);
    buf_printf(out, "%s{%s,finished_reason=\"stop\"} %" PRIu64 "\n", success, labels,
               s->metrics.finished_stop);
    buf_printf(out, "%s{%s,finished_reason=\"length\"} %" PRIu64 "\n", success, labels,
               s->metrics.finished_length);
    buf_printf(out, "%s{%s,finished_reason=\"abort\"} %" PRIu64 "\n", success, labels,
               s->metrics.finished_abort);
    buf_printf(out,
               "# TYPE vllm:cache_config_info gauge\n"
               "vllm:cache_config_info{%s,block_size=\"%d\",num_gpu_blocks=\"%d\"} 1\n",
               labels, e->page_tokens, e->kv_pages);
    histogram(out, "vllm:time_to_first_token_seconds", "From the request line to the first token.",
              labels, &s->metrics.first_token_s);
    histogram(out, "vllm:inter_token_latency_seconds", "From one token to the next.", labels,
              &s->metrics.between_tokens_s);
    histogram(out, "vllm:e2e_request_latency_seconds", "From the request line to the last token.",
              labels, &s->metrics.whole_s);
}

err_t metrics_write(const struct server *s, struct buf *out) {
    struct engine_stats e;
    engine_stats(s->engine, &e);
    write_http(s, out);
    write_engine(s, &e, out);
    write_residency(s, out);
    write_tenants(s, out);
    write_aliases(s, &e, out);
    return buf_printf(out,
                      "# TYPE bitdeltad_build_info gauge\n"
                      "bitdeltad_build_info{version=\"%s\"} 1\n",
                      options_version());
}

void metrics_handle(struct server *s, struct exchange *x) {
    struct buf out;
    buf_init(&out, 16 << 20);
    if (metrics_write(s, &out)) {
        buf_free(&out);
        http_reply_error(x, E_NOMEM, NULL, NULL);
        return;
    }
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", out.data, out.n);
}
