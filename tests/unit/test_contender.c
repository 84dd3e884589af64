/* The methods for comparison: what they keep, what they say it takes. */
#include "compress/contender.h"

#include <math.h>

#include "compress/delta_come.h"
#include "compress/low_rank.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

enum { N = 200, K = 150 };

/* A difference whose singular values fall slowly, and noise. */
static void make(float *d) {
    unsigned seed = 21;
    memset(d, 0, N * K * sizeof *d);
    for (int t = 0; t < 40; t++) {
        float x[N + K];
        for (int i = 0; i < N + K; i++)
            x[i] = test_gauss(&seed);
        for (int i = 0; i < N * K; i++)
            d[i] += 0.01f * x[i / K] * x[N + i % K] * powf(0.9f, (float)t);
    }
    for (int i = 0; i < N * K; i++)
        d[i] += 0.003f * test_gauss(&seed);
}

static double energy(const float *x, const float *y) {
    double sum = 0;
    for (int i = 0; i < N * K; i++)
        sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sum;
}

/* What the best pair of FP16 factors leaves for those bits. */
static double svd_leaves(struct train *t, const float *d, double bits) {
    static float left[N * K], b[N * K], a[K * K], none[N * K];
    int32_t rank = (int32_t)(bits * N * K / (16.0 * (N + K)));
    memcpy(left, d, sizeof left);
    CHECK_EQ(low_rank(t, N, K, rank, left, NULL, b, a, NULL), 0);
    return energy(left, none);
}

TEST(delta_come_keeps_to_its_bits_and_beats_a_plain_svd_of_them) {
    static float d[N * K], left[N * K], none[N * K];
    struct train *t;
    struct why why = {""};
    CHECK_OK(train_cpu_open(&t, 2, &why), why);
    make(d);
    double all = energy(d, none), before = all;
    static const double bits[] = {1, 1.5, 2, 3, 4, 8};
    for (size_t b = 0; b < sizeof bits / sizeof *bits; b++) {
        double spent;
        memcpy(left, d, sizeof d);
        CHECK_EQ(delta_come(t, N, K, bits[b], left, &spent), 0);
        CHECK(spent <= bits[b] * N * K);
        CHECK(spent > 0.9 * bits[b] * N * K);
        double is = energy(left, none), plain = svd_leaves(t, d, bits[b]);
        if (!(is < plain))
            test_fail(__FILE__, __LINE__, "%g bits leave %.4g, an SVD %.4g", bits[b], is, plain);
        CHECK(is < 0.9 * before);
        before = is;
    }
    CHECK(before < 1e-3 * all);
    t->ops->close(t);
}

static void tune(const char *name, float *x, size_t n, void *arg) {
    unsigned seed = 5 + (unsigned)strlen(name);
    for (size_t i = 0; i < n; i++)
        x[i] += *(float *)arg * test_gauss(&seed);
}

TEST(contenders_make_files_that_verify_and_say_what_they_take) {
    char base[300], fine[300], out[300];
    float size = 0.02f;
    snprintf(base, sizeof base, "%s/base", test_tmp());
    snprintf(fine, sizeof fine, "%s/fine", test_tmp());
    snprintf(out, sizeof out, "%s/t.bitdelta", test_tmp());
    make_model(base, (struct make_model){0});
    make_model(fine, (struct make_model){.change = tune, .arg = &size});
    static const char *const name[] = {"svd", "delta-come"};
    for (int i = 0; i < 2; i++) {
        double bits = 0;
        TOOL_OK("compress --base %s --finetuned %s --method %s --bits 3 -o %s", base, fine, name[i],
                out);
        const char *says = strstr(tool_output, "The linears take ");
        CHECK(says && sscanf(says, "The linears take %lf", &bits) == 1);
        CHECK(bits > 1.5 && bits <= 3);
        TOOL_OK("inspect %s", out);
        CHECK_HAS(tool_output, name[i]);
    }
    CHECK_EQ(
        run_tool("compress --base %s --finetuned %s --method svd --instant -o %s", base, fine, out),
        64);
    CHECK_HAS(tool_output, "leave out --instant");
}
