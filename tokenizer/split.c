/* The scanners; see split.h. In the comments stands the part of the expression that a line
 * follows, alternatives in its order: the first that matches wins, as in any backtracking engine.
 * Each of these expressions matches at every character, so words cover the text. */
#include "tokenizer/split.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/unicode.h"

struct scan {
    const char *text;
    size_t n;
};

/* Sets of classes, a bit each. */
enum {
    IN_SPACE = 1 << U_SPACE,
    IN_NUMBER = 1 << U_NUMBER,
    IN_L = 1 << U_UPPER | 1 << U_LOWER | 1 << U_TITLE | 1 << U_MODIFIER | 1 << U_LETTER,
    IN_RISE = 1 << U_UPPER | 1 << U_TITLE | 1 << U_MODIFIER | 1 << U_LETTER | 1 << U_MARK,
    IN_FALL = 1 << U_LOWER | 1 << U_MODIFIER | 1 << U_LETTER | 1 << U_MARK,
    IN_REST = 1 << U_OTHER | 1 << U_MARK | 1 << U_DIGIT_ONLY, /* [^\s\p{L}\p{N}] */
};

/* Length of the character at `at` if it is in the set; 0: it is not, or the text ends. */
static size_t one(const struct scan *s, size_t at, unsigned set) {
    uint32_t c;
    size_t length = utf8_next(s->text + at, s->n - at, &c);
    return length && (set >> unicode_class(c) & 1) ? length : 0;
}

/* End of the longest run of the set from `at`, of at most `most` characters. */
static size_t run(const struct scan *s, size_t at, unsigned set, size_t most) {
    size_t length;
    while (most-- > 0 && (length = one(s, at, set)) > 0)
        at += length;
    return at;
}

static bool is_newline(char c) {
    return c == '\r' || c == '\n';
}

/* 's|'t|'re|'ve|'m|'ll|'d at the start: its length, 0 if none. Without case, the long s (U+017F)
 * counts as an s, as everywhere in Unicode. */
