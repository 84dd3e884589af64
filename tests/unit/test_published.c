/* BitDelta's distillation in the published manner: its first step against the loss's slopes, that
 * it gains, its text, and the way into a tenant file and back. On the CPU, where device memory is
 * plain memory. */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "compress/llama_tenant.h"
#include "compress/published.h"
#include "compress/student_write.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"
#include "tests/unit/spm_models.h"

enum { MATRICES = 64, LENGTH = 17 };

static void tune(const char *name, float *x, size_t n, void *arg) {
    unsigned seed = 7 + (unsigned)strlen(name);
    (void)arg;
    for (size_t i = 0; i < n; i++)
        x[i] += 0.05f * test_gauss(&seed);
}

struct pair {
    char base_dir[300], fine_dir[300];
    struct checkpoint base_files, fine_files;
    struct train *t;
    struct llama base, fine;
    struct student s;
    struct published *p;
};

static void open_models(struct pair *d, bool tied) {
    struct why why = {""};
    *d = (struct pair){0};
    snprintf(d->base_dir, sizeof d->base_dir, "%s/base", test_tmp());
    snprintf(d->fine_dir, sizeof d->fine_dir, "%s/fine", test_tmp());
    make_model(d->base_dir, (struct make_model){.scale = 0.2f, .tied = tied});
    make_model(d->fine_dir, (struct make_model){.scale = 0.2f, .tied = tied, .change = tune});
    CHECK_OK(train_cpu_open(&d->t, 2, &why), why);
    CHECK_OK(checkpoint_open(&d->base_files, d->base_dir, &why), why);
    CHECK_OK(checkpoint_open(&d->fine_files, d->fine_dir, &why), why);
    struct llama_files base = {&d->base_files, true}, fine = {&d->fine_files, false};
    CHECK_OK(llama_load(&d->base, d->t, &base.files->config, llama_source_files(&base), NULL, &why),
             why);
    CHECK_OK(llama_load(&d->fine, d->t, &fine.files->config, llama_source_files(&fine), NULL, &why),
             why);
}

static void open_pair(struct pair *d, bool tied, int32_t planes, int32_t steps) {
    struct why why = {""};
    struct budget_choice choice[MATRICES];
    open_models(d, tied);
    CHECK(d->base.n_matrices <= MATRICES);
    for (int32_t i = 0; i < d->base.n_matrices; i++) {
        bool vocab = i >= llama_embed(&d->base);
        choice[i] = (struct budget_choice){
            .planes = planes, .scales = SCALES_ONE, .exact = vocab, .whole = vocab};
    }
    CHECK_OK(
        student_open(&d->s, d->t, &d->base, &d->base_files, &d->fine_files, choice, NULL, &why),
        why);
    CHECK_OK(published_open(&d->p, &d->s, steps, &why), why);
}

static void close_pair(struct pair *d) {
    published_close(d->p);
    student_free(&d->s);
    llama_free(&d->base), llama_free(&d->fine);
    checkpoint_close(&d->base_files), checkpoint_close(&d->fine_files);
    d->t->ops->close(d->t);
}

/* The fine-tune's own words. */
static void sample_of(struct pair *d, int32_t n, int32_t length, uint64_t seed,
                      struct lesson *out) {
    struct why why = {""};
    struct sample_options o = {.temperature = 1, .seed = seed};
    out->row_bytes = (size_t)d->fine.config.shape.dim * d->t->ops->weight_bytes;
    CHECK_OK(sample_documents(&d->fine, n, length, &o, out, &why), why);
}
static void sample(struct pair *d, int32_t n, uint64_t seed, struct lesson *out) {
    sample_of(d, n, LENGTH, seed, out);
}

static double mse_of(struct pair *d, const struct lesson *text) {
    struct why why = {""};
    struct train_loss l = {0};
    CHECK_OK(fit_judge(&d->s.model, &d->fine, text, &l, NULL, &why), why);
    return l.mse / (double)l.n_rows;
}

