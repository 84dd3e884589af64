/* Template text to tokens, with trim_blocks and lstrip_blocks as transformers sets them; see
 * jinja_ast.h. Line ends become "\n" and one at the very end is dropped, as Jinja does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/jinja_ast.h"
#include "tokenizer/unicode.h"

enum { MAX_TOKENS = 1 << 19, MAX_NESTING = 64 };

struct lexer {
    struct tokens *t;
    const char *s;
    size_t n, at;
    int line;
    bool line_starts; /* what was read last ended with a newline, or nothing was read */
    struct why *why;
};

static err_t bad(struct lexer *x, const char *what) {
    return why_set(x->why, E_FORMAT, "The chat template, line %d: %s", x->line, what);
}

static err_t add(struct lexer *x, enum token_kind kind, const char *text, size_t n) {
    struct tokens *t = x->t;
    if (t->n == MAX_TOKENS)
        return bad(x, "too many tokens.");
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 256;
        struct token *grown = realloc(t->v, cap * sizeof *grown);
        if (!grown)
            return why_set(x->why, E_NOMEM, "no memory for the chat template");
        t->v = grown;
        t->cap = cap;
    }
    t->v[t->n++] = (struct token){.kind = kind, .line = x->line, .text = text, .n = n};
    return E_OK;
}

static size_t space_at(const struct lexer *x, size_t at) {
    uint32_t c;
    size_t length = at < x->n ? utf8_next(x->s + at, x->n - at, &c) : 0;
    return length && is_py_space(c) ? length : 0;
}

static void skip_space(struct lexer *x) {
    size_t length;
    while ((length = space_at(x, x->at)) > 0) {
        x->line += x->s[x->at] == '\n';
        x->at += length;
    }
}

static bool stands(const struct lexer *x, const char *text) {
    size_t n = strlen(text);
    return x->n - x->at >= n && memcmp(x->s + x->at, text, n) == 0;
}

/* The next "{%", "{{" or "{#" from `at`; x->n if there is none. */
static size_t find_tag(const struct lexer *x, size_t at) {
    for (; at + 1 < x->n; at++)
        if (x->s[at] == '{' && strchr("%{#", x->s[at + 1]) && x->s[at + 1])
            return at;
    return x->n;
}

/* Data before a tag that starts at `end`: '-' takes all white space before it; a block or comment
 * without '+' takes what stands between it and the line's start, if that is white. */
static err_t add_data(struct lexer *x, size_t end, char sign, bool is_print) {
    size_t from = x->at, stop = end;
    const char *s = x->s;
    if (sign == '-') {
        while (stop > from) {
            size_t at = stop - 1;
            while (at > from && ((unsigned char)s[at] & 0xc0) == 0x80)
                at--;
            if (!space_at(x, at))
                break;
            stop = at;
        }
    } else if (sign != '+' && !is_print) {
        size_t line = stop;
        while (line > from && s[line - 1] != '\n')
            line--;
        size_t at = line, length;
        while (at < stop && (length = space_at(x, at)) > 0)
            at += length;
        if (at == stop && (line > from || x->line_starts))
            stop = line;
    }
    err_t e = stop > from ? add(x, T_DATA, s + from, stop - from) : E_OK;
    for (size_t i = from; i < end; i++)
        x->line += s[i] == '\n';
    x->at = end;
    return e;
}

/* The end of a block or comment stands at x->at ("%}" or "#}", perhaps signed): passes it and what
 * it takes with it. */
static bool pass_end(struct lexer *x, const char *end) {
    char sign = x->at < x->n && (x->s[x->at] == '-' || x->s[x->at] == '+') ? x->s[x->at] : 0;
    size_t start = x->at;
    x->at += sign != 0;
    if (!stands(x, end)) {
        x->at = start;
        return false;
    }
    x->at += 2;
    if (sign == '-')
        skip_space(x);
    else if (!sign && x->at < x->n && x->s[x->at] == '\n') { /* trim_blocks */
        x->at++;
        x->line++;
    }
    x->line_starts = x->at > 0 && x->s[x->at - 1] == '\n';
    return true;
}

