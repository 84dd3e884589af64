#include "compress/plan.h"

enum { ROWS = 768, BATCHES = 8, LEAST_RANK = 8, MOST_RANK = 32 };
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
            .planes = (int32_t)o->bits,
            .scales = SCALES_ONE,
            .exact = i >= n_linears,
            .whole = i >= n_linears && o->learnt_vocab,
        };
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

/* Embedding and lm_head: few changed rows whole, a changed row's 16 bits a weight being worth twice
 * the planes'; else as many planes as the linears, and pairs as large as the file may hold. What
 * they would gain is no guide: rare tokens hardly show in text that the fine-tune writes, and a
 * lm_head without a plane cost math seven times the divergence. left: bits that remain for them. */
static void give_vocabulary(const struct plan_options *o, const struct budget_matrix *m, int32_t n,
                            double left, struct budget_choice *choice) {
    int32_t planes = o->vocab_planes ? o->vocab_planes : (int32_t)o->bits;
    for (int32_t i = 0; i < n; i++) {
        bool few = !o->vocab_planes && (double)m[i].n_changed * 8 <= (double)m[i].n * planes;
        choice[i] = (struct budget_choice){.planes = planes,
                                           .rank = LEAST_RANK,
                                           .scales = SCALES_BOTH,
                                           .exact = o->dense_vocab || few};
    }
    for (int32_t rank = LEAST_RANK; rank <= MOST_RANK; rank++) {
        double bits = 0;
        bool fits = true;
        for (int32_t i = 0; i < n; i++) {
            struct budget_choice c = choice[i];
            bool stored = m[i].energy > 0; /* tied or unchanged: not */
            c.rank = rank;
            bits += stored ? budget_bits(&m[i], &c) : m[i].fixed_bits;
            fits = fits && !(stored && (rank > m[i].n || rank > m[i].k));
        }
        for (int32_t i = 0; i < n && fits && bits <= left; i++)
            choice[i].rank = rank;
    }
}

err_t plan_choose(const struct plan_options *o, const struct llama *base,
                  const struct llama *teacher, const struct checkpoint *fine,
                  const struct corpus *own, struct budget_choice *choice, struct budget_result *r,
                  struct progress *p, struct why *why) {
    *r = (struct budget_result){0};
    if (o->published) {
        as_published(o, &fine->config, choice);
        return 0;
    }
    struct sensitivity s;
    struct llama_files from = {fine, false};
    err_t e =
        sensitivity_open(&s, base, teacher, llama_source_files(&from), own, ROWS, BATCHES, p, why);
    e = e ? e : budget_spend(s.matrix, s.n_linears, o->bits, choice, r, why);
    if (!e)
        give_vocabulary(o, s.matrix + s.n_linears, s.n_matrices - s.n_linears,
                        file_bits(o, &fine->config) - r->bits, choice + s.n_linears);
    sensitivity_free(&s);
    return e;
}
