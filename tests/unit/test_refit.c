/* What is found without gradients on a whole model: how much each matrix matters, and planes
 * refitted layer by layer. */
#include "compress/refit.h"

#include <math.h>

#include "compress/evaluate.h"
#include "compress/sensitivity.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"

struct pair {
    struct checkpoint base_files, fine_files;
    struct llama_files base_from, fine_from;
    struct train *t;
    struct llama base, fine;
    struct lesson text, held;
};

/* What the fine-tune is away from the base: in one matrix alone, or everywhere. */
struct change {
    const char *only;
    float size;
};
static void tune(const char *name, float *x, size_t n, void *arg) {
    const struct change *c = arg;
    unsigned seed = 99 + (unsigned)strlen(name) * 7;
    for (size_t i = 0; i < n; i++) {
        float row = 0.4f + 0.2f * (float)(i / 40 % 7), noise = test_gauss(&seed);
        if (!c->only || strcmp(name, c->only) == 0)
            x[i] += c->size * row * noise;
    }
}

static void load(struct pair *p, const char *dir, struct llama_files *from, struct checkpoint *c,
                 struct llama *m) {
    struct why why = {""};
    CHECK_OK(checkpoint_open(c, dir, &why), why);
    *from = (struct llama_files){c, false};
    CHECK_OK(llama_load(m, p->t, &c->config, llama_source_files(from), NULL, &why), why);
}

static void open_pair(struct pair *p, struct change c) {
    struct why why = {""};
    char base[300], fine[300];
    memset(p, 0, sizeof *p);
    snprintf(base, sizeof base, "%s/base%s", test_tmp(), c.only ? c.only : "");
    snprintf(fine, sizeof fine, "%s/fine%s", test_tmp(), c.only ? c.only : "");
    make_model(base, (struct make_model){.scale = 0.2f, .dtype = ST_F32});
    make_model(fine,
               (struct make_model){.scale = 0.2f, .dtype = ST_F32, .change = tune, .arg = &c});
    CHECK_OK(train_cpu_open(&p->t, 2, &why), why);
    load(p, base, &p->base_from, &p->base_files, &p->base);
    load(p, fine, &p->fine_from, &p->fine_files, &p->fine);
    for (uint64_t i = 0; i < 2; i++) {
        struct sample_options o = {.temperature = 1, .seed = i + 1};
        CHECK_OK(sample_documents(&p->fine, 300, 16, &o, i ? &p->held : &p->text, &why), why);
    }
}

static void close_pair(struct pair *p) {
    lesson_free(&p->text), lesson_free(&p->held);
    llama_free(&p->base), llama_free(&p->fine);
    checkpoint_close(&p->base_files), checkpoint_close(&p->fine_files);
    p->t->ops->close(p->t);
}

static double kl_of(struct pair *p, const struct llama *m) {
    struct why why = {""};
    struct train_loss l = {0};
    CHECK_OK(evaluate_text(m, &p->fine, &p->held.text, &l, NULL, &why), why);
    return l.kl / (double)l.n_rows;
}

static void measure(struct pair *p, struct sensitivity *s) {
    struct why why = {""};
    CHECK_OK(sensitivity_open(s, &p->base, &p->fine, llama_source_files(&p->fine_from),
                              &p->text.text, 64, 80, NULL, &why),
             why);
}

TEST_LIMIT(sensitivity_foretells_the_divergence_that_a_small_change_makes, 120) {
    static const char *const names[] = {"model.layers.0.self_attn.q_proj.weight",
                                        "model.layers.0.self_attn.v_proj.weight",
                                        "model.layers.1.self_attn.o_proj.weight",
                                        "model.layers.1.mlp.down_proj.weight", "lm_head.weight"};
    double least = 1e9, most = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct pair p;
        struct sensitivity s;
        open_pair(&p, (struct change){names[i], 0.02f});
        measure(&p, &s);
        double said = 0;
        struct budget_choice nothing = {0};
        for (int32_t m = 0; m < s.n_matrices; m++)
            said += budget_loss(&s.matrix[m], &nothing);
        double found = kl_of(&p, &p.base);
        if (!(said > 0.4 * found && said < 2.5 * found))
            test_fail(__FILE__, __LINE__, "%s: foretold %.3g, found %.3g", names[i], said, found);
        least = found < least ? found : least, most = found > most ? found : most;
        sensitivity_free(&s);
        close_pair(&p);
    }
    CHECK(most > 4 * least); /* they do differ: one number for all would not do */
}

