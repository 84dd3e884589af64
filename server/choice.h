/* The text side of one answer: token events in, text out. Turns ids into characters, finds stop
 * strings, holds back what may still become one, keeps log-probabilities and counts. Knows neither
 * JSON objects (reply.c) nor the engine. Loop thread. */
#ifndef SERVER_CHOICE_H
#define SERVER_CHOICE_H

#include "engine/request.h"
#include "server/buf.h"
#include "server/params.h"
#include "tokenizer/tokenizer.h"

struct surface;
enum { CHOICE_LISTS = 4 };

struct choice {
    /* what it is about: borrowed, outlives the choice */
    const struct surface *surface;
    const struct params *params;
    const struct prompt *prompt;
    const struct tokenizer *tokenizer;
    int index; /* in the reply */

    struct detok detok;
    struct buf text;      /* all text, the echoed prompt first */
    size_t generated_at;  /* where in text the generated part starts */
    size_t sent_at;       /* streaming: text before it has been sent */
    int n_chunks;         /* streaming: chunks sent */
    int64_t offset_chars; /* characters of text that came out of the detokeniser so far */
    size_t n_completion;  /* ids generated, a stop id included */
    double sum_logprob;   /* of those, for best_of */
    struct detok prompt_detok;
    int64_t prompt_offset; /* characters of the prompt's ids seen so far */
    int64_t prompt_chars;  /* characters of the echoed prompt */
    /* Elements of JSON lists as text, where they were asked for; what has been streamed is dropped.
     * A tree of them would need ten times the memory. */
    struct buf list[CHOICE_LISTS]; /* log-probabilities, as the surface writes them */
    struct buf ids;                /* generated ids */
    struct buf prompt_list;        /* prompt_logprobs */

    bool done;
    const char *finish_reason;       /* NULL until done; static */
    const struct stop_text *stopped; /* the stop string that ended it */
    int32_t stop_id;                 /* the stop id that ended it, -1 */
};

/* Begins choice `index`; everything given is borrowed and p->prompt[i_prompt].ids is there. Errors:
 * E_NOMEM; choice_free in any case. */
err_t choice_init(struct choice *c, const struct surface *surface, const struct params *p,
                  int i_prompt, const struct tokenizer *t, int index);
void choice_free(struct choice *c);

/* One GEN_PROMPT, GEN_TOKEN or GEN_DONE event. After a GEN_TOKEN `done` may have become true: a
 * stop string was completed and the engine's request is to be cancelled. Errors: E_NOMEM,
 * E_TOO_LARGE, E_INTERNAL. */
err_t choice_event(struct choice *c, const struct gen_event *event);
/* How much of the text may be sent: not the tail that could still become a stop string. */
size_t choice_safe_end(const struct choice *c);
/* Bytes held. */
size_t choice_bytes(const struct choice *c);

/* For surfaces: a piece as a JSON string; bytes that are no text on their own as
 * "bytes:\xe2\x82". */
void choice_put_piece(const struct choice *c, struct buf *out, int32_t id);
/* The same digits wherever a number stands: harnesses compare them for equality. */
void choice_put_number(struct buf *out, float logprob);
/* Appends [elements] and forgets them. */
void choice_put_list(struct buf *out, struct buf *list);

#endif
