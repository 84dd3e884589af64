/* Fitting: the gradients of scales, signs and low-rank pairs, what each stage gains, and the way
 * into a tenant file and back. */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "compress/evaluate.h"
#include "compress/fit.h"
#include "compress/fitted.h"
#include "compress/llama_tenant.h"
#include "compress/student_write.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

/* Adds noise of very different size from row to row, and a common direction to lm_head. */
static void tune(const char *name, float *x, size_t n, void *arg) {
    unsigned seed = 99 + (unsigned)strlen(name) * 7;
    float size = *(float *)arg;
    bool head = strcmp(name, "lm_head.weight") == 0;
    for (size_t i = 0; i < n; i++) {
        float row = 0.4f + 0.2f * (float)(i / 40 % 7);
        x[i] += size * row * test_gauss(&seed) + (head ? size * 3 * (float)(i % 40 % 5) : 0);
    }
}

struct duo {
    char base_dir[300], fine_dir[300];
    struct checkpoint base_files, fine_files;
    struct train *t;
    struct llama base, fine;
};

static void open_duo_of(struct duo *d, bool tied, enum st_dtype dtype) {
    struct why why = {""};
    static float size = 0.06f;
    snprintf(d->base_dir, sizeof d->base_dir, "%s/base", test_tmp());
    snprintf(d->fine_dir, sizeof d->fine_dir, "%s/fine", test_tmp());
    make_model(d->base_dir, (struct make_model){.scale = 0.2f, .tied = tied, .dtype = dtype});
    make_model(d->fine_dir,
               (struct make_model){.scale = 0.2f, .tied = tied, .change = tune, .arg = &size});
    CHECK_OK(train_cpu_open(&d->t, 2, &why), why);
    CHECK_OK(checkpoint_open(&d->base_files, d->base_dir, &why), why);
    CHECK_OK(checkpoint_open(&d->fine_files, d->fine_dir, &why), why);
    struct llama_files base = {&d->base_files, true}, fine = {&d->fine_files, false};
    CHECK_OK(
        llama_load(&d->base, d->t, &d->base_files.config, llama_source_files(&base), NULL, &why),
        why);
    CHECK_OK(
        llama_load(&d->fine, d->t, &d->fine_files.config, llama_source_files(&fine), NULL, &why),
        why);
}

static void open_duo(struct duo *d, bool tied) {
    open_duo_of(d, tied, ST_F16);
}

static void close_duo(struct duo *d) {
    llama_free(&d->base), llama_free(&d->fine);
    checkpoint_close(&d->base_files), checkpoint_close(&d->fine_files);
    d->t->ops->close(d->t);
}

static void open_student(struct duo *d, struct student *s, const struct budget_choice *choice) {
    struct why why = {""};
    CHECK_OK(student_open(s, d->t, &d->base, &d->base_files, &d->fine_files, choice, NULL, &why),
             why);
}

/* The same for all linears, and for embedding and lm_head. */
enum { MATRICES = 64 };
static void choose(struct budget_choice out[MATRICES], const struct duo *d,
                   struct budget_choice linear, struct budget_choice vocab) {
    CHECK(d->base.n_matrices <= MATRICES);
    for (int32_t i = 0; i < d->base.n_matrices; i++)
        out[i] = i < llama_embed(&d->base) ? linear : vocab;
}

/* KL from the fine-tune over a fixed text. */
static double kl_of(struct duo *d, const struct llama *m, const struct corpus *text) {
    struct why why = {""};
    struct train_loss l = {0};
    CHECK_OK(evaluate_text(m, &d->fine, text, &l, NULL, &why), why);
    return l.kl / (double)l.n_rows;
}

static void sample(struct duo *d, int32_t n, uint64_t seed, struct lesson *out) {
    struct why why = {""};
    struct sample_options o = {.temperature = 1, .seed = seed};
    out->row_bytes = (size_t)d->fine.config.shape.dim * d->t->ops->weight_bytes;
    CHECK_OK(sample_documents(&d->fine, n, 16, &o, out, &why), why);
}

struct learning {
    struct student *s;
    const struct llama_tape *tape;
    int32_t rows;
};
static void learn(void *arg, int32_t i, float *grad) {
    const struct learning *l = arg;
    struct student_flow flow = {l->rows, llama_input(l->tape, &l->s->model, i),
                                llama_output_grad(l->tape, &l->s->model, i)};
    /* Rates so small that nothing moves (a sign of exactly 0 would: none for signs); after one step
     * a mean is a tenth of the gradient. */
    struct student_rates r = {.scale = 1e-20f, .low_rank = 1e-20f, .t = 1};
    student_learn(l->s, i, grad, &flow, &r);
}

