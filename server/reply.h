/* The text side of one completion: token events in, OpenAI's text_completion JSON out, whole or as
 * server-sent events. Turns ids into characters, finds stop strings, holds back what may still
 * become one, keeps log-probabilities and counts. Knows neither sockets nor the engine. Loop
 * thread. */
#ifndef SERVER_REPLY_H
#define SERVER_REPLY_H

#include "engine/request.h"
#include "server/buf.h"
#include "server/params.h"
#include "tokenizer/tokenizer.h"

struct reply {
    /* what it is about: borrowed, outlives the reply */
    const struct params *params;
    const struct tokenizer *tokenizer;
    const char *id, *model, *fingerprint;
    int64_t created_unix_s;
    int32_t n_prompt; /* ids of the prompt, BOS included */

    struct detok detok;
    struct buf text;      /* all text, the echoed prompt first */
    size_t generated_at;  /* where in text the generated part starts */
    size_t sent_at;       /* streaming: text before it has been sent */
    int64_t offset_chars; /* characters of text that came out of the detokeniser so far */
    size_t n_completion;  /* ids generated, a stop id included */
    struct detok prompt_detok;
    int64_t prompt_offset; /* characters of the prompt's ids seen so far */
    int64_t prompt_chars;  /* characters of the echoed prompt */
    /* Log-probabilities as the JSON text of the four lists' elements, when they were asked for;
     * what has been streamed is dropped. A tree of them would need ten times the memory. */
    struct buf tokens, token_logprobs, top_logprobs, text_offset;
    bool has_logprobs;

    bool done;
    const char *finish_reason;       /* NULL until done */
    const struct stop_text *stopped; /* the stop string that ended it */
    int32_t stop_id;                 /* the stop id that ended it, -1 */
};

/* ids: the prompt's, borrowed for the call. Errors: E_NOMEM. */
err_t reply_init(struct reply *r, const struct params *p, const struct tokenizer *t,
                 const int32_t *ids, int32_t n_ids);
void reply_free(struct reply *r);

/* One GEN_PROMPT, GEN_TOKEN or GEN_DONE event. After a GEN_TOKEN `done` may have become true: a
 * stop string was completed and the engine's request is to be cancelled. Errors: E_NOMEM,
 * E_INTERNAL. */
err_t reply_event(struct reply *r, const struct gen_event *event);
/* Appends the events that are due now to `out`: a chunk if there is something to say, and at the
 * end the usage chunk and "[DONE]". */
err_t reply_stream(struct reply *r, struct buf *out);
/* Appends the whole object. */
err_t reply_whole(struct reply *r, struct buf *out);

#endif
