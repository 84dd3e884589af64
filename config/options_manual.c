/* The manual page and the completions of bitdeltad, from the option table (option_row.h, manual.h).
 */
#include <string.h>

#include "config/manual.h"
#include "config/option_row.h"

enum { MAX_ROWS = 128, MAX_NOTE = 128 };

static const char about[] =
    "Serves one base model and many full fine-tunes of it, kept as 1-bit weight deltas, over "
    "OpenAI's HTTP API. A request names the base or a tenant as its model; requests of different "
    "tenants share every step of the model.\n\n"
    "Tenants are the files NAME.bitdelta of one folder, registered at the start or by the admin "
    "API while requests run. A page for people is served at the root of the listening address.\n\n"
    "An option is written --name VALUE or --name=VALUE; --no-name stands for --name=false. The "
    "command line wins over the environment, the environment over the configuration file, the "
    "file over the defaults. Sizes are bytes and take a suffix: k (1024), M, G, T. Durations are "
    "whole seconds.";

static const char rest[] =
    ".Sh CONFIGURATION FILE\n"
    "A line of the file named by\n"
    ".Fl -config\n"
    "is\n"
    ".Ql name = value ,\n"
    "with the names of the options; from\n"
    ".Ql #\n"
    "on it is comment.\n"
    "An unknown name or a bad value ends the start with one sentence that names file\n"
    "and line.\n"
    ".Sh ENVIRONMENT\n"
    "The variable of\n"
    ".Fl -kv-tokens\n"
    "is\n"
    ".Ev BITDELTAD_KV_TOKENS ,\n"
    "and so on for every option.\n"
    "An empty variable counts as unset.\n"
    "With\n"
    ".Ev NOTIFY_SOCKET\n"
    "and\n"
    ".Ev WATCHDOG_USEC\n"
    "the service manager is told of readiness, of the end, and that the engine goes\n"
    "on.\n"
    ".Sh SIGNALS\n"
    ".Bl -tag -width SIGTERM\n"
    ".It Dv SIGTERM , SIGINT\n"
    "New requests are refused, running ones finish, at the latest after\n"
    ".Fl -drain-timeout .\n"
    "A second signal hurries.\n"
    ".El\n"
    ".Sh FILES\n"
    ".Bl -tag -width Ds\n"
    ".It Pa /etc/bitdeltad/bitdeltad.conf\n"
    "The configuration that the systemd unit names.\n"
    "An example with every option is installed among the documentation.\n"
    ".It Pa NAME.bitdelta\n"
    "A tenant; see\n"
    ".Xr bitdelta 5 .\n"
    ".El\n"
    ".Sh EXIT STATUS\n"
    ".Bl -tag -width 64x -compact\n"
    ".It 0\n"
    "A signal ended it, and everything was finished or told.\n"
    ".It 64\n"
    "The command line is not valid.\n"
    ".It 65\n"
    "A model file is damaged or of a kind that is not served.\n"
    ".It 66\n"
    "A model folder cannot be read.\n"
    ".It 70\n"
    "The compute device failed, or memory ran out.\n"
    ".It 78\n"
    "The configuration is not valid.\n"
    ".El\n";

static const char examples[] = "bitdeltad --base Llama-2-7b-hf --deltas deltas\n"
                               "bitdeltad --config /etc/bitdeltad/bitdeltad.conf --check-config\n"
                               "curl http://127.0.0.1:8000/v1/completions \\\n"
                               "    -H 'Content-Type: application/json' \\\n"
                               "    -d '{\"model\":\"mine\",\"prompt\":\"Once\"}'\n";

/* What no table has: the words that ask for something other than serving. */
static const struct manual_option instead[] = {
    {.help = "Instead of serving"},
    {.name = "help", .help = "Print what there is."},
    {.name = "version", .help = "Print the version."},
    {.name = "check-config", .help = "Check all values, and that files and folders exist."},
    {.name = "print-config", .help = "Print the values in force and where each comes from."},
};
enum { N_INSTEAD = sizeof instead / sizeof *instead };

static enum manual_kind kind_of(const struct option_row *row) {
    switch (row->type) {
    case OPTION_IS_FOLDER:
        return MANUAL_FOLDER;
    case OPTION_IS_FILE:
        return MANUAL_FILE;
    case OPTION_IS_BOOL:
        return MANUAL_TRUTH;
    case OPTION_IS_CHOICE:
    case OPTION_IS_LEVEL:
        return MANUAL_WORDS;
    default:
        return MANUAL_TEXT;
    }
}

bool options_print_manual(FILE *f, const char *word) {
    char note[MAX_ROWS][MAX_NOTE];
    struct manual_option option[MAX_ROWS];
    int n = 0;
    for (int i = 0; i < option_n_rows && n < MAX_ROWS - N_INSTEAD; i++, n++) {
        const struct option_row *row = &option_rows[i];
        option[n] = (struct manual_option){.help = row->help};
        if (!row->name)
            continue;
        option_preset(row, note[n]);
        option[n].kind = kind_of(row);
        option[n].name = row->name;
        option[n].value = option_value(row);
        option[n].note = note[n];
        option[n].required = row->flags & OPTION_REQUIRED;
    }
    memcpy(&option[n], instead, sizeof instead);
    struct manual_command self = {.summary = "serve one base model and many 1-bit fine-tunes of it",
                                  .about = about,
                                  .examples = examples,
                                  .option = option,
                                  .n_options = n + N_INSTEAD};
    struct manual m = {
        .program = "bitdeltad", .section = 8, .rest = rest, .command = &self, .n_commands = 1};
    return manual_print(f, &m, &self, word);
}