static void check_slope(struct duo *d, struct student *s, const struct corpus *text, int32_t i,
                        struct train_vector *p, size_t at, float step, const char *what) {
    float old = p->x[at]; /* the CPU's device memory is the host's */
    p->x[at] = old + step;
    double more = kl_of(d, &s->model, text);
    p->x[at] = old - step;
    double found = (more - kl_of(d, &s->model, text)) / (2 * (double)step);
    p->x[at] = old;
    double said = 10 * (double)p->m[at];
    if (!(fabs(found - said) <= 2e-4 + 0.03 * fabs(said)))
        test_fail(__FILE__, __LINE__, "%s %zu of matrix %d: the slope is %.5g, the gradient %.5g",
                  what, at, i, found, said);
}

TEST(student_gradients_of_scales_and_pairs_match_finite_differences) {
    struct duo d;
    struct student s;
    struct why why = {""};
    struct budget_choice choice[MATRICES];
    open_duo(&d, false);
    choose(choice, &d, (struct budget_choice){.planes = 2, .rank = 1, .scales = SCALES_BOTH},
           (struct budget_choice){.planes = 1, .rank = 2, .scales = SCALES_BOTH});
    open_student(&d, &s, choice);
    struct lesson lesson = {0};
    sample(&d, 6, 3, &lesson);
    const struct corpus text = lesson.text;
    int32_t rows = (int32_t)text.n_ids, next = 0, vocab = d.fine.config.shape.vocab;
    int32_t id[128], start[64];
    CHECK(rows <= 128);
    float *y = malloc((size_t)(rows * vocab) * sizeof *y), *t = malloc((size_t)(rows * vocab) * 4);
    float *dnorm = malloc(s.norm.n * sizeof *dnorm);
    struct llama_batch b;
    struct llama_tape *tape;
    struct train_loss sum = {0};
    CHECK_OK(llama_tape_open(&tape, &s.model, rows, true, &why), why);
    CHECK(corpus_batch(&text, &next, false, rows, id, start, &b));
    llama_forward(&d.fine, &b, tape, t);
    llama_forward(&s.model, &b, tape, y);
    d.t->ops->distil(d.t, b.n_rows, vocab, y, t, NULL, 1, 0, 1 / (float)b.n_rows, y, &sum);
    struct learning learning = {&s, tape, b.n_rows};
    llama_backward(&s.model, tape, y, NULL, dnorm, (struct llama_sink){learn, NULL, &learning});
    static const int32_t matrices[] = {PART_Q, PART_V, PART_O, PART_UP, N_PARTS + PART_DOWN};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        struct train_plane *p = &s.matrix[matrices[i]].plane[0];
        for (size_t at = 0; at < 6; at++) {
            check_slope(&d, &s, &text, matrices[i], &p->row, at, 0.02f, "row scale");
            check_slope(&d, &s, &text, matrices[i], &p->col, at, 0.02f, "column scale");
        }
    }
    int32_t head = llama_head(&s.model);
    CHECK_EQ(s.matrix[head].rank, 2);
    for (size_t at = 0; at < 6; at++) {
        check_slope(&d, &s, &text, head, &s.matrix[head].a, at * 7, 0.01f, "a");
        check_slope(&d, &s, &text, head, &s.matrix[head].b, at * 5, 0.01f, "b");
    }
    llama_tape_close(tape);
    free(y), free(t), free(dnorm);
    lesson_free(&lesson);
    student_free(&s);
    close_duo(&d);
}

static double fitted_kl(struct duo *d, struct budget_choice linear, struct budget_choice vocab,
                        int32_t steps, struct student_rates rates, const struct lesson *own,
                        const struct lesson *held) {
    struct student s;
    struct why why = {""};
    struct budget_choice choice[MATRICES];
    choose(choice, d, linear, vocab);
    open_student(d, &s, choice);
    struct lesson none = {0};
    struct fit_options o = {.steps = steps, .rows = 192, .max_length = 16, .kl_weight = 1};
    o.rates = rates, o.final_weight = 1;
    struct fit_report r = {0};
    CHECK_OK(fit_run(&s, &d->fine, own, &none, &o, &r, &why), why);
    double kl = kl_of(d, &s.model, &held->text);
    /* The same but for each document's last id, after which nothing comes. */
    struct train_loss sum = {0};
    CHECK_OK(fit_judge(&s.model, &d->fine, held, &sum, NULL, &why), why);
    CHECK_NEAR(sum.kl / (double)sum.n_rows, kl, 0, 0.3);
    student_free(&s);
    return kl;
}

