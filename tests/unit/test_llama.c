/* The calibration model: every gradient against finite differences of the loss, over grouped heads,
 * tied and untied embeddings, a sliding window, and two sequences in one batch. On the CPU, where
 * device memory is plain memory. */
#include <math.h>

#include "compress/llama.h"
#include "tests/check.h"

/* A tiny model with random weights, a batch of two sequences, and a teacher's logits. */
enum { LAYERS = 2, DIM = 24, VOCAB = 11, ROWS = 11, NORMS = 2 * LAYERS + 1 };
static const int32_t ids[ROWS] = {1, 5, 9, 2, 7, 7, 3, 1, 10, 4, 6}, starts[] = {0, 7, ROWS};

struct setup {
    struct train *t;
    struct llama m;
    struct llama_tape *tape;
    struct llama_batch b;
    float logits[ROWS * VOCAB], teacher[ROWS * VOCAB], dnorm[NORMS * DIM];
    float pull[ROWS * DIM];            /* of lm_head's input, in the loss */
    float *grad[LAYERS * N_PARTS + 2]; /* per matrix */
};

static void open_setup(struct setup *s, bool tied, int32_t window) {
    struct model_config c = {.context = 16, .tied = tied, .rope = {.theta = 100, .factor = 1}};
    c.shape = (struct model_shape){.n_layers = LAYERS,
                                   .dim = DIM,
                                   .n_heads = 4,
                                   .n_kv_heads = 2,
                                   .head_dim = 8,
                                   .ffn_dim = 40,
                                   .vocab = VOCAB,
                                   .max_vocab = VOCAB,
                                   .sliding_window = window,
                                   .norm_eps = 1e-5f};
    struct why why = {""};
    memset(s, 0, sizeof *s);
    CHECK_OK(train_cpu_open(&s->t, 2, &why), why);
    CHECK_OK(llama_make(&s->m, s->t, &c, false, &why), why);
    unsigned seed = 11;
    for (int32_t i = 0; i < s->m.n_matrices - (tied ? 1 : 0); i++) {
        const struct train_weights *x = &s->m.matrix[i];
        for (int32_t j = 0; j < x->n * x->k; j++)
            ((float *)x->w)[j] = test_gauss(&seed) / sqrtf((float)x->k) * 1.5f;
    }
    for (int32_t i = 0; i < NORMS * DIM; i++)
        s->m.norm[i] = 1 + 0.3f * test_gauss(&seed);
    s->b = (struct llama_batch){ROWS, 2, ids, starts};
    CHECK_OK(llama_tape_open(&s->tape, &s->m, ROWS, true, &why), why);
    for (int i = 0; i < ROWS * VOCAB; i++)
        s->teacher[i] = test_gauss(&seed);
    for (int i = 0; i < ROWS * DIM; i++)
        s->pull[i] = 0.1f * test_gauss(&seed);
}

static void close_setup(struct setup *s) {
    for (int32_t i = 0; i < s->m.n_matrices; i++)
        free(s->grad[i]);
    llama_tape_close(s->tape);
    llama_free(&s->m);
    s->t->ops->close(s->t);
}

static void keep(void *arg, int32_t i, float *grad) {
    struct setup *s = arg;
    size_t n = (size_t)s->m.matrix[i].n * (size_t)s->m.matrix[i].k * sizeof(float);
    CHECK(!s->grad[i]);
    s->grad[i] = malloc(n);
    memcpy(s->grad[i], grad, n);
}

static double loss_of(struct setup *s) {
    struct train_loss sum = {0};
    llama_forward(&s->m, &s->b, s->tape, s->logits);
    s->t->ops->distil(s->t, ROWS, VOCAB, s->logits, s->teacher, NULL, 1, 0.7f, 1, NULL, &sum);
    double pulled = 0;
    for (int i = 0; i < ROWS * DIM; i++)
        pulled += (double)s->pull[i] * (double)llama_input(s->tape, &s->m, llama_head(&s->m))[i];
    return sum.kl + (double)0.7f * sum.mse + pulled;
}

/* The slope of the loss along a random direction in x [n], by central differences and by grad. */
static void check_slope(struct setup *s, float *x, const float *grad, size_t n, unsigned *seed,
                        const char *what, int32_t which) {
    float *direction = malloc(n * sizeof *direction), *old = malloc(n * sizeof *old);
    double slope = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        direction[i] = test_gauss(seed);
        slope += (double)direction[i] * (double)grad[i];
        size += (double)grad[i] * (double)grad[i]; /* the slope's own spread over directions */
    }
    const float step = 1e-3f;
    memcpy(old, x, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = old[i] + step * direction[i];
    double up = loss_of(s);
    for (size_t i = 0; i < n; i++)
        x[i] = old[i] - step * direction[i];
    double found = (up - loss_of(s)) / (2 * (double)step), off = fabs(found - slope);
    memcpy(x, old, n * sizeof *x);
    if (!(off <= 0.01 * sqrt(size) + 2e-3))
        test_fail(__FILE__, __LINE__, "%s %d: the slope is %.6g, the gradient says %.6g", what,
                  which, found, slope);
    free(direction), free(old);
}

