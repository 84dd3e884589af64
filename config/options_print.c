/* The option table as text: --help, the reference page, the example file, and the values in force.
 * All from options.def, so none of them can drift from what is parsed. */
#include <string.h>

#include "config/option_row.h"

enum { HELP_INDENT = 8, HELP_WIDTH = 80 };

static const char units[] =
    "Sizes are bytes and take a suffix: k (1024), M (1024 k), G (1024 M), T (1024 G). Durations "
    "are whole seconds. Truth is true or false (also yes, no, on, off, 1, 0).";
static const char sources[] =
    "The command line wins over the environment, the environment over the configuration file, the "
    "file over the defaults. An empty environment variable counts as unset.";

/* Prints text as lines of at most `width` columns, each behind `lead`. */
static void print_wrapped(FILE *f, const char *lead, size_t width, const char *text) {
    size_t room = width - strlen(lead);
    while (*text) {
        size_t n = strlen(text);
        if (n > room) {
            n = room;
            while (n > 0 && text[n] != ' ')
                n--;
            if (n == 0) /* a word wider than the room */
                n = strcspn(text, " ");
        }
        fprintf(f, "%s%.*s\n", lead, (int)n, text);
        text += n;
        text += strspn(text, " ");
    }
}

const char *option_value(const struct option_row *row) {
    switch (row->type) {
    case OPTION_IS_FOLDER:
        return "DIR";
    case OPTION_IS_FILE:
        return "FILE";
    case OPTION_IS_ADDRESS:
        return "ADDRESS";
    case OPTION_IS_COUNT:
        return "N";
    case OPTION_IS_SIZE:
        return "BYTES";
    case OPTION_IS_SECONDS:
        return "SECONDS";
    case OPTION_IS_CHOICE:
    case OPTION_IS_LEVEL:
        return row->unit;
    case OPTION_IS_BOOL:
        return "true|false";
    default:
        return "TEXT";
    }
}

void option_preset(const struct option_row *row, char out[128]) {
    bool number = row->type == OPTION_IS_COUNT || row->type == OPTION_IS_SIZE ||
                  row->type == OPTION_IS_SECONDS;
    if (row->flags & OPTION_REQUIRED)
        snprintf(out, 128, "required");
    else if (!*row->preset)
        snprintf(out, 128, "default: none");
    else
        snprintf(out, 128, "default: %s%s%s", row->preset, number && *row->unit ? " " : "",
                 number ? row->unit : "");
}

void options_print_help(FILE *f) {
    fprintf(f, "bitdeltad serves one base model and many fine-tunes of it, kept as 1-bit deltas.\n"
               "\n"
               "    bitdeltad --base DIR [--deltas DIR] [OPTIONS]\n"
               "\n"
               "An option is written --name VALUE or --name=VALUE; --no-autoload stands for\n"
               "--autoload=false.\n");
    for (int i = 0; i < option_n_rows; i++) {
        const struct option_row *row = &option_rows[i];
        char preset[128], lead[HELP_INDENT + 1];
        if (!row->name) {
            fprintf(f, "\n%s\n", row->help);
            continue;
        }
        option_preset(row, preset);
        if (row->type == OPTION_IS_BOOL)
            fprintf(f, "    --%s, --no-%s (%s)\n", row->name, row->name, preset);
        else
            fprintf(f, "    --%s %s (%s)\n", row->name, option_value(row), preset);
        memset(lead, ' ', HELP_INDENT);
        lead[HELP_INDENT] = 0;
        print_wrapped(f, lead, HELP_WIDTH, row->help);
    }
    fprintf(f, "\nInstead of serving\n"
               "    --help, -h       this text\n"
               "    --version        the version\n"
               "    --check-config   check all values and that files and folders exist\n"
               "    --print-config   print the values in force and where each comes from\n"
               "\nUnits and sources\n");
    print_wrapped(f, "    ", HELP_WIDTH, units);
    print_wrapped(f, "    ", HELP_WIDTH, sources);
    print_wrapped(f, "    ", HELP_WIDTH,
                  "The variable of --kv-tokens is BITDELTAD_KV_TOKENS, and so on.");
}