static void run(struct pair *d, const struct lesson *text, int32_t steps) {
    struct why why = {""};
    struct lesson none = {0};
    struct fit_learner learner = published_learner(d->p);
    struct fit_options o = {.steps = steps, .rows = 512, .max_length = LENGTH, .other_share = 1};
    o.mse_weight = 1, o.learner = &learner;
    struct fit_report r = {0};
    CHECK_OK(fit_run(&d->s, &d->fine, &none, text, &o, &r, &why), why);
    CHECK_EQ(r.step, steps);
}

/* ---- the first step -------------------------------------------------------------------------- */

/* The loss's slope in *x, by central differences of the loss on all of the text. */
static double slope_of(struct pair *d, const struct lesson *text, float *x, float step) {
    float old = *x;
    *x = old + step;
    double up = mse_of(d, text);
    *x = old - step;
    double found = (up - mse_of(d, text)) / (2 * (double)step);
    *x = old;
    return found;
}

struct watched {
    const char *what;
    float *x, was;
    double slope;
    bool log; /* x is a logarithm */
};
enum { MOST_WATCHED = 200 };
struct watch {
    struct watched at[MOST_WATCHED];
    int n;
};

static void look(struct watch *w, struct pair *d, const struct lesson *text, const char *what,
                 float *x, bool log) {
    CHECK(w->n < MOST_WATCHED);
    w->at[w->n++] = (struct watched){what, x, *x, slope_of(d, text, x, log ? 0.02f : 2e-3f), log};
}

/* AdamW's first step is the rate itself, against the gradient's sign: of what has a slope that
 * differences can tell from nothing. Weight decay is a hundredth of that at most. */
static void check_moves(const struct watch *w) {
    int told = 0;
    for (int i = 0; i < w->n; i++) {
        const struct watched *a = &w->at[i];
        double moved = a->log ? exp((double)*a->x) - exp((double)a->was)
                              : (double)*a->x - (double)a->was,
               want = a->slope > 0 ? -1e-4 : 1e-4;
        if (fabs(a->slope) < 2e-4)
            continue;
        told++;
        if (!(fabs(moved - want) < 2e-6))
            test_fail(__FILE__, __LINE__, "%s %d: the slope is %.4g, it moved by %.4g", a->what, i,
                      a->slope, moved);
    }
    CHECK(told > w->n / 2);
}

/* Where no plane lies between a number and the loss its gradient is whole, and is what differences
 * say: lm_head, the last norm, and the scale of the last down_proj. */
TEST(published_first_step_goes_against_the_slopes) {
    struct pair d;
    struct lesson text = {0};
    struct watch w = {.n = 0};
    open_pair(&d, false, 1, 10);
    sample(&d, 24, 5, &text);
    CHECK(text.text.n_ids <= 512); /* one step sees all of it */
    int32_t layers = d.base.config.shape.n_layers, dim = d.base.config.shape.dim;
    float *head = d.s.matrix[llama_head(&d.s.model)].ground.w;
    look(&w, &d, &text, "scale", d.s.matrix[llama_part(layers - 1, PART_DOWN)].plane[0].row.x,
         true);
    for (int i = 0; i < 40; i++)
        look(&w, &d, &text, "lm_head", head + 31 * i, false);
    for (int i = 0; i < 20; i++)
        look(&w, &d, &text, "norm", d.s.norm.x + 2 * layers * dim + 2 * i, false);
    run(&d, &text, 1);
    check_moves(&w);
    lesson_free(&text);
    close_pair(&d);
}

/* With planes of next to nothing, to go back through the base alone is no truncation: then all
 * numbers move against their slopes. */
