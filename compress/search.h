/* Looking for the smallest budget that reaches a wanted share of a fine-tune, when every look is a
 * fit. What is lost falls about by the same factor with every bit, so the next look is where the
 * logarithm of the loss says. Pure arithmetic. */
#ifndef COMPRESS_SEARCH_H
#define COMPRESS_SEARCH_H

#include <stdbool.h>
#include <stdint.h>

enum { SEARCH_MAX_LOOKS = 6 };

struct search {
    double target;      /* share to keep, 0 .. 1 */
    double least, most; /* bits */
    double bits[SEARCH_MAX_LOOKS], kept[SEARCH_MAX_LOOKS];
    int32_t n; /* looks so far */
};

/* Where to look next; false: there is nothing more to learn. first: of the first look. */
bool search_next(const struct search *s, double first, double *bits);
/* What the look found; true: it is the smallest so far that reaches the target. */
bool search_add(struct search *s, double bits, double kept);
/* The bits at which a share of `kept` is to be expected, from what was seen (one look at least);
 * may be beyond `most`. */
double search_estimate(const struct search *s, double kept);

#endif