static err_t lex_comment(struct lexer *x) {
    for (x->at += 2; x->at < x->n; x->at++) {
        if (x->s[x->at] == '#' || x->s[x->at] == '-' || x->s[x->at] == '+')
            if (pass_end(x, "#}"))
                return E_OK;
        x->line += x->at < x->n && x->s[x->at] == '\n';
    }
    return bad(x, "a comment has no end.");
}

/* "{%- raw %}" at `at`: where its end is; 0: it is something else. */
static size_t raw_tag(const struct lexer *x, size_t at, const char *word, char *begin, char *end) {
    struct lexer y = *x;
    y.at = at + 2;
    *begin = y.at < y.n && (y.s[y.at] == '-' || y.s[y.at] == '+') ? y.s[y.at++] : 0;
    skip_space(&y);
    if (!stands(&y, word))
        return 0;
    y.at += strlen(word);
    skip_space(&y);
    *end = y.at < y.n && (y.s[y.at] == '-' || y.s[y.at] == '+') ? y.s[y.at++] : 0;
    return stands(&y, "%}") ? y.at + 2 : 0;
}

/* Everything up to {% endraw %} is data. */
static err_t lex_raw(struct lexer *x, size_t after, char end_sign) {
    char begin, end;
    x->at = after;
    if (end_sign == '-')
        skip_space(x);
    x->line_starts = x->at > 0 && x->s[x->at - 1] == '\n';
    for (size_t at = x->at; at + 1 < x->n; at++) {
        size_t stop =
            x->s[at] == '{' && x->s[at + 1] == '%' ? raw_tag(x, at, "endraw", &begin, &end) : 0;
        if (!stop)
            continue;
        err_t e = add_data(x, at, begin, false);
        x->at = stop;
        if (end == '-')
            skip_space(x);
        else if (!end && x->at < x->n && x->s[x->at] == '\n') {
            x->at++;
            x->line++;
        }
        x->line_starts = x->s[x->at - 1] == '\n';
        return e;
    }
    return bad(x, "'raw' has no 'endraw'.");
}

static bool is_name_char(uint32_t c, bool first) {
    enum unicode_class k = unicode_class(c);
    bool digit = c >= '0' && c <= '9';
    return c == '_' || (k >= U_UPPER && k <= U_LETTER) || (!first && (digit || k == U_MARK));
}