/* KL on the text itself after one step. */
static double stepped_kl(struct duo *d, const struct lesson *own, float final_weight,
                         int32_t halved) {
    struct student s;
    struct why why = {""};
    struct budget_choice choice[MATRICES], one = {.planes = 1, .scales = SCALES_BOTH};
    choose(choice, d, one, one);
    open_student(d, &s, choice);
    struct lesson none = {0};
    struct fit_options o = {.steps = 1, .rows = 192, .max_length = 16, .kl_weight = 1};
    o.rates.scale = 0.02f, o.final_weight = final_weight, o.halved = halved;
    struct fit_report r = {0};
    CHECK_OK(fit_run(&s, &d->fine, own, &none, &o, &r, &why), why);
    double kl = kl_of(d, &s.model, &own->text);
    student_free(&s);
    return kl;
}

TEST(fit_errors_that_hasten_it_weigh_half_after_the_steps_said) {
    struct duo d;
    struct lesson own = {0};
    open_duo(&d, false);
    sample(&d, 40, 1, &own);
    double fallen = stepped_kl(&d, &own, 2, 1);
    CHECK_NEAR(fallen, stepped_kl(&d, &own, 1, 0), 0, 0);
    CHECK(fabs(fallen - stepped_kl(&d, &own, 2, 0)) > 1e-9);
    lesson_free(&own);
    close_duo(&d);
}

/* What 1, 2, 4 and 8 planes leave of the differences, all linears together, before any fitting. */
TEST(planes_together_leave_what_evenly_spaced_levels_leave) {
    static const struct {
        int32_t planes;
        double
            most; /* share of the energy; the least for normal values: .363, .119, .0115, .00009 */
    } cases[] = {{1, 0.38}, {2, 0.125}, {4, 0.0125}, {8, 0.0002}};
    struct duo d;
    struct why why = {""};
    open_duo(&d, false);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct student s;
        struct budget_choice choice[MATRICES],
            same = {.planes = cases[i].planes, .scales = SCALES_BOTH};
        double left = 0, all = 0;
        choose(choice, &d, same, same);
        open_student(&d, &s, choice);
        CHECK_OK(student_work(&s, true, &why), why);
        for (int32_t m = 0; m < llama_embed(&s.model); m++) {
            struct train_delta x = student_delta(&s, m);
            size_t n = (size_t)x.n * (size_t)x.k;
            CHECK_OK(student_difference(&s, m, s.work, &why), why);
            d.t->ops->unmerge(d.t, &x, -1, s.work);
            for (size_t l = 0; l < n; l++)
                left += (double)s.work[l] * (double)s.work[l];
            all += s.matrix[m].change;
        }
        if (!(left < cases[i].most * all))
            test_fail(__FILE__, __LINE__, "%d planes leave %.5f of the energy, not %.5f",
                      cases[i].planes, left / all, cases[i].most);
        student_free(&s);
    }
    close_duo(&d);
}

TEST_LIMIT(fit_every_stage_brings_the_tenant_closer_on_text_it_has_not_seen, 300) {
    struct duo d;
    open_duo(&d, false);
    struct lesson own = {0}, held = {0};
    sample(&d, 600, 1, &own);
    sample(&d, 200, 2, &held);
    struct budget_choice one = {.planes = 1, .scales = SCALES_ONE},
                         both = {.planes = 1, .scales = SCALES_BOTH},
                         pair = {.planes = 1, .rank = 4, .scales = SCALES_BOTH},
                         two = {.planes = 2, .scales = SCALES_BOTH},
                         two_pair = {.planes = 2, .rank = 4, .scales = SCALES_BOTH};
    struct student_rates none = {0}, scales = {.scale = 0.02f},
                         bits = {.scale = 0.02f, .bit = 0.02f},
                         all = {.scale = 0.02f, .bit = 0.02f, .low_rank = 0.01f, .norm = 1e-3f};
    double k[6] = {fitted_kl(&d, one, one, 0, none, &own, &held),
                   fitted_kl(&d, both, both, 0, none, &own, &held),
                   fitted_kl(&d, both, both, 120, scales, &own, &held),
                   fitted_kl(&d, both, both, 120, bits, &own, &held),
                   fitted_kl(&d, both, pair, 120, all, &own, &held),
                   fitted_kl(&d, two, two_pair, 120, all, &own, &held)};
    static const char *const what[] = {"a scale per matrix",   "row and column scales",
                                       "fitted scales",        "fitted signs as well",
                                       "a low-rank pair, too", "a second plane"};
    for (int i = 1; i < 6; i++)
        if (!(k[i] < 0.97 * k[i - 1]))
            test_fail(__FILE__, __LINE__, "%s gives a KL of %.5f, %s gave %.5f", what[i], k[i],
                      what[i - 1], k[i - 1]);
    lesson_free(&own), lesson_free(&held);
    close_duo(&d);
}

/* The tool's file, read back, is as near to the fine-tune as the tool says it measured, on text of
 * the same kind. */
