#include "compress/plan.h"

enum { ROWS = 768, BATCHES = 8, HEAD_RANK = 8 };
/* The whole file is to be a twelfth of the model in FP16 up to the bits where its linears are about
 * a fourteenth; with more bits it may grow as they do. */
static const double least_ratio = 12, ratio_bits = 1.15;
/* Of a file for each matrix: names and hashes in its header, tensors filled up to 256 bytes. */
static const double overhead_bits = 8 * 1250;

static void as_published(const struct plan_options *o, const struct model_config *c,
                         struct budget_choice *choice) {
    int32_t n_linears = c->shape.n_layers * N_PARTS;
    for (int32_t i = 0; i < n_linears + 2; i++)
        choice[i] = (struct budget_choice){
            .planes = (int32_t)o->bits, .scales = SCALES_ONE, .exact = i >= n_linears};
}

/* Bits that all matrices may take. */
static double file_bits(const struct plan_options *o, const struct model_config *c) {
    const struct model_shape *s = &c->shape;
    double weights = (c->tied ? 1.0 : 2.0) * s->vocab * s->dim;
    for (int p = 0; p < N_PARTS; p++)
        weights += (double)s->n_layers * part_rows(s, (enum part)p) * part_cols(s, (enum part)p);
    double norms =
               32.0 * (2 * s->n_layers + 1) * s->dim + overhead_bits * (s->n_layers * N_PARTS + 4),
           grown = o->bits > ratio_bits ? o->bits / ratio_bits : 1;
    return 16 * weights / least_ratio * grown - norms;
}

err_t plan_choose(const struct plan_options *o, const struct llama *teacher,
                  const struct checkpoint *base, const struct checkpoint *fine,
                  const struct corpus *own, struct budget_choice *choice, struct budget_result *r,
                  struct progress *p, struct why *why) {
    *r = (struct budget_result){0};
    if (o->published) {
        as_published(o, &fine->config, choice);
        return 0;
    }
    struct sensitivity s;
    struct llama_files from = {base, true}, to = {fine, false};
    struct budget_limits limits = {o->bits, file_bits(o, &fine->config)};
    err_t e = sensitivity_open(&s, teacher, llama_source_files(&from), llama_source_files(&to),
                               base->config.shape.vocab, own, ROWS, BATCHES, p, why);
    for (int32_t i = s.n_linears; !e && i < s.n_matrices; i++) {
        limits.file_bits += s.matrix[i].fixed_bits; /* rows that the base has not: to be kept */
        if (!o->dense_vocab && !o->vocab_planes)
            continue;
        s.matrix[i].energy = 0; /* given: nothing to spend on */
        s.matrix[i].fixed_bits = 0;
        s.matrix[i].n_changed = 0;
    }
    if (o->dense_vocab || o->vocab_planes)
        limits.file_bits = 0;
    e = e ? e : budget_spend(s.matrix, s.n_linears, s.n_matrices, &limits, choice, r, why);
    for (int32_t i = s.n_linears; !e && i < s.n_matrices; i++) {
        if (o->dense_vocab)
            choice[i] = (struct budget_choice){.exact = true};
        else if (o->vocab_planes)
            choice[i] = (struct budget_choice){.planes = o->vocab_planes,
                                               .rank = i > s.n_linears ? HEAD_RANK : 0,
                                               .scales = SCALES_BOTH};
    }
    sensitivity_free(&s);
    return e;
}
