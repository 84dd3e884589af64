#include "config/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "config/utf8.h"

/* A line stays within PIPE_BUF (4096), so that lines of several threads never mix in a pipe. */
enum { TEXT_BYTES = 1024, LINE_BYTES = 4096 };

static _Atomic int level_now = LOG_LEVEL_INFO;

void log_set_level(enum log_level level) {
    atomic_store(&level_now, (int)level);
}

/* Appends text as one printable line: what could end the line or drive a terminal (control bytes,
 * the C1 ones in UTF-8 too) and bytes that are no UTF-8 become \xNN, a backslash two. */
static size_t append_escaped(char line[LINE_BYTES], size_t n, const char *text) {
    size_t left = strlen(text), length;
    uint32_t c;
    for (; left > 0 && n < LINE_BYTES - 10; text += length, left -= length) {
        length = utf8_next(text, left, &c);
        if (length > 0 && c >= 0x20 && (c < 0x7f || c >= 0xa0) && c != '\\') {
            memcpy(line + n, text, length);
            n += length;
            continue;
        }
        length = length ? length : 1;
        for (size_t i = 0; i < length; i++)
            n += (size_t)sprintf(line + n, c == '\\' ? "\\\\" : "\\x%02x", (unsigned char)text[i]);
    }
    return n;
}

void log_line(enum log_level level, const char *stage, const char *format, ...) {
    static const char *const names[] = {"error", "warn", "info", "debug"};
    static const char priority[] = {'3', '4', '6', '7'};
    if ((int)level > atomic_load_explicit(&level_now, memory_order_relaxed))
        return;
    char text[TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);

    char line[LINE_BYTES];
    int n = isatty(STDERR_FILENO) ? 0 : snprintf(line, sizeof line, "<%c>", priority[level]);
    n += snprintf(line + n, sizeof line - (size_t)n, "%s stage=%s ", names[level], stage);
    n = (int)append_escaped(line, (size_t)n, text);
    line[n++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written; /* nobody is left to tell */
}
