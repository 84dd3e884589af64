#include "tests/golden/golden.h"

#include <jansson.h>
#include <math.h>

#include "tests/check.h"
#include "tests/drive.h"

enum { MAX_CASES = 16, MAX_IDS = 1024, N_TOP = 5 };

static const double TIE = 0.02; /* a smaller margin may fall either way */
static double most, worst;      /* deviation allowed, and seen */

static json_t *load(const char *file) {
    json_error_t error;
    json_t *root = json_load_file(file, 0, &error);
    if (!root)
        test_fail(__FILE__, __LINE__, "%s: %s", file, error.text);
    return root;
}

static double number(const json_t *list, size_t i) {
    return json_number_value(json_array_get(list, i));
}

static void submit_case(struct engine *e, struct tenant *tenant, uint64_t id, const json_t *c) {
    static int32_t ids[MAX_IDS];
    const json_t *list = json_object_get(c, "ids");
    int32_t n = (int32_t)json_array_size(list);
    CHECK(n <= MAX_IDS);
    for (int32_t i = 0; i < n; i++)
        ids[i] = (int32_t)number(list, (size_t)i);
    int32_t n_greedy = (int32_t)json_array_size(json_object_get(c, "greedy_ids"));
    if (n_greedy == 0) /* the text ends at once, which its first alternatives show */
        n_greedy = 1;
    struct gen_request r = drive_request(id, ids, n, n_greedy);
    r.tenant = tenant;
    r.prompt_logprobs = true;
    r.n_top = N_TOP;
    drive_submit(e, &r);
}

static void check_near(const char *name, int i_case, const char *what, int32_t i, double got,
                       double want) {
    worst = fmax(worst, fabs(got - want));
    if (!(fabs(got - want) <= most))
        test_fail(__FILE__, __LINE__, "%s case %d: %s %d is %.6f, the reference %.6f", name, i_case,
                  what, i, got, want);
}

/* Every recorded alternative is among ours, or so close to our last that it may have missed. */
static void check_top(const char *name, int i_case, const struct gen_event *e, const json_t *top) {
    CHECK_EQ(e->n_top, N_TOP);
    for (size_t i = 0; i < json_array_size(top); i++) {
        const json_t *want = json_array_get(top, i);
        double got = (double)e->top_logprob[N_TOP - 1];
        for (int32_t j = 0; j < N_TOP; j++)
            if (e->top_id[j] == (int32_t)number(want, 0))
                got = (double)e->top_logprob[j];
        check_near(name, i_case, "top", (int32_t)i, got, number(want, 1));
    }
}

static void check_greedy(const char *name, int i_case, const json_t *c, const struct gen_event *e,
                         int32_t n_events) {
    const json_t *ids = json_object_get(c, "greedy_ids");
    const json_t *record = json_object_get(c, "greedy_logprob_and_margin");
    check_top(name, i_case, e, json_object_get(c, "top5"));
    for (int32_t i = 0; i < (int32_t)json_array_size(ids); i++) {
        const json_t *step = json_array_get(record, (size_t)i);
        CHECK(i < n_events);
        if (e[i].token != (int32_t)number(ids, (size_t)i)) {
            if (number(step, 1) > TIE)
                test_fail(__FILE__, __LINE__,
                          "%s case %d: greedy id %d is %d, not %d (margin %.3f)", name, i_case, i,
                          e[i].token, (int32_t)number(ids, (size_t)i), number(step, 1));
            return; /* a tie that fell the other way: from here on the texts differ */
        }
        check_near(name, i_case, "greedy log-probability", i, (double)e[i].logprob,
                   number(step, 0));
    }
}

static void check_case(const char *name, int i_case, const json_t *c, const struct reply *r) {
    const json_t *logprobs = json_object_get(c, "prompt_logprobs");
    const json_t *ids = json_object_get(c, "ids");
    int32_t n_prompt = (int32_t)json_array_size(ids);
    CHECK_EQ(json_array_size(logprobs), n_prompt);
    CHECK(r->n_events >= n_prompt);
    for (int32_t i = 1; i < n_prompt; i++) {
        const struct gen_event *e = &r->event[i - 1];
        CHECK_EQ(e->kind, GEN_PROMPT);
        CHECK_EQ(e->token, number(ids, (size_t)i));
        check_near(name, i_case, "prompt log-probability", i, (double)e->logprob,
                   number(logprobs, (size_t)i));
    }
    check_greedy(name, i_case, c, r->event + n_prompt - 1, r->n_events - n_prompt + 1);
}

double golden_check(struct engine *e, struct tenant *tenant, const char *file, const char *name,
                    double tolerance) {
    struct reply reply[MAX_CASES] = {0};
    json_t *root = load(file);
    const json_t *cases = json_object_get(root, name), *c;
    int32_t n = (int32_t)json_array_size(cases);
    size_t i;
    CHECK(n > 0 && n <= MAX_CASES);
    most = tolerance;
    worst = 0;
    json_array_foreach(cases, i, c) submit_case(e, tenant, i, c);
    drive_finish(e, reply, n);
    json_array_foreach(cases, i, c) check_case(name, (int)i, c, &reply[i]);
    drive_free(reply, n);
    json_decref(root);
    return worst;
}