static void check_gradients(bool tied, int32_t window) {
    struct setup s;
    open_setup(&s, tied, window);
    struct train_loss sum = {0};
    llama_forward(&s.m, &s.b, s.tape, s.logits);
    s.t->ops->distil(s.t, ROWS, VOCAB, s.logits, s.teacher, NULL, 1, 0.7f, 1, s.logits, &sum);
    llama_backward(&s.m, s.tape, s.logits, s.pull, s.dnorm, (struct llama_sink){keep, NULL, &s});
    unsigned seed = 5;
    for (int32_t i = 0; i < s.m.n_matrices; i++) {
        if (tied && i == llama_head(&s.m)) {
            CHECK(!s.grad[i]);
            continue;
        }
        const struct train_weights *x = &s.m.matrix[i];
        for (int turn = 0; turn < 3; turn++)
            check_slope(&s, x->w, s.grad[i], (size_t)x->n * (size_t)x->k, &seed, "matrix", i);
    }
    for (int32_t i = 0; i < NORMS; i++)
        check_slope(&s, s.m.norm + i * DIM, s.dnorm + i * DIM, DIM, &seed, "norm", i);
    close_setup(&s);
}

TEST(llama_gradients_match_finite_differences) {
    check_gradients(false, 0);
}
TEST(llama_gradients_match_finite_differences_with_tied_embeddings) {
    check_gradients(true, 0);
}
TEST(llama_gradients_match_finite_differences_under_a_sliding_window) {
    check_gradients(false, 3);
}

/* Twice matrix `of`, to go back through. */
struct doubled {
    struct llama *m;
    int32_t of;
    float *twice;
};
static struct train_weights doubled(void *arg, int32_t i) {
    const struct doubled *d = arg;
    struct train_weights w = d->m->matrix[i];
    if (i == d->of)
        w.w = d->twice;
    return w;
}

/* One pass back through twice the matrix `of`, by which all that is before it doubles exactly. */
static void check_back(struct setup *plain, int32_t of) {
    struct setup s;
    open_setup(&s, false, 0);
    const struct train_weights *x = &s.m.matrix[of];
    size_t n = (size_t)x->n * (size_t)x->k;
    struct doubled d = {&s.m, of, malloc(n * sizeof(float))};
    for (size_t i = 0; i < n; i++)
        d.twice[i] = 2 * ((const float *)x->w)[i];
    s.m.back = doubled, s.m.arg = &d;
    llama_forward(&s.m, &s.b, s.tape, s.logits);
    CHECK(memcmp(s.logits, plain->logits, sizeof s.logits) == 0);
    llama_backward(&s.m, s.tape, s.logits, NULL, s.dnorm, (struct llama_sink){keep, NULL, &s});
    for (int32_t i = 0; i < s.m.n_matrices; i++) {
        size_t size = (size_t)s.m.matrix[i].n * (size_t)s.m.matrix[i].k;
        /* Through a layer's down_proj goes what its gate and up learn from, through lm_head all. */
        bool behind = of == llama_head(&s.m) ? i != of
                                             : i == llama_part(LAYERS - 1, PART_GATE) ||
                                                   i == llama_part(LAYERS - 1, PART_UP),
             after = of != llama_head(&s.m) &&
                     (i == of || i == llama_head(&s.m)); /* of the last layer: unchanged */
        if (!behind && !after && i != of)
            continue;
        for (size_t l = 0; l < size; l++)
            if (s.grad[i][l] != (behind ? 2 : 1) * plain->grad[i][l])
                test_fail(__FILE__, __LINE__,
                          "through twice matrix %d: gradient %zu of %d is %g, "
                          "not %d times %g",
                          of, l, i, (double)s.grad[i][l], behind ? 2 : 1,
                          (double)plain->grad[i][l]);
    }
    free(d.twice);
    close_setup(&s);
}

TEST(llama_gradients_go_back_through_the_weights_that_are_named_for_it) {
    struct setup s;
    open_setup(&s, false, 0);
    llama_forward(&s.m, &s.b, s.tape, s.logits);
    llama_backward(&s.m, s.tape, s.logits, NULL, s.dnorm, (struct llama_sink){keep, NULL, &s});
    check_back(&s, llama_head(&s.m));
    check_back(&s, llama_part(LAYERS - 1, PART_DOWN));
    close_setup(&s);
}

TEST(llama_rows_do_not_depend_on_the_other_sequences_of_a_batch) {
    struct setup s;
    open_setup(&s, false, 0);
    llama_forward(&s.m, &s.b, s.tape, s.logits);
    float alone[4 * VOCAB];
    static const int32_t one[] = {0, 4};
    struct llama_batch b = {4, 1, ids + 7, one};
    llama_forward(&s.m, &b, s.tape, alone);
    for (int i = 0; i < 4 * VOCAB; i++)
        CHECK_NEAR((double)alone[i], (double)s.logits[7 * VOCAB + i], 1e-5, 1e-5);
    close_setup(&s);
}

TEST(loss_is_zero_and_agrees_for_equal_logits_and_counts_targets) {
    struct train *t;
    struct why why = {""};
    CHECK_OK(train_cpu_open(&t, 1, &why), why);
    float x[2 * 3] = {0, 1, 2, 2, 1, 0}, y[2 * 3] = {0, 1, 2, 0, 1, 2};
    int32_t target[2] = {2, -1};
    struct train_loss same = {0}, other = {0};
    t->ops->distil(t, 2, 3, x, x, target, 1, 0, 1, NULL, &same);
    t->ops->distil(t, 2, 3, y, x, target, 1, 0, 1, NULL, &other);
    CHECK_NEAR(same.kl, 0, 1e-6, 0);
    CHECK_EQ(same.n_agree, 2);
    CHECK_EQ(same.n_targets, 1);
    CHECK_NEAR(same.nll, log(1 + exp(-1) + exp(-2)), 1e-5, 0);
    CHECK_EQ(other.n_agree, 1);
    CHECK_NEAR(other.mse, 8.0 / 3, 1e-5, 0);
    double z = 1 + exp(-1) + exp(-2); /* KL to the reversed distribution: 2 (p2 - p0) */
    CHECK_NEAR(other.kl, 2 * (1 - exp(-2)) / z, 1e-5, 0);
    t->ops->close(t);
}
