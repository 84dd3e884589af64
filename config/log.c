#include "config/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

static _Atomic int level_now = LOG_LEVEL_INFO;

void log_set_level(enum log_level level) {
    atomic_store(&level_now, (int)level);
}

void log_line(enum log_level level, const char *stage, const char *format, ...) {
    static const char *const names[] = {"error", "warn", "info", "debug"};
    static const char priority[] = {'3', '4', '6', '7'};
    if ((int)level > atomic_load_explicit(&level_now, memory_order_relaxed))
        return;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);

    char line[1200];
    int n = isatty(STDERR_FILENO) ? 0 : snprintf(line, sizeof line, "<%c>", priority[level]);
    n += snprintf(line + n, sizeof line - (size_t)n, "%s stage=%s ", names[level], stage);
    for (const char *p = text; *p && (size_t)n < sizeof line - 2;
         p++) /* keep it one printable line */
        line[n++] = (unsigned char)*p < 0x20 || *p == 0x7f ? '?' : *p;
    line[n++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written; /* nobody is left to tell */
}
