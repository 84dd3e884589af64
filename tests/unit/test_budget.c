/* Where the bits go: within the limit, never worse with more, the same every time, and to where
 * they gain most. */
#include <math.h>

#include "compress/budget.h"
#include "tests/check.h"

enum { ALL = 14, ROOTS = 24 };

static double roots[ALL][ROOTS];

/* A model of two layers; every matrix of another energy, shape and sensitivity. */
static void make(struct budget_matrix *m) {
    unsigned seed = 5;
    for (int32_t i = 0; i < ALL; i++) {
        m[i] = (struct budget_matrix){.n = 256 << (i % 3), .k = 256};
        m[i].energy = 1 + (double)(test_random(&seed) % 100) / 20;
        m[i].sensitivity = 0.1 * (1 + test_random(&seed) % 30);
        m[i].left[SCALES_ONE] = 0.46, m[i].left[SCALES_ROWS] = 0.42, m[i].left[SCALES_BOTH] = 0.37;
        for (int32_t r = 0; r < ROOTS; r++)
            roots[i][r] = m[i].energy * 0.1 * pow(0.7, r);
        m[i].root = roots[i], m[i].n_roots = ROOTS;
    }
}

static struct budget_result spend(const struct budget_matrix *m, double bits,
                                  struct budget_choice *c) {
    struct why why = {""};
    struct budget_result r;
    CHECK_OK(budget_spend(m, ALL, bits, c, &r, &why), why);
    return r;
}

TEST(budget_is_kept_used_up_and_never_hurts_when_it_grows) {
    struct budget_matrix m[ALL];
    struct budget_choice c[ALL], again[ALL];
    make(m);
    double before = 1e300;
    static const double bits[] = {1, 1.1, 1.15, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8};
    for (size_t b = 0; b < sizeof bits / sizeof *bits; b++) {
        struct budget_result r = spend(m, bits[b], c);
        double spent = 0, weights = 0, loss = 0;
        for (int32_t i = 0; i < ALL; i++) {
            loss += budget_loss(&m[i], &c[i]);
            spent += budget_bits(&m[i], &c[i]), weights += (double)m[i].n * m[i].k;
        }
        CHECK_NEAR(spent, r.bits, 0, 1e-9);
        CHECK_NEAR(loss, r.loss, 1e-9, 1e-9);
        CHECK(r.bits <= bits[b] * weights * 1.0005);
        CHECK(r.bits > 0.98 * bits[b] * weights);
        if (!(r.loss < before))
            test_fail(__FILE__, __LINE__, "%g bits leave %.5g, fewer left %.5g", bits[b], r.loss,
                      before);
        before = r.loss;
        spend(m, bits[b], again);
        for (int32_t i = 0; i < ALL; i++)
            CHECK(c[i].planes == again[i].planes && c[i].rank == again[i].rank &&
                  c[i].scales == again[i].scales);
    }
}

TEST(budget_of_one_bit_holds_a_plane_with_one_scale) {
    struct budget_matrix m[ALL];
    struct budget_choice c[ALL];
    make(m);
    for (int32_t i = 0; i < ALL; i++)
        m[i].n_roots = 0, m[i].left[SCALES_ROWS] = m[i].left[SCALES_BOTH] = m[i].left[SCALES_ONE],
        m[i].energy = m[i].n, m[i].sensitivity = 1; /* the same in every weight */
    spend(m, 1, c);
    for (int32_t i = 0; i < ALL; i++) {
        CHECK_EQ(c[i].planes, 1);
        CHECK_EQ(c[i].scales, SCALES_ONE);
    }
}

TEST(budget_gains_more_than_even_shares_would) {
    struct budget_matrix m[ALL];
    struct budget_choice c[ALL], even = {.planes = 1, .scales = SCALES_BOTH, .rank = 4};
    make(m);
    double bits = 0, weights = 0, loss = 0, mixed = 0;
    for (int32_t i = 0; i < ALL; i++) {
        bits += budget_bits(&m[i], &even), weights += (double)m[i].n * m[i].k;
        loss += budget_loss(&m[i], &even);
    }
    spend(m, bits / weights, c);
    for (int32_t i = 0; i < ALL; i++) {
        mixed += budget_loss(&m[i], &c[i]);
        CHECK(c[i].planes >= 1);
    }
    CHECK(mixed < 0.9 * loss);
}

TEST(budget_gives_the_sensitive_matrix_more) {
    struct budget_matrix m[ALL];
    struct budget_choice c[ALL];
    make(m);
    for (int32_t i = 0; i < ALL; i++)
        m[i].n = 256, m[i].energy = m[0].energy, m[i].sensitivity = 1, m[i].root = roots[0];
    m[5].sensitivity = 300;
    spend(m, 1.6, c);
    for (int32_t i = 0; i < ALL; i++)
        CHECK(i == 5 || budget_bits(&m[i], &c[i]) < budget_bits(&m[5], &c[5]));
}

TEST(budget_stores_a_low_rank_change_as_a_pair) {
    struct budget_matrix m[ALL];
    struct budget_choice c[ALL];
    make(m);
    for (int32_t r = 0; r < ROOTS; r++)
        roots[3][r] = r < 4 ? m[3].energy / 4 : 0;
    spend(m, 1.5, c);
    CHECK_EQ(c[3].planes, 0);
    CHECK_EQ(c[3].rank, 4);
}

TEST(budget_leaves_what_did_not_change_to_the_base) {
    struct budget_matrix m[ALL];
    struct budget_choice c[ALL];
    make(m);
    m[2].energy = 0;
    memset(roots[2], 0, sizeof roots[2]);
    spend(m, 8, c);
    CHECK_EQ(c[2].planes, 0);
    CHECK_EQ(c[2].rank, 0);
}
