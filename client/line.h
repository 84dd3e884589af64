/* Lines from a person at a terminal, by libedit: editing, a history for this session (never on
 * disk: it holds prompts), and Ctrl-C heard from a descriptor while waiting. One thread. */
#ifndef CLIENT_LINE_H
#define CLIENT_LINE_H

#include <stdbool.h>

#include "config/err.h"

struct line_reader;

/* interrupt_fd: a signalfd of SIGINT. Reads stdin, shows on stderr. Errors: E_NOMEM. */
err_t line_open(struct line_reader **out, int interrupt_fd);
void line_close(struct line_reader *l); /* NULL is fine */
/* A line without its end, malloc'ed; NULL after Ctrl-C (*ended false) or at the end of the input.
 * `prompt` is borrowed for the call. */
char *line_read(struct line_reader *l, const char *prompt, bool *ended);
/* Keeps a line for the arrow keys. */
void line_keep(struct line_reader *l, const char *line);

#endif
