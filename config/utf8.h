/* UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
#ifndef CONFIG_UTF8_H
#define CONFIG_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { UTF8_REPLACEMENT = 0xfffd, UTF8_SPACE_MARK = 0x2581 /* SentencePiece's sign for a space */ };
#define UTF8_REPLACEMENT_TEXT "\xef\xbf\xbd"
#define UTF8_SPACE_MARK_TEXT "\xe2\x96\x81"

/* Length of the character at p, its code point in *c; 0 if none stands there whole and valid. */
static inline size_t utf8_next(const char *text, size_t n, uint32_t *c) {
    const unsigned char *p = (const unsigned char *)text;
    *c = 0;
    if (n == 0)
        return 0;
    if (p[0] < 0x80) {
        *c = p[0];
        return 1;
    }
    size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < length)
        return 0;
    uint32_t code = p[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (p[i] & 0x3fu);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < least[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        return 0;
    *c = code;
    return length;
}

/* Offset of the first byte that is not UTF-8; n if there is none. */
static inline size_t utf8_valid_prefix(const char *text, size_t n) {
    size_t at = 0, length;
    uint32_t c;
    while (at < n && (length = utf8_next(text + at, n - at, &c)) > 0)
        at += length;
    return at;
}

/* Could these n (1..3) bytes be the start of a character of more than n bytes? */
static inline bool utf8_may_grow(const unsigned char *p, size_t n) {
    static const unsigned char low[] = {0x80, 0xbf};
    char whole[4];
    uint32_t c;
    size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n >= length)
        return false;
    for (int try = 0; try < 2; try++) { /* the bounds of E0, ED, F0, F4 lie at these ends */
        for (size_t i = 0; i < length; i++)
            whole[i] = (char)(i < n ? p[i] : low[try]);
        if (utf8_next(whole, length, &c) == length)
            return true;
    }
    return false;
}

#endif
