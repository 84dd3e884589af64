/* Sampling: each parameter does what it says, the drawn frequencies are those of the distribution,
 * and a draw depends on (seed, draw) alone. */
#include <math.h>

#include "kernels/cpu/sample.h"
#include "tests/check.h"

enum { V = 1000 };

static float weight[V], raw[V];
static int32_t ids[V];
static const struct sample_scratch scratch = {weight, raw, ids};

static const struct isa *best(void) {
    return isa_avx512.runs_here() ? &isa_avx512 : isa_avx2.runs_here() ? &isa_avx2 : &isa_c;
}

static struct logit_row plain(void) {
    return (struct logit_row){
        .target = -1, .temperature = 1, .top_p = 1, .repetition = 1, .n_top = -1};
}

static struct sampled sample(const float *logits, int32_t n, const struct logit_row *how) {
    static float z[V];
    struct sampled out;
    memcpy(z, logits, (size_t)n * sizeof *z);
    sample_row(best(), z, n, how, &scratch, &out);
    return out;
}

/* Frequencies of `n` draws against `want` (unnormalised): within 5 standard deviations, and ids
 * with weight 0 never. */
static void check_frequencies(const float *z, int32_t vocab, struct logit_row how,
                              const double *want) {
    enum { DRAWS = 40000 };
    static int32_t count[V];
    double total = 0;
    memset(count, 0, sizeof count);
    for (int32_t i = 0; i < vocab; i++)
        total += want[i];
    for (how.draw = 0; how.draw < DRAWS; how.draw++) {
        struct sampled s = sample(z, vocab, &how);
        CHECK(s.finite && s.token >= 0 && s.token < vocab);
        count[s.token]++;
    }
    for (int32_t i = 0; i < vocab; i++) {
        double p = want[i] / total;
        if (want[i] == 0)
            CHECK_EQ(count[i], 0);
        else
            CHECK_NEAR((double)count[i], p * DRAWS, 5 * sqrt(p * (1 - p) * DRAWS) + 1e-9, 0);
    }
}

static const float eight[8] = {0.5f, 2, -1, 1, 2, 0, -3, 1.5f}; /* a tie at ids 1 and 4 */

TEST(sample_frequencies_follow_temperature) {
    double want[8];
    struct logit_row how = plain();
    how.temperature = 0.7f;
    how.seed = 11;
    for (int i = 0; i < 8; i++)
        want[i] = exp((double)eight[i] / 0.7);
    check_frequencies(eight, 8, how, want);
}

TEST(sample_top_k_top_p_and_min_p_cut_the_tail_in_their_order) {
    double e[8], want[8] = {0};
    for (int i = 0; i < 8; i++)
        e[i] = exp((double)eight[i]);
    struct logit_row how = plain();
    how.top_k = 3; /* 1, 4, 7 */
    want[1] = e[1], want[4] = e[4], want[7] = e[7];
    check_frequencies(eight, 8, how, want);
    how.top_k = 1; /* of equals the lower id */
    CHECK_EQ(sample(eight, 8, &how).token, 1);
    how.top_k = 3; /* top_p is a share of what top_k left: (e1 + e4) / (e1 + e4 + e7) is 0.767 */
    how.top_p = 0.76f;
    want[7] = 0;
    check_frequencies(eight, 8, how, want);
    how.top_k = 0; /* of all: 0.30 each for 1 and 4, then 0.18 */
    how.top_p = 0.65f;
    want[7] = e[7];
    check_frequencies(eight, 8, how, want);
    how.top_p = 1;
    how.min_p = 0.3f; /* of the largest: ids with e^(z - 2) >= 0.3: 1, 4, 7, 3 */
    want[3] = e[3];
    check_frequencies(eight, 8, how, want);
    how.min_p = 0;
    how.top_p = 1e-9f;
    CHECK_EQ(sample(eight, 8, &how).token, 1);
}

TEST(sample_top_p_on_a_wide_vocabulary_keeps_exactly_the_nucleus) {
    static float z[V];
    static double want[V];
    unsigned random = 77;
    double total = 0, sum = 0;
    for (int32_t i = 0; i < V; i++) {
        z[i] = 2.5f * test_gauss(&random);
        total += exp((double)z[i]);
    }
    for (;;) {
        int32_t at = -1;
        for (int32_t i = 0; i < V; i++)
            if (want[i] == 0 && (at < 0 || z[i] > z[at]))
                at = i;
        want[at] = exp((double)z[at]);
        sum += want[at];
        if (sum >= 0.8 * total)
            break;
    }
    struct logit_row how = plain();
    how.top_p = 0.8f;
    check_frequencies(z, V, how, want);
}

