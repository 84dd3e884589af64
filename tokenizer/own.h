/* What stands behind tokenizer.h, for the files that make it up. Read-only once opened. */
#ifndef TOKENIZER_OWN_H
#define TOKENIZER_OWN_H

#include "tokenizer/added.h"
#include "tokenizer/jinja.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

enum { MAX_AROUND = 8 }; /* ids put before, or after, a text; published templates have one or two */

struct around {
    int32_t ids[MAX_AROUND];
    int n;
};

struct tokenizer {
    const struct vocab *vocab;
    struct vocab *owned;   /* == vocab in a tokenizer opened from a folder, else NULL */
    struct added added;    /* control pieces of a SentencePiece model among them */
    struct added guards;   /* SentencePiece: markup that is an ordinary piece of the model, too */
    unsigned char *closed; /* byte pairs: the same as a bit for each piece; owned */
    struct tokenizer_facts facts;
    struct around before, after; /* BOS and the like */
    char *settings;              /* the JSON it was made of; owned */
    char *template;              /* facts.chat_template; owned */
    char *chat_error;            /* facts.chat_error; owned */
    struct jinja *jinja;         /* the template, compiled; NULL: none, or chat_error says why */
    json_t *named;               /* bos_token and the like -> content, for templates; owned */
    bool prefix_every, prefix_first; /* a space before every stretch; before the first alone */
    bool strips;                     /* decoding drops that space */
    size_t most_bytes_per_id;        /* 0: no bound */
};

#endif