static size_t contraction(const struct scan *s, bool any_case) {
    static const char *const ends[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (s->text[0] != '\'')
        return 0;
    if (any_case && s->n >= 3 && memcmp(s->text + 1, "\xc5\xbf", 2) == 0)
        return 3;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        size_t n = strlen(ends[i]), k = 0;
        if (s->n < 1 + n)
            continue;
        while (k < n && (s->text[1 + k] | (any_case ? 0x20 : 0)) == ends[i][k])
            k++;
        if (k == n)
            return 1 + n;
    }
    return 0;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ with newlines, \s+(?!\S)|\s+ without; a white character stands here. */
static size_t white(const struct scan *s, bool newlines) {
    size_t at = 0, last = 0, after_newline = 0, length;
    while ((length = one(s, at, IN_SPACE)) > 0) {
        last = at;
        if (is_newline(s->text[at]))
            after_newline = at + 1;
        at += length;
    }
    if (newlines && after_newline)
        return after_newline;
    return at == s->n || last == 0 ? at : last; /* the last one goes with the word behind it */
}

/* ` ?[^\s\p{L}\p{N}]+` and then any characters of `tail`; 0: no match. */
static size_t punctuation(const struct scan *s, const char *tail) {
    size_t start = s->text[0] == ' ', end = run(s, start, IN_REST, SIZE_MAX);
    if (end == start)
        return 0;
    while (end < s->n && s->text[end] && strchr(tail, s->text[end]))
        end++;
    return end;
}

static size_t gpt2(const struct scan *s) {
    static const unsigned sets[] = {IN_L, IN_NUMBER, IN_REST}; /* ` ?\p{L}+| ?\p{N}+| ?[...]+` */
    size_t end = contraction(s, false), start = s->text[0] == ' ';
    for (size_t i = 0; !end && i < sizeof sets / sizeof sets[0]; i++) {
        end = run(s, start, sets[i], SIZE_MAX);
        if (end == start)
            end = 0;
    }
    return end ? end : white(s, false);
}

/* Length of a first character that may lead a word: [^\r\n\p{L}\p{N}] */
static size_t leader(const struct scan *s) {
    return is_newline(s->text[0]) ? 0 : one(s, 0, IN_REST | IN_SPACE);
}

static size_t llama3(const struct scan *s, size_t digits) {
    size_t end = contraction(s, true), start = leader(s);
    if (end)
        return end;
    end = run(s, start, IN_L, SIZE_MAX); /* [^\r\n\p{L}\p{N}]?\p{L}+ */
    if (end > start)
        return end;
    end = run(s, 0, IN_NUMBER, digits); /* \p{N}{1,3} */
    if (!end)
        end = punctuation(s, "\r\n");
    return end ? end : white(s, true);
}

/* [RISE]*[FALL]+ from `at`; 0: no match. What rises and falls (letters without case, marks) is
 * given back from the first run if nothing else falls. */
static size_t falling(const struct scan *s, size_t at) {
    size_t end = at, fall_end = 0, length;
    while ((length = one(s, end, IN_RISE)) > 0) {
        end += length;
        if (one(s, end - length, IN_FALL))
            fall_end = end;
    }
    size_t last = run(s, end, IN_FALL, SIZE_MAX);
    return last > end ? last : fall_end;
}

/* [RISE]+[FALL]*; reached only where `falling` failed, so nothing falls behind the run. */
static size_t rising(const struct scan *s, size_t at) {
    size_t end = run(s, at, IN_RISE, SIZE_MAX);
    return end > at ? end : 0;
}

static size_t tekken(const struct scan *s) {
    size_t start = leader(s), end = 0;
    if (start)
        end = falling(s, start);
    if (!end)
        end = falling(s, 0);
    if (!end && start)
        end = rising(s, start);
    if (!end)
        end = rising(s, 0);
    if (!end)
        end = run(s, 0, IN_NUMBER, 1);
    if (!end)
        end = punctuation(s, "\r\n/");
    return end ? end : white(s, true);
}

/* Number characters apart from others: runs of each, or (alone) each number by itself. */
static size_t digits(const struct scan *s, bool alone) {
    enum { IN_DIGIT = IN_NUMBER | 1 << U_DIGIT_ONLY };
    size_t end = run(s, 0, IN_DIGIT, alone ? 1 : SIZE_MAX);
    return end ? end : run(s, 0, ~(unsigned)IN_DIGIT, SIZE_MAX);
}

static size_t before_mark(const struct scan *s) {
    const size_t n_mark = sizeof UTF8_SPACE_MARK_TEXT - 1;
    const char *found =
        s->n > 1 ? memmem(s->text + 1, s->n - 1, UTF8_SPACE_MARK_TEXT, n_mark) : NULL;
    return found ? (size_t)(found - s->text) : s->n;
}

size_t split_next(enum split split, const char *text, size_t n) {
    const struct scan s = {text, n};
    switch (split) {
    case SPLIT_GPT2:
        return gpt2(&s);
    case SPLIT_LLAMA3:
        return llama3(&s, 3);
    case SPLIT_QWEN2:
        return llama3(&s, 1);
    case SPLIT_TEKKEN:
        return tekken(&s);
    case SPLIT_DIGIT:
        return digits(&s, true);
    case SPLIT_DIGITS:
        return digits(&s, false);
    case SPLIT_MARK:
        return before_mark(&s);
    }
    return n;
}

int split_of_regex(const char *regex) {
#define WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define PUNCTUATION "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define WHITE "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define RISE "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define FALL "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEADER "[^\\r\\n\\p{L}\\p{N}]?"
    static const struct {
        const char *regex;
        enum split split;
    } known[] = {
        {WORDS "\\p{N}{1,3}" PUNCTUATION WHITE, SPLIT_LLAMA3},
        {WORDS "\\p{N}" PUNCTUATION WHITE, SPLIT_QWEN2},
        {LEADER RISE "*" FALL "+|" LEADER RISE "+" FALL
                     "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" WHITE,
         SPLIT_TEKKEN},
        {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
         SPLIT_GPT2},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(regex, known[i].regex) == 0)
            return (int)known[i].split;
    return -1;
}
