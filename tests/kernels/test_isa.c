/* The inner loops of every instruction set, one by one: halves, the base product, the integers of
 * the sign product, row operators. Outputs are poisoned and fenced by guard values. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/delta.h"
#include "kernels/f16.h"
#include "tests/kernels/model.h"

static const float guard = 12345.5f;

/* A backend only for its scratch. */
static struct kernels *open_any(void) {
    static const struct model_shape shape = {1, 256, 4, 4, 64, 256, 256, 256, 0, 1e-5f, false};
    struct kernels *k;
    struct why why = {""};
    CHECK_OK(cpu_open_isa(&k, &shape, 4, 1, NULL, &why), why);
    return k;
}

TEST(kernels_halves_convert_both_ways_in_every_instruction_set) {
    const struct isa *isa[M_ISAS];
    int32_t n = model_isas(isa);
    for (uint32_t h = 0; h < 65536; h++) {
        int32_t exponent = (int32_t)(h >> 10 & 31), mantissa = (int32_t)(h & 1023);
        double want = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        float got = half_to_float((uint16_t)h), wide[3];
        uint16_t in[3] = {(uint16_t)h, (uint16_t)h, (uint16_t)h};
        want = h & 0x8000 ? -want : want;
        if (exponent == 31)
            CHECK(mantissa ? isnan(got) : isinf(got) && (got < 0) == (h >> 15));
        else
            CHECK((double)got == want);
        for (int32_t i = 0; i < n; i++) {
            isa[i]->widen(in, 3, wide);
            CHECK_EQ(memcmp(&wide[2], &got, 4), 0);
        }
        if (isnan(got))
            continue;
        CHECK_EQ(half_from_float(got), h);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        /* Halfway to the next: to the even one; a little off: to the nearer one. */
        float next = half_to_float((uint16_t)(h + 1)), middle = got + (next - got) / 2;
        CHECK_EQ(half_from_float(middle), h + (h & 1));
        CHECK_EQ(half_from_float(nextafterf(middle, got)), h);
        CHECK_EQ(half_from_float(nextafterf(middle, next)), h + 1);
    }
    CHECK_EQ(half_from_float(65519.9f), 0x7bff);
    CHECK_EQ(half_from_float(65520.0f), 0x7c00);
    CHECK_EQ(half_from_float(-INFINITY), 0xfc00);
    CHECK_EQ(half_from_float(1e-10f), 0);
}

enum { MAX_N = 80, MAX_K = 1300, MAX_X = 64 };

static void check_matmul(const struct isa *isa, int32_t n, int32_t k, int32_t n_x, bool add) {
    static uint16_t w[MAX_N * MAX_K];
    static float x[MAX_X][MAX_K], y[MAX_X][MAX_N + 1], one[MAX_N];
    const float *xp[MAX_X];
    float *yp[MAX_X];
    unsigned random = (unsigned)(n * 31 + k * 7 + n_x);
    for (int32_t i = 0; i < n * k; i++)
        w[i] = half_from_float(test_gauss(&random));
    w[n * k < MAX_N * MAX_K ? n * k : 0] = n * k < MAX_N * MAX_K ? 0x7e00 : w[0]; /* NaN behind */
    for (int32_t c = 0; c < n_x; c++) {
        for (int32_t i = 0; i < k; i++)
            x[c][i] = test_gauss(&random);
        if (k < MAX_K)
            x[c][k] = NAN;
        for (int32_t r = 0; r <= n; r++)
            y[c][r] = r == n ? guard : add ? (float)r : NAN;
        xp[c] = x[c];
        yp[c] = y[c];
    }
    struct matmul_args a = {w, n, k, n_x, xp, yp, add};
    isa->matmul(&a);
    for (int32_t c = 0; c < n_x; c++) {
        for (int32_t r = 0; r < n; r++) {
            double sum = add ? r : 0, magnitude = sum;
            for (int32_t i = 0; i < k; i++) {
                double p = (double)half_to_float(w[r * k + i]) * (double)x[c][i];
                sum += p;
                magnitude += fabs(p);
            }
            CHECK_NEAR((double)y[c][r], sum, 5e-7 * magnitude, 0);
            one[r] = add ? (float)r : NAN;
        }
        CHECK(y[c][n] == guard);
        float *op = one; /* the same row alone: the same bits */
        struct matmul_args alone = {w, n, k, 1, xp + c, &op, add};
        isa->matmul(&alone);
        CHECK_EQ(memcmp(one, y[c], (size_t)n * 4), 0);
    }
}

