#include "engine/admission.h"

#include <math.h>

#include "tests/check.h"

static struct tenant_info tenant = {.vocab = 100, .context = 50};
static int32_t ids[60];

static struct gen_request good(void) {
    return (struct gen_request){
        .ids = ids, .n_ids = 10, .max_tokens = 40, .top_p = 1, .repetition = 1, .n_top = -1};
}

static err_t check(const struct gen_request *r, struct why *why) {
    why->text[0] = 0;
    return admission_check(r, &tenant, 1000, why);
}

TEST(admission_takes_a_request_that_fills_the_context) {
    struct why why;
    struct gen_request r = good();
    CHECK_OK(check(&r, &why), why);
    r.max_tokens++;
    CHECK_EQ(check(&r, &why), E_CONTEXT);
    CHECK_HAS(why.text, "51");
    CHECK_HAS(why.text, "50");
    r.max_tokens = INT32_MAX;
    CHECK_EQ(check(&r, &why), E_CONTEXT);
}

TEST(admission_refuses_what_can_never_fit_the_pool) {
    struct why why;
    struct gen_request r = good();
    CHECK_EQ(admission_check(&r, &tenant, 49, &why), E_CONTEXT);
    CHECK_HAS(why.text, "kv_tokens");
    CHECK_EQ(admission_check(&r, &tenant, 50, &why), E_OK);
}

TEST(admission_checks_every_id_against_the_vocabulary) {
    struct why why;
    struct gen_bias bias[2] = {{1, 0}, {100, 0}};
    for (int bad = -1; bad <= 100; bad += 101) {
        struct gen_request r = good();
        ids[7] = bad;
        CHECK_EQ(check(&r, &why), E_TOKEN_RANGE);
        CHECK_HAS(why.text, "index 7 of the prompt");
        ids[7] = 99;
        CHECK_EQ(check(&r, &why), E_OK);
        r.stop_id[r.n_stop_ids++] = bad;
        CHECK_EQ(check(&r, &why), E_TOKEN_RANGE);
        r.n_stop_ids = 0;
        bias[1].id = bad;
        r.bias = bias;
        r.n_bias = 2;
        CHECK_EQ(check(&r, &why), E_TOKEN_RANGE);
        CHECK_HAS(why.text, "logit_bias");
    }
}

TEST(admission_refuses_values_that_are_no_numbers_or_out_of_bounds) {
    struct why why;
    float bad[] = {NAN, INFINITY, -INFINITY, -1};
    for (int i = 0; i < 4; i++) {
        struct gen_request r = good();
        r.temperature = bad[i];
        CHECK_EQ(check(&r, &why), E_INVAL);
        CHECK_HAS(why.text, "temperature");
        r = good();
        r.top_p = bad[i];
        CHECK_EQ(check(&r, &why), E_INVAL);
        r = good();
        r.repetition = bad[i];
        CHECK_EQ(check(&r, &why), E_INVAL);
    }
    struct gen_request r = good();
    r.n_ids = 0;
    CHECK_EQ(check(&r, &why), E_INVAL);
    r = good();
    r.n_top = GEN_MAX_TOP + 1;
    CHECK_EQ(check(&r, &why), E_INVAL);
    r = good();
    r.n_bias = GEN_MAX_BIAS + 1; /* refused before the list is read */
    CHECK_EQ(check(&r, &why), E_INVAL);
    r = good();
    r.min_tokens = 41;
    CHECK_EQ(check(&r, &why), E_INVAL);
}
