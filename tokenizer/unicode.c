/* Binary search in the runs of one class; ASCII by a small table of its own. See unicode.h. */
#include "tokenizer/unicode.h"

#include "tokenizer/unicode_table.h"

/* One digit a character: the class, from U+0000. */
static const char ascii[] = "0000000001111100"
                            "0000000000000000"
                            "1000000000000000"
                            "8888888888000000"
                            "0222222222222222"
                            "2222222222200000"
                            "0333333333333333"
                            "3333333333300000";
_Static_assert(sizeof ascii == 129, "128 characters and a NUL");

enum unicode_class unicode_class(uint32_t c) {
    if (c < 0x80)
        return (enum unicode_class)(ascii[c] - '0');
    uint32_t low = 0, high = sizeof unicode_runs / sizeof unicode_runs[0];
    while (high - low > 1) { /* unicode_runs[low] starts at or before c */
        uint32_t middle = (low + high) / 2;
        if (unicode_runs[middle] >> 4 <= c)
            low = middle;
        else
            high = middle;
    }
    return (enum unicode_class)(unicode_runs[low] & 15);
}