TEST(kernels_base_product_equals_double_precision_and_its_rows_alone) {
    const struct isa *isa[M_ISAS];
    static const int32_t ns[] = {1, 5, 16, 33, 80}, ks[] = {1, 16, 40, 256, 300, 1030},
                         xs[] = {1, 2, 3, 5, 6, 13, 17, 64};
    int32_t n_isas = model_isas(isa);
    for (int32_t s = 0; s < n_isas; s++)
        for (int32_t i = 0; i < 5; i++)
            for (int32_t j = 0; j < 6; j++)
                for (int32_t c = 0; c < 8; c++)
                    if (i + j < 8 || xs[c] < 14) /* the largest corners once are enough */
                        check_matmul(isa[s], ns[i], ks[j], xs[c], (i + j + c) % 2);
}

/* kernels/delta.h, once more and slowly. NaN stands for a block that is not finite. */
static double slow_integer(const struct delta_args *a, int32_t plane, const float *x, int32_t row,
                           double *scale) {
    double max = 0, sum = 0, q[256];
    for (int32_t i = 0; i < a->n_k; i++) {
        float v = a->col ? x[a->k0 + i] * a->col[a->k0 + i] : x[a->k0 + i];
        if (!isfinite(v))
            return NAN;
        max = fmax(max, fabs((double)v));
        q[i] = (double)v;
    }
    int e = max > 0 ? ilogb(max) - 14 : -100;
    *scale = ldexp(1, e < -100 ? -100 : e);
    for (int32_t i = 0; i < a->n_k; i++) {
        double r = fmin(fmax(rint(q[i] / *scale), -32767), 32767);
        const uint32_t *tile = a->bits[plane] + (size_t)(row / 16) * a->tile_stride;
        bool set = tile[plane_word(row % 16, i, 256)] >> (i % 32) & 1;
        sum += set ? r : -r;
    }
    return sum;
}

enum { D_TILES = 3, D_COLS = 512, D_PLANES = 2, D_ACC = 9 * D_TILES * 16 };

/* Fills x by kind; kinds 6 and 7 are not finite. */
static void delta_input_of(int32_t kind, float *x, unsigned *random) {
    for (int32_t i = 0; i < D_COLS; i++) {
        float g = test_gauss(random);
        x[i] = kind == 1   ? 0
               : kind == 2 ? g * (i % 50 == 3 ? 3000 : 1)
               : kind == 3 ? (i % 7 ? 1.99999f : -1.9999999f) /* rounds to 32768: clamped */
               : kind == 4 ? g * 1e-38f
               : kind == 5 ? g * 1e32f
                           : g;
    }
    if (kind == 6)
        x[300] = NAN;
    if (kind == 7)
        x[260] = -INFINITY;
    if (kind == 8)
        x[256 + 17] = 0x1p-14f; /* a tie once the largest is a power of two */
}