static void print_range(FILE *f, const struct option_row *row) {
    switch (row->type) {
    case OPTION_IS_COUNT:
    case OPTION_IS_SIZE:
    case OPTION_IS_SECONDS:
        fprintf(f, "%.0f to %.0f %s", row->min, row->max, row->unit);
        break;
    default: /* a bar would end the cell */
        for (const char *p = option_value(row); *p; p++)
            fputs(*p == '|' ? ", " : (char[]){*p, 0}, f);
    }
}

void options_print_markdown(FILE *f) {
    fprintf(f, "# Options of bitdeltad\n\n"
               "Made by `make docs` from `config/options.def`; do not edit.\n\n");
    print_wrapped(f, "", 110, sources);
    fprintf(f, "\n");
    print_wrapped(f, "", 110, units);
    fprintf(
        f, "\n"
           "On the command line an option is `--name VALUE` or `--name=VALUE`, and `--no-name` for "
           "a truth.\n"
           "In the environment `--kv-tokens` is `BITDELTAD_KV_TOKENS`. In the file given by "
           "`--config`, it is a\n"
           "line `kv-tokens = VALUE`; from `#` on a line is comment, a value in double quotes is "
           "taken as it is.\n"
           "An unknown name or a bad value ends the start with exit status 78 (64 on the command "
           "line) and one\n"
           "sentence. `--check-config` checks without serving, `--print-config` prints the values "
           "in force.\n");
    for (int i = 0; i < option_n_rows; i++) {
        const struct option_row *row = &option_rows[i];
        if (!row->name) {
            fprintf(f, "\n## %s\n\n| option | default | values | |\n|---|---|---|---|\n",
                    row->help);
            continue;
        }
        const char *tick = *row->preset ? "`" : "";
        fprintf(f, "| `--%s` | %s%s%s | ", row->name, tick,
                row->flags & OPTION_REQUIRED ? "required"
                : *row->preset               ? row->preset
                                             : "none",
                tick);
        print_range(f, row);
        fprintf(f, " | %s |\n", row->help);
    }
}

void options_print_example(FILE *f) {
    fprintf(
        f,
        "# Configuration of bitdeltad. Every option stands here with its default; take the # away\n"
        "# to change one. Check with: bitdeltad --config FILE --check-config\n#\n");
    print_wrapped(f, "# ", 100, units);
    print_wrapped(f, "# ", 100, sources);
    for (int i = 0; i < option_n_rows; i++) {
        const struct option_row *row = &option_rows[i];
        if (!row->name) {
            fprintf(f, "\n# ---- %s ----\n", row->help);
        } else if (!(row->flags & OPTION_NOT_IN_FILE)) {
            fprintf(f, "\n");
            print_wrapped(f, "# ", 100, row->help);
            if (*row->unit)
                print_wrapped(f, "# ", 100, row->unit);
            fprintf(f, "#%s =%s%s\n", row->name, *row->preset ? " " : "", row->preset);
        }
    }
}

void options_print(const struct options *o, FILE *f) {
    for (int i = 0; i < option_n_rows; i++) {
        const struct option_row *row = &option_rows[i];
        if (!row->name)
            continue;
        char variable[64];
        const char *value = o->text[row->index];
        const char *quote = !*value || strpbrk(value, "# \t") ? "\"" : "";
        int n = fprintf(f, "%s%s = %s%s%s", row->flags & OPTION_NOT_IN_FILE ? "# " : "", row->name,
                        quote, value, quote);
        fprintf(f, "%*s # ", n < 44 ? 44 - n : 0, "");
        switch (o->source[row->index]) {
        case OPTION_DEFAULT:
            fprintf(f, "default\n");
            break;
        case OPTION_FROM_FILE:
            fprintf(f, "%s:%d\n", o->config, o->line[row->index]);
            break;
        case OPTION_ENVIRONMENT:
            option_variable(row, variable);
            fprintf(f, "%s\n", variable);
            break;
        case OPTION_COMMAND_LINE:
            fprintf(f, "command line\n");
            break;
        }
    }
}
