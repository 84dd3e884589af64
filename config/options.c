/* Options: the table, one parser for every value, and the order of sources; see options.h. Owns
 * the texts it keeps in struct options. Called once, before threads start. */
#include "config/options.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "config/option_row.h"

enum { MAX_SOCKET_PATH = 107 }; /* sun_path of sockaddr_un without its NUL */

const struct option_row option_rows[] = {
#define GROUP(title) {.name = NULL, .help = title},
#define OPTION(type_, name_, field_, preset_, min_, max_, unit_, flags_, help_)                    \
    {OPTION_IS_##type_,                                                                            \
     OPTION_##field_,                                                                              \
     name_,                                                                                        \
     offsetof(struct options, field_),                                                             \
     preset_,                                                                                      \
     min_,                                                                                         \
     max_,                                                                                         \
     unit_,                                                                                        \
     flags_,                                                                                       \
     help_},
#include "config/options.def"
#undef OPTION
#undef GROUP
};
const int option_n_rows = sizeof option_rows / sizeof option_rows[0];

void option_variable(const struct option_row *row, char out[64]) {
    int n = snprintf(out, 64, "BITDELTAD_");
    for (const char *p = row->name; *p && n < 63; p++)
        out[n++] = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
    out[n] = 0;
}

const struct option_row *option_find(const char *name, size_t n) {
    for (int i = 0; i < option_n_rows; i++)
        if (option_rows[i].name && strlen(option_rows[i].name) == n &&
            memcmp(option_rows[i].name, name, n) == 0)
            return &option_rows[i];
    return NULL;
}

/* Edits (one byte put in, taken out or changed) between two short names. */
static int distance(const char *a, size_t n_a, const char *b, size_t n_b) {
    int row[65];
    if (n_a > 64 || n_b > 64)
        return 64;
    for (size_t j = 0; j <= n_b; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= n_a; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= n_b; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            int least = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = change < least ? change : least;
        }
    }
    return row[n_b];
}

void option_suggest(const char *name, size_t n, char out[96]) {
    int least = 4;
    out[0] = 0;
    for (int i = 0; i < option_n_rows; i++) {
        if (!option_rows[i].name)
            continue;
        int d = distance(name, n, option_rows[i].name, strlen(option_rows[i].name));
        if (d < least && d < (int)n) {
            least = d;
            snprintf(out, 96, " (did you mean %s?)", option_rows[i].name);
        }
    }
}

/* A whole number with a suffix out of `suffixes` ("" for none); each is 1024 times the one before.
 * False: not a number, or more than 15 digits. */
static bool read_number(const char *text, const char *suffixes, double *value, bool *exact) {
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 15)
        return false;
    unsigned long long whole = strtoull(text, NULL, 10);
    const char *rest = text + digits;
    double factor = 1;
    if (*rest) {
        const char *at = strchr(suffixes, tolower((unsigned char)*rest));
        if (!at || rest[1])
            return false;
        for (const char *p = suffixes; p <= at; p++)
            factor *= 1024;
    }
    *value = (double)whole * factor;
    *exact = *value < 9007199254740992.0; /* 2^53: beyond it a double has gaps */
    return true;
}

static err_t set_number(void *field, const struct option_row *row, const char *text,
                        struct why *why) {
    double value;
    bool exact, size = row->type == OPTION_IS_SIZE;
    char plain[32];
    size_t n = strlen(text);
    if (row->type == OPTION_IS_SECONDS && n > 1 && n < sizeof plain && text[n - 1] == 's') {
        memcpy(plain, text, n - 1);
        plain[n - 1] = 0;
        text = plain;
    }
    if (!read_number(text, size ? "kmgt" : "", &value, &exact))
        return why_set(why, E_CONFIG, "\"%.60s\" is not a whole number%s", text,
                       size                             ? " of bytes (such as 65536, 64k, 4M, 2G)"
                       : row->type == OPTION_IS_SECONDS ? " of seconds"
                                                        : "");
    if (!exact || value < row->min || value > row->max)
        return why_set(why, E_CONFIG, "%.60s is not in the range %.0f to %.0f %s", text, row->min,
                       row->max, row->unit);
    if (size)
        *(size_t *)field = (size_t)value;
    else
        *(int *)field = (int)value;
    return E_OK;
}

static err_t set_bool(bool *field, const char *text, struct why *why) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(text, words[i]) == 0) {
            *field = i & 1;
            return E_OK;
        }
    return why_set(why, E_CONFIG, "\"%.60s\" is neither true nor false", text);
}

