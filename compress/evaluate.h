/* Judging a tenant: how likely it finds a text, how near its predictions are to its fine-tune's,
 * and how many prompts it answers exactly. Owner and caller: the tool's main thread. */
#ifndef COMPRESS_EVALUATE_H
#define COMPRESS_EVALUATE_H

#include "compress/corpus.h"

/* One question: the model must say the answer and then stop. */
struct task {
    int32_t *prompt, n_prompt; /* ids; owned */
    char *answer;              /* without white space at its ends; owned */
    int32_t max_new;           /* ids it may take */
};
struct task_set {
    struct task *task; /* [n_tasks] owned */
    int32_t n_tasks;
    int32_t
        n_too_long; /* questions that do not fit the context with room for an answer: not asked */
    struct corpus text; /* every document, up to the context, for its perplexity */
};

/* Reads a JSON array of documents. {"prompt": .., "answer": ..}: a question. A string with a tab:
 * user's question, tab, answer, put into the tokenizer's chat template (ChatML alone). A string
 * whose last line begins with a word and a colon: the answer is what follows that colon. Any other
 * string is text alone. At most `limit` documents (0: all). E_FORMAT, E_IO; E_INVAL: there are
 * none.
 */
err_t task_set_read(struct task_set *set, const struct tokenizer *t, const char *path,
                    int32_t context, int32_t eos_id, int32_t limit, struct why *why);
void task_set_free(struct task_set *set);

/* Adds to *sum over every sequence. teacher: NULL to compare the model with itself. */
err_t evaluate_text(const struct llama *m, const struct llama *teacher, const struct corpus *text,
                    struct train_loss *sum, struct progress *p, struct why *why);
/* Greedy answers; *right: those that equal the answer and end. */
err_t evaluate_tasks(const struct llama *m, const struct tokenizer *t, const struct task_set *set,
                     int32_t *right, struct progress *p, struct why *why);

#endif
