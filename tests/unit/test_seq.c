/* A sequence's life without a model: what it asks of a row's logits, and what it makes of them. */
#include "engine/seq.h"

#include "tests/check.h"

static const int32_t eos[] = {2, 900}; /* 900 has no row in this vocabulary */

static struct seq *open_seq(struct gen_request r, int32_t n_prompt) {
    struct seq *q = NULL;
    r.id = 5;
    r.n_ids = n_prompt;
    r.ids = malloc((size_t)n_prompt * sizeof *r.ids);
    for (int32_t i = 0; i < n_prompt; i++)
        r.ids[i] = 10 + i;
    CHECK_EQ(seq_open(&q, &r, NULL, eos, 2, 100), E_OK);
    return q;
}

/* Runs the next n rows; every draw gives `token`. Returns the number of events. */
static int32_t run_rows(struct seq *q, int32_t n, int32_t token, struct gen_event *out,
                        bool *ended) {
    struct logit_row row[64];
    struct sampled result[64] = {0};
    int32_t n_logits = seq_logits(q, 0, n, row);
    for (int32_t i = 0; i < n_logits; i++)
        result[i] = (struct sampled){
            .token = row[i].target >= 0 ? row[i].target : token, .finite = true, .logprob = -1};
    q->n_rows = n;
    return seq_advance(q, result, n_logits, out, ended);
}

TEST(seq_scores_each_prompt_id_once_over_chunks_and_preemption) {
    struct seq *q = open_seq((struct gen_request){.max_tokens = 2, .prompt_logprobs = true}, 9);
    struct gen_event e[64];
    bool ended;
    int32_t expected = 11; /* ids[1] */
    CHECK_EQ(seq_rows_left(q), 9);
    CHECK_EQ(run_rows(q, 4, 50, e, &ended), 4);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(e[i].token, expected++);
    q->n_cached = 0; /* preempted */
    CHECK_EQ(run_rows(q, 5, 50, e, &ended), 1);
    CHECK_EQ(e[0].token, expected++);
    CHECK_EQ(run_rows(q, 4, 50, e, &ended), 4); /* three scores and the draw */
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(e[i].kind, GEN_PROMPT);
        CHECK_EQ(e[i].token, expected++);
    }
    CHECK_EQ(e[3].kind, GEN_TOKEN);
    q->n_cached =
        0; /* preempted in decode: prompt and output are computed again, nothing is said */
    CHECK_EQ(seq_rows_left(q), 10);
    CHECK_EQ(run_rows(q, 9, 51, e, &ended), 0);
    struct logit_row row;
    CHECK_EQ(seq_logits(q, 7, 1, &row), 1);
    CHECK_EQ(row.row, 7);
    CHECK_EQ(row.draw, 1);
    CHECK_EQ(row.n_history, 10);
    CHECK_EQ(run_rows(q, 1, 51, e, &ended), 2);
    CHECK(ended);
    CHECK_EQ(e[1].finish, GEN_LENGTH);
    seq_free(q);
}

TEST(seq_max_tokens_0_scores_the_prompt_and_ends) {
    struct seq *q = open_seq((struct gen_request){.prompt_logprobs = true}, 3);
    struct gen_event e[8];
    bool ended;
    CHECK_EQ(seq_rows_left(q), 2);
    CHECK_EQ(run_rows(q, 2, 0, e, &ended), 3);
    CHECK(ended);
    CHECK_EQ(e[2].kind, GEN_DONE);
    CHECK_EQ(e[2].finish, GEN_LENGTH);
    CHECK_EQ(e[2].token, -1);
    seq_free(q);
    q = open_seq((struct gen_request){0}, 3);
    CHECK_EQ(seq_rows_left(q), 0);
    seq_free(q);
}

TEST(seq_eos_and_stop_ids_end_the_text_unsent) {
    struct gen_request r = {.max_tokens = 9, .n_stop_ids = 2, .stop_id = {40, 2}};
    struct gen_event e[8];
    bool ended;
    for (int32_t stop = 2; stop <= 40; stop += 38) {
        struct seq *q = open_seq(r, 3);
        CHECK_EQ(run_rows(q, 3, stop, e, &ended), 1);
        CHECK(ended);
        CHECK_EQ(e[0].kind, GEN_DONE);
        CHECK_EQ(e[0].finish, GEN_STOP);
        CHECK_EQ(e[0].token, stop);
        seq_free(q);
    }
    r.ignore_eos = true;
    r.n_stop_ids = 1;
    struct seq *q = open_seq(r, 3);
    CHECK_EQ(run_rows(q, 3, 2, e, &ended), 1);
    CHECK_EQ(e[0].kind, GEN_TOKEN);
    CHECK(!ended);
    seq_free(q);
}

TEST(seq_min_tokens_bans_what_would_end_the_text) {
    struct gen_request r = {.max_tokens = 9, .min_tokens = 2, .n_stop_ids = 1, .stop_id = {40}};
    struct gen_event e[8];
    struct logit_row row[4];
    bool ended;
    struct seq *q = open_seq(r, 3);
    for (int32_t i = 0; i < 3; i++) {
        int32_t n_rows = seq_rows_left(q);
        CHECK_EQ(seq_logits(q, 0, n_rows, row), 1);
        CHECK_EQ(row[0].n_banned, i < 2 ? 2 : 0); /* 2 and 40; 900 is no id of this vocabulary */
        run_rows(q, n_rows, 50, e, &ended);
    }
    seq_free(q);
}

TEST(seq_logits_that_are_not_finite_end_the_request) {
    struct seq *q = open_seq((struct gen_request){.max_tokens = 3}, 2);
    struct gen_event e[4];
    bool ended;
    q->n_rows = 2;
    CHECK_EQ(seq_advance(q, &(struct sampled){.finite = false}, 1, e, &ended), 1);
    CHECK(ended);
    CHECK_EQ(e[0].kind, GEN_FAILED);
    CHECK_EQ(e[0].error, E_NONFINITE);
    seq_free(q);
}
