/* What no single value shows: options that are missing or contradict each other, and, for
 * --check-config, what a start would trip over first. A start itself does not ask whether a folder
 * exists: whoever uses it reports its own fault. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/option_row.h"

extern char **environ;

err_t option_check_whole(const struct options *o, struct why *why) {
    for (int i = 0; i < option_n_rows; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->name && (row->flags & OPTION_REQUIRED) && !*o->text[row->index]) {
            char variable[64];
            option_variable(row, variable);
            return why_set(why, E_CONFIG,
                           "--%s is missing: give it on the command line, as %s or in the "
                           "configuration file",
                           row->name, variable);
        }
    }
    size_t n = strlen(o->listen);
    bool any_port = n > 2 && strcmp(o->listen + n - 2, ":0") == 0;
    if (strcmp(o->listen, o->admin) == 0 && !any_port)
        return why_set(why, E_CONFIG, "--listen and --admin are the same address, %.100s",
                       o->listen);
    return E_OK;
}

err_t option_check_paths(const struct options *o, struct why *why) {
    for (int i = 0; i < option_n_rows; i++) {
        const struct option_row *row = &option_rows[i];
        bool folder = row->name && row->type == OPTION_IS_FOLDER;
        if (!row->name || (!folder && row->type != OPTION_IS_FILE) || !*o->text[row->index])
            continue;
        struct stat st;
        const char *path = o->text[row->index];
        if (stat(path, &st) != 0 || access(path, R_OK) != 0)
            return why_set(why, E_CONFIG, "--%s %.200s: %s", row->name, path, strerror(errno));
        if (folder ? !S_ISDIR(st.st_mode) : S_ISDIR(st.st_mode))
            return why_set(why, E_CONFIG, "--%s %.200s is %s", row->name, path,
                           folder ? "not a folder" : "a folder, not a file");
    }
    return E_OK;
}

void option_note_variables(FILE *f) {
    for (char **entry = environ; entry && *entry; entry++) {
        if (strncmp(*entry, "BITDELTAD_", 10) != 0)
            continue;
        size_t n = strcspn(*entry, "=");
        bool known = false;
        for (int i = 0; i < option_n_rows && !known; i++) {
            char name[64];
            if (!option_rows[i].name)
                continue;
            option_variable(&option_rows[i], name);
            known = strlen(name) == n && memcmp(name, *entry, n) == 0;
        }
        if (!known)
            fprintf(f, "# note: the environment variable %.*s names no option\n", (int)n, *entry);
    }
}
