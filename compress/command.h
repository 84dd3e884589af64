/* The frame of the `bitdelta` tool: one table entry per subcommand, its options and its help, and
 * what every command needs to talk to a person. Commands return err_t with a sentence; main.c alone
 * prints it and turns it into an exit code. */
#ifndef COMPRESS_COMMAND_H
#define COMPRESS_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

enum { MAX_OPTIONS = 24, MAX_OPERANDS = 1, MAX_MANY = 64 };

struct option {
    const char *name;  /* "--base" */
    const char *value; /* "DIR"; NULL: a switch; "FILE...": one or more words, also repeatedly */
    bool required;
    const char *help;
};

/* A parsed command line; strings are borrowed from argv. */
struct args {
    const struct option *option;    /* the command's table */
    const char *value[MAX_OPTIONS]; /* NULL: not given; "" for a given switch */
    const char *operand[MAX_OPERANDS];
    const char *many[MAX_MANY]; /* [n_many] of the command's one option, or operand, of several */
    int32_t n_many;
};

struct command {
    const char *name, *summary;
    const char *operand; /* "FILE", "FILE..." for one or more; NULL: the command takes none */
    bool operand_is_optional;
    const char *about; /* paragraphs of help */
    const char *examples;
    struct option option[MAX_OPTIONS]; /* ends with a NULL name */
    bool is_check; /* bad data is the command's answer (exit 1), not a failure (exit 65) */
    err_t (*run)(const struct args *a, struct why *why);
};

extern const struct command command_compress, command_import_diff, command_import_lora,
    command_inspect, command_verify, command_eval, command_export, command_chat;

/* E_USAGE with a sentence for anything that the command's table does not have. */
err_t args_parse(struct args *a, const struct command *c, int argc, char **argv, struct why *why);
/* The value of an option of the command; NULL when it was not given. */
const char *arg(const struct args *a, const char *name);
/* A whole number in [lo, hi]; absent when it was not given. */
err_t arg_int(const struct args *a, const char *name, int32_t lo, int32_t hi, int32_t absent,
              int32_t *out, struct why *why);
/* A number in [lo, hi]; absent when it was not given. */
err_t arg_double(const struct args *a, const char *name, double lo, double hi, double absent,
                 double *out, struct why *why);
void command_help(const struct command *c);

/* A bar on stderr with the time left, drawn only when that is a terminal. One thread. */
struct progress {
    const char *what;
    int64_t began_us, drawn_us;
    bool on;
};
void progress_begin(struct progress *p, const char *what);
/* Also fits hash_progress_fn, with p as its argument. */
void progress_show(void *p, uint64_t done, uint64_t total);
void progress_end(struct progress *p);

#endif