static int hex_of(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static void put_char(struct tokens *t, uint32_t c) {
    char *to = t->text + t->used;
    if (c < 0x80) {
        to[0] = (char)c;
        t->used += 1;
    } else if (c < 0x800) {
        to[0] = (char)(0xc0 | c >> 6);
        to[1] = (char)(0x80 | (c & 0x3f));
        t->used += 2;
    } else if (c < 0x10000) {
        to[0] = (char)(0xe0 | c >> 12);
        to[1] = (char)(0x80 | (c >> 6 & 0x3f));
        to[2] = (char)(0x80 | (c & 0x3f));
        t->used += 3;
    } else {
        to[0] = (char)(0xf0 | c >> 18);
        to[1] = (char)(0x80 | (c >> 12 & 0x3f));
        to[2] = (char)(0x80 | (c >> 6 & 0x3f));
        to[3] = (char)(0x80 | (c & 0x3f));
        t->used += 4;
    }
}

/* What stands behind a backslash, as Python's unicode-escape reads it. x->at: behind the
 * backslash. */
static err_t lex_escape(struct lexer *x, size_t end) {
    static const char plain[] = "\\'\"abfnrtv", codes[] = "\\'\"\a\b\f\n\r\t\v";
    struct tokens *t = x->t;
    char c = x->s[x->at++];
    const char *found = c ? strchr(plain, c) : NULL;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t code = 0;
    if (found) {
        t->text[t->used++] = codes[found - plain];
    } else if (c == '\n') {
        return E_OK; /* the line goes on */
    } else if (c >= '0' && c <= '7') {
        x->at--;
        for (int i = 0; i < 3 && x->at < end && x->s[x->at] >= '0' && x->s[x->at] <= '7'; i++)
            code = code * 8 + (uint32_t)(x->s[x->at++] - '0');
        put_char(t, code);
    } else if (digits) {
        for (int i = 0; i < digits; i++) {
            int digit = x->at < end ? hex_of(x->s[x->at++]) : -1;
            if (digit < 0)
                return bad(x, "a \\x, \\u or \\U in a string lacks digits.");
            code = code << 4 | (uint32_t)digit;
        }
        if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
            return bad(x, "a string names a character that does not exist.");
        put_char(t, code);
    } else if (c == 'N') {
        return bad(x, "\\N{...} in strings is not supported.");
    } else {
        t->text[t->used++] = '\\';
        x->at--; /* the character itself follows as it is */
    }
    return E_OK;
}

static err_t lex_string(struct lexer *x) {
    char quote = x->s[x->at++];
    size_t end = x->at, start = x->t->used;
    while (end < x->n && x->s[end] != quote)
        end += x->s[end] == '\\' ? 2 : 1;
    if (end >= x->n)
        return bad(x, "a string has no end.");
    err_t e = E_OK;
    int newlines = 0;
    while (!e && x->at < end) {
        newlines += x->s[x->at] == '\n';
        if (x->s[x->at] == '\\') {
            x->at++;
            e = lex_escape(x, end);
        } else {
            x->t->text[x->t->used++] = x->s[x->at++];
        }
    }
    x->at = end + 1;
    if (!e)
        e = add(x, T_STRING, x->t->text + start, x->t->used - start);
    x->line += newlines;
    return e;
}

static err_t lex_number(struct lexer *x) {
    char digits[64];
    size_t n = 0, at = x->at;
    bool real = false;
    for (; at < x->n && n < sizeof digits - 1; at++) {
        char c = x->s[at], before = n ? digits[n - 1] : 0;
        bool sign = (c == '+' || c == '-') && (before == 'e' || before == 'E');
        size_t next = at + 1;
        if ((c == 'e' || c == 'E') && next < x->n && (x->s[next] == '+' || x->s[next] == '-'))
            next++;
        bool more = next < x->n && x->s[next] >= '0' && x->s[next] <= '9';
        if (c == '_' && n)
            continue;
        if (more && ((c == '.' && !real) || c == 'e' || c == 'E'))
            real = true;
        else if (!sign && (c < '0' || c > '9'))
            break;
        digits[n++] = c;
    }
    digits[n] = 0;
    if ((digits[0] == '0' && n > 1 && !real && strspn(digits, "0") != n) ||
        n == sizeof digits - 1 || (at < x->n && is_name_char((unsigned char)x->s[at], true)))
        return bad(x, "a number is not written in decimal digits.");
    err_t e = add(x, real ? T_FLOAT : T_INT, x->s + x->at, at - x->at);
    x->at = at;
    if (e)
        return e;
    struct token *t = &x->t->v[x->t->n - 1];
    t->d = strtod(digits, NULL);
    if (!real && (n > 18 || (t->i = strtoll(digits, NULL, 10)) < 0))
        return bad(x, "an integer has more than 18 digits.");
    return E_OK;
}

/* One name, literal or operator. nesting: of brackets, whose types are in `open`. */
static err_t lex_one(struct lexer *x, char *open, int *nesting) {
    static const char *const operators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                            "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                            ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    uint32_t c;
    size_t length = utf8_next(x->s + x->at, x->n - x->at, &c);
    if (is_name_char(c, true)) {
        size_t from = x->at;
        while (x->at < x->n && (length = utf8_next(x->s + x->at, x->n - x->at, &c)) > 0 &&
               is_name_char(c, false))
            x->at += length;
        return add(x, T_NAME, x->s + from, x->at - from);
    }
    if (c >= '0' && c <= '9')
        return lex_number(x);
    if (c == '\'' || c == '"')
        return lex_string(x);
    for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++) {
        if (!stands(x, operators[i]))
            continue;
        if (strchr("([{", operators[i][0])) {
            if (*nesting == MAX_NESTING)
                return bad(x, "brackets are nested too deep.");
            open[(*nesting)++] = operators[i][0] == '(' ? ')' : operators[i][0] == '[' ? ']' : '}';
        } else if (strchr(")]}", operators[i][0]) &&
                   (*nesting == 0 || open[--*nesting] != operators[i][0])) {
            return bad(x, "a bracket is closed that is not open.");
        }
        x->at += strlen(operators[i]);
        return add(x, T_OPERATOR, operators[i], strlen(operators[i]));
    }
    char what[64];
    snprintf(what, sizeof what, "the character U+%04X has no meaning here.", c);
    return bad(x, what);
}

