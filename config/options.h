/* The options of bitdeltad, from the one table in options.def. Filled in by options_load before the
 * first thread starts, constant afterwards. */
#ifndef CONFIG_OPTIONS_H
#define CONFIG_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "config/err.h"
#include "config/log.h"

enum option_index {
#define GROUP(title)
#define OPTION(type, name, field, ...) OPTION_##field,
#include "config/options.def"
#undef OPTION
#undef GROUP
    OPTION_COUNT
};

enum option_source { OPTION_DEFAULT, OPTION_FROM_FILE, OPTION_ENVIRONMENT, OPTION_COMMAND_LINE };

#define OPTION_C_TEXT const char *
#define OPTION_C_FOLDER const char *
#define OPTION_C_FILE const char *
#define OPTION_C_ADDRESS const char *
#define OPTION_C_CHOICE const char *
#define OPTION_C_LEVEL enum log_level
#define OPTION_C_COUNT int
#define OPTION_C_SECONDS int
#define OPTION_C_SIZE size_t
#define OPTION_C_BOOL bool

/* Texts are never NULL; "" where nothing was given. */
struct options {
#define GROUP(title)
#define OPTION(type, name, field, ...) OPTION_C_##type field;
#include "config/options.def"
#undef OPTION
#undef GROUP
    char *text[OPTION_COUNT]; /* each value as it was written, owned */
    enum option_source source[OPTION_COUNT];
    int line[OPTION_COUNT]; /* of the configuration file, where the value stands there */
};

/* Reads defaults, configuration file, environment (BITDELTAD_KV_TOKENS for kv-tokens; an empty
 * variable counts as unset) and command line, the later winning. *done: the command line asked for
 * --help, --version, --check-config or --print-config, and it was printed to stdout. On failure `o`
 * is empty. Errors: E_USAGE (command line), E_CONFIG (file: "file:line: sentence"; environment; a
 * missing --base), E_NOMEM. */
err_t options_load(struct options *o, int argc, char *const *argv, bool *done, struct why *why);
void options_free(struct options *o);

/* The pieces of options_load. options_init sets the defaults; options_set one option by name. */
err_t options_init(struct options *o, struct why *why);
err_t options_set(struct options *o, const char *name, const char *value, enum option_source source,
                  struct why *why);
/* text: the bytes of a configuration file that sentences call `path`. */
err_t options_parse_file(struct options *o, const char *path, const char *text, size_t n,
                         struct why *why);

const char *options_version(void); /* of this build */
void options_print_help(FILE *f);
void options_print_markdown(FILE *f); /* docs/options.md */
/* The manual page or a completion, as config/manual.h says; false: `word` asks for none. */
bool options_print_manual(FILE *f, const char *word);
void options_print_example(FILE *f);                  /* deploy/bitdeltad.conf.example */
void options_print(const struct options *o, FILE *f); /* the values in force and their source */

#endif