TEST(published_first_step_of_faint_planes_goes_against_all_slopes) {
    struct pair d;
    struct lesson text = {0};
    struct watch w = {.n = 0};
    open_pair(&d, false, 1, 10);
    published_close(d.p);
    for (int32_t i = 0; i < llama_embed(&d.s.model); i++)
        d.s.matrix[i].plane[0].row.x[0] = logf(2e-3f);
    struct why why = {""};
    CHECK_OK(published_open(&d.p, &d.s, 10, &why), why);
    sample(&d, 24, 6, &text);
    CHECK(text.text.n_ids <= 512);
    float *embed = d.s.matrix[llama_embed(&d.s.model)].ground.w;
    for (int32_t i = 0; i < llama_embed(&d.s.model); i++)
        look(&w, &d, &text, "scale", d.s.matrix[i].plane[0].row.x, true);
    for (int i = 0; i < 60; i++)
        look(&w, &d, &text, "embedding", embed + text.text.id[i] * d.base.config.shape.dim + i % 40,
             false);
    for (size_t i = 0; i < d.s.norm.n; i += 9)
        look(&w, &d, &text, "norm", d.s.norm.x + i, false);
    run(&d, &text, 1);
    check_moves(&w);
    lesson_free(&text);
    close_pair(&d);
}

/* ---- what it gains --------------------------------------------------------------------------- */

static void check_gain(bool tied, int32_t planes, double most) {
    struct pair d;
    struct lesson own = {0}, held = {0};
    open_pair(&d, tied, planes, 60);
    sample(&d, 400, 1, &own), sample(&d, 200, 2, &held);
    double before = mse_of(&d, &held);
    run(&d, &own, 60);
    double after = mse_of(&d, &held);
    if (!(after < most * before))
        test_fail(__FILE__, __LINE__, "%d planes, distilled, have a logit MSE of %.5g, before %.5g",
                  planes, after, before);
    lesson_free(&own), lesson_free(&held);
    close_pair(&d);
}

TEST(published_distillation_lowers_the_error_of_logits_on_text_it_has_not_seen) {
    check_gain(false, 1, 0.95);
}
TEST(published_distillation_gains_with_iterated_planes) {
    check_gain(false, 3, 0.95);
}
TEST(published_distillation_gains_with_tied_embeddings) {
    check_gain(true, 1, 0.95);
}

/* ---- text and file --------------------------------------------------------------------------- */

static int by_ids(const void *a, const void *b) {
    return memcmp(*(const int32_t *const *)a, *(const int32_t *const *)b, LENGTH * sizeof(int32_t));
}

/* All of a text, in an order of its own for every seed, in sequences of one length. */
TEST(published_text_is_drawn_without_repetition_and_filled_up) {
    static const char words[] =
        "One document of some words, long enough to be cut into parts, since it goes on and on for "
        "a while, and says the same again: one document of some words, long enough to be cut.\n"
        "<|doc|>\nAnother.\n<|doc|>\nA third one, whose words are enough for two parts at the "
        "least, too, if it says them over and over, and over, and over again.\n";
    struct tokenizer *t;
    struct why why = {""};
    struct corpus cut = {0}, drawn[3] = {{0}};
    CHECK_OK(tokenizer_open(&t, spm_base_folder(), &why), why);
    CHECK_OK(corpus_add_text(&cut, t, words, strlen(words), LENGTH, &why), why);
    CHECK(cut.n_seqs > 4);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(published_text(&drawn[i], t, words, strlen(words), LENGTH, 2, i < 2 ? 1000 : 3,
                                (uint64_t)(i + 1), &why),
                 why);
        CHECK_EQ(drawn[i].n_seqs, i < 2 ? cut.n_seqs : 3);
        CHECK_EQ(drawn[i].n_ids, (size_t)drawn[i].n_seqs * LENGTH);
    }
    CHECK(memcmp(drawn[0].id, drawn[1].id, drawn[0].n_ids * sizeof(int32_t)) != 0);
    const int32_t *sorted[2][64];
    CHECK(cut.n_seqs <= 64);
    for (int i = 0; i < 2; i++) {
        for (int32_t s = 0; s < cut.n_seqs; s++)
            sorted[i][s] = drawn[i].id + s * LENGTH;
        qsort(sorted[i], (size_t)cut.n_seqs, sizeof *sorted[i], by_ids);
    }
    int64_t filled = 0, first = 0;
    for (int32_t s = 0; s < cut.n_seqs; s++) {
        CHECK_EQ(memcmp(sorted[0][s], sorted[1][s], LENGTH * sizeof(int32_t)), 0);
        for (int32_t i = 0; i < LENGTH; i++)
            filled += sorted[0][s][i] == 2;
        first += sorted[0][s][0] == 1; /* BOS */
    }
    CHECK(filled > 0); /* behind what was cut, each document's end */
    CHECK_EQ(filled, (int64_t)(drawn[0].n_ids - cut.n_ids));
    CHECK_EQ(first, 3);
    for (int i = 0; i < 3; i++)
        corpus_free(&drawn[i]);
    corpus_free(&cut);
    tokenizer_close(t);
}