TEST(sensitivity_knows_what_planes_and_pairs_leave) {
    struct pair p;
    struct sensitivity s;
    struct why why = {""};
    open_pair(&p, (struct change){NULL, 0.05f});
    measure(&p, &s);
    int32_t i = llama_part(1, PART_UP);
    const struct budget_matrix *x = &s.matrix[i];
    CHECK(x->left[SCALES_BOTH] < x->left[SCALES_ROWS] &&
          x->left[SCALES_ROWS] < x->left[SCALES_ONE]);
    for (int kind = 0; kind < N_SCALES; kind++) {
        struct student student;
        struct budget_choice choice[32] = {{0}};
        choice[i] = (struct budget_choice){.planes = 1, .scales = (enum budget_scales)kind};
        CHECK_OK(
            student_open(&student, p.t, &p.base, &p.base_files, &p.fine_files, choice, NULL, &why),
            why);
        struct train_delta delta = student_delta(&student, i);
        CHECK_OK(student_work(&student, true, &why), why);
        CHECK_OK(student_difference(&student, i, student.work, &why), why);
        p.t->ops->unmerge(p.t, &delta, -1, student.work);
        double left = 0; /* the CPU's device memory is the host's */
        for (size_t l = 0; l < (size_t)x->n * (size_t)x->k; l++)
            left += (double)student.work[l] * (double)student.work[l];
        CHECK_NEAR(x->left[kind], left / x->energy, 0.005, 0.01);
        student_free(&student);
    }
    double sum = 0;
    for (int32_t r = 0; r < x->n_roots; r++) {
        CHECK(r == 0 || x->root[r] <= x->root[r - 1]);
        sum += x->root[r];
    }
    CHECK(sum > 0.5 * x->energy && sum <= x->energy * 1.0001);
    sensitivity_free(&s);
    close_pair(&p);
}

/* KL on held-out text of a student with these planes, refitted or not. */
static double refitted(struct pair *p, int32_t planes, int32_t rank,
                       const struct refit_options *o) {
    struct student s;
    struct why why = {""};
    struct budget_choice choice[32];
    for (int32_t i = 0; i < p->base.n_matrices; i++)
        choice[i] = (struct budget_choice){.planes = planes,
                                           .rank = rank,
                                           .scales = SCALES_BOTH,
                                           .exact = i >= llama_embed(&p->base)};
    CHECK_OK(student_open(&s, p->t, &p->base, &p->base_files, &p->fine_files, choice, NULL, &why),
             why);
    if (o) {
        double error[32];
        CHECK_OK(refit_run(&s, &p->text.text, o, error, &why), why);
        for (int32_t i = 0; i < llama_embed(&p->base); i++)
            CHECK(error[i] > 0 && error[i] < 1);
    }
    double kl = kl_of(p, &s.model);
    student_free(&s);
    return kl;
}

TEST_LIMIT(refit_brings_the_tenant_closer_stage_by_stage, 240) {
    struct pair p;
    open_pair(&p, (struct change){NULL, 0.05f});
    for (int32_t planes = 1; planes <= 2; planes++) {
        struct refit_options o = {.rows = 256, .batches = 12, .damp = 0.01f};
        double start = refitted(&p, planes, 0, NULL), scales = refitted(&p, planes, 0, &o);
        o.signs = true;
        double signs = refitted(&p, planes, 0, &o);
        o.teacher = &p.fine;
        double drift = refitted(&p, planes, 0, &o);
        if (!(scales < start && signs < 0.9 * scales && drift < 0.9 * signs))
            test_fail(
                __FILE__, __LINE__,
                "%d planes: KL %.5f at the start, %.5f with scales refitted, %.5f with signs, "
                "%.5f with the drift made good",
                planes, start, scales, signs, drift);
        double as_it_is = refitted(&p, planes, 4, &o);
        o.pairs = true;
        double pairs = refitted(&p, planes, 4, &o);
        if (!(as_it_is < drift && pairs < as_it_is))
            test_fail(__FILE__, __LINE__,
                      "%d planes and a pair: KL %.5f, %.5f with the pair refitted", planes,
                      as_it_is, pairs);
    }
    close_pair(&p);
}
