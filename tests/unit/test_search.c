#include <math.h>

#include "compress/search.h"
#include "tests/check.h"

/* A fine-tune of which exp(-rate * (bits - 1)) * lost_at_one is lost, less so with every bit. */
struct curve {
    double lost_at_one, rate, bend;
};

static double kept(const struct curve *c, double bits) {
    double x = bits - 1;
    return 1 - c->lost_at_one * exp(-c->rate * x / (1 + c->bend * x));
}

/* The smallest bits that reach the target, by a fine scan; 9: none. */
static double truth(const struct curve *c, double target) {
    double b = 1;
    while (b <= 8 && kept(c, b) < target)
        b += 0.001;
    return b <= 8 ? b : 9;
}

static double look(const struct curve *c, double target, double most, struct search *s) {
    double bits, best = 9;
    *s = (struct search){.target = target, .least = 1, .most = most};
    while (search_next(s, 1.14, &bits)) {
        CHECK(bits >= 1 && bits <= most);
        if (search_add(s, bits, kept(c, bits)))
            best = bits;
    }
    return best;
}

TEST(search_finds_the_smallest_budget_within_a_tenth_of_a_bit) {
    static const struct curve curves[] = {
        {0.15, 2, 0.1}, {0.004, 1.5, 0}, {0.6, 2.5, 0.3}, {0.9, 0.8, 0}, {0.3, 4, 0.5}};
    static const double targets[] = {0.3, 0.9, 0.97, 0.99, 0.995, 0.999};
    int32_t worst = 0;
    for (size_t i = 0; i < sizeof curves / sizeof *curves; i++)
        for (size_t j = 0; j < sizeof targets / sizeof *targets; j++) {
            struct search s;
            double want = truth(&curves[i], targets[j]), got = look(&curves[i], targets[j], 8, &s);
            worst = s.n > worst ? s.n : worst;
            if (want > 8) {
                CHECK(got > 8);
                CHECK_NEAR(s.bits[s.n - 1], 8, 1e-9, 0); /* all that was allowed was tried */
                continue;
            }
            CHECK(got >= want - 1e-3);
            CHECK(got <= want + 0.11);
        }
    CHECK(worst <= SEARCH_MAX_LOOKS);
}

TEST(search_estimates_what_a_refusal_names) {
    struct curve c = {0.3, 2.2, 0.05};
    struct search s;
    CHECK(look(&c, 0.99, 1.5, &s) > 8);
    CHECK_NEAR(search_estimate(&s, 0.99), truth(&c, 0.99), 0.5, 0);
    s = (struct search){.target = 0.5, .least = 1, .most = 1};
    search_add(&s, 1, 0.2);
    CHECK(search_estimate(&s, 0.9) > 1.5);
    CHECK(search_estimate(&s, 0.9) < 3);
}

/* A budget that is spent in whole planes alone: nothing changes between 1.3 and 2, nor from there
 * to 3. */
TEST(search_gets_up_a_stair) {
    struct search s = {.target = 0.95, .least = 1, .most = 8};
    double bits, best = 9;
    while (search_next(&s, 1.14, &bits))
        if (search_add(&s, bits, bits < 1.3 ? 0.939 : bits < 2 ? 0.942 : bits < 3 ? 0.966 : 0.99))
            best = bits;
    CHECK(best >= 2 && best < 2.2);
    CHECK(s.n <= 5);
}
