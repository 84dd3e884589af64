/* One line per event on stderr: "<6>info stage=engine key=value ...". The <n> is the syslog
 * priority that systemd's journal reads; it is left out on a terminal. Never log prompt text,
 * output or keys. Any thread: a line is one write(2) of at most 4096 bytes. Control bytes are
 * written as \xNN, so a line stays one line; a value from outside that may hold blanks stands in
 * quotes. */
#ifndef CONFIG_LOG_H
#define CONFIG_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_set_level(enum log_level level);
void log_line(enum log_level level, const char *stage, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(stage, ...) log_line(LOG_LEVEL_ERROR, stage, __VA_ARGS__)
#define log_warn(stage, ...) log_line(LOG_LEVEL_WARN, stage, __VA_ARGS__)
#define log_info(stage, ...) log_line(LOG_LEVEL_INFO, stage, __VA_ARGS__)
#define log_debug(stage, ...) log_line(LOG_LEVEL_DEBUG, stage, __VA_ARGS__)

#ifdef __cplusplus
}
#endif

#endif