TEST(kernels_sign_product_gives_the_same_integers_in_every_instruction_set) {
    const struct isa *isa[M_ISAS];
    int32_t n_isas = model_isas(isa);
    struct kernels *k = open_any();
    static uint32_t bits[D_PLANES][D_TILES * 2 * 128];
    static float x[9][D_COLS], col[D_COLS], acc[D_PLANES * D_ACC + 1];
    const float *xp[9];
    unsigned random = 3;
    for (int32_t i = 0; i < D_PLANES * D_TILES * 2 * 128; i++)
        bits[i % D_PLANES][i / D_PLANES] = test_random(&random) ^ test_random(&random) << 16;
    for (int32_t i = 0; i < D_COLS; i++)
        col[i] = 1 + 0.3f * test_gauss(&random);
    for (int32_t i = 0; i < 9; i++) {
        delta_input_of(i, x[i], &random);
        xp[i] = x[i];
    }
    static const int32_t widths[] = {256, 1, 16, 44, 255};
    for (int32_t s = 0; s < n_isas; s++)
        for (int32_t w = 0; w < 10; w++) {
            struct delta_args a = {.bits = {bits[0] + 128, bits[1] + 128},
                                   .n_planes = D_PLANES,
                                   .tile_stride = 256,
                                   .n_tiles = D_TILES,
                                   .n_x = 9,
                                   .k0 = 256,
                                   .n_k = widths[w % 5],
                                   .x = xp,
                                   .col = w < 5 ? NULL : col,
                                   .acc = acc};
            for (int32_t i = 0; i < D_PLANES * D_ACC; i++)
                acc[i] = 0;
            acc[D_PLANES * D_ACC] = guard;
            isa[s]->delta_block(&a, &cpu_of(k)->scratch[0]);
            for (int32_t pc = 0; pc < D_PLANES * 9; pc++)
                for (int32_t r = 0; r < D_TILES * 16; r++) {
                    int32_t c = pc % 9;
                    double scale = 1, want = slow_integer(&a, pc / 9, x[c], r, &scale);
                    double got = (double)acc[pc * D_TILES * 16 + r] / scale;
                    if (isnan(want))
                        CHECK(isnan(got));
                    else if (got != want)
                        test_fail(__FILE__, __LINE__, "%s, input %d, width %d, row %d: %g, not %g",
                                  isa[s]->name, c, a.n_k, r, got, want);
                }
            CHECK(acc[D_PLANES * D_ACC] == guard);
        }
    k->ops->close(k);
}

TEST(kernels_row_operators_reach_the_ends_of_their_range) {
    const struct isa *isa[M_ISAS];
    int32_t n_isas = model_isas(isa);
    for (int32_t s = 0; s < n_isas; s++) {
        float gate[40], up[40], out[41];
        for (int32_t i = 0; i < 40; i++) {
            gate[i] = (float)(i - 20) * 10;
            up[i] = 1;
        }
        gate[0] = -1e4f;
        gate[39] = 1e30f;
        gate[20] = NAN;
        out[40] = guard;
        isa[s]->swiglu(gate, up, 40, out);
        for (int32_t i = 0; i < 40; i++)
            if (i == 20)
                CHECK(isnan(out[i]));
            else
                CHECK_NEAR((double)out[i], (double)gate[i] / (1 + exp(-(double)gate[i])), 1e-30,
                           1e-6);
        CHECK(out[40] == guard);

        float z[37], w[37];
        double sum = 0;
        for (int32_t i = 0; i < 37; i++) {
            z[i] = -3.0f * (float)i;
            sum += exp(-3.0 * i);
        }
        z[36] = -INFINITY;
        CHECK_NEAR(isa[s]->weigh(z, 0, 1, 37, w), sum, 1e-6, 0);
        CHECK(w[36] == 0);
        int32_t at;
        bool finite;
        z[30] = z[5] = 7;
        CHECK(isa[s]->largest(z, 37, &at, &finite) == 7);
        CHECK_EQ(at, 5);
        CHECK(finite);
        for (int32_t i = 0; i < 37; i += 4) {
            float old = z[i];
            z[i] = i % 8 ? NAN : INFINITY;
            isa[s]->largest(z, 37, &at, &finite);
            CHECK(!finite);
            z[i] = old;
        }
    }
}