/* The place of `text` among words with | between; -1: not there. */
static int word_index(const char *words, const char *text) {
    size_t n = strlen(text);
    int i = 0;
    for (const char *p = words;; p++, i++) {
        size_t length = strcspn(p, "|");
        if (length == n && memcmp(p, text, n) == 0)
            return i;
        p += length;
        if (!*p)
            return -1;
    }
}

static err_t check_address(const char *text, struct why *why) {
    if (strncmp(text, "unix:", 5) == 0) {
        if (text[5] == 0 || strlen(text + 5) > MAX_SOCKET_PATH)
            return why_set(why, E_CONFIG, "the path after unix: must have 1 to %d bytes",
                           MAX_SOCKET_PATH);
        return E_OK;
    }
    const char *colon = strrchr(text, ':');
    double port;
    bool exact;
    if (!colon || colon == text || !read_number(colon + 1, "", &port, &exact) || port > 65535)
        return why_set(why, E_CONFIG,
                       "\"%.80s\" is not HOST:PORT, [IPV6]:PORT or unix:PATH (PORT 0 to 65535)",
                       text);
    bool bracketed = text[0] == '[' && colon[-1] == ']';
    if (!bracketed && memchr(text, ':', (size_t)(colon - text)))
        return why_set(why, E_CONFIG, "an IPv6 address stands in brackets: [%.*s]:%s",
                       (int)(colon - text), text, colon + 1);
    return E_OK;
}

/* Reads `text`, which o keeps, into the option's field. */
static err_t set_field(struct options *o, const struct option_row *row, const char *text,
                       struct why *why) {
    void *field = (char *)o + row->offset;
    err_t e = E_OK;
    int word;
    switch (row->type) {
    case OPTION_IS_COUNT:
    case OPTION_IS_SIZE:
    case OPTION_IS_SECONDS:
        return set_number(field, row, text, why);
    case OPTION_IS_BOOL:
        return set_bool(field, text, why);
    case OPTION_IS_CHOICE:
    case OPTION_IS_LEVEL:
        word = word_index(row->unit, text);
        if (word < 0)
            return why_set(why, E_CONFIG, "\"%.60s\" is none of %s", text, row->unit);
        if (row->type == OPTION_IS_LEVEL)
            *(enum log_level *)field = (enum log_level)word;
        else
            *(const char **)field = text;
        return E_OK;
    case OPTION_IS_ADDRESS:
        e = check_address(text, why);
        break;
    case OPTION_IS_TEXT:
    case OPTION_IS_FOLDER:
    case OPTION_IS_FILE:
        break;
    }
    if (!e)
        *(const char **)field = text;
    return e;
}

err_t option_set_row(struct options *o, const struct option_row *row, const char *value,
                     enum option_source source, int line, struct why *why) {
    if (strlen(value) > OPTION_MAX_BYTES)
        return why_set(why, E_CONFIG, "the value has more than %d bytes", OPTION_MAX_BYTES);
    char *kept = strdup(value);
    if (!kept)
        return why_set(why, E_NOMEM, "no memory for the options");
    err_t e = set_field(o, row, kept, why);
    if (e) {
        free(kept);
        return e;
    }
    free(o->text[row->index]);
    o->text[row->index] = kept;
    o->source[row->index] = source;
    o->line[row->index] = line;
    return E_OK;
}

err_t options_init(struct options *o, struct why *why) {
    memset(o, 0, sizeof *o);
    for (int i = 0; i < option_n_rows; i++) {
        if (!option_rows[i].name)
            continue;
        err_t e = option_set_row(o, &option_rows[i], option_rows[i].preset, OPTION_DEFAULT, 0, why);
        if (e) {
            options_free(o);
            return e;
        }
    }
    return E_OK;
}

void options_free(struct options *o) {
    for (int i = 0; i < OPTION_COUNT; i++)
        free(o->text[i]);
    memset(o, 0, sizeof *o);
}

err_t options_set(struct options *o, const char *name, const char *value, enum option_source source,
                  struct why *why) {
    const struct option_row *row = option_find(name, strlen(name));
    if (!row)
        return why_set(why, E_CONFIG, "there is no option %.60s", name);
    return option_set_row(o, row, value, source, 0, why);
}

static err_t read_environment(struct options *o, struct why *why) {
    for (int i = 0; i < option_n_rows; i++) {
        char name[64];
        if (!option_rows[i].name)
            continue;
        option_variable(&option_rows[i], name);
        const char *value = getenv(name);
        if (!value || !*value)
            continue;
        err_t e = option_set_row(o, &option_rows[i], value, OPTION_ENVIRONMENT, 0, why);
        if (e)
            return why_prefix(why, e, "%s", name);
    }
    return E_OK;
}

