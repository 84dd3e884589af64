/* Each kind against its published formula in double precision. The table is computed in floats, so
 * the angle p * f carries up to p times 2^-23 or so of error: the tolerance grows with p. */
#include "engine/rope.h"

#include <math.h>

#include "tests/check.h"

enum { E = 64, CONTEXT = 700 };
static const double PI = 3.14159265358979323846;

static double plain(double theta, int i) {
    return pow(theta, -2.0 * i / E);
}

static double linear(const struct rope_config *c, int i, int p) {
    (void)p;
    return plain((double)c->theta, i) / (double)c->factor;
}

static double standard(const struct rope_config *c, int i, int p) {
    (void)p;
    return plain((double)c->theta, i);
}

static double llama3(const struct rope_config *c, int i, int p) {
    (void)p;
    double f = plain((double)c->theta, i), turns = c->original_context * f / (2 * PI);
    if (turns < (double)c->low_freq_factor)
        return f / (double)c->factor;
    if (turns > (double)c->high_freq_factor)
        return f;
    double smooth = (turns - (double)c->low_freq_factor) /
                    ((double)c->high_freq_factor - (double)c->low_freq_factor);
    return (1 - smooth) * f / (double)c->factor + smooth * f;
}

static double dynamic(const struct rope_config *c, int i, int p) {
    double length = p + 1 > c->original_context ? p + 1 : c->original_context;
    double stretch = (double)c->factor * length / c->original_context - ((double)c->factor - 1);
    return plain((double)c->theta * pow(stretch, E / (E - 2.0)), i);
}

static void check_table(const struct rope_config *c,
                        double (*frequency)(const struct rope_config *, int, int)) {
    static float table[CONTEXT * E];
    rope_fill(table, c, CONTEXT, E);
    for (int p = 0; p < CONTEXT; p++)
        for (int i = 0; i < E / 2; i++) {
            double angle = p * frequency(c, i, p), tolerance = 1e-6 + p * 5e-7;
            CHECK_NEAR((double)table[(p * E / 2 + i) * 2], cos(angle), tolerance, 0);
            CHECK_NEAR((double)table[(p * E / 2 + i) * 2 + 1], sin(angle), tolerance, 0);
        }
}

TEST(rope_default_turns_by_position) {
    check_table(&(struct rope_config){.kind = ROPE_DEFAULT, .theta = 10000, .factor = 9}, standard);
}

TEST(rope_linear_divides_positions) {
    check_table(&(struct rope_config){.kind = ROPE_LINEAR, .theta = 10000, .factor = 2}, linear);
}

TEST(rope_llama3_slows_long_waves_alone) {
    struct rope_config c = {.kind = ROPE_LLAMA3,
                            .theta = 500000,
                            .factor = 8,
                            .low_freq_factor = 1,
                            .high_freq_factor = 4,
                            .original_context = 8192};
    check_table(&c, llama3);
}

TEST(rope_dynamic_stretches_past_the_original_context) {
    struct rope_config c = {
        .kind = ROPE_DYNAMIC, .theta = 10000, .factor = 4, .original_context = 300};
    check_table(&c, dynamic);
}

TEST(rope_dynamic_equals_default_within_the_original_context) {
    static float a[CONTEXT * E], b[CONTEXT * E];
    struct rope_config c = {
        .kind = ROPE_DYNAMIC, .theta = 10000, .factor = 4, .original_context = 300};
    rope_fill(a, &c, CONTEXT, E);
    c.kind = ROPE_DEFAULT;
    rope_fill(b, &c, CONTEXT, E);
    CHECK_EQ(memcmp(a, b, 300 * E * sizeof *a), 0);
    CHECK(memcmp(a + 301 * E, b + 301 * E, E * sizeof *a) != 0);
}

TEST(rope_settings_that_compute_the_same_are_equal) {
    struct rope_config a = {.kind = ROPE_DEFAULT, .theta = 10000, .factor = 1}, b = a;
    b.factor = 2; /* a default RoPE has no factor */
    CHECK(rope_equal(&a, &b));
    a.kind = b.kind = ROPE_LINEAR;
    CHECK(!rope_equal(&a, &b));
    b = a;
    CHECK(rope_equal(&a, &b));
    b.theta = 1e6f;
    CHECK(!rope_equal(&a, &b));
}
