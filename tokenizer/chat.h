/* A conversation to token ids through a tokenizer's chat template. What the template wrote may be
 * markup; what came in messages is text, whatever it spells (docs/chat.md). Any thread. */
#ifndef TOKENIZER_CHAT_H
#define TOKENIZER_CHAT_H

#include <jansson.h>

#include "tokenizer/jinja.h"
#include "tokenizer/tokenizer.h"

struct chat {
    const json_t *messages;     /* array of objects with "role" (of chat_is_role) and "content" */
    const json_t *kwargs;       /* more variables for the template; NULL: none */
    bool add_generation_prompt; /* end with the head of the assistant's turn */
    bool continue_final;        /* the last message is unfinished: end inside it */
    bool add_special_tokens;    /* BOS as the tokenizer's rules say, before what was rendered */
    size_t max_bytes;           /* of the rendered prompt */
    int64_t now_unix_s;
};

/* Roles that the template may put into markup, as it does with text of its own. */
bool chat_is_role(const char *role);
/* Whether the template walks over contents as lists of parts; otherwise they are joined before. */
bool chat_wants_parts(const struct tokenizer *t);
/* Names of kwargs that are the caller's own: messages, tools and so on. */
bool chat_is_reserved(const char *name);

/* Errors: E_UNSUPPORTED (no template, or one that needs what is not there), E_INVAL (the template
 * refuses the messages), E_CONTEXT, E_NOMEM. */
err_t chat_render(const struct tokenizer *t, const struct chat *chat, struct jinja_text *out,
                  struct why *why);
/* *ids: malloc'ed. Errors: as chat_render and tokenizer_encode. */
err_t chat_encode(const struct tokenizer *t, const struct chat *chat, int32_t max_ids,
                  int32_t **ids, int32_t *n_ids, struct why *why);

#endif
