/* Pre-tokenisation: where the published regular expressions of byte-level tokenizers cut a text
 * into words. Each expression is a hand-written scanner that looks at every byte a bounded number
 * of times. Any thread. */
#ifndef TOKENIZER_SPLIT_H
#define TOKENIZER_SPLIT_H

#include <stddef.h>

enum split {
    SPLIT_GPT2,   /* GPT-2, SmolLM2: what ByteLevel does with use_regex */
    SPLIT_LLAMA3, /* numbers of up to three digits */
    SPLIT_QWEN2,  /* as Llama-3, numbers digit by digit */
    SPLIT_TEKKEN, /* Mistral Nemo and later: words start where the case rises */
    SPLIT_DIGIT,  /* every number character alone */
    SPLIT_DIGITS, /* runs of number characters */
    SPLIT_MARK,   /* before every U+2581 */
};

/* Bytes of the first word of text[0..n): n > 0, UTF-8. 1..n. */
size_t split_next(enum split split, const char *text, size_t n);
/* The scanner for a regular expression as tokenizer.json spells it; -1: not known here. */
int split_of_regex(const char *regex);

#endif