/* One argument of the command line, taken apart. */
struct argument {
    const struct option_row *row;
    const char *value; /* given or implied */
    int used;          /* words of argv */
};

static err_t read_argument(int argc, char *const *argv, int i, struct argument *a,
                           struct why *why) {
    const char *word = argv[i];
    char hint[96];
    if (strncmp(word, "--", 2) != 0 || word[2] == 0)
        return why_set(why, E_USAGE, "'%.60s' is no option; see --help", word);
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    a->row = option_find(name, n);
    a->used = 1;
    if (!a->row && !equals && strncmp(name, "no-", 3) == 0) {
        a->row = option_find(name + 3, n - 3);
        a->value = "false";
        if (a->row && a->row->type == OPTION_IS_BOOL)
            return E_OK;
        a->row = NULL;
    }
    if (!a->row) {
        option_suggest(name, n, hint);
        return why_set(why, E_USAGE, "unknown option --%.*s%s; see --help", (int)(n > 60 ? 60 : n),
                       name, hint);
    }
    if (equals) {
        a->value = equals + 1;
    } else if (a->row->type == OPTION_IS_BOOL) {
        a->value = "true";
    } else if (i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) {
        a->value = argv[i + 1];
        a->used = 2;
    } else {
        return why_set(why, E_USAGE, "--%s lacks its value", a->row->name);
    }
    return E_OK;
}

static const char *const actions[] = {"--help",
                                      "-h",
                                      "--version",
                                      "--check-config",
                                      "--print-config",
                                      "--print-options-md",
                                      "--print-options-example"};

static bool is_action(const char *word) {
    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++)
        if (strcmp(word, actions[i]) == 0)
            return true;
    return false;
}

/* Every argument once; only: the one option to take (--config, before all others), NULL: all. */
static err_t read_arguments(struct options *o, int argc, char *const *argv, const char *only,
                            struct why *why) {
    for (int i = 1; i < argc;) {
        struct argument a = {.used = 1};
        err_t e = is_action(argv[i]) ? E_OK : read_argument(argc, argv, i, &a, why);
        if (!e && a.row && (!only || strcmp(a.row->name, only) == 0)) {
            e = option_set_row(o, a.row, a.value, OPTION_COMMAND_LINE, 0, why);
            if (e == E_CONFIG)
                e = E_USAGE;
            if (e)
                why_prefix(why, e, "--%s", a.row->name);
        }
        if (e)
            return e;
        i += a.used;
    }
    return E_OK;
}

static bool asked(int argc, char *const *argv, const char *action) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], action) == 0)
            return true;
    return false;
}

/* The actions that need no values. */
static bool print_texts(int argc, char *const *argv) {
    if (asked(argc, argv, "--help") || asked(argc, argv, "-h"))
        options_print_help(stdout);
    else if (asked(argc, argv, "--version"))
        printf("bitdeltad %s\n", options_version());
    else if (asked(argc, argv, "--print-options-md"))
        options_print_markdown(stdout);
    else if (asked(argc, argv, "--print-options-example"))
        options_print_example(stdout);
    else
        return argc == 2 && options_print_manual(stdout, argv[1]);
    return true;
}

const char *options_version(void) {
    return BITDELTA_VERSION;
}

err_t options_load(struct options *o, int argc, char *const *argv, bool *done, struct why *why) {
    err_t e = options_init(o, why);
    *done = !e && print_texts(argc, argv);
    if (e || *done)
        return e;
    const char *from_environment = getenv("BITDELTAD_CONFIG");
    if (from_environment && *from_environment)
        e = options_set(o, "config", from_environment, OPTION_ENVIRONMENT, why);
    if (!e)
        e = read_arguments(o, argc, argv, "config", why);
    if (!e && *o->config)
        e = option_read_file(o, o->config, why);
    if (!e)
        e = read_environment(o, why);
    if (!e)
        e = read_arguments(o, argc, argv, NULL, why);
    if (!e)
        e = option_check_whole(o, why);
    bool check = asked(argc, argv, "--check-config"), print = asked(argc, argv, "--print-config");
    if (!e && check)
        e = option_check_paths(o, why);
    if (!e && (check || print)) {
        if (print)
            options_print(o, stdout);
        option_note_variables(stdout);
        if (check)
            printf("# the configuration is valid\n");
        *done = true;
    }
    if (e)
        options_free(o);
    return e;
}