static void make_words(const char *dir) {
    char to[400], from[400];
    snprintf(from, sizeof from, "%s/tokenizer.model", spm_base_folder());
    snprintf(to, sizeof to, "%s/tokenizer.model", dir);
    make_copy(from, to);
}

/* What a file says of itself is what it is when it is read back, embedding and lm_head as learnt.
 */
static void check_file(bool tied, double bits) {
    char base[300], fine[300], path[300];
    snprintf(base, sizeof base, "%s/base", test_tmp());
    snprintf(fine, sizeof fine, "%s/fine", test_tmp());
    snprintf(path, sizeof path, "%s/t.bitdelta", test_tmp());
    struct make_model m = {.vocab = 4096, .scale = 0.2f, .tied = tied};
    make_model(base, m);
    m.change = tune;
    make_model(fine, m);
    make_words(base), make_words(fine);
    make_text(test_tmp(), "text", "Some words to distil on, which go on for a little while.\n");
    TOOL_OK("compress --base %s --finetuned %s -o %s --method bitdelta --calibration %s/text "
            "--steps 12 --bits %g --device cpu --json",
            base, fine, path, test_tmp(), bits);
    json_error_t error;
    CHECK_HAS(tool_output, "{");
    json_t *root = json_loads(strchr(tool_output, '{'), JSON_DISABLE_EOF_CHECK, &error);
    double before, said;
    CHECK_EQ(json_unpack(root, "{s:{s:{s:F},s:{s:F}}}", "quality", "before_fitting", "logit_mse",
                         &before, "fitted", "logit_mse", &said),
             0);
    json_decref(root);
    CHECK(said < before);
    CHECK(access(path, R_OK) == 0);
    strcat(path, ".partial");
    CHECK(access(path, F_OK) != 0); /* nothing is kept of it */
    path[strlen(path) - strlen(".partial")] = 0;

    struct pair d = {0};
    struct why why = {""};
    struct llama_files from;
    struct tenant_file t;
    struct llama model;
    CHECK_OK(train_cpu_open(&d.t, 2, &why), why);
    CHECK_OK(checkpoint_open(&d.base_files, base, &why), why);
    CHECK_OK(checkpoint_open(&d.fine_files, fine, &why), why);
    from = (struct llama_files){&d.fine_files, false};
    CHECK_OK(llama_load(&d.fine, d.t, &d.fine_files.config, llama_source_files(&from), NULL, &why),
             why);
    read_tenant(path, &t);
    CHECK_EQ(t.meta.embed, KIND_DENSE);
    CHECK_OK(llama_of_tenant(&model, d.t, &d.base_files, &t, NULL, &why), why);
    struct lesson held = {0};
    struct train_loss sum = {0};
    int32_t length = PUBLISHED_LENGTH + 1, context = d.fine.config.context;
    sample_of(&d, 200, context < length ? context : length, 9, &held);
    CHECK_OK(fit_judge(&model, &d.fine, &held, &sum, NULL, &why), why);
    CHECK_NEAR(sum.mse / (double)sum.n_rows, said, 0, 0.1);
    lesson_free(&held);
    llama_free(&model), llama_free(&d.fine);
    tenant_file_free(&t);
    checkpoint_close(&d.base_files), checkpoint_close(&d.fine_files);
    d.t->ops->close(d.t);
}

TEST_LIMIT(published_file_is_what_it_says_of_itself, 120) {
    check_file(false, 1);
}
TEST_LIMIT(published_file_is_what_it_says_of_itself_with_tied_embeddings_and_two_planes, 120) {
    check_file(true, 2);
}