static void check_file(bool tied, double bits, enum st_dtype base_dtype) {
    struct duo d;
    struct why why = {""};
    open_duo_of(&d, tied, base_dtype);
    char path[300];
    snprintf(path, sizeof path, "%s/t.bitdelta", test_tmp());
    TOOL_OK("compress --base %s --finetuned %s -o %s --steps 0 --bits %g --json", d.base_dir,
            d.fine_dir, path, bits);
    json_error_t error;
    CHECK_HAS(tool_output, "{"); /* a note may stand before it */
    json_t *root = json_loads(strchr(tool_output, '{'), 0, &error);
    double before, said, top1;
    CHECK_EQ(json_unpack(root, "{s:{s:{s:F},s:{s:F,s:F}}}", "quality", "before_fitting", "kl",
                         &before, "fitted", "kl", &said, "top1", &top1),
             0);
    json_decref(root);
    CHECK(said < before);
    struct tenant_file t;
    struct llama m;
    int fd = open(path, O_RDONLY);
    CHECK_OK(tenant_file_read(&t, fd, path, NULL, NULL, &why), why);
    CHECK_OK(llama_of_tenant(&m, d.t, &d.base_files, &t, NULL, &why), why);
    struct lesson held = {.row_bytes = (size_t)d.fine.config.shape.dim * d.t->ops->weight_bytes};
    struct sample_options o = {.temperature = 1, .seed = 1 + 77};
    o.stop = d.fine.config.eos_id, o.n_stop = d.fine.config.n_eos;
    int32_t length = d.fine.config.context < 256 ? d.fine.config.context : 256;
    for (; held.text.n_ids < 6144; o.seed += 1000003)
        CHECK_OK(sample_documents(&d.fine, 384, length, &o, &held, &why), why);
    struct train_loss sum = {0};
    CHECK_OK(fit_judge(&m, &d.fine, &held, &sum, NULL, &why), why);
    CHECK_NEAR(sum.kl / (double)sum.n_rows, said, 0, 0.05);
    CHECK_NEAR((double)sum.n_agree / (double)sum.n_rows, top1, 0.02, 0);
    lesson_free(&held);
    close(fd);
    llama_free(&m);
    tenant_file_free(&t);
    close_duo(&d);
}

TEST(fit_writes_what_it_measured) {
    check_file(false, 1.6, ST_F16); /* small matrices' scales take much of it */
}
TEST(fit_writes_what_it_measured_with_tied_embeddings_and_more_planes) {
    check_file(true, 3, ST_F16);
}
/* The difference is taken from the base as it is served, rounded to FP16. */
TEST(fit_writes_what_it_measured_of_a_base_in_bf16) {
    check_file(false, 1.6, ST_BF16);
}
TEST(fit_writes_what_it_measured_of_a_base_in_fp32) {
    check_file(true, 1.6, ST_F32);
}

TEST(compress_fits_and_says_what_it_reached) {
    struct duo d;
    open_duo(&d, false);
    char path[300];
    snprintf(path, sizeof path, "%s/t.bitdelta", test_tmp());
    TOOL_OK("compress --base %s --finetuned %s -o %s --steps 12 --json", d.base_dir, d.fine_dir,
            path);
    json_error_t error;
    CHECK_HAS(tool_output, "{"); /* behind a note on stderr */
    json_t *root = json_loads(strchr(tool_output, '{'), JSON_DISABLE_EOF_CHECK, &error);
    double before, after;
    CHECK_EQ(json_unpack(root, "{s:{s:{s:F},s:{s:F}}}", "quality", "before_fitting", "kl", &before,
                         "fitted", "kl", &after),
             0);
    CHECK(after < before);
    json_decref(root);
    TOOL_OK("inspect %s", path);
    CHECK_HAS(tool_output, "fitted");
    CHECK_EQ(run_tool("compress --base %s --finetuned %s -o %s --method bitdelta", d.base_dir,
                      d.fine_dir, path),
             64);
    CHECK_HAS(tool_output, "--calibration");
    CHECK_EQ(run_tool("compress --base %s --finetuned %s -o %s --instant --steps 3", d.base_dir,
                      d.fine_dir, path),
             64);
    close_duo(&d);
}

TEST(compress_refuses_to_fit_a_model_of_another_base) {
    char base[300], other[300];
    snprintf(base, sizeof base, "%s/base", test_tmp());
    snprintf(other, sizeof other, "%s/other", test_tmp());
    make_model(base, (struct make_model){.seed = 1});
    make_model(other, (struct make_model){.seed = 2});
    CHECK_EQ(run_tool("compress --base %s --finetuned %s -o %s/t", base, other, test_tmp()), 65);
    CHECK_HAS(tool_output, "is not a fine-tune of");
}