static err_t lex_code(struct lexer *x, bool is_print) {
    char open[MAX_NESTING];
    int nesting = 0;
    const char *end = is_print ? "}}" : "%}";
    err_t e = add(x, is_print ? T_PRINT_BEGIN : T_BLOCK_BEGIN, "", 0);
    while (!e) {
        skip_space(x);
        if (x->at >= x->n)
            return bad(x, is_print ? "'{{' has no '}}'." : "'{%' has no '%}'.");
        if (nesting == 0 && is_print && (stands(x, "}}") || stands(x, "-}}"))) {
            bool strip = x->s[x->at] == '-';
            x->at += strip ? 3 : 2;
            e = add(x, T_PRINT_END, "", 0);
            if (strip)
                skip_space(x);
            x->line_starts = x->s[x->at - 1] == '\n';
            return e;
        }
        int line = x->line;
        if (nesting == 0 && !is_print && pass_end(x, end)) {
            e = add(x, T_BLOCK_END, "", 0);
            if (!e)
                x->t->v[x->t->n - 1].line = line;
            return e;
        }
        e = lex_one(x, open, &nesting);
    }
    return e;
}

/* The source as Jinja reads it: "\n" for every kind of line end, the last one dropped. */
static size_t join_lines(char *s, size_t n) {
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\r' && i + 1 < n && s[i + 1] == '\n')
            continue;
        s[used++] = s[i] == '\r' ? '\n' : s[i];
    }
    return used && s[used - 1] == '\n' ? used - 1 : used;
}

err_t jinja_lex(struct tokens *t, char *source, size_t n, struct why *why) {
    n = join_lines(source, n);
    struct lexer x = {.t = t, .s = source, .n = n, .line = 1, .line_starts = true, .why = why};
    t->text = malloc(n + 8); /* a decoded string is never longer than its spelling */
    if (!t->text)
        return why_set(why, E_NOMEM, "no memory for the chat template");
    err_t e = E_OK;
    while (!e && x.at < n) {
        size_t tag = find_tag(&x, x.at);
        char what = tag < n ? source[tag + 1] : 0, begin, end;
        char sign =
            tag + 2 < n && (source[tag + 2] == '-' || source[tag + 2] == '+') ? source[tag + 2] : 0;
        size_t raw = what == '%' ? raw_tag(&x, tag, "raw", &begin, &end) : 0;
        if (tag == n) {
            e = add(&x, T_DATA, source + x.at, n - x.at);
            break;
        }
        e = add_data(&x, tag, sign, what == '{');
        if (e)
            break;
        if (raw) {
            e = lex_raw(&x, raw, end);
        } else if (what == '#') {
            x.at += sign != 0;
            e = lex_comment(&x);
        } else {
            x.at += sign ? 3 : 2;
            e = lex_code(&x, what == '{');
        }
    }
    return e ? e : add(&x, T_END, "", 0);
}
