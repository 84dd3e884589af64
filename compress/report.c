#include "compress/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const names[N_REPORT] = {"q_proj",    "k_proj",  "v_proj",    "o_proj",
                                            "gate_proj", "up_proj", "down_proj", "embed_tokens",
                                            "lm_head",   "norms"};

void report_kind(struct report_row *r, const char *kind) {
    if (!r->kind[0])
        snprintf(r->kind, sizeof r->kind, "%s", kind);
    else if (strcmp(r->kind, kind) != 0)
        snprintf(r->kind, sizeof r->kind, "mixed");
}

static double ratio(double a, double b) {
    return b > 0 ? a / b : 0;
}

static void total_of(const struct report *r, struct report_row *t, int first, int end) {
    memset(t, 0, sizeof *t);
    for (int i = first; i < end; i++) {
        t->weights += r->row[i].weights;
        t->base += r->row[i].base;
        t->change += r->row[i].change;
        t->residual += r->row[i].residual;
        t->bytes += r->row[i].bytes;
        t->zeros += r->row[i].zeros;
    }
}

static void print_row(const char *name, const struct report_row *r) {
    char against[16] = "-"; /* nothing is stored */
    if (r->bytes > 0)
        snprintf(against, sizeof against, "%.1fx", 2 * r->weights / r->bytes);
    printf("%-13s %-8s %8.4f %8.4f %8.4f %7.1f %% %8.3f %12.0f %9s\n", name, r->kind,
           sqrt(ratio(r->change, r->base)), sqrt(ratio(r->residual, r->change)),
           sqrt(ratio(r->residual, r->base)), 100 * ratio((double)r->zeros, r->weights),
           ratio(8 * r->bytes, r->weights), r->bytes, against);
}

void report_print(const struct report *r, double file_bytes) {
    struct report_row linears, all;
    total_of(r, &linears, 0, N_PARTS);
    total_of(r, &all, 0, N_REPORT);
    printf("%-13s %-8s %8s %8s %8s %9s %8s %12s %9s\n", "matrix", "kind", "change", "lost", "error",
           "unchanged", "bits/wt", "bytes", "vs FP16");
    for (int i = 0; i < N_REPORT; i++)
        print_row(names[i], &r->row[i]);
    print_row("all linears", &linears);
    all.bytes = file_bytes;
    print_row("whole file", &all);
    puts("change: |difference| / |base|.  lost: |difference - what is kept| / |difference|.  "
         "error: their product.");
    cost_print(&r->cost);
}

static double number(const json_t *score, const char *key) {
    const json_t *x = json_object_get(score, key);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

/* Nats a token: nearer than that two models are one (streams that are kept in FP16 make 1e-6). */
static const double same = 1e-5;

double report_way(double kl, double base_kl) {
    if (!isfinite(kl) || !isfinite(base_kl))
        return NAN;
    if (base_kl < same) /* there is no way to go */
        return kl < 2 * same;
    return fmax(1 - sqrt(fmax(kl, 0) / base_kl), 0);
}

double report_kept(const json_t *quality) {
    return report_way(number(json_object_get(quality, "fitted"), "kl"),
                      number(json_object_get(quality, "base"), "kl"));
}

void report_quality(const json_t *quality) {
    static const char *const rows[][2] = {
        {"base", "base"}, {"before_fitting", "weights alone"}, {"fitted", "fitted"}};
    const char *on = json_string_value(json_object_get(quality, "measured_on"));
    double fine = NAN, kept = report_kept(quality);
    bool any = false;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const json_t *score = json_object_get(quality, rows[i][0]);
        if (!json_is_object(score))
            continue;
        if (!any)
            printf("  against the fine-tune, on %lld tokens of %s:\n  %-15s %9s %9s %10s %11s\n",
                   (long long)json_integer_value(json_object_get(quality, "tokens")),
                   on ? on : "text", "", "KL", "top-1", "logit MSE", "perplexity");
        any = true;
        fine = number(score, "fine_tune_perplexity");
        printf("  %-15s %9.5f %7.2f %% %10.4f %11.4f\n", rows[i][1], number(score, "kl"),
               100 * number(score, "top1"), number(score, "logit_mse"),
               number(score, "perplexity"));
    }
    if (any)
        printf("  %-15s %9d %7d %% %10d %11.4f\n", "fine-tune", 0, 100, 0, fine);
    if (isfinite(kept))
        printf(
            "  %.2f %% of the way from the base to the fine-tune (1 - sqrt(KL / KL of the base))\n",
            100 * kept);
}

static json_t *row_json(const struct report_row *r) {
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "kind", r->kind, "relative_change",
                     sqrt(ratio(r->change, r->base)), "relative_loss",
                     sqrt(ratio(r->residual, r->change)), "unchanged_share",
                     ratio((double)r->zeros, r->weights), "bits_per_weight",
                     ratio(8 * r->bytes, r->weights), "bytes", r->bytes, "fp16_ratio",
                     ratio(2 * r->weights, r->bytes));
}

json_t *report_json(const struct report *r, double file_bytes) {
    struct report_row linears, all;
    total_of(r, &linears, 0, N_PARTS);
    total_of(r, &all, 0, N_REPORT);
    all.bytes = file_bytes;
    json_t *out = json_object();
    for (int i = 0; i < N_REPORT; i++)
        json_object_set_new(out, names[i], row_json(&r->row[i]));
    json_object_set_new(out, "all_linears", row_json(&linears));
    json_object_set_new(out, "whole_file", row_json(&all));
    if (r->cost.device[0])
        json_object_set_new(out, "cost", cost_json(&r->cost));
    return out;
}
