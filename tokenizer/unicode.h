/* Which class of character a code point is in, for splitting text as the published pre-tokenizers'
 * regular expressions do. The table is generated (unicode.py). Any thread. */
#ifndef TOKENIZER_UNICODE_H
#define TOKENIZER_UNICODE_H

#include <stdint.h>

/* In the order of unicode.py. U_DIGIT_ONLY: a number to `Digits`, but not yet to \p{N}. */
enum unicode_class {
    U_OTHER,
    U_SPACE,
    U_UPPER,
    U_LOWER,
    U_TITLE,
    U_MODIFIER,
    U_LETTER, /* a letter without case */
    U_MARK,
    U_NUMBER,
    U_DIGIT_ONLY,
};

enum unicode_class unicode_class(uint32_t c);

#endif