TEST(sample_greedy_takes_the_lowest_of_the_largest_after_bias_bans_and_penalties) {
    struct logit_row how = plain();
    how.temperature = 0;
    CHECK_EQ(sample(eight, 8, &how).token, 1);
    const struct logit_bias bias[] = {{2, 3.5f}, {99, 100}, {-1, 100}};
    how.bias = bias;
    how.n_bias = 3;
    CHECK_EQ(sample(eight, 8, &how).token, 2); /* 2.5 */
    const int32_t banned[] = {2, 1, 1000};
    how.banned = banned;
    how.n_banned = 3;
    CHECK_EQ(sample(eight, 8, &how).token, 4);
    how.n_bias = how.n_banned = 0;
    const int32_t history[] = {1, 4, 4, 1, 7, 1000, -5}; /* the first three are the prompt */
    how.history = history;
    how.n_history = 7;
    how.n_prompt = 3;
    how.presence = 0.3f; /* 1: 1.7, 4: 2 (prompt only) */
    CHECK_EQ(sample(eight, 8, &how).token, 4);
    how.presence = 0;
    how.repetition = 2; /* 1 and 4: 1; 7: 0.75; 3 stays 1: of equals the lowest */
    CHECK_EQ(sample(eight, 8, &how).token, 1);
    how.frequency = 0.1f; /* 1: 0.9, 4: 1, 3: 1 */
    CHECK_EQ(sample(eight, 8, &how).token, 3);
}

TEST(sample_penalties_have_the_published_formulas) {
    const float z[4] = {2, -2, 1, 0.5f};
    const int32_t history[] = {0, 1, 0, 0, 1};
    struct logit_row how = plain();
    how.history = history;
    how.n_history = 5;
    how.n_prompt = 1; /* counts: id 0: 2, id 1: 2 */
    how.repetition = 1.25f;
    how.frequency = 0.25f;
    how.presence = 0.125f;
    const double want[4] = {exp(2 / 1.25 - 0.5 - 0.125), exp(-2 * 1.25 - 0.5 - 0.125), exp(1),
                            exp(0.5)};
    check_frequencies(z, 4, how, want);
}

TEST(sample_log_probabilities_are_of_the_raw_distribution) {
    static float z[V];
    unsigned random = 5;
    double total = 0;
    for (int32_t i = 0; i < V; i++) {
        z[i] = 4 * test_gauss(&random);
        total += exp((double)z[i]);
    }
    z[3] = z[700] = 20; /* a tie at the top */
    total += 2 * exp(20.0);
    const struct logit_bias bias = {9, 60};
    struct logit_row how = plain();
    how.n_top = MAX_TOP;
    how.bias = &bias;
    how.n_bias = 1;
    how.temperature = 0;
    struct sampled s = sample(z, V, &how);
    CHECK_EQ(s.token, 9); /* the bias decides, the report does not know of it */
    CHECK_NEAR((double)s.logprob, (double)z[9] - log(total), 1e-5, 0);
    CHECK_EQ(s.n_top, MAX_TOP);
    CHECK_EQ(s.top_id[0], 3);
    CHECK_EQ(s.top_id[1], 700);
    for (int32_t i = 0; i < MAX_TOP; i++)
        CHECK_NEAR((double)s.top_logprob[i], (double)z[s.top_id[i]] - log(total), 1e-5, 0);
    for (int32_t i = 0; i < V; i++) {
        int32_t above = 0;
        for (int32_t j = 0; j < MAX_TOP; j++)
            above += z[s.top_id[j]] > z[i] || (z[s.top_id[j]] == z[i] && s.top_id[j] <= i);
        CHECK(above > 0);
        CHECK(above == MAX_TOP || s.top_id[above - 1] == i);
    }
    how.target = 123;
    s = sample(z, V, &how);
    CHECK_EQ(s.token, 123);
    CHECK_NEAR((double)s.logprob, (double)z[123] - log(total), 1e-5, 0);
    how.n_top = -1;
    s = sample(z, V, &how);
    CHECK(s.logprob == 0 && s.n_top == 0);
}

TEST(sample_a_draw_depends_on_seed_and_number_alone) {
    struct logit_row how = plain();
    int32_t same = 0;
    for (how.draw = 0; how.draw < 200; how.draw++) {
        how.seed = 1;
        int32_t a = sample(eight, 8, &how).token;
        CHECK_EQ(a, sample(eight, 8, &how).token);
        how.seed = 2;
        same += a == sample(eight, 8, &how).token;
    }
    CHECK(same < 120); /* independent: about a quarter */
}

TEST(sample_reports_rows_that_cannot_be_drawn_from) {
    struct logit_row how = plain();
    float z[20] = {0};
    CHECK(sample(z, 20, &how).finite);
    z[19] = -INFINITY;
    CHECK(sample(z, 20, &how).finite);
    z[18] = NAN;
    CHECK(!sample(z, 20, &how).finite);
    CHECK(sample(z, 18, &how).finite); /* columns past the tenant's vocabulary do not matter */
    z[18] = INFINITY;
    CHECK(!sample(z, 20, &how).finite);
    how.target = 20;
    CHECK(!sample(z, 18, &how).finite);
    how = plain();
    const int32_t banned[] = {0, 1};
    how.banned = banned;
    how.n_banned = 2;
    CHECK(!sample(z, 2, &how).finite);
    for (how.temperature = 0; how.temperature < 2; how.temperature++)
        for (how.draw = 0; how.draw < 50; how.draw++)
            CHECK_EQ(sample(z, 3, &how).token, 2);
}
