/* The inside of the options: the rows of options.def as data, and what options*.c share. Nobody
 * else includes this but tests. */
#ifndef CONFIG_OPTION_ROW_H
#define CONFIG_OPTION_ROW_H

#include "config/options.h"

enum option_type {
    OPTION_IS_TEXT,
    OPTION_IS_FOLDER,
    OPTION_IS_FILE,
    OPTION_IS_ADDRESS,
    OPTION_IS_COUNT,
    OPTION_IS_SIZE,
    OPTION_IS_SECONDS,
    OPTION_IS_BOOL,
    OPTION_IS_CHOICE,
    OPTION_IS_LEVEL,
};

enum { OPTION_REQUIRED = 1, OPTION_NOT_IN_FILE = 2 }; /* flags of a row */
enum { OPTION_MAX_BYTES = 4096 };                     /* of a value, and of a line */

/* An option, or (name == NULL) the title of those that follow. */
struct option_row {
    enum option_type type;
    enum option_index index; /* in options.text, .source, .line */
    const char *name;
    size_t offset; /* of the field in struct options */
    const char *preset;
    double min, max;
    const char *unit; /* CHOICE and LEVEL: the words, with | between */
    int flags;
    const char *help; /* of a title: the title */
};

extern const struct option_row option_rows[];
extern const int option_n_rows;

/* The row of a name of n bytes; NULL: there is none. */
const struct option_row *option_find(const char *name, size_t n);
/* " (did you mean x?)" for a name that is none, or "". */
void option_suggest(const char *name, size_t n, char out[96]);
/* What a value looks like: "BYTES", "auto|cpu|cuda". */
const char *option_value(const struct option_row *row);
/* "default: 64 sequences", "default: none", "required". */
void option_preset(const struct option_row *row, char out[128]);
/* The environment variable of an option: BITDELTAD_KV_TOKENS for kv-tokens. */
void option_variable(const struct option_row *row, char out[64]);
/* Checks and keeps a value; line: of the configuration file, else 0. Errors: E_CONFIG, E_NOMEM. */
err_t option_set_row(struct options *o, const struct option_row *row, const char *value,
                     enum option_source source, int line, struct why *why);

err_t option_read_file(struct options *o, const char *path, struct why *why);
err_t option_check_whole(const struct options *o, struct why *why);
err_t option_check_paths(const struct options *o, struct why *why);
/* Variables of our name that set nothing, misspelt perhaps. No error: orchestrators put their own
 * there (BITDELTAD_PORT for a service called bitdeltad). */
void option_note_variables(FILE *f);

#endif
